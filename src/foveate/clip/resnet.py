"""CLIP's residual networks as a family of towers (Fig. 2, 3): RN50, RN101, RN50x4, RN50x16, RN50x64.

They have no class token and one attention layer, the pool over the last feature map, whose query is the mean. Taken as
a block without norm, residual and MLP, it fits every dense head: `value` is the pool's value and output projections at
each location, the paper's reference that dense features can be good. The position embedding is added before, resized.
Absent: torchvision's and timm's residual networks, whose feature maps are averaged.
"""

from typing import Any

import torch
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from foveate.clip.tower import ImageTower, parameters_of
from foveate.ops.positions import resize_positions

_STRIDE = 32


class ResNetTower(ImageTower):
    """Four residual stages and an attention pool; the mean of the locations stands in the class token's place."""

    visual: ModifiedResNet
    adds_to_class_token = False
    takes_mixed_sizes = False  # convolutions would see the padding

    def refusal(self) -> str | None:
        """Every one is supported."""
        return None

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int], int]:
        """Native image size, stride in the patch size's place, embedding size."""
        size: Any = self.visual.image_size  # open_clip passes on what the description holds
        height, width = size if isinstance(size, tuple | list) else (size, size)
        return (height, width), (_STRIDE, _STRIDE), self.visual.output_dim

    @property
    def residual_stages(self) -> list[nn.Module]:
        """The four stages before the pool, at strides 4, 8, 16 and 32."""
        return [self.visual.layer1, self.visual.layer2, self.visual.layer3, self.visual.layer4]

    @property
    def stages(self) -> list[nn.Module]:
        """The four residual stages and the attention pool's projections; its positions are no part to be trained."""
        pool = self.visual.attnpool
        return [*self.residual_stages, nn.ModuleList([pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj])]

    @property
    def blocks(self) -> list[Any]:
        """The attention pool."""
        return [self.visual.attnpool]

    @property
    def windowable(self) -> int:
        """None: the pool is the one attention layer, and it sees the whole image."""
        return 0

    def residual_maps(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The feature maps after the four residual stages."""
        maps = [self.visual.stem(images)]
        for stage in self.residual_stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "T C"]:
        """The mean's position and those of the locations, resized."""
        table = self.visual.attnpool.positional_embedding
        side = round((table.shape[0] - 1) ** 0.5)
        return resize_positions(table, grid=grid, native=(side, side), has_class_token=True)

    def embed(self, images: Float[Tensor, "B 3 H W"], positions: Float[Tensor, "T C"]) -> Float[Tensor, "B T C"]:
        """The mean and the locations of the last feature map, with their positions."""
        return self.embed_map(self.residual_maps(images)[-1], positions)

    def embed_map(self, last: Float[Tensor, "B C h w"], positions: Float[Tensor, "T C"]) -> Float[Tensor, "B T C"]:
        """The mean and the locations of a feature map, with their positions."""
        locations = last.flatten(2).mT  # (B, L, C)
        return torch.cat([locations.mean(dim=1, keepdim=True), locations], dim=1) + positions.to(locations.dtype)

    def heads(self, block: Any) -> int:
        """How many attention heads the pool has."""
        return block.num_heads

    def project_in(self, block: Any, tokens: Float[Tensor, "B T C"], part: str) -> tuple[Tensor, ...]:
        """Some of the projections; there is no norm."""
        return tuple(getattr(block, f"{letter}_proj")(tokens) for letter in part)  # (B, T, C) each

    def project_out(self, block: Any, mixed: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
        """The output projection, which leads into CLIP's embedding."""
        return block.c_proj(mixed)

    def add(self, block: Any, tokens: Float[Tensor, "B T C"], update: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """No residual: what leaves the pool is the embedding."""
        return update

    def add_mlp(self, block: Any, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """No MLP."""
        return tokens

    def finish(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Nothing more to do."""
        return tokens

    def unused(self, *, part: str, mlp: bool) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
        """What some projections leave of the pool."""
        pool = self.visual.attnpool
        return parameters_of(getattr(pool, f"{letter}_proj") for letter in "qkv" if letter not in part), []
