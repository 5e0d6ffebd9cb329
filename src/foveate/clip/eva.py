"""EVA-02 CLIP as a family of towers (Sec. 3.1): timm's `Eva` trunk inside open_clip's `TimmModel`.

The trunk's own forward has a fixed size; here absolute positions are resized and the rotary table is recomputed for
each grid, both from the size the tower was trained at. The row of the class token in the table is the identity, so
queries and keys are rotated without slicing. Not supported: the trunks of EVA-01, EVA-02-E, PE and DINOv3.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.timm_model import TimmModel
from timm.layers.mlp import SwiGLU
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat
from timm.models.eva import EvaAttention, EvaBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveate.clip.tower import ImageTower, Table, parameters_of
from foveate.ops.positions import resize_positions, rotary_table


class EvaTower(ImageTower):
    """EVA-02: one class token, rotary positions, separate projections, SwiGLU with an inner norm."""

    visual: TimmModel

    @property
    def trunk(self) -> Any:
        """Timm's module, whose optional attributes `refusal` checks."""
        return self.visual.trunk

    def refusal(self) -> str | None:
        trunk, rope, block = self.trunk, self.trunk.rope, self.trunk.blocks[0]
        is_one_token = trunk.global_pool == "token" and trunk.reg_token is None
        if not isinstance(block, EvaBlock) or not isinstance(block.attn, EvaAttention):
            return "its blocks are not EVA-02's pre-norm blocks"
        if block.attn.q_proj is None or block.attn.gate is not None or not isinstance(block.attn.q_norm, nn.Identity):
            return "its attention has a fused qkv, a gate or normalised queries"
        if block.gamma_1 is not None or block.gamma_2 is not None:
            return "its blocks have a layer scale"
        if not is_one_token or trunk.no_embed_class or trunk.pos_embed is None:
            return "it is not one class token and one position embedding a token"
        if not isinstance(rope, RotaryEmbeddingCat) or rope.rotate_half or rope.ref_feat_shape is None:
            return "its rotary embedding is not EVA-02's"
        return None

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int], int]:
        return self.trunk.patch_embed.img_size, self.trunk.patch_embed.patch_size, self.trunk.num_classes

    @property
    def blocks(self) -> list[Any]:
        return list(self.trunk.blocks)

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "T C"]:
        native = self.trunk.patch_embed.grid_size
        return resize_positions(self.trunk.pos_embed[0], grid=grid, native=native, has_class_token=True)

    def table(self, grid: tuple[int, int], *, whole: tuple[int, int] | None = None) -> Table:
        """The rotary embedding of a grid, scaled (with the grid it is part of) to the native range."""
        rope, width, device = self.trunk.rope, self.trunk.blocks[0].attn.head_dim, self.trunk.pos_embed.device
        (rows, columns), (h, w) = rope.ref_feat_shape, grid
        native = (rows, columns) if whole is None else (rows * h / whole[0], columns * w / whole[1])
        cosines, sines = rotary_table(grid, native=native, head_width=width, theta=rope.temperature, device=device)
        return F.pad(cosines, (0, 0, 1, 0), value=1.0), F.pad(sines, (0, 0, 1, 0))  # (1 + L, d) each

    def embed(self, images: Float[Tensor, "B 3 H W"], positions: Float[Tensor, "*B T C"]) -> Float[Tensor, "B T C"]:
        trunk = self.trunk
        patches = trunk.patch_embed.norm(trunk.patch_embed.proj(images).flatten(2).mT)  # (B, C, h, w) -> (B, L, C)
        token = trunk.cls_token.to(patches.dtype).expand(patches.shape[0], -1, -1)  # (B, 1, C)
        return trunk.norm_pre(torch.cat([token, patches], dim=1) + positions.to(patches.dtype))  # (B, 1 + L, C)

    def project_in(self, block: Any, tokens: Float[Tensor, "B T C"], part: str) -> tuple[Tensor, ...]:
        normed = block.norm1(tokens)
        return tuple(getattr(block.attn, f"{letter}_proj")(normed) for letter in part)  # (B, T, C) each

    def project_out(self, block: Any, mixed: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """EVA's inner norm, then the output projection."""
        return block.attn.proj(block.attn.norm(mixed))

    def add_mlp(self, block: Any, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """The MLP and its residual.

        In training, gate and inner norm, half of the activations that a block stores, are recomputed in the backward
        pass, without a matrix product. A compiler decides this itself.
        """
        mlp, normed = block.mlp, block.norm2(tokens)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or type(mlp) is not SwiGLU:
            return tokens + mlp(normed)
        norm = mlp.norm
        weights = (norm.weight, norm.bias) if isinstance(norm, nn.LayerNorm) else (None, None)
        inner = checkpoint(  # weights are arguments, because they may be copies that are freed by then
            _gate, mlp, mlp.fc1_g(normed), mlp.fc1_x(normed), *weights, use_reentrant=False, preserve_rng_state=False
        )
        return tokens + mlp.fc2(inner)

    def finish(self, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
        trunk = self.trunk
        return self.visual.head(trunk.head(trunk.fc_norm(trunk.norm(tokens))))

    def unused(self, *, part: str, mlp: bool) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
        block = self.blocks[-1]
        modules = [getattr(block.attn, f"{letter}_proj") for letter in "qkv" if letter not in part]
        return parameters_of(modules + ([] if mlp else [block.norm2, block.mlp])), []


def _gate(
    mlp: Any, gate: Float[Tensor, "B T X"], values: Float[Tensor, "B T X"], weight: Tensor | None, bias: Tensor | None
) -> Float[Tensor, "B T X"]:
    """The computation of timm's SwiGLU between its matrices."""
    gated = mlp.act(gate) * values
    norm = mlp.norm
    return norm(gated) if weight is None else F.layer_norm(gated, norm.normalized_shape, weight, bias, norm.eps)
