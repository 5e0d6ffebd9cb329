"""Grid patches: the regions CLIPSelf learns from, an m x n grid laid over the image (Sec. 3.2, "image patches as
regions").

The grid is exact: its boxes have fractional corners, cover the image once and leave nothing out. Padding never gets a
patch, because the grid is laid over the unpadded image.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.errors import InputError


def grid_boxes(rows: int, columns: int, *, height: int, width: int) -> Float[Tensor, "N 4"]:
    """Cut an image into rows x columns equal boxes (Sec. 3.2).

    Args:
        rows: m, at least 1.
        columns: n, at least 1.
        height: of the image [pixels].
        width: of the image [pixels].

    Returns:
        (rows * columns, 4) xyxy, pixels of the image, row by row.
    """
    assert rows >= 1 and columns >= 1, f"a grid needs at least one row and one column, got {rows} x {columns}"
    y = torch.arange(rows + 1, dtype=torch.float64) * height / rows  # (m + 1,)
    x = torch.arange(columns + 1, dtype=torch.float64) * width / columns  # (n + 1,)
    top, left = torch.meshgrid(y[:-1], x[:-1], indexing="ij")  # (m, n) each
    bottom, right = torch.meshgrid(y[1:], x[1:], indexing="ij")  # (m, n) each
    return torch.stack([left, top, right, bottom], dim=-1).flatten(0, 1).float()  # (m, n, 4) -> (m * n, 4)


def grid_pairs(limit: int, rule: str) -> list[tuple[int, int]]:
    """List the (rows, columns) an image's grid is drawn from.

    Args:
        limit: M, the most rows and columns; 6 in the paper.
        rule: "published" keeps n within ceil(m / 2) .. min(2 m, M), as the published training did (24 pairs for M = 6);
            "all" is the paper's text, every m and n in 1..M (36 pairs).

    Returns:
        The pairs, by rows and then by columns.

    Raises:
        InputError: limit below 1, or another rule.
    """
    if limit < 1:
        raise InputError(f"grid: the limit M must be at least 1; got {limit}.")
    if rule not in ("published", "all"):
        raise InputError(f'grid rule: must be "published" or "all"; got "{rule}".')
    pairs = [(m, n) for m in range(1, limit + 1) for n in range(1, limit + 1)]
    if rule == "published":
        pairs = [(m, n) for m, n in pairs if (m + 1) // 2 <= n <= 2 * m]
    return pairs


def sample_grid(
    *, height: int, width: int, limit: int, rule: str, keep: int, generator: torch.Generator
) -> Float[Tensor, "N 4"]:
    """Draw one grid for an image and keep some of its patches, in random order (Sec. 3.2).

    Args:
        height: of the image [pixels].
        width: of the image [pixels].
        limit: M, the most rows and columns.
        rule: see `grid_pairs`.
        keep: at most so many patches.
        generator: the only source of chance here.

    Returns:
        (N, 4) xyxy, pixels of the image, 1 <= N <= keep.

    Raises:
        InputError: keep below 1, or what `grid_pairs` refuses.
    """
    if keep < 1:
        raise InputError(f"grid: at least one patch of an image must be kept; got keep = {keep}.")
    pairs = grid_pairs(limit, rule)
    rows, columns = pairs[int(torch.randint(len(pairs), (), generator=generator))]
    order = torch.randperm(rows * columns, generator=generator)[:keep]  # (N,)
    return grid_boxes(rows, columns, height=height, width=width)[order]
