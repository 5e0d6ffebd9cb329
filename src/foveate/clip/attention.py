"""Attention blocks over a batch of tokens, global or in windows, with padding masked (Sec. 3.1, 4.4).

Images of one size need no mask. Images of several sizes form one batch with masked padding, each with the positions of
its own grid, so that its tokens are the same as alone. Attention is one fused kernel, without loops over heads or
windows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foveate.clip.inputs import PackedBatch
from foveate.clip.tower import ImageTower, Layout, Table, Windows
from foveate.ops.positions import pair_turns, rotate
from foveate.ops.windows import merge_windows, split_windows


def embed_tokens(
    tower: ImageTower,
    batch: PackedBatch,
    *,
    frame: tuple[int, int] | None = None,
    windows: Windows | None = None,
) -> tuple[Float[Tensor, "B T C"], Layout]:
    """Embed the patches of a batch.

    Args:
        frame: (h, w) of the grid of which the images are the top left, for positions; None: their own grid.
        windows: blocks with window attention.

    Returns:
        The inputs of the first block, and their layout.
    """
    images, grids = batch
    (down, across), prefix = tower.sizes[1], tower.prefix
    grid = (images.shape[2] // down, images.shape[3] // across)
    if frame is not None:
        positions = _top_left(tower.positions(frame), frame=frame, grid=grid, prefix=prefix)
        table, valid = tower.table(grid, whole=frame), None
    elif grids is None:
        positions, table, valid = tower.positions(grid), tower.table(grid), None
    else:
        # each image has the positions of its own grid, at the top left of the grid of the batch
        positions = _pad_rows([tower.positions(size) for size in grids], grid=grid, grids=grids, prefix=prefix)
        table = _pad_tables([tower.table(size) for size in grids], grid=grid, grids=grids, prefix=prefix)
        ones = [positions.new_ones(prefix + h * w, 1) for h, w in grids]
        valid = _pad_rows(ones, grid=grid, grids=grids, prefix=prefix)[:, :, 0] > 0  # (B, T)
    tokens = tower.embed(images, positions)
    table = _with_turns(table)
    if windows is None:
        return tokens, Layout(grid, prefix, table, valid)
    # windows are no larger than the grid, but have the rotary embedding of a whole window
    whole = (windows.size, windows.size)
    size = whole if torch.compiler.is_exporting() else (min(windows.size, grid[0]), min(windows.size, grid[1]))
    window_table = _with_turns(tower.table(size, whole=whole))
    return tokens, Layout(grid, prefix, table, valid, windows.blocks, size, window_table)


def whole_block(
    tower: ImageTower, block: Any, tokens: Float[Tensor, "B T C"], layout: Layout, windowed: bool
) -> Float[Tensor, "B T X"]:
    """Run one block with global or with window attention."""
    if windowed:
        return _windowed_block(tower, block, tokens, layout)
    tokens = tower.add(block, tokens, _global_attention(tower, block, tokens, layout))
    return tower.add_mlp(block, tokens)  # queries, keys and values are freed here


RunBlock = Callable[[ImageTower, Any, Tensor, Layout, bool], Tensor]
"""Runs a block as `whole_block` does, with other memory and time (compiled, recomputed, in low precision)."""


def recomputed(run: RunBlock) -> RunBlock:
    """Store only the input of a block, and run it again in the backward pass (activation checkpointing)."""

    def run_twice(*arguments: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return run(*arguments)
        return checkpoint(  # blocks draw no random numbers
            run,  # pyright: ignore[reportArgumentType]
            *arguments,
            use_reentrant=False,
            preserve_rng_state=False,
        )

    return run_twice


def block_inputs(
    tower: ImageTower,
    batch: PackedBatch,
    *,
    indices: set[int],
    frame: tuple[int, int] | None = None,
    windows: Windows | None = None,
    run: RunBlock = whole_block,
) -> tuple[dict[int, Float[Tensor, "B T C"]], Layout]:
    """Run a tower up to the last of some blocks and return the inputs of these blocks, and their layout.

    Args:
        indices: of the blocks, from 0; the last of them is not run.
        frame: see `embed_tokens`, as `windows`.
    """
    tokens, layout = embed_tokens(tower, batch, frame=frame, windows=windows)
    inputs = {}
    for index, block in enumerate(tower.blocks[: max(indices) + 1]):
        if index in indices:
            inputs[index] = tokens
        if index < max(indices):
            tokens = run(tower, block, tokens, layout, index in layout.windowed)
    return inputs, layout


def attend(
    q: Float[Tensor, "B Q C"],
    k: Float[Tensor, "B T C"],
    v: Float[Tensor, "B T C"],
    *,
    heads: int,
    table: Table | None,
    mask: Shaped[Tensor, "..."] | None = None,
    rotate_queries: bool = True,
) -> Float[Tensor, "B Q C"]:
    """Multi-head attention, one fused kernel.

    Args:
        heads: C is split into this number of heads.
        table: rotary embedding of the T tokens.
        mask: keys that a query attends to (Bool), or a bias of its scores (Float); broadcasts to (B, heads, Q, T).
        rotate_queries: False for the class token and its copies, which have no position on the grid.
    """
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, Q or T, d)
    if table is not None:
        k = rotate(k, *table)
        q = rotate(q, *table) if rotate_queries else q
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, heads, Q, d)
    return mixed.transpose(1, 2).flatten(2)  # (B, Q, C)


def key_mask(layout: Layout) -> Bool[Tensor, "B 1 1 T"] | None:
    """Mask of the keys that are not padding; None: no token is padding."""
    return None if layout.valid is None else layout.valid[:, None, None]


def _global_attention(tower: ImageTower, block: Any, tokens: Tensor, layout: Layout) -> Tensor:
    """Attention of every token to every token of its image."""
    q, k, v = tower.project_in(block, tokens, "qkv")
    mixed = attend(q, k, v, heads=tower.heads(block), table=layout.table, mask=key_mask(layout))
    return tower.project_out(block, mixed)


def _windowed_block(tower: ImageTower, block: Any, tokens: Tensor, layout: Layout) -> Tensor:
    """A block with window attention (Sec. 4.4).

    Each window has a copy of the class token; the copies are averaged after the whole block.
    """
    # attention inside each of the n windows
    parts = [_split(x, layout) for x in tower.project_in(block, tokens, "qkv")]  # (B, n, prefix + S, C) each
    count, prefix = parts[0].shape[1], layout.prefix
    inside = _inside(tokens, layout)  # (B, n, prefix + S) or None
    mask = None if inside is None else _unmask_empty(inside).flatten(0, 1)[:, None, None]
    q, k, v = (x.flatten(0, 1) for x in parts)  # (B * n, prefix + S, C) each
    mixed = attend(q, k, v, heads=tower.heads(block), table=layout.window_table, mask=mask)
    update = tower.project_out(block, mixed).unflatten(0, (tokens.shape[0], count))  # (B, n, prefix + S, C)

    # residual and MLP of all copies and patches
    merged = merge_windows(update[:, :, prefix:], grid=layout.grid, size=layout.window)  # (B, L, C)
    copies = tokens[:, None, :prefix].expand(-1, count, -1, -1).flatten(1, 2)  # (B, n * prefix, C)
    wide = tower.add(
        block,
        torch.cat([copies, tokens[:, prefix:]], dim=1),
        torch.cat([update[:, :, :prefix].flatten(1, 2), merged], dim=1),
    )  # (B, n * prefix + L, C)
    copies, patches = tower.add_mlp(block, wide).split([count * prefix, merged.shape[1]], dim=1)
    copies = copies.unflatten(1, (count, prefix))  # (B, n, prefix, C)

    # the mean of the copies, except those of windows of padding alone
    if inside is None:
        return torch.cat([copies.mean(dim=1), patches], dim=1)
    counted = inside[:, :, prefix:].any(dim=2, keepdim=True)[..., None]  # (B, n, 1, 1)
    return torch.cat([(copies * counted).sum(dim=1) / counted.sum(dim=1), patches], dim=1)


def _split(x: Shaped[Tensor, "B T X"], layout: Layout) -> Shaped[Tensor, "B n S X"]:
    """Windows of patches, each after a copy of the class token."""
    patches = split_windows(x[:, layout.prefix :], grid=layout.grid, size=layout.window)  # (B, n, S, X)
    copies = x[:, None, : layout.prefix].expand(-1, patches.shape[1], -1, -1)  # (B, n, prefix, X)
    return torch.cat([copies, patches], dim=2)


def _inside(x: Tensor, layout: Layout) -> Bool[Tensor, "B n S"] | None:
    """Mask of the tokens of each window that are not padding; None: no token is."""
    (h, w), (s, t) = layout.grid, layout.window
    is_exporting = torch.compiler.is_exporting()  # one graph for every grid, so no branch on its size
    if not is_exporting and layout.valid is None and h % s == 0 and w % t == 0:
        return None
    valid = x.new_ones(x.shape[:2], dtype=torch.bool) if layout.valid is None else layout.valid
    return _split(valid[:, :, None], layout)[..., 0]


def _unmask_empty(inside: Bool[Tensor, "*B T"]) -> Bool[Tensor, "*B T"]:
    """Unmask windows of padding alone, which attention would turn into NaN."""
    return inside | ~inside.any(dim=-1, keepdim=True)


def _with_turns(table: Table | None) -> Table | None:
    """Add the complex form of a table, once for all blocks; not when compiling, where it is not used."""
    return table if table is None or torch.compiler.is_compiling() else (*table[:2], pair_turns(*table[:2]))


def _top_left(
    rows: Float[Tensor, "T X"], *, frame: tuple[int, int], grid: tuple[int, int], prefix: int
) -> Float[Tensor, "t X"]:
    """The rows of the top left of a grid."""
    plane = rows[prefix:].unflatten(0, frame)[: grid[0], : grid[1]]  # (h, w, X)
    return torch.cat([rows[:prefix], plane.flatten(0, 1)])


def _pad_rows(
    tables: Sequence[Float[Tensor, "_ X"]], *, grid: tuple[int, int], grids: list[tuple[int, int]], prefix: int
) -> Float[Tensor, "B T X"]:
    """Zero-pad the rows of the grid of each image to the larger grid of the batch."""
    padded = []
    for rows, (h, w) in zip(tables, grids, strict=True):
        plane = rows[prefix:].unflatten(0, (h, w))
        plane = F.pad(plane, (0, 0, 0, grid[1] - w, 0, grid[0] - h))  # (grid, X)
        padded.append(torch.cat([rows[:prefix], plane.flatten(0, 1)]))
    return torch.stack(padded)


def _pad_tables(
    tables: list[Table | None], *, grid: tuple[int, int], grids: list[tuple[int, int]], prefix: int
) -> Table | None:
    """The rotary embedding of each image, (B, 1, T, d) both."""
    pairs = [table for table in tables if table is not None]
    if not pairs:
        return None
    cosines, sines = (_pad_rows(parts, grid=grid, grids=grids, prefix=prefix) for parts in zip(*pairs, strict=True))
    return cosines[:, None], sines[:, None]
