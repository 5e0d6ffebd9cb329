"""Which well-known data set categories are those of, told by their number and names; what recipes hold data to.

Deliberately absent: which data set lies in a folder (`sources.py`, `label_maps.py`): a root may hold several.
"""

from collections.abc import Sequence

from foveate.data.datasets.voc import NAMES
from foveate.data.names import DataKind
from foveate.data.splits import OV_COCO_EXCLUDED, OV_COCO_NOVEL
from foveate.types import Category

TITLES: dict[DataKind, str] = {
    "any": "any images",
    "coco": "COCO's 80 categories",
    "lvis": "LVIS's categories, which have a frequency",
    "objects365": "Objects365's 365 categories",
    "voc": "VOC's 20 categories",
    "coco-stuff": "COCO-Stuff's 171 classes",
    "coco-panoptic": "COCO's 133 panoptic classes",
    "ade20k": "ADE20K's 150 or 847 classes",
    "pascal-context": "PASCAL Context's 59 or 459 classes",
}
COUNTS: dict[int, DataKind] = {
    171: "coco-stuff",
    150: "ade20k",
    847: "ade20k",
    59: "pascal-context",
    459: "pascal-context",
    365: "objects365",
}


def kind_of(categories: Sequence[Category]) -> DataKind:
    """Which data set these are the categories of; "any": none of those that the recipes know."""
    names, things = {one.name for one in categories}, sum(one.is_thing for one in categories)
    if any(one.frequency is not None for one in categories):
        return "lvis"
    if things == len(categories) == 80 and names >= {*OV_COCO_NOVEL, *OV_COCO_EXCLUDED}:
        return "coco"
    if (len(categories), things) == (133, 80):
        return "coco-panoptic"
    if names >= {*NAMES} and len(categories) <= len(NAMES) + 1:  # and the background
        return "voc"
    return COUNTS.get(len(categories), "any")
