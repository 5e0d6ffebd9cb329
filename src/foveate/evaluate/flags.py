"""The flags of `foveate evaluate`, one dataclass per command; imports no torch, so that `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foveate.clip.names import Head, Pad, TemplateName
from foveate.data.flags import LabelMapFlags
from foveate.heads.panoptic.names import Templates
from foveate.predict.flags import Fusing, MaskFlags, Segmenting

Style = Literal["coco", "lvis", "voc07", "voc12"]
"""Whose rule detections are measured by; see `foveate.evaluate.detection`."""

View = Literal["centre", "whole"]
"""The part of an image that is embedded: its central square, or all of it in a padded square."""

MapIds = Literal["index", "dataset"]
"""What the numbers in label maps are; see `foveate.evaluate.map_results`."""


@dataclass(frozen=True, kw_only=True)
class ImageFlags:
    """How images are read and where the result is written."""

    data: Path
    """Folder of images, or COCO root."""
    split: str = "val"
    """train, val or test of a COCO root."""
    limit: int | None = None
    """Only the first so many images."""
    batch: int = 8
    """Images per batch."""
    workers: int = 2
    """Processes that decode images; 0 = none besides this one."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto = cuda where there is one."""
    strict: bool = False
    """Stop at the first image that cannot be read, instead of counting it."""
    out: Path | None = None
    """Write the result to this JSON file."""


@dataclass(frozen=True, kw_only=True)
class DenseFlags(ImageFlags):
    """The flags of the commands that measure the dense map of one model."""

    model: str
    """Name of a CLIP, or path to one (OUT/model of a run): its dense map is measured."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where `model` is the name of an architecture."""
    head: Head = "value"
    """How the last block makes the dense map: value is the paper's; sclip, clearclip and naclip are the training-free
    ones."""
    pad: Pad | None = None
    """Padding of the dense input: black before colour normalisation, or zero after it; default: what the model was
    trained with, black where it does not say."""


@dataclass(frozen=True, kw_only=True)
class Regions(DenseFlags):
    """Classify annotated regions from the dense map and from crops (Fig. 2, 3 and Tab. 1 of the paper)."""

    data: Path
    """COCO root with panoptic annotations, or a world written by `foveate world`."""
    head: Head = "value"
    """How the last block makes the dense map: value is the paper's; sclip, clearclip and naclip are the training-free
    ones. The rows of --masked and the crops do not depend on it."""
    size: tuple[int, ...] = ()
    """Sides of the dense input [pixels]; default: the model's own size, twice and four times it."""
    crops: bool = True
    """Also classify crops with the image tower."""
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
    """CLIP that embeds crops and images, such as the one `model` was distilled from, or an architecture with its
    weights, ViT-B-16:openai; default: `model` itself."""
    size: int | None = None
    """Side of the dense input [pixels]; default: four times the model's own size."""


@dataclass(frozen=True, kw_only=True)
class Agreement(ReferenceFlags):
    """Compare the dense map with the model's own crops, without labels, on any folder of images."""

    grid: int = 6
    """Most rows and columns of an image's grid of patches."""
    max_regions: int = 20
    """Maximum number of patches per image."""
    gallery: int = 50
    """Images whose crops a patch is ranked among."""
    seed: int = 0
    """Decides grids and galleries, together with each image's id."""


@dataclass(frozen=True, kw_only=True)
class Retrieval(ReferenceFlags):
    """Let every location of the dense map retrieve its image and its region among others (Tab. A1 of the paper)."""

    data: Path
    """COCO root with panoptic annotations, or with --no-crops any images."""
    crops: bool = True
    """Also retrieve the crops of annotated regions."""
    crowd: bool = True
    """Keep segments marked as crowds, as the published evaluation does."""
    gallery: int = 50
    """Images, and regions, that a location ranks."""
    seed: int = 0
    """Decides the galleries, together with each image's id."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotFlags(ImageFlags):
    """The flags of the commands that measure image embeddings."""

    reference: str | None = None
    """CLIP before distillation, measured in the same run, or an architecture with its weights, ViT-B-16:openai."""
    labels: Path | None = None
    """JSON of the class names of class folders, {folder: name or [name, synonym, ...]}; default: the folders' names."""
    view: View = "centre"
    """Of whole images: their central square, as CLIP's own evaluations; or all of it in a padded square."""
    templates: TemplateName = "vild"
    """Prompts for class names: ViLD's 63 templates, CLIP's 80 for ImageNet, or none."""


