"""Assignment of boxes to objects in training, for both stages (A.3; mmdet's MaxIoUAssigner).

torchvision's matcher gives every object its best boxes, however little they overlap, and a box that is the best of two
objects to the one with the larger overlap. The published detectors were trained with a minimal IoU, and with the later
object. Crowds are handled in `foveate.heads.common.rpn.ignore_crowds`.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

BACKGROUND, BETWEEN = -1, -2


def match_boxes(
    overlaps: Float[Tensor, "N A"], *, positive: float, negative: float, best_from: float | None
) -> Int64[Tensor, " A"]:
    """Assign each box to at most one object.

    Args:
        overlaps: IoU of N objects, at least one, with A boxes.
        positive: a box is assigned to the object with the largest IoU if that is at least this.
        negative: a box whose IoU with every object is below this is background.
        best_from: each object also takes its boxes of largest IoU (with ties) if that is at least this; of several
            objects the last one takes a box. None: no object does.

    Returns:
        The index of the object, -1 for background, -2 for neither.
    """
    highest, matched = overlaps.max(dim=0)  # (A,) each
    matched = matched.masked_fill(highest < positive, BETWEEN).masked_fill(highest < negative, BACKGROUND)
    if best_from is None:
        return matched
    best = overlaps.amax(dim=1, keepdim=True)  # (N, 1)
    objects, boxes = ((overlaps == best) & (best >= best_from)).nonzero(as_tuple=True)
    last = torch.full_like(matched, -1).scatter_reduce(0, boxes, objects, "amax")  # whatever the order, so exact
    return torch.where(last >= 0, last, matched)
