"""Images to tower inputs on the compute device: crop, resize, pad, normalise (Sec. 3.2).

The kernel is Pillow's antialiased bicubic (a = -0.5, support widened by the scale when shrinking, weights renormalised
at the edge): crops differ from Pillow's only by its rounding to whole grey levels. Crops of similar size are two
batched matrix products of windows of the image with a weight table per axis. Sizes are computed on the host from boxes
on the CPU; nothing waits for the device. Deliberately absent: RoIAlign (bilinear averages), grid_sample (a = -0.75, not
antialiased), and torch's antialiased interpolation (no clamp between its passes, which shows at hard edges, and a wrong
result where a side becomes one pixel).

Images are uint8 or floating point in [0, 255]; height and width are those of the image; sizes are in pixels.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Num, Shaped
from torch import Tensor

from foveate.errors import InputError

_MAX_VALUES = 2**26  # of the windows cut at once: 256 MB of float32
_LARGE, _STRIP = 75_000_000, 2**22  # values of one window that is cut in strips, and of a strip: 16 MB of float32


def fitted_size(height: int, width: int, *, size: int) -> tuple[int, int]:
    """(height, width) of an image whose longest side is resized to `size`; the other is rounded, halves to even."""
    longest = max(height, width)
    return max(1, round(height * size / longest)), max(1, round(width * size / longest))


def resize_longest(image: Num[Tensor, "3 H W"], *, size: int) -> Float[Tensor, "3 h w"]:
    """Resize an image so that its longest side is `size`, in float32 (student input; Sec. 3.2)."""
    height, width = image.shape[1:]
    h, w = fitted_size(height, width, size=size)
    top, left = (size - h) // 2, (size - w) // 2
    whole = np.array([[0, 0, width, height]])
    return _cut(image, whole, size=size)[0, :, top : top + h, left : left + w]


def resize_longest_bilinear(image: Num[Tensor, "3 H W"], *, size: int) -> Float[Tensor, "3 h w"]:
    """Resize an image bilinearly, not antialiased, and round to grey levels in float32, as cv2.INTER_LINEAR does.

    cv2 computes in fixed point: an eighth of its values differ from these by one grey level, none by more.
    """
    fitted = fitted_size(*image.shape[1:], size=size)
    with torch.autocast(image.device.type, enabled=False):  # 8 bits of a bfloat16 would lose grey levels
        resized = F.interpolate(image[None].float(), size=fitted, mode="bilinear", align_corners=False)
    return resized[0].round()


def crop_and_resize(
    image: Num[Tensor, "3 H W"], boxes: Float[Tensor, "N 4"], *, size: int
) -> Float[Tensor, "N 3 size size"]:
    """Crop boxes from an image, each fitted into a black square (teacher crops; Sec. 3.2).

    Corners are rounded to whole pixels as in Pillow's `Image.crop` (halves to even), clipped to the image, and at least
    one pixel apart. The longest side of a crop becomes `size`; the crop keeps its aspect and is centred.

    Args:
        boxes: xyxy, pixels of the image; on the CPU, where their sizes are needed.

    Returns:
        float32 in [0, 255], not rounded; N may be 0.
    """
    return _cut(image, np.rint(np.array(boxes.tolist()).reshape(-1, 4)).astype(np.int64), size=size)


def check_side(size: int, *, patch: int, flag: str) -> None:
    """Refuse a side of the square input that is not a positive multiple of the patch size.

    Raises:
        InputError: names `flag` and the nearest valid sizes.
    """
    if size < patch or size % patch:
        below = max(1, size // patch) * patch
        nearest = f"{below} or {below + patch}" if size > patch else str(patch)
        raise InputError(f"{flag}: need a positive multiple of the patch size {patch}; got {size}. Try {nearest}.")


def square_input(
    image: Num[Tensor, "3 H W"],
    *,
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    pad: Literal["zero", "black"] = "black",
) -> Float[Tensor, "3 size size"]:
    """Resize and normalise an image into the top left of a padded square (student input; Sec. 3.2, 4.1).

    Args:
        image: on the compute device.
        size: side of the square, and longest side of the resized image.
        mean: see `normalize`, as `std`.
        pad: "black": black before normalisation (published code); "zero": zeros after it (the paper's text).
    """
    resized = resize_longest(image, size=size)  # (3, h', w')
    if pad == "black":
        return normalize(pad_right_bottom(resized, height=size, width=size), mean=mean, std=std)
    return pad_right_bottom(normalize(resized, mean=mean, std=std), height=size, width=size)


def square_inputs(
    images: list[Num[Tensor, "3 _ _"]],
    *,
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    pad: Literal["zero", "black"] = "black",
) -> Float[Tensor, "B 3 size size"]:
    """Convert images of any sizes, at least one, to a batch of padded squares; see `square_input`."""
    return torch.stack([square_input(image, size=size, mean=mean, std=std, pad=pad) for image in images])


def pad_right_bottom(image: Shaped[Tensor, "*batch h w"], *, height: int, width: int) -> Shaped[Tensor, "*batch H W"]:
    """Pad images or masks, of any type, to (height, width) at the right and bottom (student input; Sec. 3.2)."""
    right, bottom = width - image.shape[-1], height - image.shape[-2]
    assert right >= 0 and bottom >= 0, f"image {tuple(image.shape)} is larger than {height} x {width}"
    return F.pad(image, (0, right, 0, bottom))


def normalize(
    images: Float[Tensor, "*batch 3 H W"], *, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[Tensor, "*batch 3 H W"]:
    """(images / 255 - mean) / std, of RGB images in [0, 255]; mean and std of each channel in [0, 1]."""
    rows = [[255 * s for s in std], [m / s for m, s in zip(mean, std, strict=True)]]
    table = torch.tensor(rows, dtype=images.dtype).to(images.device, non_blocking=True)  # (2, 3)
    scale, shift = table[:, :, None, None]  # (3, 1, 1) each
    return images / scale - shift


def _cut(image: Num[Tensor, "3 H W"], corners: np.ndarray, *, size: int) -> Float[Tensor, "N 3 size size"]:
    """Crop and fit boxes, given as whole-numbered corners (N, 4) on the host."""
    height, width = image.shape[1:]
    left, right = _whole_pixels(corners[:, 0], corners[:, 2], length=width)
    top, bottom = _whole_pixels(corners[:, 1], corners[:, 3], length=height)
    starts, extents = np.stack([top, left], axis=1), np.stack([bottom - top, right - left], axis=1)  # (N, 2) each
    # largest first, so that a batch has crops of similar size
    order = np.argsort(-extents.prod(axis=1), kind="stable")  # (N,)
    index = torch.tensor(np.argsort(order)).to(image.device, non_blocking=True)  # (N,), of each box in that order
    crops = [image.new_zeros((0, 3, size, size), dtype=torch.float32)]
    with torch.autocast(image.device.type, enabled=False):  # 8 bits of a bfloat16 would lose grey levels
        while len(order) > 0:
            space = extents[order].max(axis=0)  # (2,)
            count = max(1, _MAX_VALUES // (3 * int(space.prod())))
            crops.append(_cut_batch(image, starts[order[:count]], extents[order[:count]], size=size))
            order = order[count:]
    return torch.cat(crops)[index]


def _whole_pixels(low: np.ndarray, high: np.ndarray, *, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Clip intervals to [0, length], at least one pixel long."""
    low = low.clip(0, length - 1)
    return low, np.maximum(high.clip(max=length), low + 1)


def _cut_batch(
    image: Num[Tensor, "3 H W"], starts: np.ndarray, extents: np.ndarray, *, size: int
) -> Float[Tensor, "N 3 size size"]:
    """Crop and resize by two batched matrix products over windows of the largest crop's size.

    Starts and extents are (N, 2), rows before columns.
    """
    longest = extents.max(axis=1, keepdims=True)  # (N, 1)
    fitted = np.rint(extents * size / longest).clip(min=1)  # (N, 2), halves to even as `fitted_size`
    margin = (size - fitted) // 2  # (N, 2), black before the image
    values = np.stack([starts, extents, fitted, extents / fitted, margin], axis=2).astype(np.float32)  # (N, 2, 5)
    table = torch.tensor(values).to(image.device, non_blocking=True)
    tall, wide = extents.max(axis=0).tolist()
    y, down = _axis(table[:, 0], length=tall, limit=image.shape[1], size=size)  # (N, tall), (N, size, tall)
    x, across = _axis(table[:, 1], length=wide, limit=image.shape[2], size=size)  # (N, wide), (N, size, wide)
    channel = torch.arange(3, device=image.device)[None, :, None, None]
    step = tall if 3 * tall * wide <= _LARGE else max(1, _STRIP // (3 * wide))
    strips = []
    for begin in range(0, tall, step):
        window = image[channel, y[:, None, begin : begin + step, None], x[:, None, None, :]].float()  # (N, 3, t, wide)
        rows = (window.flatten(1, 2) @ across.mT).clamp(0, 255)  # (N, 3 * t, wide) -> (N, 3 * t, size)
        strips.append(rows.unflatten(1, (3, -1)))
    rows = strips[0] if len(strips) == 1 else torch.cat(strips, dim=2)
    crops = down[:, None] @ rows  # (N, 1, size, tall) @ (N, 3, tall, size)
    return crops.clamp(0, 255)  # (N, 3, size, size)


def _axis(
    table: Float[Tensor, "N 5"], *, length: int, limit: int, size: int
) -> tuple[Int64[Tensor, "N length"], Float[Tensor, "N size length"]]:
    """The pixels that each crop reads on one axis, and their weights for each pixel of the square.

    Output pixel o of a side of `cut` pixels fitted to f has the coordinate c = (o + 1/2) * cut / f; source pixel i,
    with its centre at i + 1/2, has the weight k((i + 1/2 - c) / s), s = max(1, cut / f). Rows of padding are zero.
    """
    first, cut, fitted, scale, margin = table[:, :, None, None].unbind(dim=1)  # (N, 1, 1) each
    source = torch.arange(length, device=table.device, dtype=torch.float32)  # (length,)
    out = torch.arange(size, device=table.device)[:, None] - margin  # (N, size, 1), from the image's first pixel
    distance = (source + 0.5 - (out + 0.5) * scale) / scale.clamp(min=1)  # (N, size, length)
    weights = _cubic(distance) * (source < cut)  # (N, size, length)
    weights = weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-6)
    pixels = (first[:, 0] + source).clamp(max=limit - 1).long()  # (N, length)
    return pixels, weights * ((out >= 0) & (out < fitted))


def _cubic(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Keys' cubic kernel with a = -0.5: 1 at 0, 0 at 1, and 0 from 2 on."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
