"""The flags of `foveate segment`, `detect` and `embed`; nothing here imports torch, so that help answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from foveate.clip.names import Head, RegionHead, TemplateName
from foveate.heads.fvit.names import Benchmark
from foveate.heads.panoptic.names import Region

What = Literal["image", "dense", "boxes"]


@dataclass(frozen=True, kw_only=True)
class MaskFlags:
    """The models behind masks: a generator, and a CLIP that names them."""

    clip: str | None = None
    """Path to the CLIP that the model was trained on, where it has moved."""
    encoder: Path | None = None
    """With a generator of masks: path to the folder that its encoder was read from, where it has moved."""
    classifier: str | None = None
    """With a generator of masks: the CLIP that classifies them, such as OUT/model of a distillation, or an architecture
    with its weights as ViT-B-16:openai; default: its own; none for a folder of transformers, which classifies its masks
    itself."""
    mask_pooling: Region = "dense"
    """With a generator of masks: how the CLIP embeds one: the mean of its dense map, or masked attention (ODISE's)."""
    head: Head = "value"
    """What becomes of the CLIP's last block; value is the paper's; see `foveate evaluate regions`."""
    size: int | None = None
    """Side of the square input of the CLIP that names masks [pixels], a multiple of its patch; default: its own. For
    foveate-small 192, three times its own, is far better on the world."""
    input_edges: tuple[int, int] | None = None
    """With a folder of transformers: the shortest edge of the input, and the most that the longest may have [pixels];
    default: the folder's, or 800 1333 where that asks for a fixed height and width."""


@dataclass(frozen=True, kw_only=True)
class Segmenting(MaskFlags):
    """How pixels are assigned to classes."""

    model: str
    """OUT/model of `foveate train-catseg` or `train-panoptic`; a folder of transformers with a Mask2Former or
    MaskFormer and its classes; or a CLIP, whose dense map is compared with the class names."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where --model is the name of an architecture."""
    size: int | None = None
    """With a CLIP: longest side of its input; with a generator: side of the square input of the CLIP that names masks
    [pixels]. Default: four times the CLIP's own size, and its own size."""
    templates: TemplateName = "vild"
    """With a CLIP: what class names are written into: ViLD's 63 templates, CLIP's 80 for ImageNet, or nothing."""
    fusion: str | None = None
    """With a generator of masks: CLIP's weight in the score of a class, as --fusion of `foveate evaluate panoptic`;
    default: odise-label, and clip for a generator without class names."""


@dataclass(frozen=True, kw_only=True)
class Segment(Segmenting):
    """Give every pixel of images a class of any vocabulary.

    OUT/ gets an overlay NAME.jpg and a label map NAME.png per image (a pixel's number is the class's index in the
    vocabulary, from 0; 255 or 65535: none), and segments.json with the classes of each image. With --panoptic the
    things of one class are separated, and NAME.png and panoptic.json are of COCO's panoptic form.
    """

    images: Positional[tuple[Path, ...]]
    """Images, and folders that are searched with all below them."""
    out: Path
    """Folder to write to."""
    vocab: str | None = None
    """Class names separated by commas, or a .txt or .json file of them with synonyms; default: the classes that
    the model was trained on."""
    panoptic: bool = False
    """Also separate the things of one class; needs a model of `foveate train-panoptic`, or a folder of transformers
    with a Mask2Former or MaskFormer."""
    stuff: str = ""
    """With --panoptic: names of the vocabulary that are stuff, separated by commas; those that the model was trained on
    as stuff are, as far as its folder tells."""
    min_score: float | None = None
    """With --panoptic: score that a mask must exceed; default: 0, and 0.8 for a folder of transformers."""
    overlap: float | None = None
    """With --panoptic: share of a mask that must be left where better ones lie over it; default: 0.8."""
    batch: int = 8
    """Images per batch."""
    workers: int = 2
    """Processes that decode images; 0 = none besides this one."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto = cuda where there is one."""
    strict: bool = False
    """Exit at the first image that cannot be read, instead of listing it."""


@dataclass(frozen=True, kw_only=True)
class Fusing:
    """How the detector's score and the tower's become one, and which boxes are kept."""

    benchmark: Benchmark | None = None
    """The numbers of this benchmark; default: those that the detector was trained for."""
    temperature: float | None = None
    """Tv, which the tower's cosines are multiplied by before the softmax."""
    detector_temperature: float | None = None
    """T, which the detector's cosines are multiplied by; default: 50 with a transfer benchmark, as published,
    and what the detector learned with all others."""
    min_score: float | None = None
    """Boxes with a higher score are kept."""
    nms: float | None = None
    """Of two boxes of a class that overlap by more, the one with the lower score goes."""
    max_boxes: int | None = None
    """Maximum number of boxes per image."""
    templates: TemplateName | None = None
    """What class names are written into; default: as in training."""
    clip: str | None = None
    """Path to the CLIP that the detector was trained on, where it has moved."""


@dataclass(frozen=True, kw_only=True)
class Detect(Fusing):
    """Find objects of any vocabulary in images with a trained F-ViT.

    OUT/ gets a drawing with boxes for each image, classes the detector was trained on in blue and others in red
    (App. D), and detections.json in COCO's form: images, categories and annotations with scores.
    """

    images: Positional[tuple[Path, ...]]
    """Images, and folders that are searched with all below them."""
    model: Path
    """OUT/model of `foveate train-fvit`."""
    out: Path
    """Folder to write to."""
    vocab: str | None = None
    """Class names separated by commas, or a .txt or .json file of them; default: those of the training data."""
    draw: float = 0.3
    """Draw what has at least this score."""
    fusion: str | None = None
    """The tower's weights in the score, such as 0.1,0.8 in [0, 1]: of classes that the detector was trained on, and of
    others; default: the benchmark's."""
    batch: int = 8
    """Images per batch."""
    workers: int = 2
    """Processes that decode images; 0 = none besides this one."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto = cuda where there is one."""
    strict: bool = False
    """Exit at the first image that cannot be read, instead of listing it."""


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Write features of images into F.safetensors, and F.json beside it.

    F.json lists the images in order (id, height, width) and those that could not be read. An id is the path within
    the folder that was named, or the name of the file that was. F.safetensors holds, all L2-normalised,

      --what image  image (B, D): row i is the i-th image of F.json. The whole
                    image is fitted into a square of the model's own size, black
                    around it, as CLIPSelf's teacher sees its crops.
      --what dense  dense/ID (D, h, w): location (r, c) is the patch at (r, c)
                    of the image resized to `resized` of F.json, [height,
                    width]; the padding of the square input is left out.
      --what boxes  boxes/ID (N, D): a row per box in the order of --boxes.
                    Boxes are clipped to the image; those under one pixel wide
                    or high have no row, and F.json lists them as `dropped`.

    The same command continues a stopped one (from F.safetensors.parts/); with as many threads it gives the same bytes.
    """

    images: Positional[tuple[Path, ...]]
    """Images, and folders that are searched with all below them."""
    out: Path
    """F.safetensors to write. F.json goes beside it, and unfinished work into F.safetensors.parts/."""
    what: What | None = None
    """Which features, see above; default: boxes where --boxes is given, else image."""
    boxes: Path | None = None
    """Boxes to embed, in pixels of the image: COCO's images and annotations, or {ID: [[x1, y1, x2, y2], ...]}."""
    model: str = "foveate-small"
    """Name of a CLIP, or a folder with one (OUT/model of a run)."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where `model` is the name of an architecture."""
    size: int | None = None
    """Side of the square input of dense and boxes [pixels]; default: four times the model's own size."""
    head: RegionHead = "value"
    """What becomes of the last block, for dense and boxes; value is the paper's. masked is for boxes alone."""
    batch: int | None = None
    """Images per batch; default: 64 for image, 8 for dense and boxes."""
    workers: int = 2
    """Processes that decode images; 0 = none besides this one."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto = cuda where there is one."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type in which features are stored; they are computed in float32."""
    strict: bool = False
    """Exit at the first image that cannot be read, instead of listing it."""

    @property
    def features(self) -> What:
        """Which features, also where `what` was not given."""
        return self.what or ("image" if self.boxes is None else "boxes")
