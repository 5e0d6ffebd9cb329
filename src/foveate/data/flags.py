"""The flags of annotations and label maps, for training and evaluation alike; no torch is imported."""

from dataclasses import dataclass
from pathlib import Path

from foveate.data.names import SemanticKind


@dataclass(frozen=True, kw_only=True)
class AnnotationFlags:
    """How annotated boxes are checked."""

    accept_annotations: bool = False
    """Use annotations although more than a fifth of their boxes contradict their image, area or mask, for example
    corners written as width and height; without this flag such a file is refused."""


@dataclass(frozen=True, kw_only=True)
class LabelMapFlags:
    """Where the semantic ground truth is."""

    data: Path
    """Root of a semantic segmentation data set: COCO with panoptic annotations or a world, COCO-Stuff, ADE20K, PASCAL
    Context or VOC."""
    kind: SemanticKind | None = None
    """Kind of data set; default: detected from its files; VOC needs voc20, voc20b or voc21."""
    labels: Path | None = None
    """List of classes, with synonyms for the data's classes, or for data sets without a list: `id:name,synonym` per
    line, or a JSON list of names in the data set's order, as in CAT-Seg."""
    maps: Path | None = None
    """Folder of label maps that `foveate convert-maps` wrote, of the full ADE20K or PASCAL Context."""
    image_list: Path | None = None
    """File of the ids of the images to use, one per line (PASCAL Context)."""
    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}; default: annotations/splits.json of the root."""
