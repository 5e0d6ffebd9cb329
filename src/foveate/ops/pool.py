"""From a dense map to one embedding a region: RoIAlign for boxes, a mean for masks (Sec. 3.1).

Training, evaluation and heads share these two functions. The map is L2-normalised per location by whoever made it
(`Clip.encode_dense` does so by default); the result is L2-normalised here. RoIAlign's backward adds with atomics on
CUDA, so there the last bit of a gradient may differ between runs.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import roi_align

from foveate.errors import InputError

_MOST_VALUES = 2**26  # of masks turned to numbers at once: 256 MB of float32


def pool_boxes(
    dense: Float[Tensor, "B D h w"], boxes: list[Float[Tensor, "_ 4"]], *, stride: int
) -> Float[Tensor, "R D"]:
    """Average a dense map inside each box (RoIAlign 1x1; Sec. 3.1).

    Samples lie less than one location apart (sampling_ratio = -1) and corners are not rounded (aligned). The values of
    the boxes are not checked, since that would wait for the device: `foveate.ops.boxes.check_boxes` does so at the
    door.

    Args:
        dense: dense embeddings, L2-normalised per location.
        boxes: one tensor an image; xyxy, pixels of the padded input, x1 < x2.
        stride: input pixels per location (16 for ViT-B/16).

    Returns:
        One L2-normalised float32 embedding a box, image by image, in the order given; R may be 0.

    Raises:
        InputError: the number of box tensors differs from B.
    """
    _check_count(dense, len(boxes), "boxes")
    packed = torch.cat(boxes).to(dense.device, torch.float32, non_blocking=True)  # (R, 4)
    image_index = torch.tensor([i for i, one in enumerate(boxes) for _ in range(len(one))], dtype=torch.int64)
    return pool_indexed_boxes(dense, packed, image_index.to(dense.device, non_blocking=True), stride=stride)


def pool_indexed_boxes(
    dense: Float[Tensor, "B D h w"], boxes: Float[Tensor, "R 4"], image_index: Int64[Tensor, " R"], *, stride: int
) -> Float[Tensor, "R D"]:
    """Average a dense map inside each box, the boxes of all images in one tensor; otherwise `pool_boxes`.

    Args:
        dense: dense embeddings, L2-normalised per location.
        boxes: xyxy, pixels of the padded input, x1 < x2.
        image_index: the image each box lies in.
        stride: input pixels per location.

    Returns:
        One L2-normalised float32 embedding a box.
    """
    with torch.autocast(dense.device.type, enabled=False):
        rois = torch.cat([image_index[:, None].float(), boxes], dim=1)  # (R, 5)
        pooled = roi_align(dense.float(), rois, 1, spatial_scale=1 / stride, sampling_ratio=-1, aligned=True)
    return F.normalize(pooled.flatten(1), dim=1)  # (R, D, 1, 1) -> (R, D)


def pool_masks(dense: Float[Tensor, "B D h w"], masks: list[Bool[Tensor, "_ h w"]]) -> Float[Tensor, "R D"]:
    """Average a dense map over each mask, as one matrix product an image (mask pooling; Sec. 4.1).

    Args:
        dense: dense embeddings, L2-normalised per location.
        masks: one tensor an image, at the map's own resolution; see `shrink_masks`.

    Returns:
        One L2-normalised float32 embedding a mask, image by image, in the order given; R may be 0. A mask without a
        location gives the zero vector, whose cosine with everything is 0.

    Raises:
        InputError: the number of mask tensors differs from B.
    """
    _check_count(dense, len(masks), "masks")
    means = []
    with torch.autocast(dense.device.type, enabled=False):
        for tokens, chosen in zip(dense.float().flatten(2), masks, strict=True):  # (D, L), (N, h, w)
            weights = chosen.to(tokens.device).flatten(1).float()  # (N, L)
            means.append(weights @ tokens.T / weights.sum(dim=1, keepdim=True).clamp(min=1))  # (N, D)
    return F.normalize(torch.cat(means), dim=1)  # (R, D)


def shrink_masks(masks: Bool[Tensor, "N H W"], *, grid: tuple[int, int]) -> Bool[Tensor, "N h w"]:
    """Bring masks to the token grid as the published evaluation does: bicubic without antialiasing, then > 0.

    With antialiasing a small mask would grow to several times its area; without, a mask smaller than the sampling step
    can vanish, and then has no location at all.

    Args:
        masks: of the whole input at any resolution.
        grid: (h, w) of the dense map.

    Returns:
        Which locations belong to each mask.
    """
    shrunk = [masks.new_zeros((0, *grid))]
    for some in masks.split(max(1, _MOST_VALUES // masks[:1].numel())) if len(masks) else ():
        values = F.interpolate(some[None].float(), size=grid, mode="bicubic", align_corners=False, antialias=False)
        shrunk.append(values[0] > 0)  # (1, n, h, w) -> (n, h, w)
    return torch.cat(shrunk)  # (N, h, w)


def shrink_and_pad_masks(masks: Bool[Tensor, "N H W"], *, side: int) -> Bool[Tensor, "N side side"]:
    """Bring an image's masks to the token grid of its padded square, as the published evaluation does (Sec. 4.1).

    The masks are shrunk first and padded then, so that no kernel reaches the padding.

    Args:
        masks: of the unpadded image, at its own resolution.
        side: of the token grid, G; the longest side of the image becomes as long.

    Returns:
        Which locations belong to each mask.
    """
    height, width = masks.shape[1:]
    longest = max(height, width)
    grid = max(1, round(height * side / longest)), max(1, round(width * side / longest))
    shrunk = shrink_masks(masks, grid=grid)  # (N, h, w)
    return F.pad(shrunk, (0, side - grid[1], 0, side - grid[0]))


def _check_count(dense: Tensor, count: int, name: str) -> None:
    if count != dense.shape[0]:
        raise InputError(
            f"{name}: need one tensor an image, {dense.shape[0]} in all; got {count}. "
            "An image without regions takes an empty tensor."
        )