@dataclass(frozen=True, kw_only=True)
class Global(ZeroShotFlags):
    """Zero-shot classification and retrieval with image embeddings: what a model still knows of whole images."""

    data: Path
    """Folder of class folders (ImageNet's layout), COCO root (crops of things; captions), or tar shards with texts."""
    model: str
    """Name of a CLIP, or path to one (OUT/model of a run)."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where `model` is the name of an architecture."""
    task: Literal["all", "classify", "retrieve"] = "all"
    """classify, where the data has classes; retrieve, where it has captions; or all that the data has."""


@dataclass(frozen=True, kw_only=True)
class Pareto(ZeroShotFlags):
    """Mix student and teacher weights, and measure what each mix gains in the dense map and loses on whole images."""

    data: Path
    """COCO root with panoptic annotations, or a world written by `foveate world`."""
    model: tuple[str, ...]
    """Distilled models, each PATH or NAME=PATH (OUT/model of a run with --alpha 1)."""
    reference: str | None = None
    """The CLIP they were distilled from; needed."""
    alpha: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Weights of the student; 0 is the teacher."""
    size: int | None = None
    """Side of the dense input [pixels]; default: four times the model's own size."""
    head: Head = "value"
    """How the last block makes the dense map; value is the paper's."""
    pad: Pad | None = None
    """Padding of the dense input: black before colour normalisation, or zero after it; default: each model's own."""
    global_data: Path | None = None
    """Measure whole images on this data, such as a folder of class folders, instead of on `data`."""
    plot: Path | None = None
    """PNG to draw: dense accuracy against global accuracy."""


