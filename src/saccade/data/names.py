"""Names that the command line offers and readers of data know; here, so that they are read without importing torch."""

from typing import Literal

SemanticKind = Literal["panoptic", "stuff", "ade150", "ade-full", "context59", "context459", "voc20", "voc20b", "voc21"]
"""Data sets with a class for each pixel; see `saccade.data.label_maps`."""
