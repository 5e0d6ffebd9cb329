"""The flags of `foveate evaluate`, one dataclass per command; imports no torch, so that `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from foveate.clip.names import Head, Pad, TemplateName
from foveate.data.flags import AnnotationFlags, LabelMapFlags
from foveate.heads.panoptic.names import Templates
from foveate.io.outputs import FileFlags, Target
from foveate.predict.flags import Fusing, MaskFlags, Segmenting

Style = Literal["coco", "lvis", "voc07", "voc12"]
"""Whose rule detections are measured by; see `foveate.evaluate.detection`."""

View = Literal["centre", "whole"]
"""The part of an image that is embedded: its central square, or all of it in a padded square."""

MapIds = Literal["index", "dataset"]
"""What the numbers in label maps are; see `foveate.evaluate.map_results`."""


@dataclass(frozen=True, kw_only=True)
class ImageFlags(FileFlags):
    """How images are read and where the result is written."""

    data: Path
    """Folder of images, or COCO root."""
    split: str = "val"
    """train, val or test of a COCO root."""
    limit: int | None = None
    """Use only the first N images."""
    batch: int = 8
    """Images per batch."""
    workers: int = 2
    """Processes that decode images; 0 decodes in this process."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto uses CUDA if available."""
    strict: bool = False
    """Stop at the first unreadable image instead of counting it."""
    out: Path | None = None
    """Write the result to this JSON file."""

    def targets(self) -> list[Target]:
        """See `FileFlags`."""
        return [] if self.out is None else [self.target("--out", self.out)]


@dataclass(frozen=True, kw_only=True)
class DenseFlags(ImageFlags):
    """The flags of the commands that measure the dense map of one model."""

    model: str
    """Name of a CLIP, or path to a CLIP folder (OUT/model of a run): its dense map is measured."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where --model is the name of an architecture."""
    head: Head = "value"
    """How the last block makes the dense map: value is the paper's; sclip, clearclip and naclip are the training-free
    ones."""
    pad: Pad | None = None
    """Padding of the dense input: black before colour normalisation, or zero after it; default: what the model was
    trained with, black where it does not say."""


@dataclass(frozen=True, kw_only=True)
class Regions(AnnotationFlags, DenseFlags):
    """Classify annotated regions from the dense map and from crops (Fig. 2, 3 and Tab. 1 of the paper)."""

    made_by: ClassVar[str] = "foveate evaluate regions"
    data: Path
    """COCO root with panoptic annotations, or a world written by `foveate world`."""
    head: Head = "value"
    """How the last block makes the dense map: value is the paper's; sclip, clearclip and naclip are the training-free
    ones. It does not affect the rows of --masked or the crops."""
    size: tuple[int, ...] = ()
    """Sides of the dense input [pixels]; default: 1, 2 and 4 times the model's native size."""
    crops: bool = True
    """Also classify the image embeddings of crops."""
    masked: bool = False
    """Also classify regions by masked attention at each size (Tab. A3)."""
    crowd: bool = True
    """Keep segments marked as crowds, as the published evaluation does."""
    templates: TemplateName = "vild"
    """Prompts for class names: ViLD's 63 templates (the paper), CLIP's 80 for ImageNet, or none. Their embeddings are
    cached in $FOVEATE_CACHE, else ~/.cache/foveate; FOVEATE_CACHE="" turns the cache off."""


@dataclass(frozen=True, kw_only=True)
class ReferenceFlags(DenseFlags):
    """The flags of the commands that compare the dense map with the image embeddings of a reference."""

    reference: str | None = None
    """CLIP that embeds crops and images, such as the one --model was distilled from, or an architecture with its
    weights, ViT-B-16:openai; default: --model itself."""
    size: int | None = None
    """Side of the dense input [pixels]; default: four times the model's native size."""


@dataclass(frozen=True, kw_only=True)
class Agreement(ReferenceFlags):
    """Compare the dense map with the model's own crops, without labels, on any folder of images."""

    made_by: ClassVar[str] = "foveate evaluate agreement"
    grid: int = 6
    """Maximum number of rows and columns of a patch grid."""
    max_regions: int = 20
    """Maximum number of regions per image."""
    gallery: int = 50
    """Number of images whose crops each region is ranked among."""
    seed: int = 0
    """Seed of the grids and galleries, combined with each image's id."""


