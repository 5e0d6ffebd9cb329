"""CLIP's residual networks as a family of towers (Fig. 2, 3): RN50, RN101, RN50x4, RN50x16, RN50x64.

They have no class token and one attention layer, the pool over the last feature map, whose mean asks. Taken as a block
without norm, residual and MLP, it fits every dense head: `value` is the pool's value and output projections at each
location, the paper's reference that dense features can be good. The position embedding is added before, resized.
Absent: torchvision's and timm's residual networks, whose pictures are averaged.
"""

from typing import Any

import torch
from jaxtyping import Float
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from torch import Tensor, nn

from foveate.ops.positions import resize_positions

_STRIDE = 32


def refusal(visual: ModifiedResNet) -> str | None:
    """Every one is supported."""
    return None


def sizes(visual: ModifiedResNet) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Native image size, stride in the patch size's place, embedding size."""
    size: Any = visual.image_size  # open_clip passes on what the description holds
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return (height, width), (_STRIDE, _STRIDE), visual.output_dim


def prefix_tokens(visual: ModifiedResNet) -> int:
    """The mean of the locations, in the class token's place."""
    return 1


def stages(visual: ModifiedResNet) -> list[nn.Module]:
    """The four residual stages and the attention pool's projections; its positions are no part to be trained."""
    pool = visual.attnpool
    projections = nn.ModuleList([pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj])
    return [visual.layer1, visual.layer2, visual.layer3, visual.layer4, projections]


def blocks(visual: ModifiedResNet) -> list[AttentionPool2d]:
    """The attention pool."""
    return [visual.attnpool]


def taps(visual: ModifiedResNet, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
    """The feature maps after the four residual stages, at strides 4, 8, 16 and 32."""
    maps = [visual.stem(images)]
    for stage in stages(visual)[:-1]:
        maps.append(stage(maps[-1]))
    return maps[1:]


def positions(visual: ModifiedResNet, grid: tuple[int, int]) -> Float[Tensor, "T C"]:
    """The mean's position and those of the locations, resized."""
    table = visual.attnpool.positional_embedding
    side = round((table.shape[0] - 1) ** 0.5)
    return resize_positions(table, grid=grid, native=(side, side), has_class_token=True)


def table(visual: ModifiedResNet, grid: tuple[int, int], *, whole: tuple[int, int] | None = None) -> None:
    """No rotary embedding."""
    return None


def embed(
    visual: ModifiedResNet, images: Float[Tensor, "B 3 H W"], positions: Float[Tensor, "T C"]
) -> Float[Tensor, "B T C"]:
    """The mean and the locations of the last feature map, with their positions."""
    return tokens_of(taps(visual, images)[-1], positions)


def tokens_of(last: Float[Tensor, "B C h w"], positions: Float[Tensor, "T C"]) -> Float[Tensor, "B T C"]:
    """The mean and the locations of a feature map, with their positions."""
    places = last.flatten(2).mT  # (B, L, C)
    return torch.cat([places.mean(dim=1, keepdim=True), places], dim=1) + positions.to(places.dtype)


def query_token(visual: ModifiedResNet, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B 1 C"]:
    """The mean."""
    return tokens[:, :1]


def heads(block: AttentionPool2d) -> int:
    """How many attention heads the pool has."""
    return block.num_heads


def project_in(
    visual: ModifiedResNet, block: AttentionPool2d, tokens: Float[Tensor, "B T C"], part: str
) -> tuple[Tensor, ...]:
    """Some of the projections; there is no norm."""
    projections = {"q": block.q_proj, "k": block.k_proj, "v": block.v_proj}
    return tuple(projections[letter](tokens) for letter in part)  # (B, T, C) each


def project_out(block: AttentionPool2d, mixed: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
    """The output projection, which leads into CLIP's embedding."""
    return block.c_proj(mixed)


def add(
    block: AttentionPool2d, tokens: Float[Tensor, "B T C"], update: Float[Tensor, "B T D"]
) -> Float[Tensor, "B T D"]:
    """No residual: what the pool says is the embedding."""
    return update


def add_mlp(block: AttentionPool2d, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """No MLP."""
    return tokens


def finish(visual: ModifiedResNet, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """Nothing more to do."""
    return tokens


def unused(
    visual: ModifiedResNet, *, part: str, mlp: bool
) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
    """What some projections leave of the pool."""
    pool = visual.attnpool
    projections = {"q": pool.q_proj, "k": pool.k_proj, "v": pool.v_proj}
    modules = [module for letter, module in projections.items() if letter not in part]
    return [parameter for module in modules for parameter in module.parameters()], []
