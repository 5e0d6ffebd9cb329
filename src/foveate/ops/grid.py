"""The patch grid: m x n equal boxes that CLIPSelf learns from (Sec. 3.2, "image patches as regions").

The boxes have fractional corners and cover the unpadded image exactly once, so no box contains padding.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.errors import InputError

MAX_GRID = 64  # rows and columns: the locations along a side of the paper's dense feature maps


def grid_boxes(rows: int, columns: int, *, height: int, width: int) -> Float[Tensor, "N 4"]:
    """Cut an image into m rows x n columns of equal boxes: xyxy, pixels of the image, row by row, N = m * n."""
    assert rows >= 1 and columns >= 1, f"a grid needs at least one row and one column, got {rows} x {columns}"
    y = torch.arange(rows + 1, dtype=torch.float64) * height / rows  # (m + 1,)
    x = torch.arange(columns + 1, dtype=torch.float64) * width / columns  # (n + 1,)
    top, left = torch.meshgrid(y[:-1], x[:-1], indexing="ij")  # (m, n) each
    bottom, right = torch.meshgrid(y[1:], x[1:], indexing="ij")  # (m, n) each
    return torch.stack([left, top, right, bottom], dim=-1).flatten(0, 1).float()  # (m, n, 4) -> (m * n, 4)


def grid_pairs(limit: int, rule: str) -> list[tuple[int, int]]:
    """List the (rows, columns) from which the grid of an image is drawn, ordered by rows and then by columns.

    Args:
        limit: M, the maximum of rows and columns; 6 in the paper.
        rule: "published": n in ceil(m / 2) .. min(2 m, M), as the published training (24 pairs for M = 6); "all": every
            m and n in 1..M, the paper's text (36 pairs).

    Raises:
        InputError: limit is below 1 or above `MAX_GRID`, or the rule is unknown.
    """
    if not 1 <= limit <= MAX_GRID:
        raise InputError(
            f"--grid: must be 1 to {MAX_GRID}, the locations along a side of the paper's dense feature maps, so that a "
            f"patch is no smaller than one; got {limit}."
        )
    if rule not in ("published", "all"):
        raise InputError(f'grid rule: must be "published" or "all"; got "{rule}".')
    pairs = [(m, n) for m in range(1, limit + 1) for n in range(1, limit + 1)]
    if rule == "published":
        pairs = [(m, n) for m, n in pairs if (m + 1) // 2 <= n <= 2 * m]
    return pairs


def sample_grid(
    *, height: int, width: int, limit: int, rule: str, keep: int, generator: torch.Generator
) -> Float[Tensor, "N 4"]:
    """Draw one grid for an image and return at most `keep` of its patches, in random order (Sec. 3.2).

    Args:
        limit: see `grid_pairs`.
        rule: see `grid_pairs`.
        keep: at least 1.

    Returns:
        xyxy, pixels of the image, 1 <= N <= keep.

    Raises:
        InputError: `keep` is below 1, or an error of `grid_pairs`.
    """
    if keep < 1:
        raise InputError(f"grid: need keep of at least 1 patch per image; got {keep}.")
    pairs = grid_pairs(limit, rule)
    rows, columns = pairs[int(torch.randint(len(pairs), (), generator=generator))]
    order = torch.randperm(rows * columns, generator=generator)[:keep]  # (N,)
    return grid_boxes(rows, columns, height=height, width=width)[order]