@dataclass(frozen=True, kw_only=True)
class Detection(ImageFlags, Fusing):
    """Measure a detector: AP of base and novel categories on OV-COCO, LVIS, VOC, Objects365 or the world (Sec. 4.3).

    The network sees each image once. Several --fusion pairs are measured from its cached
    candidates, and --candidates DIR keeps these for another command.
    """

    data: Path | None = None  # pyright: ignore[reportIncompatibleVariableOverride]  # not needed for --from-results
    """COCO, LVIS, VOC or Objects365 root with annotated boxes, or a world; needed unless --from-results and
    --annotations are given."""
    model: Path | None = None
    """OUT/model of `foveate train-fvit`; needed unless --from-results is given."""
    from_results: Path | None = None
    """Measure the detections of another program, without any model: a list of results [{image_id, category_id, bbox,
    score, segmentation?}, ...] in JSON, as COCO's and LVIS's servers take it. The images themselves are not needed.
    COCO's 80 categories then count alike, by COCO's twelve numbers; --benchmark ov-coco measures OV-COCO's."""
    annotations: Path | None = None
    """Annotation file to read in place of the one in the standard location: COCO, LVIS or Objects365 JSON."""
    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}; default: as for `foveate train-fvit`, and none with a transfer
    benchmark, which measures all categories."""
    vocab: str | None = None
    """Detect these classes, and measure the categories among them; default: all categories of the data."""
    style: Style | None = None
    """Whose rule; default: LVIS's for its data, VOC's of the year for its own (voc07 with transfer-voc, as published:
    mmdet's AP50 and AP75 at 11 points), COCO's (with a split: OV-COCO's) for all other."""
    masks: bool = False
    """Also measure masks, of a detector that finds them."""
    fusion: tuple[str, ...] = ()
    """The tower's weights in the score, pairs such as 0.1,0.8 in [0, 1]: of base classes and of novel ones, one row for
    each pair; default: the benchmark's."""
    candidates: Path | None = None
    """Cache the network's candidates in this folder, or read them from it; default: a temporary folder."""
    results: Path | None = None
    """Also write the detections of the first fusion as a COCO list of results."""


@dataclass(frozen=True, kw_only=True)
class Semantic(LabelMapFlags, Segmenting, ImageFlags):
    """Measure mIoU of all classes, of those seen in training, and of the others.

    A class is seen if it shares a name with a class that was trained on; where nothing was trained, if the split of the
    data calls it base.
    """

    model: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]  # not needed for --from-results
    """OUT/model of `foveate train-catseg` or `train-panoptic`; or a CLIP, whose dense map is used as it is. Needed
    unless --from-results is given."""
    from_results: Path | None = None
    """Measure the predictions of another program, without any model: a folder with a label map for each image, named
    like it (PNG or TIFF of 8 or 16 bits, one number per pixel), or OUT of `foveate segment`. An image without a map is
    missed."""
    map_ids: MapIds = "index"
    """With --from-results, what the numbers in the maps are: index, the class's index in the data's list, from 0 (255
    or 65535: no class); dataset, the numbers of the data's own maps, as ADE20K's and VOC's servers take them. Maps of
    `foveate segment` need neither: their classes are matched by name."""
    all_synonyms: bool = False
    """Embed every name of a class on its own; the best of them counts for the class. CAT-Seg of 2024 takes the first
    name only, unless this is given."""


@dataclass(frozen=True, kw_only=True)
class Panoptic(MaskFlags, ImageFlags):
    """Measure panoptic segmentation with any CLIP: PQ of things and stuff, of seen classes and of others (Tab. 5).

    Masks come from a mask generator (`foveate train-panoptic`), their classes from its own embeddings and from a CLIP,
    whose weight is smaller for classes that the generator has seen. The networks see each image once, however many
    --fusion weights are measured.
    """

    data: Path
    """COCO root with panoptic annotations, a world, or ADEChallengeData2016 with ade20k_panoptic_val and its .json."""
    model: Path | None = None
    """OUT/model of `foveate train-panoptic`, or a folder of transformers with a Mask2Former or MaskFormer, whose own
    classes are then matched with the data's by name; needed unless --from-results is given."""
    from_results: Path | None = None
    """Measure the predictions of another program, without any model: the folder of panoptic PNGs with their JSON, as
    COCO's server takes it, or that JSON. The images of --data are not needed. Each image needs a prediction, as in
    panopticapi."""
    fusion: tuple[str, ...] = ()
    """Fusion weights of CLIP in the score of a class, one row each: odise-label (.3 of seen, .7 of other classes),
    odise-caption (.35, .65), fc-clip (.4, .8), clip (1, 1), generator (0, 0), or two numbers such as 0.2,0.9. Default:
    odise-label, clip and generator; clip alone for a generator without classes, and generator alone for a folder of
    transformers without --classifier."""
    squash: bool = True
    """Resize images to a square, as ODISE; else the aspect is kept and --size is of the longest side."""
    labels: Path | None = None
    """File of the names of each class, `id:name,synonym` a line, as OpenSeg's lists, by the data's ids or in their
    order; default: the names of the annotation file."""
    templates: Templates | None = None
    """Prompts for class names for --classifier; default: as in training."""
    min_score: float | None = None
    """Score that a mask must exceed to become a segment (object mask threshold); default: 0 (ODISE), and 0.8 for a
    folder of transformers (Mask2Former's for COCO)."""
    overlap: float = 0.8
    """Share of a mask that must be left where better masks cover it, for it to become a segment."""
    metrics: tuple[Literal["pq", "miou", "ap"], ...] = ("pq",)
    """pq, always; miou: also mIoU, of the sum of all masks; ap: also AP of the masks of things, by COCO's rule, against
    the things of the panoptic annotation."""
