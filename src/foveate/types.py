"""What all rooms share: the letters of shapes, the box format, and the dataclasses that pass between rooms.

Letters in signatures and shape comments:

    B images           N boxes or segments of one image     R regions of a batch
    K classes          D embedding size                     C channels, token width
    L tokens           H W pixels                           h w locations of a dense map: its patch grid
    P patch size       Q queries

Boxes are float32 xyxy in pixels with x1 < x2 and y1 < y2, one (N, 4) tensor per image: pixels of the *image file* in a
`Sample`, of the *padded input* once the image was resized for a tower. Other formats are converted where they are read.
Images are uint8 RGB (3, H, W) until they are on the compute device.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from unicodedata import category, normalize

import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Category:
    """One class of a data set; its index in the data set's list is its label."""

    id: int  # as the annotation file numbers it
    name: str
    is_thing: bool
    synonyms: tuple[str, ...] = ()  # LVIS and ADE20K
    frequency: str | None = None  # LVIS: "r", "c" or "f" (rare, common, frequent)


@dataclass(frozen=True)
class Segments:
    """The annotated segments of one image, things and stuff."""

    boxes: Float[Tensor, "N 4"]  # xyxy, pixels of the image; stuff: the extent of its mask
    masks: Bool[Tensor, "N H W"]
    labels: Int64[Tensor, " N"]  # index in the data set's categories
    is_thing: Bool[Tensor, " N"]


@dataclass(frozen=True)
class LabelMap:
    """The class of each pixel of one image: semantic ground truth, or a prediction."""

    labels: Int64[Tensor, "H W"]  # index in the vocabulary; -1: no class


@dataclass(frozen=True)
class Sample:
    """One decoded image with its regions or annotations."""

    id: str  # as in messages: the JSON's image id, or the path within a folder
    image: UInt8[Tensor, "3 H W"]
    boxes: Float[Tensor, "N 4"]  # regions to train on or to compare; xyxy, pixels of the image
    segments: Segments | None = None  # where annotations were requested
    caption: str | None = None  # where an objective learns from captions
    label_map: LabelMap | None = None  # semantic data
    is_boxless: bool = False  # no box was usable: `boxes` is a corner of the image, which is not enlarged
    remark: str = ""  # what is odd about the image, which is used all the same


def blank_sample(side: int = 8) -> Sample:
    """A black image without boxes, for a process without usable images, which must take every step with the others."""
    return Sample("", torch.zeros(3, side, side, dtype=torch.uint8), torch.zeros(0, 4))


@dataclass(frozen=True)
class Detections:
    """The detections in one image, best first."""

    boxes: Float[Tensor, "N 4"]  # xyxy, pixels of the image
    scores: Float[Tensor, " N"]
    labels: Int64[Tensor, " N"]  # index in the queried vocabulary
    masks: tuple[dict, ...] | None = None  # COCO's compressed run lengths, of the whole image; None: boxes only
    xywh: Float64[Tensor, "N 4"] | None = None  # left, top, width, height, exactly as in a results file


@dataclass(frozen=True)
class SegmentInfo:
    """One segment of a panoptic map."""

    id: int  # its value in the map, at least 1
    label: int  # index in the vocabulary
    is_thing: bool
    score: float = 1.0
    is_crowd: bool = False  # ground truth: a group of things of a class, which need not be found


@dataclass(frozen=True)
class PanopticMap:
    """The segment of each pixel of one image: panoptic ground truth, or a prediction."""

    ids: Int64[Tensor, "H W"]  # 0: none; else the `id` of a segment
    segments: tuple[SegmentInfo, ...]


@dataclass(frozen=True)
class BadSample:
    """An image that could not be used, and why; it is counted and reported, never replaced."""

    id: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """The usable and the unusable samples of one step, in the sampler's order."""

    samples: list[Sample]
    bad: list[BadSample]


_BETWEEN_WORDS = re.compile("[\\s_\\-\u2010-\u2015]+")  # blanks, "_" and all dashes
_CODE = re.compile(r"\d+|n\d{8}")


@lru_cache(maxsize=2**17)
def normalize_name(name: str) -> str:
    """The form in which class names are compared: what differs only in this form is the same name.

    Without case, Unicode's composition (NFKC), invisible characters, and quotes and blanks around the name; "_", "-"
    and blanks are one blank.
    """
    if not name.isascii():
        name = "".join(character for character in normalize("NFKC", name) if category(character) != "Cf")
        name = name.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})
    return _BETWEEN_WORDS.sub(" ", name.casefold()).strip(" '\"")


def repeated_name(names: Iterable[str]) -> tuple[str, str] | None:
    """Two of the names that are compared as the same; None: there are none."""
    first: dict[str, str] = {}
    for name in names:
        key = normalize_name(name)
        if key in first:
            return first[key], name
        first[key] = name
    return None


def is_code(name: str) -> bool:
    """Whether a class name is a number or a WordNet id (n01440764), which is no word that a text tower knows."""
    return _CODE.fullmatch(name.strip()) is not None
