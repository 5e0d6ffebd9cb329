"""Dense heads: replacements of the last block, so that each patch embeds its own content (Sec. 3.1; Tab. A3).

One function per head, over the same functions of a tower. `value` is the paper's. The training-free baselines are
`sclip` (SCLIP, Wang et al., ECCV 2024), `clearclip` (ClearCLIP, Lan et al., ECCV 2024) and `naclip` (NACLIP, Hajimiri
et al., WACV 2025), each as its paper changes the last block, with rotary embeddings where the tower has them. Their
sliding windows, mask refinement and thresholds are not part of a head.

    x: inputs of the last block, x_0 the class token
    o: its output projection    v: its values    f: final norm and projection

    value       f(mlp(x + o(v)))           sclip       f(mlp(x + o((softmax(qq') + softmax(kk')) v)))
    value_only  f(o(v))                    clearclip   f(o(softmax(qq') v))
    attention   f(block(x))                naclip      f(o(softmax(kk' + Gaussian window) v))
    value_cls   f(mlp(x_0 + o(v)))         values3     f(sum of o(v) over the last three blocks)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from foveate.clip.attention import attend, key_mask, whole_block
from foveate.clip.tower import ImageTower, Layout

_WINDOW_STD = 5.0  # of NACLIP's Gaussian window [tokens]


def value(tower: ImageTower, states: list[Tensor], layout: Layout) -> Float[Tensor, "B L X"]:
    """The paper's: self-attention of the last block is replaced by its value and output projections."""
    block, patches = tower.blocks[-1], states[-1][:, layout.prefix :]
    return tower.add_mlp(block, tower.add(block, patches, _values(tower, block, patches)))


def value_cls(tower: ImageTower, states: list[Tensor], layout: Layout) -> Float[Tensor, "B L X"]:
    """As `value`, but the values are added to the class token, as in the code of CAT-Seg (Cho et al., CVPR 2024)."""
    block, tokens = tower.blocks[-1], states[-1]
    update = _values(tower, block, tokens[:, layout.prefix :])  # (B, L, C)
    return tower.add_mlp(block, tower.add(block, tokens[:, :1].expand_as(update), update))


def value_only(tower: ImageTower, states: list[Tensor], layout: Layout) -> Float[Tensor, "B L X"]:
    """Value and output projection alone, without residual and MLP (MaskCLIP, Zhou et al., ECCV 2022)."""
    return _values(tower, tower.blocks[-1], states[-1][:, layout.prefix :])


def attention(tower: ImageTower, states: list[Tensor], layout: Layout) -> Float[Tensor, "B L X"]:
    """The last block, unchanged."""
    blocks = tower.blocks
    is_windowed = len(blocks) - 1 in layout.windowed
    return whole_block(tower, blocks[-1], states[-1], layout, is_windowed)[:, layout.prefix :]


def sclip(tower: ImageTower, states: list[Tensor], layout: Layout) -> Float[Tensor, "B L X"]:
    """SCLIP: the sum of query-query and key-key self-attention, with residual and MLP."""
    block, tokens = tower.blocks[-1], states[-1]
    q, k, v = tower.project_in(block, tokens, "qkv")
    mixed = _self_correlation(tower, block, q, v, layout) + _self_correlation(tower, block, k, v, layout)
    return tower.add_mlp(block, tower.add(block, tokens, tower.project_out(block, mixed)))[:, layout.prefix :]


def clearclip(tower: ImageTower, states: list[Tensor], layout: Layout) -> Float[Tensor, "B L X"]:
    """ClearCLIP: query-query self-attention, without residual and MLP."""
    block, tokens = tower.blocks[-1], states[-1]
    (q,) = tower.project_in(block, tokens, "q")
    (v,) = tower.project_in(block, tokens, "v")
    return tower.project_out(block, _self_correlation(tower, block, q, v, layout))[:, layout.prefix :]


def naclip(tower: ImageTower, states: list[Tensor], layout: Layout) -> Float[Tensor, "B L X"]:
    """NACLIP: key-key self-attention plus a Gaussian window, without residual and MLP."""
    block, tokens = tower.blocks[-1], states[-1]
    k, v = tower.project_in(block, tokens, "kv")
    window, mask = _gaussian_window(layout, like=k), key_mask(layout)
    bias = window if mask is None else window.where(mask, -torch.inf)  # (T, T), or (B, 1, T, T) with padding
    mixed = attend(k, k, v, heads=tower.heads(block), table=layout.table, mask=bias)
    return tower.project_out(block, mixed)[:, layout.prefix :]


def values3(tower: ImageTower, states: list[Tensor], layout: Layout) -> Float[Tensor, "B L X"]:
    """The sum of the projected values of the last three blocks, and nothing else of these blocks.

    Gates (`Clip.gates`) multiply the values of each attention head: the head selection gating of DenseRC
    ("Reconstructing CLIP for Open-Vocabulary Dense Perception", CVPR 2026), here learned and the same for every image.
    """
    gates = (None, None, None) if layout.gates is None else layout.gates.chunk(3)  # (heads,) each
    blocks = zip(tower.blocks[-3:], states[-3:], gates, strict=True)
    third, second, last = (_values(tower, block, x[:, layout.prefix :], gate) for block, x, gate in blocks)
    return third + second + last


