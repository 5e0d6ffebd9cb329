"""Dense heads: what becomes of the last block, so that each patch says what lies there (Sec. 3.1; Tab. A3).

One function a head, all over the same functions of a tower. `value` is the paper's. The training-free ones are what
users compare with: `sclip` (SCLIP, Wang et al., ECCV 2024), `clearclip` (ClearCLIP, Lan et al., ECCV 2024), `naclip`
(NACLIP, Hajimiri et al., WACV 2025), each as its paper changes the last block, with rotary embeddings where the tower
has them. Their other tricks (sliding windows, refinement of the masks, thresholds) are no matter of a head and absent.

    x: tokens that enter the last block, x_0 the class token
    o: its output projection    v: its values    f: final norm and projection

    value       f(mlp(x + o(v)))           sclip       f(mlp(x + o((softmax(qq') + softmax(kk')) v)))
    value_only  f(o(v))                    clearclip   f(o(softmax(qq') v))
    attention   f(the block as it is)      naclip      f(o(softmax(kk' + nearness) v))
    value_cls   f(mlp(x_0 + o(v)))         values3     f(sum of o(v) over the last three blocks)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from foveate.clip.attention import attend, keys_seen, whole_block
from foveate.clip.tower import ImageTower, Layout

_NEAR = 5.0  # NACLIP's standard deviation [tokens]


def value(tower: ImageTower, states: list[Tensor], layout: Layout) -> Float[Tensor, "B L X"]:
    """The paper's: self-attention of the last block replaced by value and output projection, the rest kept."""
    block, patches = tower.blocks[-1], states[-1][:, layout.prefix :]
    return tower.add_mlp(block, tower.add(block, patches, _values(tower, block, patches)))


def value_cls(tower: ImageTower, states: list[Tensor], layout: Layout) -> Float[Tensor, "B L X"]:
    """As `value`, but what the values are added to is the class token, for every patch the same.

    So the last block is written in Cat-Seg of 2024 (Cho et al., CVPR 2024), whose dense tokens lose what was the
    patch's own before it.
    """
    block, tokens = tower.blocks[-1], states[-1]
    update = _values(tower, block, tokens[:, layout.prefix :])  # (B, L, C)
    return tower.add_mlp(block, tower.add(block, tokens[:, :1].expand_as(update), update))


def value_only(tower: ImageTower, states: list[Tensor], layout: Layout) -> Float[Tensor, "B L X"]:
    """Value and output projection alone, without residual and MLP (MaskCLIP, Zhou et al., ECCV 2022)."""
    return _values(tower, tower.blocks[-1], states[-1][:, layout.prefix :])


def attention(tower: ImageTower, states: list[Tensor], layout: Layout) -> Float[Tensor, "B L X"]:
    """The last block as it is."""
    blocks = tower.blocks
    is_windowed = len(blocks) - 1 in layout.windowed
    return whole_block(tower, blocks[-1], states[-1], layout, is_windowed)[:, layout.prefix :]


def sclip(tower: ImageTower, states: list[Tensor], layout: Layout) -> Float[Tensor, "B L X"]:
    """Queries agree with queries and keys with keys, both added up; residual and MLP kept."""
    block, tokens = tower.blocks[-1], states[-1]
    q, k, v = tower.project_in(block, tokens, "qkv")
    mixed = _agree(tower, block, q, v, layout) + _agree(tower, block, k, v, layout)
    return tower.add_mlp(block, tower.add(block, tokens, tower.project_out(block, mixed)))[:, layout.prefix :]


def clearclip(tower: ImageTower, states: list[Tensor], layout: Layout) -> Float[Tensor, "B L X"]:
    """Queries agree with queries; no residual, no MLP."""
    block, tokens = tower.blocks[-1], states[-1]
    (q,) = tower.project_in(block, tokens, "q")
    (v,) = tower.project_in(block, tokens, "v")
    return tower.project_out(block, _agree(tower, block, q, v, layout))[:, layout.prefix :]


def naclip(tower: ImageTower, states: list[Tensor], layout: Layout) -> Float[Tensor, "B L X"]:
    """Keys agree with keys, the more the nearer they lie; no residual, no MLP."""
    block, tokens = tower.blocks[-1], states[-1]
    k, v = tower.project_in(block, tokens, "kv")
    nearness = _nearness(layout, like=k)  # (T, T)
    seen = keys_seen(layout)
    bias = nearness if seen is None else nearness.where(seen, -torch.inf)  # (B, 1, T, T) where there is padding
    mixed = attend(k, k, v, heads=tower.heads(block), table=layout.table, seen=bias)
    return tower.project_out(block, mixed)[:, layout.prefix :]


def values3(tower: ImageTower, states: list[Tensor], layout: Layout) -> Float[Tensor, "B L X"]:
    """The sum of what the last three blocks' values add to the tokens; nothing else of these blocks.

    Each head's values may be multiplied by a number of its own (`Clip.gates`): the head selection gating of DenseRC
    ("Reconstructing CLIP for Open-Vocabulary Dense Perception", CVPR 2026), which weighs heads and mixes no places.
    Ours are plain learned numbers, the same for every image.
    """
    gates = (None, None, None) if layout.gates is None else layout.gates.chunk(3)  # (heads,) each
    parts = zip(tower.blocks[-3:], states[-3:], gates, strict=True)
    third, second, last = (_values(tower, block, x[:, layout.prefix :], gate) for block, x, gate in parts)
    return third + second + last


