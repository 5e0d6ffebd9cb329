"""Which object each box stands for in training: the assignment rule of both stages (A.3; mmdet's MaxIoUAssigner).

torchvision's matcher gives every object its best boxes, however little they overlap, and a box that is the best of two
objects to the one that it overlaps more. The published detectors are trained with a floor, and with the later object.
Deliberately absent: regions to ignore (crowds are left out by `foveate.heads.common.rpn.ignore_crowds`).
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

BACKGROUND, BETWEEN = -1, -2


def match_boxes(
    overlaps: Float[Tensor, "N A"], *, positive: float, negative: float, best_from: float | None
) -> Int64[Tensor, " A"]:
    """Assign each box to at most one object (both stages; A.3).

    Args:
        overlaps: IoU of N objects, at least one, with A boxes.
        positive: a box stands for the object that it overlaps most where their IoU is at least this.
        negative: a box whose IoU with every object is below this is background.
        best_from: each object also takes the boxes that overlap it most (with ties) where that IoU is at least this;
            of several objects the last one takes a box. None: no object does.

    Returns:
        The place of the object, -1 for background, -2 for what is neither.
    """
    highest, matched = overlaps.max(dim=0)  # (A,) each
    matched = matched.masked_fill(highest < positive, BETWEEN).masked_fill(highest < negative, BACKGROUND)
    if best_from is None:
        return matched
    best = overlaps.amax(dim=1, keepdim=True)  # (N, 1)
    objects, boxes = ((overlaps == best) & (best >= best_from)).nonzero(as_tuple=True)
    last = torch.full_like(matched, -1).scatter_reduce(0, boxes, objects, "amax")  # whatever the order, so exact
    return torch.where(last >= 0, last, matched)