def masked_attention(
    tower: ImageTower, tokens: Float[Tensor, "B T C"], layout: Layout, regions: Bool[Tensor, "B Q L"]
) -> Float[Tensor, "B Q X"]:
    """Embed regions by copies of the class token that attend to their region alone (Tab. A3).

    In every block a copy attends to the patches of its region and to the class token; no token attends to it. In towers
    that pool the image only at the end (SigLIP, residual networks), the copies are added there.

    Args:
        tokens: inputs of the first block.
        regions: the patches of each region.

    Returns:
        One row per region, not projected. A region without patches attends to the class token alone, and without class
        token to everything.
    """
    blocks, count = tower.blocks, regions.shape[1]
    prefix = regions.new_ones((*regions.shape[:2], layout.prefix))
    mask = torch.cat([prefix, regions], dim=2)  # (B, Q, T)
    mask = (mask | ~mask.any(dim=2, keepdim=True))[:, None]  # (B, 1, Q, T)
    copies = None
    for index, block in enumerate(blocks):
        is_last = index == len(blocks) - 1
        if copies is None and (is_last or layout.prefix > 0):
            copies = tower.query_token(tokens).expand(-1, count, -1)  # (B, Q, C)
        if copies is not None:
            copies = _attend_from(tower, block, copies, tokens, layout, mask=mask)
        if not is_last:
            tokens = whole_block(tower, block, tokens, layout, index in layout.windowed)
    assert copies is not None, "every tower has a last block"
    return copies


def pool_image(tower: ImageTower, tokens: Float[Tensor, "B T C"], layout: Layout) -> Float[Tensor, "B 1 X"]:
    """Run the last block for the query token alone (the image embedding)."""
    query = tower.query_token(tokens)  # (B, 1, C)
    return _attend_from(tower, tower.blocks[-1], query, tokens, layout, mask=key_mask(layout))


def _attend_from(
    tower: ImageTower, block: Any, queries: Tensor, tokens: Tensor, layout: Layout, *, mask: Tensor | None
) -> Tensor:
    """Run a block for queries without a position on the grid, which attend to the tokens."""
    (q,) = tower.project_in(block, queries, "q")
    k, v = tower.project_in(block, tokens, "kv")
    mixed = attend(q, k, v, heads=tower.heads(block), table=layout.table, mask=mask, rotate_queries=False)  # (B, Q, C)
    return tower.add_mlp(block, tower.add(block, queries, tower.project_out(block, mixed)))


def _values(tower: ImageTower, block: Any, tokens: Tensor, gates: Tensor | None = None) -> Tensor:
    """The output of attention if every token attended to itself alone; gates multiply the heads."""
    (v,) = tower.project_in(block, tokens, "v")
    if gates is not None:
        v = (v.unflatten(2, (len(gates), -1)) * gates[:, None].to(v.dtype)).flatten(2)  # (B, L, C)
    return tower.project_out(block, v)


def _self_correlation(tower: ImageTower, block: Any, x: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Attention whose queries and keys are both `x`."""
    return attend(x, x, v, heads=tower.heads(block), table=layout.table, mask=key_mask(layout))


def _gaussian_window(layout: Layout, *, like: Tensor) -> Float[Tensor, "T T"]:
    """A Gaussian of the distance between patches on the grid, 1 at distance 0; 0 for the class token."""
    h, w = layout.grid
    rows, columns = torch.arange(h, device=like.device), torch.arange(w, device=like.device)
    locations = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=2).flatten(0, 1)  # (L, 2)
    squared_distance = (locations[:, None] - locations).square().sum(dim=2)  # (L, L)
    window = (squared_distance / (-2 * _WINDOW_STD**2)).exp().to(like.dtype)
    return F.pad(window, (layout.prefix, 0, layout.prefix, 0))  # (T, T)


class DenseHead(NamedTuple):
    """A head, and what it uses of the tower."""

    apply: Callable[[ImageTower, list[Tensor], Layout], Tensor]
    part: str  # projections of the last block: letters of "qkv"
    mlp: bool  # whether the MLP of the last block is used
    states: int = 1  # number of last blocks whose inputs are used


HEADS: dict[str, DenseHead] = {
    "value": DenseHead(value, "v", mlp=True),
    "value_cls": DenseHead(value_cls, "v", mlp=True),
    "value_only": DenseHead(value_only, "v", mlp=False),
    "attention": DenseHead(attention, "qkv", mlp=True),
    "sclip": DenseHead(sclip, "qkv", mlp=True),
    "clearclip": DenseHead(clearclip, "qv", mlp=False),
    "naclip": DenseHead(naclip, "kv", mlp=False),
    "values3": DenseHead(values3, "v", mlp=False, states=3),
}
