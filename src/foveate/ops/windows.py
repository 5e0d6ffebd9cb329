"""Windows over a patch grid: the tokens of an image split into rectangles and put together again (Sec. 4.4).

A grid that the window does not divide is filled up at its right and bottom; what was filled in is cut off again when
windows are merged, and `split_windows` of a mask of ones says which tokens it was.
"""

import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor


def split_windows(
    tokens: Shaped[Tensor, "B L X"], *, grid: tuple[int, int], size: tuple[int, int]
) -> Shaped[Tensor, "B n S X"]:
    """Cut a grid of tokens into windows (Sec. 4.4).

    Args:
        tokens: row by row.
        grid: (h, w), L = h * w.
        size: (s, t), height and width of a window [tokens].

    Returns:
        n = ceil(h / s) * ceil(w / t) windows, row by row, each with its S = s * t tokens row by row; zeros where the
        grid was filled up.
    """
    down, across = _filled(grid, size)
    planes = tokens.unflatten(1, grid)  # (B, h, w, X)
    planes = F.pad(planes, (0, 0, 0, across - grid[1], 0, down - grid[0]))  # (B, h', w', X)
    planes = planes.unflatten(2, (across // size[1], size[1]))  # (B, h', w' / t, t, X)
    planes = planes.unflatten(1, (down // size[0], size[0]))  # (B, h' / s, s, w' / t, t, X)
    return planes.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, n, S, X)


def merge_windows(
    windows: Shaped[Tensor, "B n S X"], *, grid: tuple[int, int], size: tuple[int, int]
) -> Shaped[Tensor, "B L X"]:
    """Put windows together; the inverse of `split_windows`.

    Args:
        windows: as `split_windows` gives them.
        grid: (h, w) of the tokens without what was filled in.
        size: (s, t), height and width of a window [tokens].

    Returns:
        The tokens row by row, L = h * w.
    """
    down, across = _filled(grid, size)
    planes = windows.unflatten(2, size).unflatten(1, (down // size[0], across // size[1]))  # (B, h'/s, w'/t, s, t, X)
    planes = planes.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, h', w', X)
    return planes[:, : grid[0], : grid[1]].flatten(1, 2)  # (B, L, X)


def _filled(grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The sides of a grid filled up to whole windows; no negative numbers, which ONNX divides towards zero."""
    return (grid[0] + size[0] - 1) // size[0] * size[0], (grid[1] + size[1] - 1) // size[1] * size[1]
