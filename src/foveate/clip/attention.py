"""What attention sees: one block over a batch of tokens, whole or in windows, padding left out (Sec. 3.1, 4.4).

Images of one size need no mask. Images of several sizes are laid into one batch whose padding no token ever sees, each
with the positions of its own grid, so that an image's tokens are those it has alone. Every mixture is one fused kernel;
neither heads nor windows are looped over.
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
    """Embed the patches of a batch and say what attention will see of them.

    Args:
        tower: embeds and runs them.
        batch: normalised images; H and W multiples of the patch size.
        frame: (h, w) of the grid whose top left the images are, and whose positions they get; None: their own.
        windows: which blocks attend in windows.

    Returns:
        The tokens that enter the first block, and their layout.
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
        # each image has the positions of its own grid, at the top left of the batch's
        positions = _spread([tower.positions(own) for own in grids], grid=grid, grids=grids, prefix=prefix)  # (B, T, C)
        table = _spread_tables([tower.table(own) for own in grids], grid=grid, grids=grids, prefix=prefix)
        ones = [positions.new_ones(prefix + h * w, 1) for h, w in grids]
        valid = _spread(ones, grid=grid, grids=grids, prefix=prefix)[:, :, 0] > 0  # (B, T)
    tokens = tower.embed(images, positions)
    table = _with_turns(table)
    if windows is None:
        return tokens, Layout(grid, prefix, table, valid)
    whole = (windows.size, windows.size)
    # a window need not be larger than the grid, but its rotary embedding is that of the whole window
    size = whole if torch.compiler.is_exporting() else (min(windows.size, grid[0]), min(windows.size, grid[1]))
    window_table = _with_turns(tower.table(size, whole=whole))
    return tokens, Layout(grid, prefix, table, valid, windows.blocks, size, window_table)


def whole_block(
    tower: ImageTower, block: Any, tokens: Float[Tensor, "B T C"], layout: Layout, windowed: bool
) -> Float[Tensor, "B T X"]:
    """Run one block as the tower has it, or with its attention inside windows."""
    if windowed:
        return _windowed_block(tower, block, tokens, layout)
    tokens = tower.add(block, tokens, _everywhere(tower, block, tokens, layout))
    return tower.add_mlp(block, tokens)  # by now queries, keys and values are freed


RunBlock = Callable[[ImageTower, Any, Tensor, Layout, bool], Tensor]
"""How the blocks before the last are run: as `whole_block` runs them, in more or less memory and time."""


def recomputed(run: RunBlock) -> RunBlock:
    """Keep only what enters a block, and run it again when its gradients are asked for (activation checkpointing)."""

    def run_twice(*arguments: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return run(*arguments)
        return checkpoint(  # nothing is drawn in a block, so there is no random state to keep
            run,  # pyright: ignore[reportArgumentType]
            *arguments,
            use_reentrant=False,
            preserve_rng_state=False,
        )

    return run_twice


def entering(
    tower: ImageTower,
    batch: PackedBatch,
    *,
    places: set[int],
    frame: tuple[int, int] | None = None,
    windows: Windows | None = None,
    run: RunBlock = whole_block,
) -> tuple[dict[int, Float[Tensor, "B T C"]], Layout]:
    """Run a tower as far as needed and keep what enters some of its blocks, and nothing else.

    Args:
        tower: embeds and runs them.
        batch: see `embed_tokens`.
        places: of the blocks, from 0; the last one asked for is not run.
        frame: see `embed_tokens`.
        windows: see `embed_tokens`.
        run: how a block is run.

    Returns:
        The tokens entering each of these blocks, and their layout.
    """
    tokens, layout = embed_tokens(tower, batch, frame=frame, windows=windows)
    kept = {}
    for index, block in enumerate(tower.blocks[: max(places) + 1]):
        if index in places:
            kept[index] = tokens
        if index < max(places):
            tokens = run(tower, block, tokens, layout, index in layout.windowed)
    return kept, layout


def attend(
    q: Float[Tensor, "B Q C"],
    k: Float[Tensor, "B T C"],
    v: Float[Tensor, "B T C"],
    *,
    heads: int,
    table: Table | None,
    seen: Shaped[Tensor, "..."] | None = None,
    turn_queries: bool = True,
) -> Float[Tensor, "B Q C"]:
    """Let queries gather the values of the keys they agree with, head by head.

    Args:
        q: one row an asking token.
        k: keys.
        v: values.
        heads: C is split into so many.
        table: rotary embedding of the T tokens.
        seen: which keys a query sees (Bool), or what is added to its scores (Float); broadcasts to (B, heads, Q, T).
        turn_queries: whether the queries are those of the T tokens; the class token and its copies stand nowhere.
    """
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, Q or T, d)
    if table is not None:
        k = rotate(k, *table)
        q = rotate(q, *table) if turn_queries else q
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)  # (B, heads, Q, d)
    return mixed.transpose(1, 2).flatten(2)  # (B, Q, C)


def keys_seen(layout: Layout) -> Bool[Tensor, "B 1 1 T"] | None:
    """Which keys every query sees: an image's own; None: all."""
    return None if layout.valid is None else layout.valid[:, None, None]


