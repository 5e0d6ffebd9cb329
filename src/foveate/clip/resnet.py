"""CLIP's residual networks as a family of towers (Fig. 2, 3): RN50, RN101, RN50x4, RN50x16, RN50x64.

They have no class token and one attention layer, the pool over the last feature map, whose query is the mean. It is
used as a block without norm, residual and MLP: `value` is the value and output projections of the pool at each
location, the paper's example of good dense features. The resized position embedding is added before. Not supported:
torchvision's and timm's residual networks, whose feature maps are averaged.
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
    """Four residual stages and an attention pool; the mean of the locations replaces the class token."""

    visual: ModifiedResNet
    adds_to_class_token = False
    takes_mixed_sizes = False  # convolutions cannot mask padding

    def refusal(self) -> str | None:
        return None

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int], int]:
        """Native image size, stride, embedding size."""
        size: Any = self.visual.image_size  # an int or a pair, as in the config
        height, width = size if isinstance(size, tuple | list) else (size, size)
        return (height, width), (_STRIDE, _STRIDE), self.visual.output_dim

    @property
    def residual_stages(self) -> list[nn.Module]:
        """The four stages before the pool, at strides 4, 8, 16 and 32."""
        return [self.visual.layer1, self.visual.layer2, self.visual.layer3, self.visual.layer4]

    @property
    def stages(self) -> list[nn.Module]:
        """The four residual stages and the projections of the pool; its positions are not trained."""
        pool = self.visual.attnpool
        return [*self.residual_stages, nn.ModuleList([pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj])]

    @property
    def blocks(self) -> list[Any]:
        """The attention pool."""
        return [self.visual.attnpool]

    @property
    def windowable(self) -> int:
        """0: the pool is the only attention layer."""
        return 0

    def residual_maps(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The feature maps after the four residual stages."""
        maps = [self.visual.stem(images)]
        for stage in self.residual_stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "T C"]:
        table = self.visual.attnpool.positional_embedding
        side = round((table.shape[0] - 1) ** 0.5)
        return resize_positions(table, grid=grid, native=(side, side), has_class_token=True)

    def embed(self, images: Float[Tensor, "B 3 H W"], positions: Float[Tensor, "T C"]) -> Float[Tensor, "B T C"]:
        return self.embed_map(self.residual_maps(images)[-1], positions)

    def embed_map(self, last: Float[Tensor, "B C h w"], positions: Float[Tensor, "T C"]) -> Float[Tensor, "B T C"]:
        """The mean and the locations of a feature map, with their positions."""
        locations = last.flatten(2).mT  # (B, L, C)
        return torch.cat([locations.mean(dim=1, keepdim=True), locations], dim=1) + positions.to(locations.dtype)

    def heads(self, block: Any) -> int:
        return block.num_heads

    def project_in(self, block: Any, tokens: Float[Tensor, "B T C"], part: str) -> tuple[Tensor, ...]:
        return tuple(getattr(block, f"{letter}_proj")(tokens) for letter in part)  # (B, T, C) each

    def project_out(self, block: Any, mixed: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
        return block.c_proj(mixed)

    def add(self, block: Any, tokens: Float[Tensor, "B T C"], update: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return update

    def add_mlp(self, block: Any, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return tokens

    def finish(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return tokens

    def unused(self, *, part: str, mlp: bool) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
        pool = self.visual.attnpool
        return parameters_of(getattr(pool, f"{letter}_proj") for letter in "qkv" if letter not in part), []
