"""EVA-02 CLIP as a family of towers (Sec. 3.1): timm's `Eva` trunk inside open_clip's `TimmModel`.

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
from timm.layers.mlp import SwiGLU
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat
from timm.models.eva import EvaAttention, EvaBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveate.clip.tower import Table
from foveate.ops.positions import resize_positions, rotary_table


def refusal(visual: TimmModel) -> str | None:
    """Say which part of a tower is not supported, or None."""
    trunk: Any = visual.trunk
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


def sizes(visual: TimmModel) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Native image size, patch size, embedding size."""
    trunk: Any = visual.trunk
    return trunk.patch_embed.img_size, trunk.patch_embed.patch_size, trunk.num_classes


def prefix_tokens(visual: TimmModel) -> int:
    """One class token."""
    return 1


def stages(visual: TimmModel) -> list[nn.Module]:
    """The transformer blocks."""
    return blocks(visual)


def blocks(visual: TimmModel) -> list[Any]:
    """The transformer blocks."""
    trunk: Any = visual.trunk  # timm types most attributes as optional; `refusal` has looked at them
    return list(trunk.blocks)


def positions(visual: TimmModel, grid: tuple[int, int]) -> Float[Tensor, "T C"]:
    """The class token's position and those of the patches, resized."""
    trunk: Any = visual.trunk
    return resize_positions(trunk.pos_embed[0], grid=grid, native=trunk.patch_embed.grid_size, has_class_token=True)


def table(visual: TimmModel, grid: tuple[int, int], *, whole: tuple[int, int] | None = None) -> Table:
    """The rotary embedding of a grid, which (or the whole it is part of) is squeezed into the native range; the class
    token's row turns nothing."""
    trunk: Any = visual.trunk
    rope, width, device = trunk.rope, trunk.blocks[0].attn.head_dim, trunk.pos_embed.device
    (rows, columns), (h, w) = rope.ref_feat_shape, grid
    native = (rows, columns) if whole is None else (rows * h / whole[0], columns * w / whole[1])
    cosines, sines = rotary_table(grid, native=native, head_width=width, theta=rope.temperature, device=device)
    return F.pad(cosines, (0, 0, 1, 0), value=1.0), F.pad(sines, (0, 0, 1, 0))  # (1 + L, d) each


def embed(
    visual: TimmModel, images: Float[Tensor, "B 3 H W"], positions: Float[Tensor, "*B T C"]
) -> Float[Tensor, "B T C"]:
    """Class token and patches with their positions."""
    trunk: Any = visual.trunk
    patches = trunk.patch_embed.norm(trunk.patch_embed.proj(images).flatten(2).mT)  # (B, C, h, w) -> (B, L, C)
    token = trunk.cls_token.to(patches.dtype).expand(patches.shape[0], -1, -1)  # (B, 1, C)
    return trunk.norm_pre(torch.cat([token, patches], dim=1) + positions.to(patches.dtype))  # (B, 1 + L, C)


def query_token(visual: TimmModel, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B 1 C"]:
    """The class token."""
    return tokens[:, :1]


def heads(block: Any) -> int:
    """How many attention heads a block has."""
    return block.attn.num_heads


def project_in(visual: TimmModel, block: Any, tokens: Float[Tensor, "B T C"], part: str) -> tuple[Tensor, ...]:
    """The first norm and some of the projections."""
    normed, attn = block.norm1(tokens), block.attn
    projections = {"q": attn.q_proj, "k": attn.k_proj, "v": attn.v_proj}
    return tuple(projections[letter](normed) for letter in part)  # (B, T, C) each


def project_out(block: Any, mixed: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """EVA's inner norm, then the output projection."""
    return block.attn.proj(block.attn.norm(mixed))


def add(block: Any, tokens: Float[Tensor, "B T C"], update: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """The residual around attention."""
    return tokens + update


def add_mlp(block: Any, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """The MLP and the residual around it.

    In training, what lies between its matrices (gate and inner norm, half of what a block would keep for the backward
    pass) is computed again there; that moves a few bytes and does no matrix product. A compiler decides that itself.
    """
    mlp, normed = block.mlp, block.norm2(tokens)
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or type(mlp) is not SwiGLU:
        return tokens + mlp(normed)
    norm = mlp.norm
    weights = (norm.weight, norm.bias) if isinstance(norm, nn.LayerNorm) else (None, None)
    inner = checkpoint(  # its weights as arguments, because they may be copies that are gone by then
        _gate, mlp, mlp.fc1_g(normed), mlp.fc1_x(normed), *weights, use_reentrant=False, preserve_rng_state=False
    )
    return tokens + mlp.fc2(inner)


def _gate(
    mlp: Any, gate: Float[Tensor, "B T X"], values: Float[Tensor, "B T X"], weight: Tensor | None, bias: Tensor | None
) -> Float[Tensor, "B T X"]:
    """What timm's SwiGLU does between its matrices."""
    gated = mlp.act(gate) * values
    norm = mlp.norm
    return norm(gated) if weight is None else F.layer_norm(gated, norm.normalized_shape, weight, bias, norm.eps)


def finish(visual: TimmModel, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
    """Final norm and projection."""
    trunk: Any = visual.trunk
    return visual.head(trunk.head(trunk.fc_norm(trunk.norm(tokens))))


def unused(visual: TimmModel, *, part: str, mlp: bool) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
    """What some projections leave of the last block."""
    block = blocks(visual)[-1]
    projections = {"q": block.attn.q_proj, "k": block.attn.k_proj, "v": block.attn.v_proj}
    modules = [module for letter, module in projections.items() if letter not in part]
    modules += [] if mlp else [block.norm2, block.mlp]
    return [parameter for module in modules for parameter in module.parameters()], []
