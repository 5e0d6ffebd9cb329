"""RoIAlign on the pyramid level that fits the box's size (A.3).

torchvision's MultiScaleRoIAlign estimates each level's scale as a power of two, which is wrong for patches of 14
pixels; here the strides are given. The coarsest level has anchors only.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import roi_align

POOLED_LEVELS = 4  # P/4 .. 2P
FINEST_BOX = 56.0  # boxes below twice this side are pooled from the finest level [pixels of the input]


def choose_levels(boxes: Float[Tensor, "R 4"]) -> Int64[Tensor, " R"]:
    """The level each box is pooled from, by FPN's rule as in the published detectors.

    Args:
        boxes: xyxy, pixels of the input.

    Returns:
        floor(log2(sqrt(area) / 56)), in 0 to 3; 0 for an empty box. The same for strides of 3.5 and 4.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1).sqrt()  # (R,)
    ratio = (sides / FINEST_BOX).clamp(min=1.0)
    return (ratio.log2() + 1e-6).floor().long().clamp(max=POOLED_LEVELS - 1)


def pool_levels(
    levels: Sequence[Float[Tensor, "B C _ _"]],
    boxes: list[Float[Tensor, "_ 4"]],
    *,
    strides: Sequence[float],
    side: int,
) -> Float[Tensor, "R C S S"]:
    """Pool boxes from the pyramid, bilinearly and in float32 even under autocast.

    Args:
        levels: at least the four finest.
        boxes: one tensor per image; xyxy, pixels of the input.
        strides: of the levels [pixels].
        side: of the result, S.

    Returns:
        One map per box, image by image; R may be 0.
    """
    packed = torch.cat(boxes)  # (R, 4)
    counts = torch.tensor([len(part) for part in boxes])
    image = torch.repeat_interleave(torch.arange(len(boxes)), counts).to(packed.device)  # (R,)
    rois = torch.cat([image[:, None].to(packed.dtype), packed], dim=1)  # (R, 5)
    chosen = choose_levels(packed)
    pooled = levels[0].new_zeros((len(packed), levels[0].shape[1], side, side), dtype=torch.float32)
    with torch.autocast(packed.device.type, enabled=False):
        for level, stride, index in zip(levels, strides, range(POOLED_LEVELS), strict=False):
            rows = (chosen == index).nonzero()[:, 0]
            part = roi_align(level.float(), rois[rows], side, 1 / stride, sampling_ratio=-1, aligned=True)
            pooled = pooled.index_copy(0, rows, part)
    return pooled
