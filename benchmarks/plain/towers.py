"""The dense path of EVA-02 and of open_clip's ViT, written plainly over the libraries' modules.

All blocks as usual; the last one keeps residual, norm, value, output projection and MLP. Positions are interpolated in
every forward, the rotary table is made anew, and queries and keys are turned in float32 by slices and concatenations,
the class token apart. The ViT's last block runs whole, its result unused.
"""

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from torch import Tensor, nn


def blocks_of(visual: nn.Module) -> list[nn.Module]:
    """The transformer blocks."""
    return list(visual.trunk.blocks if isinstance(visual, TimmModel) else visual.transformer.resblocks)


def dense(visual: nn.Module, images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, D, h, w), not normalised."""
    return dense_eva(visual, images) if isinstance(visual, TimmModel) else dense_vit(visual, images)


def interpolate(positions: Tensor, native: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """(1 + L0, C) -> (1 + L, C): bicubic; the class token's stays."""
    plane = positions[1:].reshape(1, *native, -1).permute(0, 3, 1, 2).float()
    plane = F.interpolate(plane, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], plane.permute(0, 2, 3, 1).reshape(grid[0] * grid[1], -1).to(positions.dtype)])


def dense_eva(visual: nn.Module, images: Tensor) -> Tensor:
    """timm's `Eva` inside open_clip's `TimmModel`."""
    trunk = visual.trunk
    x = trunk.patch_embed.proj(images)  # (B, C, h, w)
    grid = (x.shape[2], x.shape[3])
    x = torch.cat([trunk.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = trunk.norm_pre(x + interpolate(trunk.pos_embed[0], trunk.patch_embed.grid_size, grid))
    cos, sin = rotary(grid, trunk.rope.ref_feat_shape, trunk.blocks[0].attn.head_dim, images.device)
    for block in trunk.blocks[:-1]:
        x = x + eva_attention(block.attn, block.norm1(x), cos, sin)
        x = x + block.mlp(block.norm2(x))
    last = trunk.blocks[-1]
    x = x + last.attn.proj(last.attn.norm(last.attn.v_proj(last.norm1(x))))
    x = x + last.mlp(last.norm2(x))
    x = visual.head(trunk.head(trunk.fc_norm(trunk.norm(x[:, 1:]))))
    return x.transpose(1, 2).reshape(len(x), -1, *grid)


def eva_attention(attn: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Attention of every token to every token, patches' queries and keys turned."""
    batch, count, width = x.shape
    q, k, v = (
        layer(x).reshape(batch, count, attn.num_heads, -1).transpose(1, 2)
        for layer in (attn.q_proj, attn.k_proj, attn.v_proj)
    )
    q = torch.cat([q[:, :, :1], turn(q[:, :, 1:], cos, sin).to(q.dtype)], dim=2).to(v.dtype)
    k = torch.cat([k[:, :, :1], turn(k[:, :, 1:], cos, sin).to(k.dtype)], dim=2).to(v.dtype)
    x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
    return attn.proj(attn.norm(x))


def rotary(
    grid: tuple[int, int], native: tuple[int, int], head_width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, d): rows in the first half of the channels, columns in the second, a pair an angle."""
    quarter = head_width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, device=device).float() / quarter)
    angle_y = (torch.arange(grid[0], device=device).float() / grid[0] * native[0])[:, None] * frequency
    angle_x = (torch.arange(grid[1], device=device).float() / grid[1] * native[1])[:, None] * frequency
    angle_y, angle_x = angle_y.repeat_interleave(2, dim=1), angle_x.repeat_interleave(2, dim=1)
    both = torch.cat(
        [angle_y[:, None].repeat(1, grid[1], 1), angle_x[None].repeat(grid[0], 1, 1)], dim=2
    ).reshape(grid[0] * grid[1], head_width)  # fmt: skip
    return both.cos(), both.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent pairs, in float32."""
    x = x.float()
    half = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).reshape(x.shape)
    return x * cos + half * sin


def dense_vit(visual: nn.Module, images: Tensor) -> Tensor:
    """open_clip's `VisionTransformer`: OpenAI's towers and those like them."""
    x = visual.conv1(images)  # (B, C, h, w)
    grid = (x.shape[2], x.shape[3])
    token = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
    x = torch.cat([token, x.flatten(2).transpose(1, 2)], dim=1)
    x = visual.ln_pre(x + interpolate(visual.positional_embedding, visual.grid_size, grid).to(x.dtype))
    for block in visual.transformer.resblocks[:-1]:
        x = vit_block(block, x)
    last, width = visual.transformer.resblocks[-1], x.shape[2]
    vit_block(last, x)
    v = F.linear(last.ln_1(x), last.attn.in_proj_weight[-width:], last.attn.in_proj_bias[-width:])
    x = x + last.ls_1(last.attn.out_proj(v))
    x = x + last.ls_2(last.mlp(last.ln_2(x)))
    x = visual.ln_post(x[:, 1:]) @ visual.proj
    return x.transpose(1, 2).reshape(len(x), -1, *grid)


def vit_block(block: nn.Module, x: Tensor) -> Tensor:
    """A residual attention block."""
    batch, count, width = x.shape
    qkv = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
    q, k, v = (part.reshape(batch, count, block.attn.num_heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
    x = x + block.ls_1(block.attn.out_proj(mixed))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
