"""Recognises a well-known data set by its categories, so that a recipe can check which data it is run on."""

from collections.abc import Sequence

from foveate.data.datasets.voc import NAMES
from foveate.data.names import DataKind
from foveate.data.splits import OV_COCO_EXCLUDED, OV_COCO_NOVEL
from foveate.types import Category, normalize_name

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
    """The data set with these categories; "any": none that a recipe names."""
    names = {normalize_name(category.name) for category in categories}
    things = sum(category.is_thing for category in categories)
    if any(category.frequency is not None for category in categories):
        return "lvis"
    if things == len(categories) == 80 and names >= {*OV_COCO_NOVEL, *OV_COCO_EXCLUDED}:
        return "coco"
    if (len(categories), things) == (133, 80):
        return "coco-panoptic"
    if names >= {*NAMES} and len(categories) <= len(NAMES) + 1:  # and the background
        return "voc"
    return COUNTS.get(len(categories), "any")
