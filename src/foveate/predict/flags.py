"""The flags of `foveate segment`, `detect` and `embed`; nothing here imports torch, so that help answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tyro.conf import Positional

from foveate.clip.names import Head, RegionHead, TemplateName
from foveate.data.flags import AnnotationFlags
from foveate.errors import InputError
from foveate.heads.fvit.names import Benchmark
from foveate.heads.panoptic.names import Region
from foveate.io.outputs import FileFlags, Target, has_mark

What = Literal["image", "dense", "boxes"]


@dataclass(frozen=True, kw_only=True)
class MaskFlags:
    """The models behind masks: a mask generator, and a CLIP that classifies them."""

    clip: str | None = None
    """Path to the CLIP that the model was trained on, if it has moved."""
    encoder: Path | None = None
    """With a mask generator: path to the folder of its encoder, if it has moved."""
    classifier: str | None = None
    """With a mask generator: the CLIP that classifies its masks, such as OUT/model of a distillation, or an
    architecture with its weights, such as ViT-B-16:openai; default: the CLIP it was trained on; none for a transformers
    folder, which classifies its masks itself."""
    mask_pooling: Region = "dense"
    """With a mask generator: how the CLIP embeds a mask: dense, the mean of its dense map; masked, masked attention
    (ODISE's)."""
    head: Head = "value"
    """How the CLIP's last block makes the dense map; value is the paper's; see `foveate evaluate regions`."""
    size: int | None = None
    """Side of the square input of the CLIP that classifies masks [pixels], a multiple of its patch size; default: its
    native size. For foveate-small 192, three times the native size, is far better on the world."""
    input_edges: tuple[int, int] | None = None
    """With a transformers folder: length of the input's shortest edge, and maximum length of the longest [pixels];
    default: the folder's, or 800 1333 where it specifies a fixed height and width."""


@dataclass(frozen=True, kw_only=True)
class Segmenting(MaskFlags):
    """How pixels are assigned to classes."""

    model: str
    """OUT/model of `foveate train-catseg` or `train-panoptic`; a transformers folder with a Mask2Former or MaskFormer
    and its classes; or a CLIP, whose dense map is compared with the class names."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where --model is the name of an architecture."""
    size: int | None = None
    """With a CLIP: longest side of its input [pixels]; default: four times its native size. With a mask generator: side
    of the square input of the CLIP that classifies masks; default: its native size."""
    templates: TemplateName = "vild"
    """With a CLIP: prompt templates for class names: ViLD's 63, CLIP's 80 for ImageNet, or none."""
    fusion: str | None = None
    """With a mask generator: CLIP's weight in the score of a class, as --fusion of `foveate evaluate panoptic`;
    default: odise-label, and clip for a mask generator without class names."""


@dataclass(frozen=True, kw_only=True)
class Segment(Segmenting, FileFlags):
    """Label every pixel of images with a class of any vocabulary.

    Writes to OUT an overlay NAME.jpg and a label map NAME.png per image (pixel values are class indices in the
    vocabulary, from 0; 255 or 65535: no class), and segments.json with the classes of each image. With --panoptic,
    instances of things are separated, and NAME.png and panoptic.json are in COCO's panoptic format.
    """

    made_by: ClassVar[str] = "foveate segment"
    images: Positional[tuple[Path, ...]]
    """Images, or folders that are searched recursively."""
    out: Path
    """Folder to write to."""
    vocab: str | None = None
    """Class names separated by commas, or a .txt or .json file of them, with synonyms; default: the classes that the
    model was trained on."""
    panoptic: bool = False
    """Panoptic segmentation: also separate instances of things; needs a model of `foveate train-panoptic`, or a
    transformers folder with a Mask2Former or MaskFormer."""
    stuff: str = ""
    """With --panoptic: names in the vocabulary that are stuff, separated by commas, in addition to those that the model
    was trained on as stuff, if its folder records them."""
    min_score: float | None = None
    """With --panoptic: score that a mask must exceed; default: 0, and 0.8 for a transformers folder."""
    overlap: float | None = None
    """With --panoptic: fraction of a mask that must not be covered by better masks; default: 0.8."""
    batch: int = 8
    """Images per batch."""
    workers: int = 2
    """Processes that decode images; 0 decodes in this process."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto uses CUDA if available."""
    strict: bool = False
    """Stop at the first unreadable image instead of listing it."""

    @property
    def record(self) -> Path:
        """The JSON file in OUT beside the drawings."""
        return self.out / ("panoptic.json" if self.panoptic else "segments.json")

    def targets(self) -> list[Target]:
        """See `FileFlags`; the drawings are checked when their images are listed."""
        return [self.target("--out", self.record)]


@dataclass(frozen=True, kw_only=True)
class Fusing:
    """How the detector's and the frozen tower's scores are fused, and which boxes are kept."""

    benchmark: Benchmark | None = None
    """Benchmark whose fusion weights and thresholds are used; default: the one the detector was trained for."""
    temperature: float | None = None
    """Factor of the frozen tower's cosines before the softmax (Tv); default: the benchmark's."""
    detector_temperature: float | None = None
    """Factor of the detector's cosines (T); default: 50 with a transfer benchmark, as published, and the learned value
    otherwise."""
    min_score: float | None = None
    """Score that a box must exceed; default: the benchmark's."""
    nms: float | None = None
    """IoU threshold of non-maximum suppression per class; default: the benchmark's."""
    max_boxes: int | None = None
    """Maximum number of boxes per image; default: the benchmark's."""
    templates: TemplateName | None = None
    """Prompt templates for class names; default: as in training."""
    clip: str | None = None
    """Path to the CLIP that the detector was trained on, if it has moved."""


@dataclass(frozen=True, kw_only=True)
class Detect(Fusing, FileFlags):
    """Find objects of any vocabulary in images with a trained F-ViT.

    Writes to OUT a drawing with boxes for each image, with the classes the detector was trained on in blue and others
    in red (App. D), and detections.json in COCO's format: images, categories and annotations with scores.
    """

    made_by: ClassVar[str] = "foveate detect"
    images: Positional[tuple[Path, ...]]
    """Images, or folders that are searched recursively."""
    model: Path
    """OUT/model of `foveate train-fvit`."""
    out: Path
    """Folder to write to."""
    vocab: str | None = None
    """Class names separated by commas, or a .txt or .json file of them; default: those of the training data."""
    draw: float = 0.3
    """Minimum score of the boxes that are drawn."""
    fusion: str | None = None
    """Fusion weights of the frozen tower, BASE,NOVEL in [0, 1], such as 0.1,0.8: for classes that the detector was
    trained on, and for others; default: the benchmark's."""
    batch: int = 8
    """Images per batch."""
    workers: int = 2
    """Processes that decode images; 0 decodes in this process."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto uses CUDA if available."""
    strict: bool = False
    """Stop at the first unreadable image instead of listing it."""

    @property
    def record(self) -> Path:
        """The JSON file in OUT beside the drawings."""
        return self.out / "detections.json"

    def targets(self) -> list[Target]:
        """See `FileFlags`; the drawings are checked when their images are listed."""
        return [self.target("--out", self.record)]


@dataclass(frozen=True, kw_only=True)
class Embed(FileFlags, AnnotationFlags):
    """Write features of images into F.safetensors, and F.json beside it.

    F.json lists the images in order (id, height, width) and those that could not be read. An id is the path within
    the given folder, or the name of the given file. F.safetensors holds, all L2-normalised,

      --what image  image (B, D): row i is the i-th image of F.json. The whole
                    image is resized to fit a square of the model's native size,
                    padded with black, as CLIPSelf's teacher sees its crops.
      --what dense  dense/ID (D, h, w): location (r, c) is the patch at (r, c)
                    of the image resized to `resized` of F.json, [height,
                    width]; the padding of the square input is cut off.
      --what boxes  boxes/ID (N, D): a row per box in the order of --boxes.
                    Boxes are clipped to the image; those under one pixel wide
                    or high have no row, and F.json lists them as `dropped`.

    The same command resumes a stopped one (from F.safetensors.parts/); with the same number of threads the output is
    byte-identical.
    """

    made_by: ClassVar[str] = "foveate embed"
    images: Positional[tuple[Path, ...]]
    """Images, or folders that are searched recursively."""
    out: Path
    """F.safetensors to write. F.json goes beside it, and unfinished work into F.safetensors.parts/."""
    what: What | None = None
    """Which features, see above; default: boxes where --boxes is given, else image."""
    boxes: Path | None = None
    """Boxes to embed, in pixels of the image: COCO's images and annotations, or {ID: [[x1, y1, x2, y2], ...]}."""
    model: str = "foveate-small"
    """Name of a CLIP, or path to a CLIP folder (OUT/model of a run)."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where --model is the name of an architecture."""
    size: int | None = None
    """Side of the square input of dense and boxes [pixels]; default: four times the model's native size."""
    head: RegionHead = "value"
    """How the last block makes dense and box features; value is the paper's. masked is for boxes only."""
    batch: int | None = None
    """Images per batch; default: 64 for image, 8 for dense and boxes."""
    workers: int = 2
    """Processes that decode images; 0 decodes in this process."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto uses CUDA if available."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type in which features are stored; they are computed in float32."""
    strict: bool = False
    """Stop at the first unreadable image instead of listing it."""

    def targets(self) -> list[Target]:
        """See `FileFlags`; the command compares an existing .safetensors with its own identity."""
        if self.out.suffix != ".safetensors":
            raise InputError(f"--out: need the name of a .safetensors file; got {self.out}.")
        notes = self.target("--out (the .json beside it)", self.out.with_suffix(".json"))
        # a file of features has no mark; with --overwrite it is known by the .json beside it
        is_own = (lambda _: has_mark(notes.path, self.made_by)) if self.overwrite else (lambda _: True)
        return [Target("--out", self.out, is_own), notes]

    @property
    def features(self) -> What:
        """Which features, also where `what` was not given."""
        return self.what or ("image" if self.boxes is None else "boxes")
