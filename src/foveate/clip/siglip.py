"""SigLIP and SigLIP 2 as a family of towers: timm's vision transformer with an attention pool inside open_clip's
`TimmModel`.

There is no class token: after all blocks a learned query gathers the picture in a pool, which is attention, output
projection, norm and MLP. That pool is what CLIP's last block is to its class token, so it takes the last block's place
in every dense head: `value` is its value and output projections and its MLP at each location. No paper defines this;
it is the paper's rule (Sec. 3.1) applied. Heads that need a location's own query are refused, since the pool asks with
a learned one. Absent: timm's other vision transformers (average pools, class tokens, registers, normalised queries).
"""

from typing import Any, cast

import torch.nn.functional as F
from jaxtyping import Float
from open_clip.timm_model import TimmModel
from timm.layers.attention import Attention
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from foveate.ops.positions import resize_positions


def refusal(visual: TimmModel) -> str | None:
    """Say which part of a tower is not supported, or None."""
    trunk: Any = visual.trunk
    pool: Any = trunk.attn_pool
    if not isinstance(pool, AttentionPoolLatent):
        return "its picture is not gathered by SigLIP's attention pool"
    if trunk.num_prefix_tokens or trunk.pos_embed is None or not isinstance(trunk.norm_pre, nn.Identity):
        return "it has class or register tokens, no position embedding, or a norm before its blocks"
    if pool.latent_len != 1 or pool.pool != "token" or pool.pos_embed is not None or pool.mlp is None:
        return "its attention pool has several queries, positions of its own or no MLP"
    if not isinstance(pool.q_norm, nn.Identity) or not isinstance(pool.q, nn.Linear):
        return "its attention pool normalises or does not project its query"
    block = trunk.blocks[0]
    if type(block) is not Block or type(block.attn) is not Attention or block.attn.gate is not None:
        return "its blocks are not plain pre-norm blocks"
    if not isinstance(block.attn.q_norm, nn.Identity):
        return "its queries are normalised"
    return None


def sizes(visual: TimmModel) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Native image size, patch size, embedding size."""
    trunk: Any = visual.trunk
    widths = [layer.out_features for layer in visual.head.modules() if isinstance(layer, nn.Linear)]
    width = [trunk.num_classes or trunk.num_features, *widths][-1]
    return trunk.patch_embed.img_size, trunk.patch_embed.patch_size, width


def prefix_tokens(visual: TimmModel) -> int:
    """No class token."""
    return 0


def stages(visual: TimmModel) -> list[nn.Module]:
    """The transformer blocks and the pool."""
    return blocks(visual)


def blocks(visual: TimmModel) -> list[Any]:
    """The transformer blocks and the pool."""
    trunk: Any = visual.trunk
    return [*trunk.blocks, trunk.attn_pool]


def positions(visual: TimmModel, grid: tuple[int, int]) -> Float[Tensor, "T C"]:
    """The positions of the patches, resized."""
    trunk: Any = visual.trunk
    return resize_positions(trunk.pos_embed[0], grid=grid, native=trunk.patch_embed.grid_size, has_class_token=False)


def table(visual: TimmModel, grid: tuple[int, int], *, whole: tuple[int, int] | None = None) -> None:
    """No rotary embedding."""
    return None


def embed(
    visual: TimmModel, images: Float[Tensor, "B 3 H W"], positions: Float[Tensor, "*B T C"]
) -> Float[Tensor, "B T C"]:
    """Patches with their positions."""
    trunk: Any = visual.trunk
    patches = trunk.patch_embed.norm(trunk.patch_embed.proj(images).flatten(2).mT)  # (B, C, h, w) -> (B, L, C)
    return patches + positions.to(patches.dtype)


def query_token(visual: TimmModel, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B 1 C"]:
    """The pool's learned query."""
    trunk: Any = visual.trunk
    return trunk.attn_pool.latent.expand(tokens.shape[0], -1, -1)


def heads(block: Any) -> int:
    """How many attention heads a block or the pool has."""
    return block.num_heads if isinstance(block, AttentionPoolLatent) else block.attn.num_heads


def project_in(visual: TimmModel, block: Any, tokens: Float[Tensor, "B T C"], part: str) -> tuple[Tensor, ...]:
    """The norm and some of the projections; the pool's query is learned and takes no norm."""
    trunk: Any = visual.trunk
    if isinstance(block, AttentionPoolLatent):
        return (block.q(tokens),) if part == "q" else _fused(block.kv, trunk.norm(tokens), part, letters="kv")
    return _fused(block.attn.qkv, block.norm1(tokens), part, letters="qkv")


def project_out(block: Any, mixed: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """The output projection and the layer scale, where there is one."""
    if isinstance(block, AttentionPoolLatent):
        return block.proj(mixed)
    return block.ls1(block.attn.proj(block.attn.norm(mixed)))


def add(block: Any, tokens: Float[Tensor, "B T C"], update: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """The residual around attention; the pool has none."""
    return update if isinstance(block, AttentionPoolLatent) else tokens + update


def add_mlp(block: Any, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """The MLP and the residual around it."""
    if isinstance(block, AttentionPoolLatent):
        return tokens + cast(nn.Module, block.mlp)(block.norm(tokens))
    return tokens + block.ls2(block.mlp(block.norm2(tokens)))


def finish(visual: TimmModel, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
    """The projection, where there is one."""
    trunk: Any = visual.trunk
    return visual.head(trunk.head(trunk.fc_norm(tokens)))


def unused(visual: TimmModel, *, part: str, mlp: bool) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
    """What some projections leave of the pool: its query always, its keys where only values are used."""
    pool: Any = blocks(visual)[-1]
    modules = [pool.q] if mlp else [pool.q, pool.norm, pool.mlp]
    in_part = [] if part == "kv" else [(pool.kv.weight, slice(pool.kv.in_features, None))]
    return [pool.latent, *(parameter for module in modules for parameter in module.parameters())], in_part


def _fused(
    projection: nn.Linear, normed: Float[Tensor, "B T C"], part: str, *, letters: str
) -> tuple[Float[Tensor, "B T C"], ...]:
    """Some of the rows of a fused projection."""
    width, start = projection.in_features, letters.index(part)
    rows = slice(start * width, (start + len(part)) * width)
    bias = None if projection.bias is None else projection.bias[rows]
    return F.linear(normed, projection.weight[rows], bias).chunk(len(part), dim=2)
