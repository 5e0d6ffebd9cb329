"""From the pyramid to one small map per box: RoIAlign on the level that fits the box's size (A.3).

torchvision's MultiScaleRoIAlign guesses each level's scale from sizes as a power of two, which is wrong for patches of
14 pixels; here the strides are told. Deliberately absent: the coarsest level, on which only anchors live.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import roi_align

POOLED_LEVELS = 4  # P/4 .. 2P
FINEST_BOX = 56.0  # boxes below twice this side are pooled from the finest level [pixels of the input]


def choose_levels(boxes: Float[Tensor, "R 4"], *, finest: float) -> Int64[Tensor, " R"]:
    """Say which level each box is pooled from: FPN's rule as the published detectors have it.

    Args:
        boxes: xyxy, pixels of the input.
        finest: stride of the finest level [pixels]; the rule is one of pixels, the same for strides of 3.5 and 4.

    Returns:
        floor(log2(sqrt(area) / 56)), at least 0 and at most 3; 0 for an empty box.
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
    """Cut boxes out of the pyramid, bilinearly and in float32, whatever the arithmetic around.

    Args:
        levels: at least the four finest.
        boxes: one tensor per image; xyxy, pixels of the input.
        strides: of the levels [pixels].
        side: of the result, S.

    Returns:
        One map per box, image by image, in the order given; R may be 0.
    """
    packed = torch.cat(boxes)  # (R, 4)
    counts = torch.tensor([len(one) for one in boxes])
    image = torch.repeat_interleave(torch.arange(len(boxes)), counts).to(packed.device)  # (R,)
    rois = torch.cat([image[:, None].to(packed.dtype), packed], dim=1)  # (R, 5)
    chosen = choose_levels(packed, finest=strides[0])
    pooled = levels[0].new_zeros((len(packed), levels[0].shape[1], side, side), dtype=torch.float32)
    with torch.autocast(packed.device.type, enabled=False):
        for place in range(POOLED_LEVELS):
            mine = (chosen == place).nonzero()[:, 0]
            cut = roi_align(
                levels[place].float(), rois[mine], side, 1 / strides[place], sampling_ratio=-1, aligned=True
            )
            pooled = pooled.index_copy(0, mine, cut)
    return pooled
