"""Boxes: conversions between formats, clipping, enlarging, and the check made where boxes come in.

One convention inside the project (see `foveate.types`): xyxy, pixels, x1 < x2 and y1 < y2, one (N, 4) tensor an image.
Every other format is converted at the door, by the functions here. Intersection over union and suppression are absent:
torchvision has them.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from foveate.errors import InputError


def xywh_to_xyxy(boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
    """Turn COCO's corner-and-size boxes into the project's corner pairs.

    Args:
        boxes: left, top, width, height [pixels].

    Returns:
        left, top, right, bottom [pixels].
    """
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)  # (N, 4)


def xyxy_to_xywh(boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
    """Turn the project's corner pairs into COCO's corner-and-size boxes; the inverse of `xywh_to_xyxy`.

    Args:
        boxes: left, top, right, bottom [pixels].

    Returns:
        left, top, width, height [pixels].
    """
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)  # (N, 4)


def clip_boxes(boxes: Float[Tensor, "N 4"], *, height: int, width: int) -> Float[Tensor, "N 4"]:
    """Cut off what lies outside the image; a box wholly outside becomes empty (x1 = x2 or y1 = y2).

    Args:
        boxes: xyxy, pixels of the image.
        height: of the image [pixels].
        width: of the image [pixels].

    Returns:
        xyxy with 0 <= x <= width and 0 <= y <= height.
    """
    x = boxes[:, 0::2].clamp(0, width)  # (N, 2)
    y = boxes[:, 1::2].clamp(0, height)  # (N, 2)
    return torch.stack([x, y], dim=2).flatten(1)  # (N, 2, 2) -> (N, 4)


def enlarge_boxes(boxes: Float[Tensor, "N 4"], *, factor: float, height: int, width: int) -> Float[Tensor, "N 4"]:
    """Scale each box about its centre, then clip it to the image (teacher crops of proposals and things; Sec. 4.1).

    Args:
        boxes: xyxy, pixels of the image.
        factor: of each side; 1.5 in the paper, below 1 shrinks.
        height: of the image [pixels].
        width: of the image [pixels].

    Returns:
        xyxy, inside the image.
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2  # (N, 2)
    half = (boxes[:, 2:] - boxes[:, :2]) * (factor / 2)  # (N, 2)
    return clip_boxes(torch.cat([centre - half, centre + half], dim=1), height=height, width=width)


def boxes_on_input(boxes: Float[Tensor, "N 4"], *, height: int, width: int, size: int) -> Float[Tensor, "N 4"]:
    """Carry boxes from an image to its padded square input, see `foveate.ops.resample.square_input` (Sec. 3.2).

    Args:
        boxes: xyxy, pixels of the image.
        height: of the image [pixels].
        width: of the image [pixels].
        size: side of the square input [pixels].

    Returns:
        xyxy, pixels of the input; both axes by one factor, as published, though the shorter side of the resized image
        is rounded (by less than half a pixel).
    """
    return boxes * (size / max(height, width))


def boxes_on_image(boxes: Float[Tensor, "N 4"], *, height: int, width: int, size: int) -> Float[Tensor, "N 4"]:
    """Carry boxes from the padded square input back to the image; the inverse of `boxes_on_input`.

    Args:
        boxes: xyxy, pixels of the input.
        height: of the image [pixels].
        width: of the image [pixels].
        size: side of the square input [pixels].

    Returns:
        xyxy, pixels of the image; not clipped.
    """
    return boxes * (max(height, width) / size)


def cover_patches(boxes: Float[Tensor, "N 4"], *, grid: tuple[int, int], stride: int) -> Bool[Tensor, "N h w"]:
    """Say which patches each box touches, by any area.

    Args:
        boxes: xyxy, pixels of the input; may reach beyond it.
        grid: (h, w) of the patches.
        stride: side of a patch [pixels].

    Returns:
        At least one patch for a box that lies inside.
    """
    rows, columns = (torch.arange(side, device=boxes.device) * stride for side in grid)
    x, y = boxes[:, 0::2], boxes[:, 1::2]  # (N, 2) each
    across = (x[:, :1] < columns + stride) & (x[:, 1:] > columns)  # (N, w)
    down = (y[:, :1] < rows + stride) & (y[:, 1:] > rows)  # (N, h)
    return down[:, :, None] & across[:, None]


def whole_patches(boxes: Float[Tensor, "N 4"], *, grid: tuple[int, int], stride: int) -> Bool[Tensor, "N h w"]:
    """Say which patches each box holds when both its corners are cut to whole patches (masked attention; Tab. A3).

    Args:
        boxes: xyxy, pixels of the input; may reach beyond it.
        grid: (h, w) of the patches.
        stride: side of a patch [pixels].

    Returns:
        As published: no patch for a box whose corners lie in one row or column of patches.
    """
    corners = (boxes / stride).trunc()  # (N, 4)
    rows, columns = (torch.arange(side, device=boxes.device) for side in grid)
    across = (corners[:, 0:1] <= columns) & (columns < corners[:, 2:3])  # (N, w)
    down = (corners[:, 1:2] <= rows) & (rows < corners[:, 3:4])  # (N, h)
    return down[:, :, None] & across[:, None]


def check_boxes(boxes: Tensor, name: str = "boxes") -> None:
    """Refuse boxes that are not finite float (N, 4) xyxy with positive width and height. N may be 0.

    On an accelerator this waits for the device: call it where boxes come in, not inside a training step.

    Args:
        boxes: what somebody handed in.
        name: how the message should call it.

    Raises:
        InputError: says which rule is broken, by which row, and what to do.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        scores = " Did you pass scores too?" if boxes.ndim == 2 and boxes.shape[1] == 5 else ""
        scores = " For an image without boxes take torch.zeros(0, 4)." if boxes.numel() == 0 else scores
        raise InputError(f"{name}: need (N, 4) xyxy pixels with x1 < x2; got shape {tuple(boxes.shape)}.{scores}")
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
