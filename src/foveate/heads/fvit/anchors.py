"""Anchors at strides that are not whole numbers (A.3): a ViT-L/14's pyramid has 3.5, 7, 14, 28 and 56.

torchvision's generator divides the input's side by the map's, rounding down, and rounds corners to whole pixels; both
are wrong here. Its layout stays: the first anchor of a row is centred on the input's edge.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator

RATIOS = (0.5, 1.0, 2.0)  # height / width; all anchors of a level have the area of the square one
SCALE = 8.0  # side of the square anchor [strides of its level]


class Anchors(AnchorGenerator):
    """torchvision's anchors without rounding of strides and corners, one scale per level."""

    def __init__(self, strides: Sequence[float]) -> None:
        """Make the anchors of levels with these strides, finest first [pixels]."""
        super().__init__(tuple((SCALE * stride,) for stride in strides), (RATIOS,) * len(strides))
        self.strides = tuple(float(stride) for stride in strides)

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "A 4"]:
        """The anchors of one location, centred on (0, 0): xyxy [pixels]."""
        sides = torch.as_tensor(scales, dtype=dtype, device=device)
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        widths, heights = (sides / roots[:, None]).flatten(), (sides * roots[:, None]).flatten()  # (A,) each
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """All anchors of each image, (A, 4) xyxy in pixels of the input, level by level, row by row."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        grids = [list(level.shape[-2:]) for level in feature_maps]
        steps = [[torch.full((), stride, device=device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(grids, steps))
        return [anchors] * len(image_list.image_sizes)