@dataclass(frozen=True, kw_only=True)
class Retrieval(AnnotationFlags, ReferenceFlags):
    """Retrieve images and regions with the locations of the dense map as queries (Tab. A1 of the paper)."""

    made_by: ClassVar[str] = "foveate evaluate retrieval"
    data: Path
    """COCO root with panoptic annotations, or with --no-crops any images."""
    crops: bool = True
    """Also retrieve the crops of annotated regions."""
    crowd: bool = True
    """Keep segments marked as crowds, as the published evaluation does."""
    gallery: int = 50
    """Number of images, and of regions, that each location ranks."""
    seed: int = 0
    """Seed of the galleries, combined with each image's id."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotFlags(ImageFlags):
    """The flags of the commands that measure image embeddings."""

    reference: str | None = None
    """CLIP before distillation, measured in the same run, or an architecture with its weights, ViT-B-16:openai."""
    labels: Path | None = None
    """JSON of the class names of class folders, {folder: name or [name, synonym, ...]}; default: the folders' names."""
    view: View = "centre"
    """What is embedded of a whole image: centre, its central square, as in CLIP's evaluations; whole, all of it in a
    padded square."""
    templates: TemplateName = "vild"
    """Prompts for class names: ViLD's 63 templates, CLIP's 80 for ImageNet, or none."""


@dataclass(frozen=True, kw_only=True)
class Global(AnnotationFlags, ZeroShotFlags):
    """Zero-shot classification and retrieval with image embeddings of whole images."""

    made_by: ClassVar[str] = "foveate evaluate global"
    data: Path
    """Folder of class folders (ImageNet's layout), COCO root (crops of things; captions), or tar shards with texts."""
    model: str
    """Name of a CLIP, or path to a CLIP folder (OUT/model of a run)."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where --model is the name of an architecture."""
    task: Literal["all", "classify", "retrieve"] = "all"
    """classify: needs classes; retrieve: needs captions; all: whatever the data has."""


@dataclass(frozen=True, kw_only=True)
class Pareto(AnnotationFlags, ZeroShotFlags):
    """Interpolate student and teacher weights, and measure dense against whole-image accuracy of each mixture."""

    made_by: ClassVar[str] = "foveate evaluate pareto"
    data: Path
    """COCO root with panoptic annotations, or a world written by `foveate world`."""
    model: tuple[str, ...]
    """Distilled models, each PATH or NAME=PATH (OUT/model of a run with --alpha 1)."""
    reference: str | None = None
    """The CLIP they were distilled from; required."""
    alpha: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Weights of the student; 0 is the teacher."""
    size: int | None = None
    """Side of the dense input [pixels]; default: four times the model's native size."""
    head: Head = "value"
    """How the last block makes the dense map; value is the paper's."""
    pad: Pad | None = None
    """Padding of the dense input: black before colour normalisation, or zero after it; default: each model's own."""
    global_data: Path | None = None
    """Measure whole images on this data, such as a folder of class folders, instead of on --data."""
    plot: Path | None = None
    """PNG to draw: dense accuracy against global accuracy."""

    def targets(self) -> list[Target]:
        """See `FileFlags`."""
        return [*super().targets(), *([] if self.plot is None else [self.target("--plot", self.plot)])]


