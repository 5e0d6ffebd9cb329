"""A mask drawn in its box -> the image's pixels, and run lengths (the mask head of F-ViT; A.3).

A mask of S x S probabilities covers its box in S x S cells. A pixel of the image belongs to it if the value at the
pixel's centre, bilinear between the centres of the cells and zero beyond them, is above one half: what detectron2 does
by `grid_sample`. The two axes are interpolated apart, by two small matrices: the same sum. Where a cell's centre is not
met the value is at most one half at the box's edge and less beyond, so that no pixel outside the box is ever drawn, and
only the pixels inside are computed. Deliberately absent: other thresholds, polygons.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, UInt8
from pycocotools import mask as coco_mask
from torch import Tensor

HALF = 255 / 2  # what a byte must exceed
CHUNK = 32_000_000  # pixels that are held at once


def paste_masks(
    masks: UInt8[Tensor, "N S S"], boxes: Float[Tensor, "N 4"], *, height: int, width: int
) -> Bool[Tensor, "N H W"]:
    """Draw masks into whole images; all at once, so for few of them (`paste_as_rle` for many).

    Args:
        masks: 255 times the probability.
        boxes: xyxy, pixels of the image; a box without area gives an empty mask.
        height: of the image [pixels].
        width: of the image [pixels].
    """
    drawn = torch.zeros(len(masks), width, height, dtype=torch.bool).transpose(1, 2)  # columns first, as COCO counts
    for canvas, mask, box in zip(drawn, masks.cpu().double(), boxes.tolist(), strict=True):
        _draw(canvas, mask, box)
    return drawn


def paste_as_rle(
    masks: UInt8[Tensor, "N S S"], boxes: Float[Tensor, "N 4"], *, height: int, width: int
) -> tuple[dict, ...]:
    """Draw masks and encode them as COCO does, so many at once that the memory stays small.

    Args:
        masks: 255 times the probability.
        boxes: xyxy, pixels of the image.
        height: of the image [pixels].
        width: of the image [pixels].

    Returns:
        {"size": [height, width], "counts": text} of each, ready for JSON.
    """
    step = max(1, CHUNK // (height * width))
    found: list[dict] = []
    for start in range(0, len(masks), step):
        chosen = slice(start, start + step)
        drawn = paste_masks(masks[chosen], boxes[chosen], height=height, width=width)
        found += encode_masks(drawn)
    return tuple(found)


def encode_masks(masks: Bool[Tensor, "N H W"]) -> Iterator[dict]:
    """Encode masks as COCO's compressed run lengths, with text for JSON; the inverse of `decode_masks`."""
    for mask in masks.cpu().numpy():
        encoded = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
        yield {"size": list(masks.shape[1:]), "counts": str(encoded["counts"], "ascii")}  # type: ignore[arg-type]


def decode_masks(encoded: tuple[dict, ...], *, height: int, width: int) -> Bool[Tensor, "N H W"]:
    """Decode run lengths of images of one size; the inverse of `encode_masks`. For run lengths of our own making."""
    if not encoded:
        return torch.zeros(0, height, width, dtype=torch.bool)
    return torch.stack([torch.from_numpy(np.ascontiguousarray(coco_mask.decode(one))).bool() for one in encoded])  # type: ignore[arg-type]


def boxes_of_rle(encoded: Sequence[dict]) -> Float64[np.ndarray, "N 4"]:
    """The smallest boxes that hold masks: left, top, width, height [pixels]; zeros of an empty mask."""
    return coco_mask.toBbox([*encoded]).reshape(-1, 4)  # type: ignore[arg-type]


def fault_of_rle(value: Any, *, height: int, width: int) -> str | None:
    """Say what is wrong with run lengths from outside, or None: pycocotools reads beyond its memory where they are
    false.

    Args:
        value: {"size": [height, width], "counts": whole numbers, or their compressed text}.
        height: of the image [pixels].
        width: of the image [pixels].
    """
    if not isinstance(value, dict) or value.get("size") != [height, width]:
        return f"run lengths with the size [{height}, {width}] of the image are needed"
    counts = value.get("counts")
    runs = _uncompress(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(one, int) and one >= 0 for one in runs):
        return "`counts` must be whole numbers, or their compressed text"
    if sum(runs) != height * width:
        return f"`counts` cover {sum(runs)} pixels instead of {height * width}"
    return None


def _uncompress(text: str) -> list[int] | None:
    """COCO's text -> lengths of the runs: 5 bits a letter, the lowest first, each from the fourth on less the one two
    before; None: it is no such text."""
    letters = np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((letters & 32) == 0)  # of each number
    if not len(letters) or letters.min() < 0 or letters.max() > 63 or not len(last) or last[-1] != len(letters) - 1:
        return None
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(letters)) - np.repeat(first, last - first + 1)
    if place.max() > 6:  # more than 35 bits
        return None
    numbers = np.add.reduceat((letters & 31) << (5 * place), first)
    numbers -= np.where(letters[last] & 16, 1 << (5 * (last - first + 1)), 0)  # the highest bit is the sign
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers.tolist()


def _draw(canvas: Bool[Tensor, "H W"], mask: Float64[Tensor, "S S"], box: list[float]) -> None:
    """Set the pixels of one mask."""
    x1, y1, x2, y2 = box
    if not (x2 > x1 and y2 > y1):  # also what is not finite in both
        return
    left, top = max(0, math.floor(x1)), max(0, math.floor(y1))
    right, bottom = min(canvas.shape[1], math.ceil(x2)), min(canvas.shape[0], math.ceil(y2))
    if right <= left or bottom <= top:
        return
    down = _interpolate(top, bottom, low=y1, high=y2, cells=len(mask))  # (rows, S)
    across = _interpolate(left, right, low=x1, high=x2, cells=len(mask))  # (columns, S)
    canvas[top:bottom, left:right] = down @ mask @ across.T > HALF


def _interpolate(first: int, last: int, *, low: float, high: float, cells: int) -> Float64[Tensor, "pixels cells"]:
    """How much of each cell's value the centres of the pixels first .. last - 1 take, on one axis."""
    centres = torch.arange(first, last, dtype=torch.float64) + 0.5
    place = (centres - low) / (high - low) * cells - 0.5  # in cells, from the first one's centre
    return (1 - (place[:, None] - torch.arange(cells)).abs()).clamp(min=0)
