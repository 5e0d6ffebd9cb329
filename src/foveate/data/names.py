"""Names that the command line offers and the readers understand; here, so that they are read without torch."""

from typing import Literal

SemanticKind = Literal["panoptic", "stuff", "ade150", "ade-full", "context59", "context459", "voc20", "voc20b", "voc21"]
"""Which semantic ground truth lies in a folder; see `foveate.data.label_maps`."""

DataKind = Literal[
    "any", "coco", "lvis", "objects365", "voc", "coco-stuff", "coco-panoptic", "ade20k", "pascal-context"
]
"""Which data set the numbers of a recipe are for; see `foveate.data.kinds`."""
