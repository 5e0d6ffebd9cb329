"""SigLIP and SigLIP 2: timm's vision transformer with an attention pool inside open_clip's `TimmModel`.

There is no class token: after all blocks a pool with one learned query (attention, output projection, norm and MLP)
computes the image embedding. The pool is the last block of every dense head: `value` is its value and output
projections and its MLP at each location. No paper defines this; it is the rule of Sec. 3.1. Heads that need a query per
location are refused. Not supported: timm's other vision transformers (average pools, class tokens, registers,
normalised queries).
"""

from typing import Any, cast

import torch.nn.functional as F
from jaxtyping import Float
from open_clip.timm_model import TimmModel
from timm.layers.attention import Attention
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from foveate.clip.tower import ImageTower, parameters_of, split_rows
from foveate.ops.positions import resize_positions


class SiglipTower(ImageTower):
    """Transformer blocks without a class token, and an attention pool as the last block."""

    visual: TimmModel
    prefix = 0
    has_patch_queries = False
    adds_to_class_token = False

    @property
    def trunk(self) -> Any:
        """Timm's module, whose optional attributes `refusal` checks."""
        return self.visual.trunk

    def refusal(self) -> str | None:
        trunk, pool = self.trunk, self.trunk.attn_pool
        if not isinstance(pool, AttentionPoolLatent):
            return "its image is not gathered by SigLIP's attention pool"
        if trunk.num_prefix_tokens or trunk.pos_embed is None or not isinstance(trunk.norm_pre, nn.Identity):
            return "it has class or register tokens, no position embedding, or a norm before its blocks"
        pos_embed: Any = pool.pos_embed
        if pool.latent_len != 1 or pool.pool != "token" or pos_embed is not None or pool.mlp is None:
            return "its attention pool has several queries, positions of its own or no MLP"
        if not isinstance(pool.q_norm, nn.Identity) or not isinstance(pool.q, nn.Linear):
            return "its attention pool normalises or does not project its query"
        block = trunk.blocks[0]
        if type(block) is not Block or type(block.attn) is not Attention or block.attn.gate is not None:
            return "its blocks are not plain pre-norm blocks"
        if not isinstance(block.attn.q_norm, nn.Identity):
            return "its queries are normalised"
        return None

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int], int]:
        widths = [layer.out_features for layer in self.visual.head.modules() if isinstance(layer, nn.Linear)]
        width = [self.trunk.num_classes or self.trunk.num_features, *widths][-1]
        return self.trunk.patch_embed.img_size, self.trunk.patch_embed.patch_size, width

    @property
    def blocks(self) -> list[Any]:
        """The transformer blocks and the pool."""
        return [*self.trunk.blocks, self.trunk.attn_pool]

    @property
    def windowable(self) -> int:
        """All blocks but the pool."""
        return len(self.blocks) - 1

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "T C"]:
        native = self.trunk.patch_embed.grid_size
        return resize_positions(self.trunk.pos_embed[0], grid=grid, native=native, has_class_token=False)

    def embed(self, images: Float[Tensor, "B 3 H W"], positions: Float[Tensor, "*B T C"]) -> Float[Tensor, "B T C"]:
        embed = self.trunk.patch_embed
        patches = embed.norm(embed.proj(images).flatten(2).mT)  # (B, C, h, w) -> (B, L, C)
        return patches + positions.to(patches.dtype)

    def query_token(self, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B 1 C"]:
        """The learned query of the pool."""
        return self.trunk.attn_pool.latent.expand(tokens.shape[0], -1, -1)

    def heads(self, block: Any) -> int:
        return block.num_heads if isinstance(block, AttentionPoolLatent) else block.attn.num_heads

    def project_in(self, block: Any, tokens: Float[Tensor, "B T C"], part: str) -> tuple[Tensor, ...]:
        """The norm and projections; the query of the pool has no norm."""
        if isinstance(block, AttentionPoolLatent):
            return (block.q(tokens),) if part == "q" else _fused(block.kv, self.trunk.norm(tokens), part, letters="kv")
        return _fused(block.attn.qkv, block.norm1(tokens), part, letters="qkv")

    def project_out(self, block: Any, mixed: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """The output projection and, of a block, the layer scale."""
        if isinstance(block, AttentionPoolLatent):
            return block.proj(mixed)
        return block.ls1(block.attn.proj(block.attn.norm(mixed)))

    def add(self, block: Any, tokens: Float[Tensor, "B T C"], update: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        return update if isinstance(block, AttentionPoolLatent) else tokens + update

    def add_mlp(self, block: Any, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        if isinstance(block, AttentionPoolLatent):
            return tokens + cast(nn.Module, block.mlp)(block.norm(tokens))
        return tokens + block.ls2(block.mlp(block.norm2(tokens)))

    def finish(self, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
        return self.visual.head(self.trunk.head(self.trunk.fc_norm(tokens)))

    def unused(self, *, part: str, mlp: bool) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
        """The query of the pool, and its keys if only values are used."""
        pool = self.blocks[-1]
        rows = [] if part == "kv" else [(pool.kv.weight, split_rows(pool.kv.in_features, "v", letters="kv"))]
        return [pool.latent, *parameters_of([pool.q] if mlp else [pool.q, pool.norm, pool.mlp])], rows


def _fused(
    projection: nn.Linear, normed: Float[Tensor, "B T C"], part: str, *, letters: str
) -> tuple[Float[Tensor, "B T C"], ...]:
    """Some of the rows of a fused projection."""
    rows = split_rows(projection.in_features, part, letters=letters)
    bias = None if projection.bias is None else projection.bias[rows]
    return F.linear(normed, projection.weight[rows], bias).chunk(len(part), dim=2)
