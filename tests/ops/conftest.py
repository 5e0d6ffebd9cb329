"""Bicubic interpolation from its definition, for positions and masks."""

import math
from collections.abc import Callable

import pytest
import torch


def _slow_bicubic(plane: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """(h0, w0, C) -> (h, w, C): four taps an axis, a = -0.75 (torch's), half-pixel centres, border repeated."""

    def taps(i: int, length: int, out: int):
        centre = (i + 0.5) * length / out - 0.5
        base = math.floor(centre)
        for k in range(base - 1, base + 3):
            t = abs(centre - k)
            weight = (1.25 * t - 2.25) * t * t + 1 if t < 1 else ((-0.75 * t + 3.75) * t - 6) * t + 3
            yield min(max(k, 0), length - 1), weight

    out = torch.zeros(h, w, plane.shape[2])
    for i in range(h):
        for j in range(w):
            for y, wy in taps(i, plane.shape[0], h):
                for x, wx in taps(j, plane.shape[1], w):
                    out[i, j] += wy * wx * plane[y, x]
    return out


@pytest.fixture
def slow_bicubic() -> Callable[[torch.Tensor, int, int], torch.Tensor]:
    return _slow_bicubic
