"""Region classification, plainly: one image at a time, its crops made though unused, two dense passes."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from plain.data import box_on_square, crop_square, student_square
from plain.step import pool_boxes, pool_masks
from plain.towers import dense

Row = tuple[Path, Path, list[int], list[list[float]], list[int], list[bool]]
"""Image, panoptic PNG; of each segment its colour as a number, its box (xyxy), its class, and whether it is a thing.
"""


class PlainSegments(Dataset):
    """Index -> (student's square, boxes on it, masks on the token grid, classes, is_thing, crops)."""

    def __init__(
        self,
        rows: list[Row],
        *,
        student_size: int,
        teacher_size: int,
        patch: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.rows, self.size, self.teacher_size, self.patch = rows, student_size, teacher_size, patch
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        path, png, colours, boxes, classes, things = self.rows[index]
        image = Image.open(path).convert("RGB")
        pixels = np.asarray(Image.open(png).convert("RGB")).astype(np.int64)
        ids = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
        side, cells = max(image.size), self.size // self.patch
        masks, fitted, crops = [], [], []
        for colour, box, thing in zip(colours, boxes, things, strict=True):
            mask = ids == colour
            grid = [max(1, round(length * cells / side)) for length in mask.shape]
            values = torch.from_numpy(mask)[None, None].float()
            shrunk = F.interpolate(values, size=grid, mode="bicubic", align_corners=False)[0, 0] > 0
            masks.append(F.pad(shrunk, (0, cells - grid[1], 0, cells - grid[0])))
            if not thing:
                down, across = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
                box = [float(across[0]), float(down[0]), float(across[-1]), float(down[-1])]
            fitted.append(box_on_square(box, image, self.size))
            cut = enlarge(box, image) if thing else box
            crops.append(crop_square(image, cut, self.teacher_size, self.mean, self.std))
        return (
            student_square(image, self.size, self.mean, self.std),
            torch.tensor(fitted).reshape(-1, 4),
            torch.stack(masks),
            torch.tensor(classes),
            torch.tensor(things),
            torch.stack(crops),
        )


def enlarge(box: list[float], image: Image.Image) -> list[float]:
    """A box 1.5 times as large about its centre, inside the image."""
    x, y, half_w, half_h = (
        (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, 0.75 * (box[2] - box[0]), 0.75 * (box[3] - box[1]),
    )  # fmt: skip
    width, height = image.size
    return [max(0.0, x - half_w), max(0.0, y - half_h), min(float(width), x + half_w), min(float(height), y + half_h)]


@torch.no_grad()
def embed(visual: nn.Module, sample: tuple[Tensor, ...], *, patch: int) -> tuple[Tensor, Tensor]:
    """All boxes and masks of one image: a dense pass for the boxes, and another for the masks."""
    image, boxes, masks, *_ = sample
    device = next(visual.parameters()).device
    image, boxes, masks = image.to(device)[None], boxes.to(device), masks.to(device)
    by_box = pool_boxes(F.normalize(dense(visual, image).float(), dim=1)[0], boxes, patch)
    by_mask = pool_masks(F.normalize(dense(visual, image).float(), dim=1)[0], masks)
    return by_box, by_mask


def accuracy(embeddings: Tensor, classes: Tensor, text: Tensor, top: int) -> float:
    """Accuracy of each class among the first `top`, averaged over the classes present [percent]."""
    if not len(classes):
        return float("nan")
    best = (embeddings @ text.T).topk(min(top, len(text)), dim=1).indices.cpu()
    right = (best == classes[:, None]).any(dim=1).double()
    return float(100 * torch.stack([right[classes == one].mean() for one in classes.unique()]).mean())
