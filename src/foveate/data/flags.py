"""The flags that say where label maps are, for training and evaluation alike; no torch is imported."""

from dataclasses import dataclass
from pathlib import Path

from foveate.data.names import SemanticKind


@dataclass(frozen=True, kw_only=True)
class LabelMapFlags:
    """Where the classes of pixels are."""

    data: Path
    """Root of images with a class for each pixel: COCO with panoptic annotations or a world, COCO-Stuff, ADE20K,
    PASCAL Context or VOC."""
    kind: SemanticKind | None = None
    """What the root is; default: found by its files. VOC's maps are 20, 20b or 21 classes: say which."""
    labels: Path | None = None
    """List of classes, with synonyms for the data's classes, or where it has none itself: `id:word,word` per line, or
    a JSON list of names in the data set's order, as CAT-Seg's are."""
    maps: Path | None = None
    """Folder of label maps that `foveate convert-maps` wrote, of the full ADE20K or PASCAL Context."""
    image_list: Path | None = None
    """File of the ids of the images that count, one per line (PASCAL Context)."""
    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}; default: what annotations/splits.json of the root says."""
