"""A CLIP's image tower under a head: outputs of several blocks (taps), frozen but for the last blocks (Sec. 3.3; A.3).

Residual networks are refused: their stages already have several scales.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from foveate.clip.dense import dense_of_last, last_block_use, tower_stages
from foveate.clip.model import Clip
from foveate.errors import InputError
from foveate.heads.common.names import PyramidKind
from foveate.ops.resample import fitted_size, normalize
from foveate.types import Sample

TAP_TWELFTHS = (3, 5, 7)  # of the depth: blocks 3, 5, 7 of 12 and 6, 10, 14 of 24, from 0


@dataclass(frozen=True)
class TowerMaps:
    """Feature maps of a batch from one pass of the tower."""

    taps: list[Float[Tensor, "B C h w"]]  # the last is the last block without attention
    dense: Float[Tensor, "B D h w"] | None  # L2-normalised per location; None unless requested


def default_taps(count: int) -> tuple[int, ...]:
    """Indices of the tapped blocks before the last, from 0, of a tower with `count` blocks."""
    return tuple(twelfths * count // 12 for twelfths in TAP_TWELFTHS)


class Tower(nn.Module):
    """A CLIP's image tower: always in evaluation mode, frozen but for its last blocks."""

    def __init__(
        self, clip: Clip, *, kind: PyramidKind = "taps", taps: Sequence[int] | None = None, trained: int = 0
    ) -> None:
        """Freeze a CLIP except the last `trained` blocks of its image tower.

        Args:
            clip: changed here; its attention windows are used.
            kind: "taps" takes three taps and the last block, the others the last block alone.
            taps: indices of the three tapped blocks, from 0; None: the paper's, scaled to the tower's depth.
            trained: number of blocks; weights that their dense form does not use stay frozen.

        Raises:
            InputError: a residual network, or block indices out of range.
        """
        super().__init__()
        if isinstance(clip.visual, ModifiedResNet):
            raise InputError(f"{clip.name}: F-ViT needs a vision transformer; this is a residual network. Use a ViT.")
        if kind not in get_args(PyramidKind):
            raise InputError(f"pyramid: must be one of {', '.join(get_args(PyramidKind))}; got {kind!r}.")
        stages = tower_stages(clip.visual)
        count = len(stages)
        chosen = default_taps(count) if taps is None else tuple(taps)
        if len(chosen) != len(TAP_TWELFTHS) or not all(0 <= index < count for index in chosen):
            raise InputError(f"taps: need {len(TAP_TWELFTHS)} blocks of {clip.name}, 0 to {count - 1}; got {chosen}.")
        if not 0 <= trained <= count:
            raise InputError(f"trained layers: need 0 to {count}, the blocks of {clip.name}; got {trained}.")
        self.clip = clip.requires_grad_(False).eval()
        self.layers = (*chosen, count - 1) if kind == "taps" else (count - 1,)
        self.trained = tuple(stages[count - trained :])  # a tuple, so that they are not registered twice
        for stage in self.trained:
            stage.requires_grad_(True)
        unused, rows = last_block_use(clip.visual, head="value")
        for parameter in unused:
            parameter.requires_grad_(False)
        self.partly = tuple(rows) if trained else ()  # matrices trained in some rows only, see `engine.optim`

    def train(self, mode: bool = True) -> "Tower":
        """Switch to training; the CLIP itself stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    def forward(self, images: Float[Tensor, "B 3 H W"], *, dense: bool = False) -> TowerMaps:
        """Run the tower once.

        Args:
            images: normalised; H and W multiples of the patch size.
            dense: compute the dense feature map too, from the last tap.
        """
        with nullcontext() if self.trained else torch.no_grad():
            taps = self.clip.features(images, layers=self.layers)
        if not dense:
            return TowerMaps(taps, None)
        with torch.no_grad():
            return TowerMaps(taps, F.normalize(dense_of_last(self.clip.visual, taps[-1]).float(), dim=1))


def tap_width(clip: Clip) -> int:
    """The token width C of a tower."""
    side, like = clip.patch_size, next(clip.visual.parameters())
    with torch.no_grad():
        return clip.features(like.new_zeros(1, 3, side, side), layers=(0,))[0].shape[1]


def clip_input(clip: Clip, sample: Sample, *, size: int, squash: bool) -> Float[Tensor, "3 H W"]:
    """Resize and normalise an image for a CLIP.

    Args:
        size: side of the square, or longest side if the aspect is kept (to whole patches) [pixels].
        squash: resize to a square, whatever the aspect.
    """
    patch, shape = clip.patch_size, (size, size)
    if not squash:
        fitted = fitted_size(*sample.image.shape[1:], size=size)
        shape = tuple(max(1, round(side / patch)) * patch for side in fitted)
    image = sample.image.to(next(clip.parameters()).device).float()[None]
    resized = F.interpolate(image, size=shape, mode="bicubic", antialias=True)[0].clamp(0, 255)
    return normalize(resized, mean=clip.mean, std=clip.std)
