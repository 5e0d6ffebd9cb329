"""OpenAI's and open_clip's vision transformer as a family of towers (Sec. 3.1).

Attention is one fused kernel instead of `nn.MultiheadAttention`, whose fast path is slow at thousands of tokens. Not
supported: attentional pooling and the "custom" block of open_clip.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from foveate.clip.tower import ImageTower, parameters_of, split_rows
from foveate.ops.positions import resize_positions


class VitTower(ImageTower):
    """A vision transformer with one class token and fused queries, keys and values."""

    visual: VisionTransformer

    def refusal(self) -> str | None:
        if self.visual.attn_pool is not None or self.visual.pool_type != "tok":
            return "its image embedding is not the class token's"
        if not all(isinstance(block, ResidualAttentionBlock) for block in self.visual.transformer.resblocks):
            return 'its blocks are of the "custom" type'
        return None

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int], int]:
        (height, width), (down, across) = cast(Any, self.visual.image_size), cast(Any, self.visual.patch_size)
        return (height, width), (down, across), self.visual.output_dim

    @property
    def blocks(self) -> list[Any]:
        return list(self.visual.transformer.resblocks)

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "T C"]:
        visual = self.visual
        return resize_positions(visual.positional_embedding, grid=grid, native=visual.grid_size, has_class_token=True)

    def embed(self, images: Float[Tensor, "B 3 H W"], positions: Float[Tensor, "*B T C"]) -> Float[Tensor, "B T C"]:
        patches = self.visual.conv1(images).flatten(2).mT  # (B, C, h, w) -> (B, L, C)
        token = self.visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)  # (B, 1, C)
        return self.visual.ln_pre(torch.cat([token, patches], dim=1) + positions.to(patches.dtype))  # (B, 1 + L, C)

    def project_in(self, block: Any, tokens: Float[Tensor, "B T C"], part: str) -> tuple[Tensor, ...]:
        rows, attn = split_rows(block.attn.embed_dim, part), block.attn
        return F.linear(block.ln_1(tokens), attn.in_proj_weight[rows], attn.in_proj_bias[rows]).chunk(len(part), dim=2)

    def project_out(self, block: Any, mixed: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """The output projection and the layer scale, if any."""
        return block.ls_1(block.attn.out_proj(mixed))

    def add_mlp(self, block: Any, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))

    def finish(self, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
        return self.visual.ln_post(tokens) @ self.visual.proj

    def unused(self, *, part: str, mlp: bool) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
        block = self.blocks[-1]
        letters = "" if part == "qkv" else part
        rows = [(block.attn.in_proj_weight, split_rows(block.attn.embed_dim, letter)) for letter in letters]
        return parameters_of([] if mlp else [block.ln_2, block.mlp, block.ls_2]), rows
