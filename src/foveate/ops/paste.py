"""Masks of boxes pasted into the image, and COCO's run-length encoding (the mask head of F-ViT; A.3).

A mask of S x S probabilities covers its box with S x S cells. A pixel of the image belongs to the mask if the value at
the pixel's centre, bilinear between the centres of the cells and zero beyond them, is above one half, as in
detectron2's `grid_sample`. The two axes are interpolated separately, by two small matrices, with the same result.
Beyond the edge of the box the value is below one half, so only the pixels inside are computed.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, UInt8
from pycocotools import mask as coco_mask
from torch import Tensor

THRESHOLD = 255 / 2  # of a byte
MAX_PIXELS = 32_000_000  # in memory at once


def paste_masks(
    masks: UInt8[Tensor, "N S S"], boxes: Float[Tensor, "N 4"], *, height: int, width: int
) -> Bool[Tensor, "N H W"]:
    """Paste masks into images; all in memory at once (`paste_as_rle` for many).

    Args:
        masks: 255 times the probability.
        boxes: xyxy, pixels of the image; a box without area gives an empty mask.
    """
    drawn = torch.zeros(len(masks), width, height, dtype=torch.bool).transpose(1, 2)  # columns first, as COCO counts
    for canvas, mask, box in zip(drawn, masks.cpu().double(), boxes.tolist(), strict=True):
        _draw(canvas, mask, box)
    return drawn


def paste_as_rle(
    masks: UInt8[Tensor, "N S S"], boxes: Float[Tensor, "N 4"], *, height: int, width: int
) -> tuple[dict, ...]:
    """Paste masks and encode them as COCO does, with bounded memory; the arguments are those of `paste_masks`.

    Returns:
        {"size": [height, width], "counts": text} of each mask, ready for JSON.
    """
    step = max(1, MAX_PIXELS // (height * width))
    encoded: list[dict] = []
    for start in range(0, len(masks), step):
        chunk = slice(start, start + step)
        encoded += encode_masks(paste_masks(masks[chunk], boxes[chunk], height=height, width=width))
    return tuple(encoded)


def encode_masks(masks: Bool[Tensor, "N H W"]) -> Iterator[dict]:
    """Encode masks as COCO's compressed run lengths, as text for JSON; the inverse of `decode_masks`."""
    for mask in masks.cpu().numpy():
        encoded = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
        yield {"size": list(masks.shape[1:]), "counts": str(encoded["counts"], "ascii")}  # type: ignore[arg-type]


def decode_masks(encoded: tuple[dict, ...], *, height: int, width: int) -> Bool[Tensor, "N H W"]:
    """Decode trusted run lengths of images of one size; the inverse of `encode_masks`."""
    if not encoded:
        return torch.zeros(0, height, width, dtype=torch.bool)
    return torch.stack([torch.from_numpy(np.ascontiguousarray(coco_mask.decode(rle))).bool() for rle in encoded])  # type: ignore[arg-type]


def boxes_of_rle(encoded: Sequence[dict]) -> Float64[np.ndarray, "N 4"]:
    """The bounding boxes of masks: left, top, width, height [pixels]; zeros for an empty mask."""
    return coco_mask.toBbox([*encoded]).reshape(-1, 4)  # type: ignore[arg-type]


def fault_of_rle(value: Any, *, height: int, width: int) -> str | None:
    """Describe what is wrong with untrusted run lengths, or None; invalid ones make pycocotools read beyond its memory.

    Args:
        value: {"size": [height, width], "counts": whole numbers, or their compressed text}.
    """
    if not isinstance(value, dict) or value.get("size") != [height, width]:
        size = value.get("size") if isinstance(value, dict) else None
        swapped = ", which is [width, height]" if size == [width, height] else ""
        return f"run lengths of size {size!r:.40}{swapped}, where the image has [height, width] = [{height}, {width}]"
    counts = value.get("counts")
    runs = _uncompress(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(length, int) and length >= 0 for length in runs):
        return "`counts` must be whole numbers, or their compressed text"
    if sum(runs) != height * width:
        return f"`counts` cover {sum(runs)} pixels instead of {height * width}"
    return None


def _uncompress(text: str) -> list[int] | None:
    """Decode COCO's text to lengths of runs; None: it is not such text.

    A letter holds 5 bits, the lowest first; from the fourth number on, the number two before was subtracted.
    """
    letters = np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((letters & 32) == 0)  # of each number
    if not len(letters) or letters.min() < 0 or letters.max() > 63 or not len(last) or last[-1] != len(letters) - 1:
        return None
    first = np.concatenate([[0], last[:-1] + 1])
    index = np.arange(len(letters)) - np.repeat(first, last - first + 1)  # of a letter in its number
    if index.max() > 6:  # more than 35 bits
        return None
    numbers = np.add.reduceat((letters & 31) << (5 * index), first)
    numbers -= np.where(letters[last] & 16, 1 << (5 * (last - first + 1)), 0)  # the highest bit is the sign
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers.tolist()


def _draw(canvas: Bool[Tensor, "H W"], mask: Float64[Tensor, "S S"], box: list[float]) -> None:
    """Set the pixels of one mask."""
    x1, y1, x2, y2 = box
    if not (x2 > x1 and y2 > y1):  # NaN too
        return
    left, top = max(0, math.floor(x1)), max(0, math.floor(y1))
    right, bottom = min(canvas.shape[1], math.ceil(x2)), min(canvas.shape[0], math.ceil(y2))
    if right <= left or bottom <= top:
        return
    down = _interpolate(top, bottom, low=y1, high=y2, cells=len(mask))  # (rows, S)
    across = _interpolate(left, right, low=x1, high=x2, cells=len(mask))  # (columns, S)
    canvas[top:bottom, left:right] = down @ mask @ across.T > THRESHOLD


def _interpolate(first: int, last: int, *, low: float, high: float, cells: int) -> Float64[Tensor, "pixels cells"]:
    """Weights of the cells at the centres of the pixels first .. last - 1, on one axis."""
    centres = torch.arange(first, last, dtype=torch.float64) + 0.5
    position = (centres - low) / (high - low) * cells - 0.5  # [cells], from the centre of the first one
    return (1 - (position[:, None] - torch.arange(cells)).abs()).clamp(min=0)