def masked(
    tower: ImageTower, tokens: Float[Tensor, "B T C"], layout: Layout, regions: Bool[Tensor, "B Q L"]
) -> Float[Tensor, "B Q X"]:
    """Embed regions by copies of the class token that see their region alone (masked attention; Tab. A3).

    A copy starts as the class token does. In every block it asks, and sees the patches of its region and the class
    token; nobody sees it, so all other tokens are what they are without it. Where a tower gathers the image only at
    its end (SigLIP, residual networks), so do the copies.

    Args:
        tower: runs its blocks.
        tokens: that enter the first block.
        layout: of `embed_tokens`.
        regions: which patches belong to each region.

    Returns:
        One row a region, not projected. A region without patches sees the class token alone, and where there is none,
        everything.
    """
    blocks, count = tower.blocks, regions.shape[1]
    prefix = regions.new_ones((*regions.shape[:2], layout.prefix))
    seen = torch.cat([prefix, regions], dim=2)  # (B, Q, T)
    seen = (seen | ~seen.any(dim=2, keepdim=True))[:, None]  # (B, 1, Q, T)
    copies = None
    for index, block in enumerate(blocks):
        is_last = index == len(blocks) - 1
        if copies is None and (is_last or layout.prefix > 0):
            copies = tower.query_token(tokens).expand(-1, count, -1)  # (B, Q, C)
        if copies is not None:
            copies = _asked(tower, block, copies, tokens, layout, seen=seen)
        if not is_last:
            tokens = whole_block(tower, block, tokens, layout, index in layout.windowed)
    assert copies is not None, "the last block always gathers"
    return copies


def gathered(tower: ImageTower, tokens: Float[Tensor, "B T C"], layout: Layout) -> Float[Tensor, "B 1 X"]:
    """Run the last block for the token that gathers the image alone (the image embedding)."""
    asking = tower.query_token(tokens)  # (B, 1, C)
    return _asked(tower, tower.blocks[-1], asking, tokens, layout, seen=keys_seen(layout))


def _asked(
    tower: ImageTower, block: Any, asking: Tensor, tokens: Tensor, layout: Layout, *, seen: Tensor | None
) -> Tensor:
    """Run a block for tokens that ask the others and stand nowhere on the grid."""
    (q,) = tower.project_in(block, asking, "q")
    k, v = tower.project_in(block, tokens, "kv")
    mixed = attend(q, k, v, heads=tower.heads(block), table=layout.table, seen=seen, turn_queries=False)  # (B, Q, C)
    return tower.add_mlp(block, tower.add(block, asking, tower.project_out(block, mixed)))


def _values(tower: ImageTower, block: Any, tokens: Tensor, gates: Tensor | None = None) -> Tensor:
    """What attention would add if every token saw itself alone; gates multiply its heads."""
    (v,) = tower.project_in(block, tokens, "v")
    if gates is not None:
        v = (v.unflatten(2, (len(gates), -1)) * gates[:, None].to(v.dtype)).flatten(2)  # (B, L, C)
    return tower.project_out(block, v)


def _agree(tower: ImageTower, block: Any, x: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Gather values by how much `x` (queries or keys) agrees with itself."""
    return attend(x, x, v, heads=tower.heads(block), table=layout.table, seen=keys_seen(layout))


def _nearness(layout: Layout, *, like: Tensor) -> Float[Tensor, "T T"]:
    """1 between a patch and itself, falling off as a Gaussian of the distance on the grid; 0 for the class token."""
    h, w = layout.grid
    rows, columns = torch.arange(h, device=like.device), torch.arange(w, device=like.device)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=2).flatten(0, 1)  # (L, 2)
    apart = (places[:, None] - places).square().sum(dim=2)  # (L, L), squared
    near = (apart / (-2 * _NEAR**2)).exp().to(like.dtype)
    return F.pad(near, (layout.prefix, 0, layout.prefix, 0))  # (T, T)


class Needs(NamedTuple):
    """What a head takes of the tower."""

    apply: Callable[[ImageTower, list[Tensor], Layout], Tensor]
    part: str  # projections of the last block: letters of "qkv"
    mlp: bool  # whether the last block's MLP is used
    states: int = 1  # the tokens entering how many of the last blocks


HEADS: dict[str, Needs] = {
    "value": Needs(value, "v", mlp=True),
    "value_cls": Needs(value_cls, "v", mlp=True),
    "value_only": Needs(value_only, "v", mlp=False),
    "attention": Needs(attention, "qkv", mlp=True),
    "sclip": Needs(sclip, "qkv", mlp=True),
    "clearclip": Needs(clearclip, "qv", mlp=False),
    "naclip": Needs(naclip, "kv", mlp=False),
    "values3": Needs(values3, "v", mlp=False, states=3),
}
