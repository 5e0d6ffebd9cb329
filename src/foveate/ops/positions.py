"""Positions for any patch grid: absolute embeddings are resized, rotary tables recomputed (Sec. 3.1).

Both start from the size the tower was trained at, so teacher and student of different input sizes share one set of
weights. On rectangular grids each axis follows the same formula.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor


def resize_positions(
    positions: Float[Tensor, "L C"], *, grid: tuple[int, int], native: tuple[int, int], has_class_token: bool
) -> Float[Tensor, "M C"]:
    """Resize absolute position embeddings to another patch grid: bicubic, in float32, not antialiased.

    Args:
        positions: of the tower, row by row, after the class token's if `has_class_token`, which is not changed.
        grid: (h, w) to resize to.
        native: (h, w) of `positions`.

    Returns:
        The same layout for `grid`, in the type of `positions`; `positions` itself where the grids are equal, except in
        a graph exported for any grid, which resizes with weights of 0 and 1.
    """
    first = int(has_class_token)
    assert positions.shape[0] == first + native[0] * native[1], f"{tuple(positions.shape)} is not a grid of {native}"
    if not torch.compiler.is_exporting() and grid == native:
        return positions
    plane = positions[first:].float().T.unflatten(1, native)[None]  # (1, C, h0, w0)
    plane = F.interpolate(plane, size=grid, mode="bicubic", align_corners=False, antialias=False)  # (1, C, h, w)
    resized = plane[0].flatten(1).T.to(positions.dtype)  # (h * w, C)
    return torch.cat([positions[:first], resized])


def rotary_table(
    grid: tuple[int, int],
    *,
    native: tuple[int | float, int | float],
    head_width: int,
    theta: float = 10000.0,
    device: torch.device | str = "cpu",
) -> tuple[Float[Tensor, "L d"], Float[Tensor, "L d"]]:
    """Compute the two-dimensional rotary embedding of EVA-02 for a grid.

    Index i on an axis of N locations has the position i / N * native. The first half of a head's channels is rotated by
    the row, the second by the column; in each half, pair j is rotated by position * theta^(-j / (d / 4)).

    Args:
        grid: (h, w) of the table.
        native: (h, w) range that positions are scaled to; (16, 16) for all EVA-02 CLIP, whatever their grid.
        head_width: d, channels of an attention head, a multiple of 4.
        theta: base of the frequencies.

    Returns:
        Cosines and sines for `rotate`, float32, L = h * w, row by row. The sines of the first channel of each pair are
        negated.
    """
    assert head_width % 4 == 0, f"two axes of pairs need a head width that is a multiple of 4, got {head_width}"
    bands = head_width // 4
    frequencies = theta ** (-torch.arange(bands, dtype=torch.float64, device=device) / bands)  # (d / 4,)
    rows, columns = (
        torch.arange(length, dtype=torch.float64, device=device)[:, None]
        / length
        * base
        * frequencies  # (h or w, d / 4)
        for length, base in zip(grid, native, strict=True)
    )
    angles = torch.cat(
        [rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)], dim=2
    )  # (h, w, d / 2)
    angles = angles.flatten(0, 1).repeat_interleave(2, dim=1)  # (L, d), each angle for both channels of its pair
    signs = torch.arange(head_width, device=device) % 2 * 2 - 1  # (d,), minus for the first of a pair
    return angles.cos().float(), (angles.sin() * signs).float()


def rotate(
    tokens: Float[Tensor, "*heads L d"],
    cosines: Float[Tensor, "*#heads L d"],
    sines: Float[Tensor, "*#heads L d"],
    turns: Complex[Tensor, "*#heads L e"] | None = None,
) -> Float[Tensor, "*heads L d"]:
    """Rotate each adjacent pair (a, b) of channels of queries or keys to (a cos - b sin, b cos + a sin).

    Args:
        tokens: returned in their type.
        cosines: of `rotary_table`, as `sines`.
        turns: of `pair_turns`, where it was computed before.
    """
    if torch.compiler.is_compiling():  # fused into one kernel; no complex numbers there, nor in ONNX
        swapped = tokens.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)  # (..., L, d)
        return torch.addcmul(tokens * cosines, swapped, sines).to(tokens.dtype)
    exact = tokens if tokens.dtype == torch.float64 else tokens.float()
    turns = pair_turns(cosines, sines) if turns is None else turns  # (..., L, d / 2)
    pairs = torch.view_as_complex(exact.unflatten(-1, (-1, 2))) * turns  # one kernel: reads and writes once
    return torch.view_as_real(pairs).flatten(-2).to(tokens.dtype)


def pair_turns(
    cosines: Float[Tensor, "*heads L d"], sines: Float[Tensor, "*heads L d"]
) -> Complex[Tensor, "*heads L e"]:
    """Convert a table of `rotary_table` to one complex number per pair of channels, e = d / 2."""
    return torch.complex(cosines[..., ::2], sines[..., 1::2])