def _everywhere(tower: ImageTower, block: Any, tokens: Tensor, layout: Layout) -> Tensor:
    """Attention of every token to every token of its image."""
    q, k, v = tower.project_in(block, tokens, "qkv")
    mixed = attend(q, k, v, heads=tower.heads(block), table=layout.table, seen=keys_seen(layout))
    return tower.project_out(block, mixed)


def _windowed_block(tower: ImageTower, block: Any, tokens: Tensor, layout: Layout) -> Tensor:
    """A block inside windows: each has a copy of the class token, and the copies are averaged after the whole block
    (attention, residual and MLP; Sec. 4.4)."""
    parts = [_split(x, layout) for x in tower.project_in(block, tokens, "qkv")]  # (B, n, prefix + S, C) each
    count, prefix = parts[0].shape[1], layout.prefix
    cut = [x.flatten(0, 1) for x in parts]  # (B * n, prefix + S, C) each
    inside = _inside(tokens, layout)  # (B, n, prefix + S) or None
    seen = None if inside is None else _never_blind(inside).flatten(0, 1)[:, None, None]
    mixed = attend(*cut, heads=tower.heads(block), table=layout.window_table, seen=seen)
    update = tower.project_out(block, mixed).unflatten(0, (tokens.shape[0], count))  # (B, n, prefix + S, C)
    merged = merge_windows(update[:, :, prefix:], grid=layout.grid, size=layout.window)  # (B, L, C)
    copies = tokens[:, None, :prefix].expand(-1, count, -1, -1).flatten(1, 2)  # (B, n * prefix, C)
    wide = tower.add(
        block,
        torch.cat([copies, tokens[:, prefix:]], dim=1),
        torch.cat([update[:, :, :prefix].flatten(1, 2), merged], dim=1),
    )  # (B, n * prefix + L, C)
    copies, patches = tower.add_mlp(block, wide).split([count * prefix, merged.shape[1]], dim=1)
    copies = copies.unflatten(1, (count, prefix))  # (B, n, prefix, C)
    if inside is None:
        return torch.cat([copies.mean(dim=1), patches], dim=1)
    share = inside[:, :, prefix:].any(dim=2, keepdim=True)[..., None]  # (B, n, 1, 1), not of padding alone
    return torch.cat([(copies * share).sum(dim=1) / share.sum(dim=1), patches], dim=1)


def _split(x: Shaped[Tensor, "B T X"], layout: Layout) -> Shaped[Tensor, "B n S X"]:
    """Windows of the patches, each with a copy of the class token before them."""
    patches = split_windows(x[:, layout.prefix :], grid=layout.grid, size=layout.window)  # (B, n, S, X)
    copies = x[:, None, : layout.prefix].expand(-1, patches.shape[1], -1, -1)  # (B, n, prefix, X)
    return torch.cat([copies, patches], dim=2)


def _inside(x: Tensor, layout: Layout) -> Bool[Tensor, "B n S"] | None:
    """Which tokens of each window are an image's own; None: all are."""
    (h, w), (s, t) = layout.grid, layout.window
    exporting = torch.compiler.is_exporting()  # one graph for every grid, so no branch on its size
    if not exporting and layout.valid is None and h % s == 0 and w % t == 0:
        return None
    valid = x.new_ones(x.shape[:2], dtype=torch.bool) if layout.valid is None else layout.valid
    return _split(valid[:, :, None], layout)[..., 0]


def _never_blind(inside: Bool[Tensor, "*B T"]) -> Bool[Tensor, "*B T"]:
    """Let a window of padding alone see itself: its tokens are cut off, but must be numbers until then."""
    return inside | ~inside.any(dim=-1, keepdim=True)


def _with_turns(table: Table | None) -> Table | None:
    """Make the complex form of a table once for all blocks; a compiler has no use for it."""
    return table if table is None or torch.compiler.is_compiling() else (*table[:2], pair_turns(*table[:2]))


def _top_left(
    rows: Float[Tensor, "T X"], *, frame: tuple[int, int], grid: tuple[int, int], prefix: int
) -> Float[Tensor, "t X"]:
    """Keep the rows of the top left of a grid."""
    plane = rows[prefix:].unflatten(0, frame)[: grid[0], : grid[1]]  # (h, w, X)
    return torch.cat([rows[:prefix], plane.flatten(0, 1)])


def _spread(
    tables: Sequence[Float[Tensor, "_ X"]], *, grid: tuple[int, int], grids: list[tuple[int, int]], prefix: int
) -> Float[Tensor, "B T X"]:
    """Lay the rows of each image's own grid out on the larger grid of its batch; zeros elsewhere."""
    spread = []
    for rows, own in zip(tables, grids, strict=True):
        plane = rows[prefix:].unflatten(0, own)  # (h', w', X)
        plane = F.pad(plane, (0, 0, 0, grid[1] - own[1], 0, grid[0] - own[0]))  # (h, w, X)
        spread.append(torch.cat([rows[:prefix], plane.flatten(0, 1)]))
    return torch.stack(spread)


def _spread_tables(
    tables: list[Table | None], *, grid: tuple[int, int], grids: list[tuple[int, int]], prefix: int
) -> Table | None:
    """Each image's own rotary embedding, (B, 1, T, d) both."""
    pairs = [table for table in tables if table is not None]
    if not pairs:
        return None
    cosines, sines = (_spread(parts, grid=grid, grids=grids, prefix=prefix) for parts in zip(*pairs, strict=True))
    return cosines[:, None], sines[:, None]
