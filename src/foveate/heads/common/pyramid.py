"""A feature pyramid on a frozen ViT: outputs of several blocks (taps), resized to four scales, then top down (A.3).

    tap 1 --up 4x--> P/4    tap 2 --up 2x--> P/2    tap 3 --> P    last block without attention --pool 2x--> 2P
    each -> 1x1 conv, top down, 3x3 conv, BatchNorm everywhere -> 256 channels, and 4P subsampled from 2P

Kinds (Tab. A6): "taps" is the paper's; "fpn" makes all four scales from the last layer; "simple" does so without a
top-down path, as ViTDet.
"""

from collections import OrderedDict

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from foveate.heads.common.names import PyramidKind

LEVELS = 5


class Pyramid(nn.Module):
    """Five feature maps with `channels` each, at strides P/4, P/2, P, 2P and 4P; `width` is the taps'."""

    def __init__(self, width: int, *, channels: int = 256, kind: PyramidKind = "taps") -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            [
                nn.Sequential(_upsample(width), nn.BatchNorm2d(width), nn.GELU(), _upsample(width)),
                _upsample(width),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )
        self.top_down: FeaturePyramidNetwork | None = None
        self.flat: nn.ModuleList | None = None
        if kind == "simple":
            self.flat = nn.ModuleList(_flat(width, channels) for _ in self.scales)
        else:
            self.top_down = FeaturePyramidNetwork(
                [width] * len(self.scales), channels, LastLevelMaxPool(), norm_layer=nn.BatchNorm2d
            )

    def forward(self, taps: list[Float[Tensor, "B C h w"]]) -> list[Float[Tensor, "B X _ _"]]:
        """The levels, finest first; `taps` are four, or the last layer alone."""
        sources = taps if len(taps) > 1 else taps * len(self.scales)
        scaled = [scale(tap) for scale, tap in zip(self.scales, sources, strict=True)]
        if self.top_down is not None:
            return list(self.top_down(OrderedDict((str(index), level) for index, level in enumerate(scaled))).values())
        assert self.flat is not None, "top_down and flat are both None"
        levels = [flat(level) for flat, level in zip(self.flat, scaled, strict=True)]
        return [*levels, F.max_pool2d(levels[-1], kernel_size=1, stride=2)]


def pyramid_strides(patch: int) -> tuple[float, ...]:
    """The strides of the five levels, finest first [pixels]."""
    return tuple(patch * 2.0**power for power in range(-2, LEVELS - 2))


def _upsample(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)


def _flat(width: int, channels: int) -> nn.Sequential:
    projection = Conv2dNormActivation(width, channels, kernel_size=1, activation_layer=None)
    return nn.Sequential(projection, Conv2dNormActivation(channels, channels, kernel_size=3, activation_layer=None))