@dataclass(frozen=True, kw_only=True)
class Detection(AnnotationFlags, ImageFlags, Fusing):
    """Measure a detector: AP of base and novel categories on OV-COCO, LVIS, VOC, Objects365 or the world (Sec. 4.3).

    The network processes each image once. Several --fusion pairs are evaluated on the cached candidate boxes, which
    --candidates DIR stores for later commands.
    """

    made_by: ClassVar[str] = "foveate evaluate detection"
    data: Path | None = None  # pyright: ignore[reportIncompatibleVariableOverride]  # not needed for --from-results
    """COCO, LVIS, VOC, Objects365, CVAT, FiftyOne, Roboflow or YOLO root with annotated boxes, or a world; needed
    unless --from-results and --annotations are given."""
    model: Path | None = None
    """OUT/model of `foveate train-fvit`; needed unless --from-results is given."""
    from_results: Path | None = None
    """Measure the detections of another tool, without a model: a JSON results list [{image_id, category_id, bbox,
    score, segmentation?}, ...] in the submission format of COCO and LVIS. The images are not needed. For COCO, the
    twelve metrics over all 80 categories are reported; --benchmark ov-coco reports OV-COCO's."""
    annotations: Path | None = None
    """Annotation file to read instead of the standard one: COCO, LVIS or Objects365 JSON."""
    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}; default: as for `foveate train-fvit`, and none with a transfer
    benchmark, which measures all categories."""
    vocab: str | None = None
    """Detect these classes, and measure the categories among them; default: all categories of the data."""
    style: Style | None = None
    """Protocol of AP; default: lvis for LVIS; for VOC that of the year (voc07 with transfer-voc, as published: mmdet's
    AP50 and AP75 at 11 points); coco otherwise (OV-COCO's if categories are split into base and novel)."""
    masks: bool = False
    """Also measure masks; needs a detector trained with --masks."""
    fusion: tuple[str, ...] = ()
    """Fusion weights of the frozen tower, pairs BASE,NOVEL in [0, 1], such as 0.1,0.8, for base and for novel classes;
    one row per pair; default: the benchmark's."""
    candidates: Path | None = None
    """Cache the network's candidates in this folder, or read them from it; default: a temporary folder."""
    results: Path | None = None
    """Also write the detections of the first --fusion pair as a COCO results list."""

    def targets(self) -> list[Target]:
        """See `FileFlags`; a results list has no place for a mark, and is recognised by the form of its lines."""
        results = [] if self.results is None else [Target("--results", self.results, _is_results_list)]
        return [*super().targets(), *results]


@dataclass(frozen=True, kw_only=True)
class Semantic(LabelMapFlags, Segmenting, ImageFlags):
    """Measure mIoU of all classes, of those seen in training, and of the others.

    A class is seen if it shares a name with a training class; for a model without training, if the data set's split
    lists it as base.
    """

    made_by: ClassVar[str] = "foveate evaluate semantic"
    model: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]  # not needed for --from-results
    """OUT/model of `foveate train-catseg` or `train-panoptic`; or a CLIP, whose dense map is compared with the class
    names. Needed unless --from-results is given."""
    from_results: Path | None = None
    """Measure the predictions of another tool, without a model: a folder with a label map for each image, named after
    it (8- or 16-bit PNG or TIFF with one channel), or OUT of `foveate segment`. An image without a map counts as
    missed."""
    map_ids: MapIds = "index"
    """With --from-results, what the pixel values are: index, the class index in the data set's list, from 0 (255 or
    65535: no class); dataset, the data set's native ids, as ADE20K's and VOC's servers expect. Not needed for maps of
    `foveate segment`, whose classes are matched by name."""
    all_synonyms: bool = False
    """Embed every synonym separately, and score each class by its best one. Without this flag CAT-Seg 2024 uses only
    the first name."""


@dataclass(frozen=True, kw_only=True)
class Panoptic(AnnotationFlags, MaskFlags, ImageFlags):
    """Measure panoptic segmentation with any CLIP: PQ of things and stuff, of seen classes and of others (Tab. 5).

    Masks come from a mask generator (`foveate train-panoptic`). They are classified by its class embeddings and by a
    CLIP, whose weight is smaller for classes that the mask generator has seen. The networks process each image once,
    however many --fusion weights are measured.
    """

    made_by: ClassVar[str] = "foveate evaluate panoptic"
    data: Path
    """COCO root with panoptic annotations, a world, or ADEChallengeData2016 with ade20k_panoptic_val and its .json."""
    model: Path | None = None
    """OUT/model of `foveate train-panoptic`, or a transformers folder with a Mask2Former or MaskFormer, whose classes
    are then matched with the data set's by name; needed unless --from-results is given."""
    from_results: Path | None = None
    """Measure the predictions of another tool, without a model: the folder of panoptic PNGs with their JSON, in COCO's
    submission format, or that JSON. The images of --data are not needed. Each image needs a prediction, as in
    panopticapi."""
    fusion: tuple[str, ...] = ()
    """Fusion weights of CLIP in the score of a class, one row each: odise-label (.3 of seen, .7 of other classes),
    odise-caption (.35, .65), fc-clip (.4, .8), clip (1, 1), generator (0, 0), or two numbers such as 0.2,0.9. Default:
    odise-label, clip and generator; only clip for a mask generator without classes, and only generator for a
    transformers folder without --classifier."""
    squash: bool = True
    """Resize images to a square, as ODISE does; otherwise the aspect ratio is kept and --size is the longest side."""
    labels: Path | None = None
    """File of the names of each class, `id:name,synonym` per line, as in OpenSeg, by the data set's ids or in their
    order; default: the names of the annotation file."""
    templates: Templates | None = None
    """Prompts for class names for --classifier; default: as in training."""
    min_score: float | None = None
    """Score that a mask must exceed to become a segment (object mask threshold); default: 0 (ODISE), and 0.8 for a
    transformers folder (Mask2Former's for COCO)."""
    overlap: float = 0.8
    """Fraction of a mask that must not be covered by better masks for it to become a segment."""
    metrics: tuple[Literal["pq", "miou", "ap"], ...] = ("pq",)
    """pq: always measured; miou: also mIoU of the sum of all masks; ap: also COCO's mask AP of things, against the
    things of the panoptic annotations."""


def _is_results_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(14) in (b'[\n{"image_id":', b"[\n]\n")
