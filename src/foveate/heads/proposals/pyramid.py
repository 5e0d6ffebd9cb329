"""Feature maps of three strides for the RPN: from a frozen CLIP's tower, or from a small network (A.3).

    tower: taps at a third, two thirds and the end of the blocks, concatenated -> 1x1 conv -> up 2x / same / down 2x
    conv:  a stem and four stages of 3x3 convolutions -> 1x1 convs, top down -> strides 4 / 8 / 16

The small network is for boxes that are small for a ViT's tokens. GroupNorm has no statistics to save.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foveate.clip.dense import tower_stages
from foveate.clip.model import Clip

GROUPS = 8  # of GroupNorm
MAX_BASE_STRIDE = 16  # maps of larger patches (CNNs: 32) are upsampled to half of them [pixels]


class TowerPyramid(nn.Module):
    """A frozen tower's features at half, once and twice its stride."""

    def __init__(self, clip: Clip, *, channels: int) -> None:
        """Freeze a tower and make layers of `channels` on it."""
        super().__init__()
        self.clip = clip.requires_grad_(False).eval()
        count = len(tower_stages(clip.visual))
        self.layers = tuple(sorted({count // 3, 2 * count // 3, count - 1}))
        side = clip.patch_size if clip.patch_size <= MAX_BASE_STRIDE else clip.patch_size // 2
        self.strides = (side // 2, side, 2 * side)
        with torch.no_grad():
            blank = torch.zeros(1, 3, 2 * clip.patch_size, 2 * clip.patch_size)
            blank = blank.to(next(clip.parameters()).device)
            widths = [tap.shape[1] for tap in clip.features(blank, layers=self.layers)]
        self.norms = nn.ModuleList(nn.GroupNorm(1, width, affine=False) for width in widths)
        self.join = nn.Sequential(nn.Conv2d(sum(widths), channels, 1), nn.GroupNorm(GROUPS, channels), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(channels, channels, 2, 2), nn.GroupNorm(GROUPS, channels), nn.ReLU())
        self.down = _conv(channels, channels, stride=2)

    def train(self, mode: bool = True) -> "TowerPyramid":
        """Switch to training; the tower stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B C _ _"]]:
        """One map per stride, finest first."""
        grid = (images.shape[2] // self.strides[1], images.shape[3] // self.strides[1])
        with torch.no_grad():
            taps = self.clip.features(images, layers=self.layers)
            taps = [norm(tap.float()) for norm, tap in zip(self.norms, taps, strict=True)]
            taps = [tap if tuple(tap.shape[2:]) == grid else _resize(tap, grid) for tap in taps]
        middle = self.join(torch.cat(taps, dim=1))  # (B, C, h, w)
        return [self.up(middle), middle, self.down(middle)]


class ConvPyramid(nn.Module):
    """A small network with random weights and `channels` per level, for towers whose features are too coarse."""

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.strides = (4, 8, 16)
        self.stem = nn.Sequential(_conv(3, 32, stride=2, kernel=5), _conv(32, 64, stride=2))
        self.stages = nn.ModuleList(
            [
                nn.Sequential(_conv(64, 64), _conv(64, 64)),
                nn.Sequential(_conv(64, 96, stride=2), _conv(96, 96)),
                nn.Sequential(_conv(96, 128, stride=2), _conv(128, 128)),
                nn.Sequential(_conv(128, 128, stride=2), _conv(128, 128)),
            ]
        )
        self.sides = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in (64, 96, 128, 128))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B C _ _"]]:
        """One map per stride, finest first."""
        states, state = [], self.stem(images)
        for stage in self.stages:
            state = stage(state)
            states.append(state)  # (B, C, H / 4, W / 4) ... (B, C, H / 32, W / 32)
        levels = [side(state) for side, state in zip(self.sides, states, strict=True)]
        for index in (2, 1, 0):
            levels[index] = levels[index] + _resize(levels[index + 1], tuple(levels[index].shape[2:]), mode="nearest")
        return levels[:3]


def _conv(inputs: int, outputs: int, *, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, outputs), nn.ReLU())


def _resize(features: Tensor, grid: tuple[int, ...], *, mode: str = "bilinear") -> Tensor:
    return F.interpolate(features, size=list(grid), mode=mode)
