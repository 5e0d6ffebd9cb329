"""The best class of each pixel, a few classes at a time."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.types import LabelMap

MAX_CLASSES = 32  # classes resized to the image together
MAX_SCORES = 2**26  # scores in memory at once; large images take fewer classes


def best_labels(chunks: Iterable[Float[Tensor, "_ H W"]]) -> LabelMap:
    """Return the class of the greatest score of each pixel; the first one of equal scores.

    Args:
        chunks: scores of consecutive classes, at least one class in all.
    """
    best, labels, offset = None, None, 0
    for scores in chunks:
        value, index = scores.max(dim=0)  # (H, W) each
        index = index + offset
        if best is not None and labels is not None:
            index = torch.where(value > best, index, labels)
            value = torch.maximum(value, best)
        best, labels, offset = value, index, offset + len(scores)
    assert labels is not None, "scores are of at least one class"
    return LabelMap(labels)


def classes_at_once(height: int, width: int) -> int:
    """How many classes of an image of this size [pixels] fit into memory together, at least 1."""
    return max(1, min(MAX_CLASSES, MAX_SCORES // (height * width)))
