"""Image and patch embeddings of EVA-02 CLIP (Sec. 3.1): timm's `Eva` trunk inside open_clip's `TimmModel`.

Free functions over timm's own modules, any height and width: the trunk's own forward is bound to one size. Absolute
positions are resized and the rotary table is recomputed for the grid at hand, both from the size the tower was trained
at. The class token is not rotated: its row of the table is the identity, so queries and keys are turned whole, without
slicing. Absent: drop path, and the trunks of EVA-01, EVA-02-E, PE and DINOv3 (`refusal` names what they would need).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.timm_model import TimmModel
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn

from saccade.ops.positions import resize_positions, rotary_table, rotate

Table = tuple[Float[Tensor, "T d"], Float[Tensor, "T d"]]  # cosines and signed sines, the class token's row first


def refusal(trunk: Eva) -> str | None:
    """Say which part of a trunk is not supported, or None."""
    block = trunk.blocks[0]
    if not isinstance(block, EvaBlock) or not isinstance(block.attn, EvaAttention):
        return "its blocks are not EVA-02's pre-norm blocks"
    if block.attn.q_proj is None or block.attn.gate is not None or not isinstance(block.attn.q_norm, nn.Identity):
        return "its attention has a fused qkv, a gate or normalised queries"
    if block.gamma_1 is not None or block.gamma_2 is not None:
        return "its blocks have a layer scale"
    if trunk.global_pool != "token" or trunk.reg_token is not None or trunk.no_embed_class or trunk.pos_embed is None:
        return "it is not one class token and one position embedding a token"
    rope = trunk.rope
    if not isinstance(rope, RotaryEmbeddingCat) or rope.rotate_half or rope.ref_feat_shape is None:
        return "its rotary embedding is not EVA-02's"
    return None


def embed_class(visual: TimmModel, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
    """Embed whole images by the class token, as CLIP does (the teacher; Sec. 3.2)."""
    tokens, table = _before_last(visual, images)  # (B, 1 + L, C)
    block = blocks(visual)[-1]
    asked = tokens[:, :1] + _attend(block.attn, block.norm1(tokens), table, queries=1)  # (B, 1, C)
    return _project(visual, _add_mlp(block, asked))[:, 0]


def embed_patches(visual: TimmModel, images: Float[Tensor, "B 3 H W"], *, head: str) -> Float[Tensor, "B L D"]:
    """Embed every patch (the student; Sec. 3.1); `head` as in `saccade.clip.dense.dense_tokens`."""
    tokens, table = _before_last(visual, images)  # (B, 1 + L, C)
    block, patches = blocks(visual)[-1], tokens[:, 1:]
    match head:
        case "value":
            patches = _add_mlp(block, patches + _value(block.attn, block.norm1(patches)))
        case "value_only":
            patches = _value(block.attn, block.norm1(patches))
        case "attention":
            patches = _whole_block(block, tokens, table)[:, 1:]
        case _:
            raise AssertionError(f"unknown head {head!r}")
    return _project(visual, patches)


def blocks(visual: TimmModel) -> list[Any]:
    """The transformer blocks, first to last."""
    trunk: Any = visual.trunk  # timm types most attributes as optional; `refusal` has looked at them
    return list(trunk.blocks)


def last_block_use(visual: TimmModel, *, head: str) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
    """What `embed_patches` leaves of the last block; as in `saccade.clip.dense.last_block_use`."""
    if head == "attention":
        return [], []
    block = blocks(visual)[-1]
    unused = [block.attn.q_proj, block.attn.k_proj]
    unused += [block.norm2, block.mlp] if head == "value_only" else []
    return [parameter for module in unused for parameter in module.parameters()], []


def _before_last(visual: TimmModel, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B T C"], Table]:
    """Run the patch embedding and all blocks but the last; the class token comes first."""
    trunk: Any = visual.trunk
    *before, last = blocks(visual)
    planes = trunk.patch_embed.proj(images)  # (B, C, h, w)
    grid = (planes.shape[2], planes.shape[3])
    patches = trunk.patch_embed.norm(planes.flatten(2).mT)  # (B, L, C)
    first = trunk.cls_token.to(patches.dtype).expand(patches.shape[0], -1, -1)  # (B, 1, C)
    native = trunk.patch_embed.grid_size
    positions = resize_positions(trunk.pos_embed[0], grid=grid, native=native, has_class_token=True)
    tokens = trunk.norm_pre(torch.cat([first, patches], dim=1) + positions.to(patches.dtype))  # (B, 1 + L, C)
    table = _table_with_class(trunk.rope, last.attn.head_dim, grid, images.device)
    for block in before:
        tokens = _whole_block(block, tokens, table)
    return tokens, table


def _table_with_class(rope: RotaryEmbeddingCat, head_width: int, grid: tuple[int, int], device: torch.device) -> Table:
    assert rope.ref_feat_shape is not None, "refused when it was loaded"
    native = (rope.ref_feat_shape[0], rope.ref_feat_shape[1])
    cosines, sines = rotary_table(grid, native=native, head_width=head_width, theta=rope.temperature, device=device)
    return F.pad(cosines, (0, 0, 1, 0), value=1.0), F.pad(sines, (0, 0, 1, 0))  # (1 + L, d) each


def _whole_block(block: Any, tokens: Float[Tensor, "B T C"], table: Table) -> Float[Tensor, "B T C"]:
    tokens = tokens + _attend(block.attn, block.norm1(tokens), table, queries=tokens.shape[1])
    return _add_mlp(block, tokens)


def _add_mlp(block: Any, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    return tokens + block.mlp(block.norm2(tokens))


def _attend(attn: Any, tokens: Float[Tensor, "B T C"], table: Table, *, queries: int) -> Float[Tensor, "B Q C"]:
    """Let the first `queries` tokens attend to all tokens."""
    cosines, sines = table
    q = attn.q_proj(tokens[:, :queries]).unflatten(2, (attn.num_heads, -1)).transpose(1, 2)  # (B, heads, Q, d)
    k = attn.k_proj(tokens).unflatten(2, (attn.num_heads, -1)).transpose(1, 2)  # (B, heads, T, d)
    v = attn.v_proj(tokens).unflatten(2, (attn.num_heads, -1)).transpose(1, 2)  # (B, heads, T, d)
    q, k = rotate(q, cosines[:queries], sines[:queries]), rotate(k, cosines, sines)
    mixed = F.scaled_dot_product_attention(q, k, v)  # (B, heads, Q, d)
    return attn.proj(attn.norm(mixed.transpose(1, 2).flatten(2)))  # (B, Q, C)


def _value(attn: Any, tokens: Float[Tensor, "B L C"]) -> Float[Tensor, "B L C"]:
    """Attention with every token attending to itself alone: value, inner norm, output projection (Sec. 3.1)."""
    return attn.proj(attn.norm(attn.v_proj(tokens)))


def _project(visual: TimmModel, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
    trunk: Any = visual.trunk
    return visual.head(trunk.head(trunk.fc_norm(trunk.norm(tokens))))
