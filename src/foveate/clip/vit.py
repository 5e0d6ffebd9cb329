"""OpenAI's and open_clip's vision transformer as a family of towers (Sec. 3.1).

Free functions over the library's own modules, any height and width. Attention runs as one fused kernel instead of
`nn.MultiheadAttention`, whose fast path is slow at thousands of tokens. Absent: patch dropout, attentional pooling and
the "custom" block of open_clip (`refusal` names them).
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from foveate.ops.positions import resize_positions


def refusal(visual: VisionTransformer) -> str | None:
    """Say which part of a tower is not supported, or None."""
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return "its image embedding is not the class token's"
    if not all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks):
        return 'its blocks are of the "custom" type'
    return None


def sizes(visual: VisionTransformer) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Native image size, patch size, embedding size."""
    (height, width), (down, across) = cast(Any, visual.image_size), cast(Any, visual.patch_size)
    return (height, width), (down, across), visual.output_dim


def prefix_tokens(visual: VisionTransformer) -> int:
    """One class token."""
    return 1


def stages(visual: VisionTransformer) -> list[nn.Module]:
    """The transformer blocks."""
    return list(visual.transformer.resblocks)


def blocks(visual: VisionTransformer) -> list[ResidualAttentionBlock]:
    """The transformer blocks."""
    return cast(list[ResidualAttentionBlock], list(visual.transformer.resblocks))


def positions(visual: VisionTransformer, grid: tuple[int, int]) -> Float[Tensor, "T C"]:
    """The class token's position and those of the patches, resized."""
    return resize_positions(visual.positional_embedding, grid=grid, native=visual.grid_size, has_class_token=True)


def table(visual: VisionTransformer, grid: tuple[int, int], *, whole: tuple[int, int] | None = None) -> None:
    """No rotary embedding."""
    return None


def embed(
    visual: VisionTransformer, images: Float[Tensor, "B 3 H W"], positions: Float[Tensor, "*B T C"]
) -> Float[Tensor, "B T C"]:
    """Class token and patches with their positions, after the norm before the blocks."""
    patches = visual.conv1(images).flatten(2).mT  # (B, C, h, w) -> (B, L, C)
    token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)  # (B, 1, C)
    return visual.ln_pre(torch.cat([token, patches], dim=1) + positions.to(patches.dtype))  # (B, 1 + L, C)


def query_token(visual: VisionTransformer, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B 1 C"]:
    """The class token."""
    return tokens[:, :1]


def heads(block: ResidualAttentionBlock) -> int:
    """How many attention heads a block has."""
    return block.attn.num_heads


def project_in(
    visual: VisionTransformer, block: ResidualAttentionBlock, tokens: Float[Tensor, "B T C"], part: str
) -> tuple[Tensor, ...]:
    """The first norm and some of the fused projections: q, k, v, kv or qkv."""
    rows = _rows(block, part)
    weight, bias = cast(Tensor, block.attn.in_proj_weight), cast(Tensor, block.attn.in_proj_bias)
    return F.linear(block.ln_1(tokens), weight[rows], bias[rows]).chunk(len(part), dim=2)  # (B, T, C) each


def project_out(block: ResidualAttentionBlock, mixed: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """The output projection and the layer scale, where there is one."""
    return block.ls_1(block.attn.out_proj(mixed))


def add(
    block: ResidualAttentionBlock, tokens: Float[Tensor, "B T C"], update: Float[Tensor, "B T C"]
) -> Float[Tensor, "B T C"]:
    """The residual around attention."""
    return tokens + update


def add_mlp(block: ResidualAttentionBlock, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """The MLP and the residual around it."""
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


def finish(visual: VisionTransformer, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
    """Final norm and projection."""
    return visual.ln_post(tokens) @ visual.proj


def unused(
    visual: VisionTransformer, *, part: str, mlp: bool
) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
    """What some projections leave of the last block; the fused matrix is used in part."""
    block = blocks(visual)[-1]
    modules = [] if mlp else [block.ln_2, block.mlp, block.ls_2]
    weight = cast(nn.Parameter, block.attn.in_proj_weight)
    in_part = [] if part == "qkv" else [(weight, _rows(block, letter)) for letter in part]
    return [parameter for module in modules for parameter in module.parameters()], in_part


def _rows(block: ResidualAttentionBlock, part: str) -> slice:
    """Rows of the fused projection, which holds queries, keys, values."""
    width, start = block.attn.embed_dim, "qkv".index(part)
    return slice(start * width, (start + len(part)) * width)
