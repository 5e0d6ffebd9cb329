"""The right answers for one image and one model: image, dense map, boxes and masks under any head, of length 1."""

import torch
from torch import Tensor

from slow.common import cells_of_box, cells_of_mask, pool_box, pool_cells, unit
from slow.eva import Eva
from slow.resnet import Resnet
from slow.siglip import Siglip
from slow.towers import HEADS, ROTARY
from slow.transformer import Windows
from slow.vit import Vit

DENSE_HEADS = ("value", "value_only", "attention", "sclip", "clearclip", "naclip", "values3")
REFUSED = {"rn": ("values3",), "siglip": ("attention", "sclip", "clearclip", "values3")}
SIZES = {
    "vit": ((24, 24), (56, 56), (40, 72)),
    "eva": ((32, 32), (56, 56), (40, 72)),
    "rn": ((64, 64), (128, 128), (96, 160)),
    "siglip": ((24, 24), (56, 56), (40, 72)),
}  # [pixels], height and width: native, large square, large non-square


def kind(family: str) -> str:
    """The family without its variant: "vit-scaled" -> "vit"."""
    return family.split("-")[0]


def dense_heads(family: str) -> tuple[str, ...]:
    return tuple(head for head in DENSE_HEADS if head not in REFUSED.get(kind(family), ()))


def read(family: str, visual: torch.nn.Module, image: Tensor) -> Vit | Eva | Resnet | Siglip:
    """One image (3, H, W) and the weights of a small tower, in float64."""
    state = {key.removeprefix("trunk."): value.double() for key, value in visual.state_dict().items()}
    image, heads = image.double(), HEADS[kind(family)]
    match kind(family):
        case "vit":
            return Vit(state, image, heads=heads, quick=family == "vit-quickgelu")
        case "eva":
            return Eva(state, image, heads=heads, rotary=ROTARY)
        case "rn":
            return Resnet(state, image, heads=heads)
        case "siglip":
            return Siglip(state, image, heads=heads)
        case _:
            raise ValueError(family)


class Reference:
    """Remembers what it computed, so that nothing is paid for twice."""

    def __init__(self, family: str, visual: torch.nn.Module, image: Tensor) -> None:
        self.tower = read(family, visual, image)
        self.stride = image.shape[1] // self.tower.grid[0]
        self.maps: dict[tuple[str, Windows | None], Tensor] = {}
        self.copies: dict[tuple[tuple[int, int], ...], Tensor] = {}

    def image(self) -> Tensor:
        return unit(self.tower.image())  # (D,)

    def dense(self, head: str, windows: Windows | None = None) -> Tensor:
        if (head, windows) not in self.maps:
            raw = self.tower.dense(head, windows)
            rows = [unit(row) for row in raw.reshape(len(raw), -1).T]
            self.maps[head, windows] = torch.stack(rows, dim=1).reshape(raw.shape)
        return self.maps[head, windows]  # (D, h, w)

    def region(self, cells: list[tuple[int, int]]) -> Tensor:
        """The region head `masked` (D,)."""
        if tuple(cells) not in self.copies:
            self.copies[tuple(cells)] = unit(self.tower.masked(cells))
        return self.copies[tuple(cells)]

    def boxes(self, boxes: Tensor, head: str) -> Tensor:
        """(N, 4) xyxy [pixels] -> (N, D)."""
        if head == "masked":
            return torch.stack(
                [self.region(cells_of_box(box, *self.tower.grid, self.stride)) for box in boxes.tolist()]
            )
        return torch.stack([pool_box(self.dense(head), box, self.stride) for box in boxes.tolist()])

    def masks(self, masks: Tensor, head: str) -> Tensor:
        """(N, H, W) [pixels] or (N, h, w) on the grid -> (N, D)."""
        cells = [cells_of_mask(mask, *self.tower.grid) for mask in masks]
        if head == "masked":
            return torch.stack([self.region(one) for one in cells])
        return torch.stack([pool_cells(self.dense(head), one) for one in cells])


def make_images(count: int, size: tuple[int, int], seed: int = 1) -> Tensor:
    """Normalised images (count, 3, H, W), float32."""
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def example_boxes(size: tuple[int, int], stride: int) -> Tensor:
    """The image, one cell, four cells to their edges, a sliver, a fractional box, and one that leaves the image."""
    height, width = size
    return torch.tensor(
        [
            [0.0, 0.0, width, height],
            [stride, 0.0, 2 * stride, stride],
            [0.0, 0.0, 2 * stride, 2 * stride],
            [0.3 * width, 0.1 * height, 0.3 * width + 0.7, 0.93 * height],
            [0.21 * width, 0.37 * height, 0.83 * width, 0.71 * height],
            [0.6 * width, 0.55 * height, width + 5.0, height + 3.0],
        ]
    )


def example_masks(size: tuple[int, int], grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Masks in pixels and on the grid: scattered, a block, all, none, and in pixels a corner too small to be seen."""
    height, width = size
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(5, height, width, generator=generator) > torch.tensor([0.93, 1, 1, 1, 1])[:, None, None]
    pixels[1, height // 5 : 3 * height // 5, width // 4 : width // 2 + 3] = True
    pixels[2] = True
    pixels[4, 0, 0] = True
    cells = torch.rand(4, *grid, generator=generator) > torch.tensor([0.6, 1, 1, 1])[:, None, None]
    cells[1, : (grid[0] + 1) // 2, 1:] = True
    cells[2] = True
    return pixels, cells
