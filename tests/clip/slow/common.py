"""Rows, resizing and pooling from their definitions; every function works on one image."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of one token."""
    mean = x.sum() / len(x)
    variance = ((x - mean) ** 2).sum() / len(x)
    return (x - mean) / (variance + eps) ** 0.5 * weight + bias


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def unit(x: Tensor) -> Tensor:
    """Length 1; zero stays zero."""
    length = math.sqrt(float((x * x).sum()))
    return x / length if length > 0 else x


def attend(question: Tensor, keys: list[Tensor], values: list[Tensor], heads: int, near: list[float] | None) -> Tensor:
    """One token asks others: softmax(question . key / sqrt(d) + near) times the values, head by head."""
    d = len(question) // heads
    parts = []
    for head in range(heads):
        piece = slice(head * d, (head + 1) * d)
        asked = question[piece]
        scores = [float(asked @ key[piece]) / math.sqrt(d) for key in keys]
        if near is not None:
            scores = [score + bias for score, bias in zip(scores, near, strict=True)]
        shares = [math.exp(score - max(scores)) for score in scores]
        total = sum(shares)
        parts.append(sum(share / total * value[piece] for share, value in zip(shares, values, strict=True)))
    return torch.cat(parts)


def nearness(place: tuple[int, int] | None, places: list[tuple[int, int] | None]) -> list[float]:
    """NACLIP's Gaussian of standard deviation 5 around a patch; 0 where the class token asks or is asked."""
    if place is None:
        return [0.0] * len(places)
    return [
        0.0 if other is None else math.exp(-((place[0] - other[0]) ** 2 + (place[1] - other[1]) ** 2) / (2 * 5**2))
        for other in places
    ]


def taps(i: int, length: int, out: int) -> Iterator[tuple[int, float]]:
    """Bicubic, a = -0.75, half-pixel centres, border repeated, no antialiasing: (index, weight), four of them."""
    centre = (i + 0.5) * length / out - 0.5
    base = math.floor(centre)
    for k in range(base - 1, base + 3):
        t = abs(centre - k)
        weight = (1.25 * t - 2.25) * t * t + 1 if t < 1 else ((-0.75 * t + 3.75) * t - 6) * t + 3
        yield min(max(k, 0), length - 1), weight


def resize(plane: Tensor, h: int, w: int) -> Tensor:
    """(h0, w0, C) -> (h, w, C)."""
    out = torch.zeros(h, w, plane.shape[2], dtype=plane.dtype)
    for i in range(h):
        for j in range(w):
            for y, wy in taps(i, plane.shape[0], h):
                for x, wx in taps(j, plane.shape[1], w):
                    out[i, j] += wy * wx * plane[y, x]
    return out


def positions(table: Tensor, h: int, w: int) -> list[Tensor]:
    """One position a patch, row by row, from the table of a square grid (N * N, C) without the class token's."""
    side = math.isqrt(len(table))
    assert side * side == len(table), f"{len(table)} positions are no square"
    return list(resize(table.reshape(side, side, -1), h, w).reshape(h * w, -1))


def embed_patches(image: Tensor, kernel: Tensor) -> list[Tensor]:
    """The patch convolution (C, 3, P, P) as one matrix times the pixels of each patch, row by row."""
    size = kernel.shape[-1]
    matrix = kernel.reshape(len(kernel), -1)
    return [
        matrix @ image[:, top : top + size, left : left + size].reshape(-1)
        for top in range(0, image.shape[1], size)
        for left in range(0, image.shape[2], size)
    ]


def bilinear(plane: Tensor, y: float, x: float) -> Tensor:
    """Value of (D, h, w) at a point whose integers are the locations' own places; more than one outside: zero."""
    h, w = plane.shape[1:]
    if y < -1 or y > h or x < -1 or x > w:
        return torch.zeros(plane.shape[0], dtype=plane.dtype)
    y, x = min(max(y, 0.0), h - 1.0), min(max(x, 0.0), w - 1.0)
    top, left = min(int(y), h - 1), min(int(x), w - 1)
    bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
    fy, fx = y - top, x - left
    return (
        plane[:, top, left] * (1 - fy) * (1 - fx)
        + plane[:, top, right] * (1 - fy) * fx
        + plane[:, bottom, left] * fy * (1 - fx)
        + plane[:, bottom, right] * fy * fx
    )


def pool_box(plane: Tensor, box: list[float], stride: int) -> Tensor:
    """RoIAlign to 1 x 1: the box in map units, half a location back (aligned), ceil(side) samples an axis, mean."""
    x1, y1, x2, y2 = (side / stride - 0.5 for side in box)
    across, down = math.ceil(x2 - x1), math.ceil(y2 - y1)
    total = torch.zeros(plane.shape[0], dtype=plane.dtype)
    for row in range(down):
        for column in range(across):
            y = y1 + (row + 0.5) * (y2 - y1) / down
            x = x1 + (column + 0.5) * (x2 - x1) / across
            total += bilinear(plane, y, x)
    return unit(total / (across * down))


def pool_cells(plane: Tensor, cells: list[tuple[int, int]]) -> Tensor:
    """Mean of (D, h, w) over some locations, of length 1; no location gives zero."""
    total = torch.zeros(plane.shape[0], dtype=plane.dtype)
    for row, column in cells:
        total += plane[:, row, column]
    return unit(total)


def cells_of_box(box: list[float], h: int, w: int, stride: int) -> list[tuple[int, int]]:
    """Locations from the one that holds the first corner up to, without, the one that holds the second."""
    x1, y1, x2, y2 = (int(side / stride) for side in box)
    return [(row, column) for row in range(max(y1, 0), min(y2, h)) for column in range(max(x1, 0), min(x2, w))]


def cells_of_mask(mask: Tensor, h: int, w: int) -> list[tuple[int, int]]:
    """Locations of a mask on the grid (h, w), or of one in pixels (H, W) after it was shrunk bicubically."""
    if mask.shape != (h, w):
        mask = resize(mask[:, :, None].double(), h, w)[:, :, 0] > 1e-6
    return [(row, column) for row in range(h) for column in range(w) if mask[row, column]]
