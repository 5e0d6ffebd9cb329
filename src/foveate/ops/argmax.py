"""The best class of each pixel, without all classes at the image's size at once."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.types import LabelMap

MOST = 32  # classes brought to an image's size together
NUMBERS = 2**26  # and no more scores than this, of a large image


def best_labels(parts: Iterable[Float[Tensor, "_ H W"]]) -> LabelMap:
    """The class of the greatest score of each pixel; of equal ones the first.

    Args:
        parts: scores of some classes after others, at least one class in all.
    """
    best, labels, first = None, None, 0
    for part in parts:
        value, place = part.max(dim=0)  # (H, W) each
        place = place + first
        if best is not None and labels is not None:
            place = torch.where(value > best, place, labels)
            value = torch.maximum(value, best)
        best, labels, first = value, place, first + len(part)
    assert labels is not None, "scores are of at least one class"
    return LabelMap(labels)


def classes_at_once(height: int, width: int) -> int:
    """How many classes of an image of this size [pixels] are looked at together, so that memory stays bounded."""
    return max(1, min(MOST, NUMBERS // (height * width)))
