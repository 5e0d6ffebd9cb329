"""Images as the plain loader ships them: every crop and the student's square in float32, padded to one shape."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

MOST = 20  # crops a sample has room for; the rest of them are zeros with `valid` 0


def to_tensor(image: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Colours in [0, 1], then normalised: (3, H, W) float32."""
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def resize_longest(image: Image.Image, size: int) -> Image.Image:
    """The longest side becomes `size`."""
    width, height = image.size
    scale = size / max(width, height)
    wanted = max(1, round(width * scale)), max(1, round(height * scale))
    return image.resize(wanted, Image.Resampling.BICUBIC)


def student_square(image: Image.Image, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Resized, black at the right and below, then normalised: (3, size, size)."""
    square = Image.new("RGB", (size, size))
    square.paste(resize_longest(image, size), (0, 0))
    return to_tensor(square, mean, std)


def crop_square(
    image: Image.Image, box: list[float], size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """A box cut out, resized, laid in the middle of a black square, normalised: (3, size, size)."""
    crop = resize_longest(image.crop(tuple(round(number) for number in box)), size)
    square = Image.new("RGB", (size, size))
    square.paste(crop, ((size - crop.width) // 2, (size - crop.height) // 2))
    return to_tensor(square, mean, std)


def box_on_square(box: list[float], image: Image.Image, size: int) -> list[float]:
    """A box of the image in pixels of the student's square."""
    return [side * size / max(image.size) for side in box]


class PlainImages(Dataset):
    """Index -> (student's square, (MOST, 5) boxes with `valid`, (MOST, 3, s, s) crops), for torch's own collate."""

    def __init__(
        self,
        items: list[tuple[Path, list[list[float]]]],
        *,
        student_size: int,
        teacher_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.items, self.student_size, self.teacher_size, self.mean, self.std = (
            items, student_size, teacher_size, mean, std,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        path, boxes = self.items[index]
        image = Image.open(path).convert("RGB")
        rows, crops = torch.zeros(MOST, 5), torch.zeros(MOST, 3, self.teacher_size, self.teacher_size)
        for place, box in enumerate(boxes[:MOST]):
            rows[place] = torch.tensor([*box_on_square(box, image, self.student_size), 1])
            crops[place] = crop_square(image, box, self.teacher_size, self.mean, self.std)
        return student_square(image, self.student_size, self.mean, self.std), rows, crops
