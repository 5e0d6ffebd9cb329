"""Names of data sets for the command line and the readers; this module does not import torch."""

from typing import Literal

SemanticKind = Literal["panoptic", "stuff", "ade150", "ade-full", "context59", "context459", "voc20", "voc20b", "voc21"]
"""Kinds of semantic ground truth; see `foveate.data.label_maps`."""

DataKind = Literal[
    "any", "coco", "lvis", "objects365", "voc", "coco-stuff", "coco-panoptic", "ade20k", "pascal-context"
]
"""Data sets of recipes; see `foveate.data.kinds`."""
