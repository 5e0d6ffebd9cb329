"""Masks of single objects as COCO writes them: polygons or run lengths -> compressed run lengths -> pixels.

    [[x, y, x, y, ...], ...]                 polygons, pixels of the picture
    {"size": [H, W], "counts": [n, n, ...]}  run lengths, column by column, background first (crowds)
    {"size": [H, W], "counts": "text"}       the same, compressed

pycocotools, which does the work, reads memory that is not its own where counts are short and crashes on huge numbers,
so all is counted here first. Kept compressed, an object takes about 100 bytes; LVIS has 1.3 million.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from pycocotools import mask
from torch import Tensor

from saccade.data.strict import fail, short

coco: Any = mask  # its stubs do not know all that it takes

NO_OUTLINE = "object has no mask"
EMPTY = "mask has no pixel"
FAR = "mask reaches far beyond its picture"
BEYOND = 2  # times the picture's longest side that a polygon may lie outside


def outline_of(where: str, value: Any, *, height: int, width: int) -> bytes | str:
    """Turn an annotation's `segmentation` into compressed run lengths, or into the reason why it cannot be used.

    Args:
        where: how messages call the annotation.
        value: see the module.
        height: of the picture [pixels].
        width: of the picture [pixels].

    Raises:
        InputError: it is of no such form, of another size than the picture, or its counts do not add up.
    """
    match value:
        case None | []:
            return NO_OUTLINE
        case list():
            polygons = [_polygon(where, one) for one in value]
            bound = BEYOND * max(height, width)
            if any(not -bound <= number <= bound + max(height, width) for one in polygons for number in one):
                return FAR
            encoded = coco.merge(coco.frPyObjects(polygons, height, width))
        case {"size": [rows, columns], "counts": counts}:
            if (rows, columns) != (height, width):
                fail(where, f"`segmentation` of the picture's size {[height, width]}", short([rows, columns]))
            runs = _runs(where, counts)
            if sum(runs) != height * width:
                fail(where, f"`counts` that add up to {height * width} pixels", f"{sum(runs)}")
            encoded = coco.frPyObjects({"size": [height, width], "counts": runs}, height, width)
        case _:
            fail(where, "`segmentation`, polygons or run lengths", short(value))
    return encoded["counts"] if coco.area(encoded) > 0 else EMPTY


def decode_outlines(outlines: tuple[bytes, ...], *, height: int, width: int) -> Bool[Tensor, "N H W"]:
    """Turn compressed run lengths into pixels.

    Args:
        outlines: of `outline_of`.
        height: of the picture [pixels].
        width: of the picture [pixels].
    """
    if not outlines:
        return torch.zeros(0, height, width, dtype=torch.bool)
    encoded = [{"size": [height, width], "counts": one} for one in outlines]
    pixels = np.ascontiguousarray(coco.decode(encoded).transpose(2, 0, 1))  # (H, W, N) -> (N, H, W)
    return torch.from_numpy(pixels).bool()


def _polygon(where: str, value: Any) -> list[float]:
    """The corners of one polygon."""
    is_one = isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0
    if not is_one or any(isinstance(one, bool) or not isinstance(one, int | float) for one in value):
        fail(where, "`segmentation` of polygons [x, y, x, y, ...] with at least three corners", short(value))
    if not all(math.isfinite(one) for one in value if isinstance(one, float)):
        fail(where, "`segmentation` of finite numbers", short(value))
    return value


def _runs(where: str, counts: Any) -> list[int]:
    """Run lengths as numbers."""
    if isinstance(counts, str):
        return _decompress(where, counts)
    if not isinstance(counts, list) or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in counts):
        fail(where, "`counts`, run lengths of 0 or more, or their compressed text", short(counts))
    return counts


def _decompress(where: str, text: str) -> list[int]:
    """COCO's text: six bits a letter from "0" on, five of them the number's, the lowest first, the sixth says that more
    follow, the last one's fifth is the sign; from the third on, numbers are differences to the one two before."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 30:
            fail(where, "`counts` as COCO compresses them", short(text))
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= (1 << shift) if bits & 16 else 0
        value += runs[-2] if len(runs) > 2 else 0
        if value < 0:
            fail(where, "`counts` of 0 or more", short(text))
        runs.append(value)
        value = shift = 0
    if shift:
        fail(where, "whole `counts`", f"{short(text)}, which ends within a number")
    return runs
