"""One embedding per region from a dense feature map: RoIAlign for boxes, the mean for masks (Sec. 3.1).

Training, evaluation and heads share these functions. Dense feature maps are L2-normalised per location
(`Clip.encode_dense` does so by default), and so are the results. RoIAlign's backward uses atomics on CUDA, so the last
bit of a gradient may differ between runs there.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import roi_align

from foveate.errors import InputError

_MAX_VALUES = 2**26  # of masks converted at once: 256 MB of float32


def pool_boxes(
    dense: Float[Tensor, "B D h w"], boxes: list[Float[Tensor, "_ 4"]], *, stride: int
) -> Float[Tensor, "R D"]:
    """Average a dense feature map inside each box (RoIAlign 1x1; Sec. 3.1).

    Samples are less than one location apart (sampling_ratio = -1) and corners are not rounded (aligned). The values of
    the boxes are not checked, since that waits for the device; see `foveate.ops.boxes.check_boxes`.

    Args:
        boxes: one tensor per image; xyxy, pixels of the padded input, x1 < x2.
        stride: input pixels per location (16 for ViT-B/16).

    Returns:
        float32 embeddings of length 1, image by image in the order given; R may be 0.

    Raises:
        InputError: the number of box tensors differs from B.
    """
    _check_count(dense, len(boxes), "boxes")
    packed = torch.cat(boxes).to(dense.device, torch.float32, non_blocking=True)  # (R, 4)
    image_index = torch.tensor([i for i, part in enumerate(boxes) for _ in range(len(part))], dtype=torch.int64)
    return pool_indexed_boxes(dense, packed, image_index.to(dense.device, non_blocking=True), stride=stride)


def pool_indexed_boxes(
    dense: Float[Tensor, "B D h w"], boxes: Float[Tensor, "R 4"], image_index: Int64[Tensor, " R"], *, stride: int
) -> Float[Tensor, "R D"]:
    """As `pool_boxes`, with the boxes of all images in one tensor and the index of the image of each."""
    with torch.autocast(dense.device.type, enabled=False):
        rois = torch.cat([image_index[:, None].float(), boxes], dim=1)  # (R, 5)
        pooled = roi_align(dense.float(), rois, 1, spatial_scale=1 / stride, sampling_ratio=-1, aligned=True)
    return F.normalize(pooled.flatten(1), dim=1)  # (R, D, 1, 1) -> (R, D)


def pool_masks(dense: Float[Tensor, "B D h w"], masks: list[Bool[Tensor, "_ h w"]]) -> Float[Tensor, "R D"]:
    """Average a dense feature map over each mask, as one matrix product per image (mask pooling; Sec. 4.1).

    Args:
        masks: one tensor per image, at the resolution of the map; see `shrink_masks`.

    Returns:
        float32 embeddings of length 1, image by image in the order given; R may be 0. A mask without a location gives
        the zero vector.

    Raises:
        InputError: the number of mask tensors differs from B.
    """
    _check_count(dense, len(masks), "masks")
    means = []
    with torch.autocast(dense.device.type, enabled=False):
        for tokens, image_masks in zip(dense.float().flatten(2), masks, strict=True):  # (D, L), (N, h, w)
            weights = image_masks.to(tokens.device).flatten(1).float()  # (N, L)
            means.append(weights @ tokens.T / weights.sum(dim=1, keepdim=True).clamp(min=1))  # (N, D)
    return F.normalize(torch.cat(means), dim=1)  # (R, D)


def shrink_masks(masks: Bool[Tensor, "N H W"], *, grid: tuple[int, int]) -> Bool[Tensor, "N h w"]:
    """Resize masks of the whole input to the patch grid as the published evaluation does: bicubic, then > 0.

    With antialiasing a small mask would grow to several times its area; without, a mask smaller than the sampling step
    can vanish, and then has no location.

    Args:
        masks: at any resolution.
        grid: (h, w) of the dense feature map.
    """
    shrunk = [masks.new_zeros((0, *grid))]
    for chunk in masks.split(max(1, _MAX_VALUES // masks[:1].numel())) if len(masks) else ():
        values = F.interpolate(chunk[None].float(), size=grid, mode="bicubic", align_corners=False, antialias=False)
        shrunk.append(values[0] > 0)  # (1, n, h, w) -> (n, h, w)
    return torch.cat(shrunk)  # (N, h, w)


def shrink_and_pad_masks(masks: Bool[Tensor, "N H W"], *, side: int) -> Bool[Tensor, "N side side"]:
    """Resize masks of an unpadded image to the patch grid of its padded square, as published (Sec. 4.1).

    The masks are resized before they are padded, so that no kernel reaches the padding.

    Args:
        masks: at any resolution.
        side: of the patch grid, to which the longest side of the image is resized.
    """
    height, width = masks.shape[1:]
    longest = max(height, width)
    grid = max(1, round(height * side / longest)), max(1, round(width * side / longest))
    shrunk = shrink_masks(masks, grid=grid)  # (N, h, w)
    return F.pad(shrunk, (0, side - grid[1], 0, side - grid[0]))


def _check_count(dense: Tensor, count: int, name: str) -> None:
    if count != dense.shape[0]:
        raise InputError(
            f"{name}: need one tensor per image, {dense.shape[0]} in all; got {count}. "
            "For an image without regions pass an empty tensor."
        )
