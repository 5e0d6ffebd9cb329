"""Windows over a patch grid: the tokens of an image split into rectangles and merged again (Sec. 4.4).

Tokens are in row-major order, L = h * w. A grid (h, w) that the window does not divide is zero-padded at the right and
bottom; `split_windows` of a mask of ones marks the tokens that are not padding.
"""

import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor


def split_windows(
    tokens: Shaped[Tensor, "B L X"], *, grid: tuple[int, int], size: tuple[int, int]
) -> Shaped[Tensor, "B n S X"]:
    """Split a grid of tokens into n = ceil(h / s) * ceil(w / t) windows of size (s, t), S = s * t (Sec. 4.4)."""
    down, across = _padded(grid, size)
    planes = tokens.unflatten(1, grid)  # (B, h, w, X)
    planes = F.pad(planes, (0, 0, 0, across - grid[1], 0, down - grid[0]))  # (B, h', w', X)
    planes = planes.unflatten(2, (across // size[1], size[1]))  # (B, h', w' / t, t, X)
    planes = planes.unflatten(1, (down // size[0], size[0]))  # (B, h' / s, s, w' / t, t, X)
    return planes.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, n, S, X)


def merge_windows(
    windows: Shaped[Tensor, "B n S X"], *, grid: tuple[int, int], size: tuple[int, int]
) -> Shaped[Tensor, "B L X"]:
    """Merge windows to a grid of tokens, without its padding; the inverse of `split_windows`."""
    down, across = _padded(grid, size)
    planes = windows.unflatten(2, size).unflatten(1, (down // size[0], across // size[1]))  # (B, h'/s, w'/t, s, t, X)
    planes = planes.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, h', w', X)
    return planes[:, : grid[0], : grid[1]].flatten(1, 2)  # (B, L, X)


def _padded(grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The sides of a grid padded to whole windows; no negative numbers, which ONNX divides towards zero."""
    return (grid[0] + size[0] - 1) // size[0] * size[0], (grid[1] + size[1] - 1) // size[1] * size[1]
