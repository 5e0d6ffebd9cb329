"""The words every room shares: the letters legend, the box convention, and the records that travel between rooms.

Letters, used in every signature and shape comment:

    B images           N boxes or segments of one image     R regions of a batch
    K classes          D embedding size                     C token width
    L tokens           H W pixels                           h w patch grid
    P patch size       Q queries

Boxes are float32 xyxy in pixels with x1 < x2 and y1 < y2, one (N_i, 4) tensor an image: of the *image* as it
lies on disk in a `Sample`, of the *padded input* once the image was resized for a tower. Other formats are converted
where they are read. Images are uint8 RGB (3, H, W) until the compute device has them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Category:
    """One class of a data set; its place in the data set's list is its label."""

    id: int  # as the annotation file numbers it
    name: str
    is_thing: bool
    synonyms: tuple[str, ...] = ()  # of LVIS, and of ADE20K, whose names are lists
    frequency: str | None = None  # LVIS only: "r", "c" or "f" (rare, common, frequent)


@dataclass(frozen=True)
class Segments:
    """The annotated segments of one image, things and stuff."""

    boxes: Float[Tensor, "N 4"]  # xyxy, pixels of the image; stuff: the extent of its mask
    masks: Bool[Tensor, "N H W"]
    labels: Int64[Tensor, " N"]  # place in the data set's categories
    is_thing: Bool[Tensor, " N"]


@dataclass(frozen=True)
class LabelMap:
    """Of every pixel of one image its class: semantic ground truth, or a prediction."""

    labels: Int64[Tensor, "H W"]  # place in the vocabulary; -1: none (whatever number a data set's files use for it)


@dataclass(frozen=True)
class Sample:
    """One decoded image and what is asked about it."""

    id: str  # names the image in every message: the json's image id, or the path within a folder
    image: UInt8[Tensor, "3 H W"]
    boxes: Float[Tensor, "N 4"]  # the regions to train on or to compare; xyxy, pixels of the image
    segments: Segments | None = None  # only where an evaluation asked for annotations
    caption: str | None = None  # only where an objective learns from captions
    label_map: LabelMap | None = None  # only of semantic data
    is_boxless: bool = False  # no box of its own was usable: `boxes` is a corner, which no crop enlarges


def blank_sample(side: int = 8) -> Sample:
    """A black image without boxes, so that a process without usable images takes every step that the others take."""
    return Sample("", torch.zeros(3, side, side, dtype=torch.uint8), torch.zeros(0, 4))


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image, best first."""

    boxes: Float[Tensor, "N 4"]  # xyxy, pixels of the image
    scores: Float[Tensor, " N"]
    labels: Int64[Tensor, " N"]  # place in the vocabulary that was asked for
    masks: tuple[dict, ...] | None = None  # COCO's compressed run lengths, of the whole image; None: boxes only
    xywh: Float64[Tensor, "N 4"] | None = None  # left, top, width, height as a results file has them; measured exactly


@dataclass(frozen=True)
class SegmentInfo:
    """What one segment of a panoptic map is."""

    id: int  # its number in the map, at least 1
    label: int  # place in the vocabulary
    is_thing: bool
    score: float = 1.0
    is_crowd: bool = False  # ground truth only: many things of a class together, which need not be found


@dataclass(frozen=True)
class PanopticMap:
    """Of every pixel of one image the segment it belongs to: panoptic ground truth, or a prediction."""

    ids: Int64[Tensor, "H W"]  # 0: none; else the `id` of a segment
    segments: tuple[SegmentInfo, ...]


@dataclass(frozen=True)
class BadSample:
    """An image that could not be used, and why. It is counted and reported, never replaced."""

    id: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """The good and the bad samples of one step, in the sampler's order."""

    samples: list[Sample]
    bad: list[BadSample]


def normalize_name(name: str) -> str:
    """The form in which class names are compared: lower case, "_" as a blank, single blanks between words."""
    return " ".join(name.replace("_", " ").lower().split())
