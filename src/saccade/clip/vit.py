"""Image and patch embeddings of OpenAI's and open_clip's vision transformer (Sec. 3.1).

Free functions over the library's own modules, any height and width. Attention runs as one fused kernel instead of
`nn.MultiheadAttention`, whose fast path is slow at thousands of tokens. Each path computes of the last block only what
it returns: the image embedding asks with the class token alone, the dense embedding never computes queries, keys and
softmax. Absent: patch dropout, attentional pooling and the "custom" block of open_clip (`refusal` names them).
"""

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from saccade.ops.positions import resize_positions


def refusal(visual: VisionTransformer) -> str | None:
    """Say which part of a tower is not supported, or None."""
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return "its image embedding is not the class token's"
    if not all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks):
        return 'its blocks are of the "custom" type'
    return None


def embed_class(visual: VisionTransformer, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
    """Embed whole images by the class token, as CLIP does (the teacher; Sec. 3.2)."""
    tokens = _before_last(visual, images)  # (B, 1 + L, C)
    block = blocks(visual)[-1]
    asked = tokens[:, :1] + block.ls_1(_attend(block.attn, block.ln_1(tokens), queries=1))  # (B, 1, C)
    return _project(visual, _add_mlp(block, asked))[:, 0]


def embed_patches(visual: VisionTransformer, images: Float[Tensor, "B 3 H W"], *, head: str) -> Float[Tensor, "B L D"]:
    """Embed every patch (the student; Sec. 3.1); `head` as in `saccade.clip.dense.dense_tokens`."""
    tokens = _before_last(visual, images)  # (B, 1 + L, C)
    block, patches = blocks(visual)[-1], tokens[:, 1:]
    match head:
        case "value":
            patches = patches + block.ls_1(_value(block.attn, block.ln_1(patches)))
            patches = _add_mlp(block, patches)
        case "value_only":
            patches = _value(block.attn, block.ln_1(patches))
        case "attention":
            patches = _whole_block(block, tokens)[:, 1:]
        case _:
            raise AssertionError(f"unknown head {head!r}")
    return _project(visual, patches)


def blocks(visual: VisionTransformer) -> list[ResidualAttentionBlock]:
    """The transformer blocks, first to last."""
    return cast(list[ResidualAttentionBlock], list(visual.transformer.resblocks))


def last_block_use(
    visual: VisionTransformer, *, head: str
) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
    """What `embed_patches` leaves of the last block; as in `saccade.clip.dense.last_block_use`."""
    if head == "attention":
        return [], []
    block = blocks(visual)[-1]
    unused = [block.ls_1, block.ln_2, block.mlp, block.ls_2] if head == "value_only" else []
    value_rows = slice(2 * block.attn.embed_dim, None)  # the fused weight holds queries, keys, values
    in_part = [(cast(nn.Parameter, block.attn.in_proj_weight), value_rows)]
    return [parameter for module in unused for parameter in module.parameters()], in_part


def _before_last(visual: VisionTransformer, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T C"]:
    """Run the patch embedding and all blocks but the last; the class token comes first."""
    planes = visual.conv1(images)  # (B, C, h, w)
    grid = (planes.shape[2], planes.shape[3])
    patches = planes.flatten(2).mT  # (B, L, C)
    first = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)  # (B, 1, C)
    positions = resize_positions(visual.positional_embedding, grid=grid, native=visual.grid_size, has_class_token=True)
    tokens = visual.ln_pre(torch.cat([first, patches], dim=1) + positions.to(patches.dtype))  # (B, 1 + L, C)
    for block in blocks(visual)[:-1]:
        tokens = _whole_block(block, tokens)
    return tokens


def _whole_block(block: ResidualAttentionBlock, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    tokens = tokens + block.ls_1(_attend(block.attn, block.ln_1(tokens), queries=tokens.shape[1]))
    return _add_mlp(block, tokens)


def _add_mlp(block: ResidualAttentionBlock, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


def _attend(attn: nn.MultiheadAttention, tokens: Float[Tensor, "B T C"], *, queries: int) -> Float[Tensor, "B Q C"]:
    """Let the first `queries` tokens attend to all tokens."""
    width = attn.embed_dim
    weight, bias = cast(Tensor, attn.in_proj_weight), cast(Tensor, attn.in_proj_bias)
    if queries == tokens.shape[1]:
        q, k, v = F.linear(tokens, weight, bias).chunk(3, dim=2)  # (B, T, C) each
    else:
        q = F.linear(tokens[:, :queries], weight[:width], bias[:width])  # (B, Q, C)
        k, v = F.linear(tokens, weight[width:], bias[width:]).chunk(2, dim=2)  # (B, T, C) each
    q, k, v = (x.unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, T, d)
    mixed = F.scaled_dot_product_attention(q, k, v)  # (B, heads, Q, d)
    return attn.out_proj(mixed.transpose(1, 2).flatten(2))  # (B, Q, C)


def _value(attn: nn.MultiheadAttention, tokens: Float[Tensor, "B L C"]) -> Float[Tensor, "B L C"]:
    """Attention with every token attending to itself alone: value and output projections (Sec. 3.1)."""
    weight, bias = cast(Tensor, attn.in_proj_weight), cast(Tensor, attn.in_proj_bias)
    start = 2 * attn.embed_dim  # the fused weight holds queries, keys, values
    return attn.out_proj(F.linear(tokens, weight[start:], bias[start:]))


def _project(visual: VisionTransformer, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
    return visual.ln_post(tokens) @ visual.proj
