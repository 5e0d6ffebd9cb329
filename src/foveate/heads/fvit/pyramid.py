"""The detector's pyramid on a frozen ViT: taps of several blocks brought to four scales, then top down (Sec. 3.3; A.3).

    tap 1 --up 4x--> P/4    tap 2 --up 2x--> P/2    tap 3 --> P    last block without attention --pool 2x--> 2P
    each -> 1x1 conv, top down, 3x3 conv, BatchNorm everywhere -> 256 channels, and 4P subsampled from 2P

`kind` chooses the ablation of Tab. A6: "taps" is the paper's; "fpn" makes all four scales from the last layer; "simple"
does so too and has no way down from coarse to fine, as ViTDet. The tower is frozen, unless its last blocks are to be
trained. Deliberately absent: residual networks, whose stages have scales of their own; the class token.
"""

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from foveate.clip.dense import dense_of_last, last_block_use, tower_stages
from foveate.clip.model import Clip
from foveate.errors import InputError
from foveate.heads.fvit.names import Kind

SHARES = (3, 5, 7)  # twelfths of the tower: blocks 3, 5, 7 of 12 and 6, 10, 14 of 24, from 0
LEVELS = 5


@dataclass(frozen=True)
class Maps:
    """What one forward of the tower leaves of a batch."""

    taps: list[Float[Tensor, "B C h w"]]  # the last one is the last block's without attention
    dense: Float[Tensor, "B D h w"] | None  # of length 1 at each place; None where nobody asked


def default_taps(count: int) -> tuple[int, ...]:
    """Which blocks are tapped before the last, of a tower with `count` stages, from 0."""
    return tuple(share * count // 12 for share in SHARES)


class Tower(nn.Module):
    """A CLIP's image tower as the detector uses it: always in evaluation mode, frozen but for its last blocks."""

    def __init__(self, clip: Clip, *, kind: Kind = "taps", taps: Sequence[int] | None = None, trained: int = 0) -> None:
        """Freeze a CLIP, all but the last `trained` blocks of its image tower.

        Args:
            clip: changed here; its windows stay in force.
            kind: "taps" takes three taps and the last block, the others the last block alone.
            taps: places of the three tapped blocks, from 0; None: the paper's, or as deep in the tower as these.
            trained: blocks that learn; what their dense form does not use stays frozen.

        Raises:
            InputError: a residual network, or blocks there are not.
        """
        super().__init__()
        if isinstance(clip.visual, ModifiedResNet):
            raise InputError(f"{clip.name}: F-ViT needs a vision transformer; this is a residual network. Use a ViT.")
        if kind not in get_args(Kind):
            raise InputError(f"pyramid: must be one of {', '.join(get_args(Kind))}; got {kind!r}.")
        stages = tower_stages(clip.visual)
        count = len(stages)
        chosen = default_taps(count) if taps is None else tuple(taps)
        if len(chosen) != len(SHARES) or not all(0 <= one < count for one in chosen):
            raise InputError(f"taps: need {len(SHARES)} blocks of {clip.name}, 0 to {count - 1}; got {chosen}.")
        if not 0 <= trained <= count:
            raise InputError(f"trained layers: need 0 to {count}, the blocks of {clip.name}; got {trained}.")
        self.clip = clip.requires_grad_(False).eval()
        self.layers = (*chosen, count - 1) if kind == "taps" else (count - 1,)
        self.trained = tuple(stages[count - trained :])  # a tuple, since they have their names in `clip`
        for stage in self.trained:
            stage.requires_grad_(True)
        unused, rows = last_block_use(clip.visual, head="value")
        for parameter in unused:
            parameter.requires_grad_(False)
        self.partly = tuple(rows) if trained else ()  # matrices of which only some rows learn, see `engine.optim`

    def train(self, mode: bool = True) -> "Tower":
        """Switch to training; the tower itself stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    def forward(self, images: Float[Tensor, "B 3 H W"], *, dense: bool = False) -> Maps:
        """Run the tower once.

        Args:
            images: normalised with the CLIP's statistics; H and W multiples of its patch size.
            dense: make the dense map too, of what the last tap holds already.
        """
        with nullcontext() if self.trained else torch.no_grad():
            taps = self.clip.features(images, layers=self.layers)
        if not dense:
            return Maps(taps, None)
        with torch.no_grad():
            return Maps(taps, F.normalize(dense_of_last(self.clip.visual, taps[-1]).float(), dim=1))


class Pyramid(nn.Module):
    """Five feature maps of one width, at strides P/4, P/2, P, 2P and 4P."""

    def __init__(self, width: int, *, channels: int = 256, kind: Kind = "taps") -> None:
        """Make what is trained on the tower's taps.

        Args:
            width: of the taps.
            channels: of each level.
            kind: see the module.
        """
        super().__init__()
        self.scales = nn.ModuleList(
            [
                nn.Sequential(_double(width), nn.BatchNorm2d(width), nn.GELU(), _double(width)),
                _double(width),
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
        """The levels, finest first.

        Args:
            taps: four, or the last layer alone, of which all scales are then made.
        """
        sources = taps if len(taps) > 1 else taps * len(self.scales)
        scaled = [scale(tap) for scale, tap in zip(self.scales, sources, strict=True)]
        if self.top_down is not None:
            return list(self.top_down(OrderedDict((str(place), one) for place, one in enumerate(scaled))).values())
        assert self.flat is not None, "a pyramid goes top down or is flat"
        levels = [flat(one) for flat, one in zip(self.flat, scaled, strict=True)]
        return [*levels, F.max_pool2d(levels[-1], kernel_size=1, stride=2)]


def pyramid_strides(patch: int) -> tuple[float, ...]:
    """The strides of the five levels, finest first [pixels]."""
    return tuple(patch * 2.0**power for power in range(-2, LEVELS - 2))


def tap_width(clip: Clip) -> int:
    """How wide the tokens of a tower are."""
    side, like = clip.patch_size, next(clip.visual.parameters())
    with torch.no_grad():
        return clip.features(like.new_zeros(1, 3, side, side), layers=(0,))[0].shape[1]


def _double(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)


def _flat(width: int, channels: int) -> nn.Sequential:
    one = Conv2dNormActivation(width, channels, kernel_size=1, activation_layer=None)
    return nn.Sequential(one, Conv2dNormActivation(channels, channels, kernel_size=3, activation_layer=None))
