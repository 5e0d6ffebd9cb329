"""Boxes: conversion between formats and frames, clipping, enlarging, and the check of boxes from outside.

Everywhere in the project boxes are xyxy, in pixels, x1 < x2 and y1 < y2, one (N, 4) tensor per image (`foveate.types`).
Height and width are those of the image [pixels]. Intersection over union and suppression come from torchvision.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from foveate.errors import InputError


def xywh_to_xyxy(boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
    """Convert (left, top, width, height), COCO's format, to (left, top, right, bottom)."""
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)  # (N, 4)


def xyxy_to_xywh(boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
    """Convert (left, top, right, bottom) to (left, top, width, height), COCO's format."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)  # (N, 4)


def clip_boxes(boxes: Float[Tensor, "N 4"], *, height: int, width: int) -> Float[Tensor, "N 4"]:
    """Clip boxes to the image, 0 <= x <= width and 0 <= y <= height; a box outside it becomes empty."""
    x = boxes[:, 0::2].clamp(0, width)  # (N, 2)
    y = boxes[:, 1::2].clamp(0, height)  # (N, 2)
    return torch.stack([x, y], dim=2).flatten(1)  # (N, 2, 2) -> (N, 4)


def enlarge_boxes(boxes: Float[Tensor, "N 4"], *, factor: float, height: int, width: int) -> Float[Tensor, "N 4"]:
    """Scale each box about its centre, then clip it to the image (teacher crops of proposals and things; Sec. 4.1).

    Args:
        boxes: xyxy, pixels of the image.
        factor: of each side; 1.5 in the paper.
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2  # (N, 2)
    half = (boxes[:, 2:] - boxes[:, :2]) * (factor / 2)  # (N, 2)
    return clip_boxes(torch.cat([centre - half, centre + half], dim=1), height=height, width=width)


def boxes_on_input(boxes: Float[Tensor, "N 4"], *, height: int, width: int, size: int) -> Float[Tensor, "N 4"]:
    """Convert boxes from pixels of an image to pixels of its padded square input (Sec. 3.2).

    Both axes are scaled by one factor, as published, although `foveate.ops.resample.square_input` rounds the shorter
    side (by less than half a pixel).

    Args:
        boxes: xyxy, pixels of the image.
        size: side of the square input [pixels].
    """
    return boxes * (size / max(height, width))


def boxes_on_image(boxes: Float[Tensor, "N 4"], *, height: int, width: int, size: int) -> Float[Tensor, "N 4"]:
    """Convert boxes from pixels of the padded square input to pixels of the image; not clipped."""
    return boxes * (max(height, width) / size)


def cover_patches(boxes: Float[Tensor, "N 4"], *, grid: tuple[int, int], stride: int) -> Bool[Tensor, "N h w"]:
    """Mark the patches that each box touches, by any area.

    Args:
        boxes: xyxy, pixels of the input; may extend beyond it.
        grid: (h, w) of the patches.
        stride: side of a patch [pixels].
    """
    rows, columns = (torch.arange(side, device=boxes.device) * stride for side in grid)
    x, y = boxes[:, 0::2], boxes[:, 1::2]  # (N, 2) each
    across = (x[:, :1] < columns + stride) & (x[:, 1:] > columns)  # (N, w)
    down = (y[:, :1] < rows + stride) & (y[:, 1:] > rows)  # (N, h)
    return down[:, :, None] & across[:, None]


def whole_patches(boxes: Float[Tensor, "N 4"], *, grid: tuple[int, int], stride: int) -> Bool[Tensor, "N h w"]:
    """Mark the patches of each box after truncating both its corners to whole patches (masked attention; Tab. A3).

    As published, a box whose corners are in one row or column of patches has none.

    Args:
        boxes: xyxy, pixels of the input; may extend beyond it.
        grid: (h, w) of the patches.
        stride: side of a patch [pixels].
    """
    corners = (boxes / stride).trunc()  # (N, 4)
    rows, columns = (torch.arange(side, device=boxes.device) for side in grid)
    across = (corners[:, 0:1] <= columns) & (columns < corners[:, 2:3])  # (N, w)
    down = (corners[:, 1:2] <= rows) & (rows < corners[:, 3:4])  # (N, h)
    return down[:, :, None] & across[:, None]


def check_boxes(boxes: Tensor, name: str = "boxes") -> None:
    """Refuse boxes that are not finite float (N, 4) xyxy with positive width and height; N may be 0.

    On an accelerator this waits for the device; do not call it in a training step.

    Args:
        name: of the argument, for the message.

    Raises:
        InputError: names the broken rule and the first row that breaks it.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        hint = " Did you pass scores too?" if boxes.ndim == 2 and boxes.shape[1] == 5 else ""
        hint = " For an image without boxes pass torch.zeros(0, 4)." if boxes.numel() == 0 else hint
        raise InputError(f"{name}: need (N, 4) xyxy pixels with x1 < x2; got shape {tuple(boxes.shape)}.{hint}")
    if not boxes.is_floating_point():
        raise InputError(f"{name}: need floating point pixels; got {boxes.dtype}. Call .float() on them.")
    finite = boxes.isfinite().all(dim=1)  # (N,)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise InputError(f"{name}: need finite numbers; row {row} is {boxes[row].tolist()}. Remove it.")
    positive = (boxes[:, :2] < boxes[:, 2:]).all(dim=1)  # (N,)
    if not positive.all():
        row = int((~positive).nonzero()[0])
        raise InputError(
            f"{name}: need x1 < x2 and y1 < y2; row {row} is {boxes[row].tolist()}. "
            "If these are (x, y, width, height), convert them with foveate.ops.boxes.xywh_to_xyxy."
        )
