"""What both sides are given: image files and the boxes in them, made here unless `--data` names some.

Two kinds. `photographs` are as they come: Pillow rounds resized pixels to whole grey levels and ours does not, so the
sides' losses differ a little. `exact` ones need no resizing (the longest side is the student's size, the crops are as
large as the teacher's input), so both sides see the same numbers and must agree to rounding: parity is checked there.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from foveate.data.images import read_image
from foveate.data.loader import derive_seed
from foveate.data.sources import open_data
from foveate.data.world.write import WorldSize, write_world
from foveate.ops.grid import grid_boxes
from foveate.types import Batch, Sample

Item = tuple[Path, list[list[float]]]

_KEPT: list[tempfile.TemporaryDirectory] = []  # folders of images, deleted when the process ends


def folder() -> Path:
    """A new temporary folder that lasts as long as the process."""
    _KEPT.append(tempfile.TemporaryDirectory(prefix="foveate-bench-"))
    return Path(_KEPT[-1].name)


def photographs(count: int, *, crops: int, data: Path | None = None, seed: int = 0) -> list[Item]:
    """Image files with the patches of a random grid in each.

    Args:
        count: images; fewer files are repeated.
        crops: regions an image, the first of a grid of at least so many, shuffled.
        data: a folder or COCO root; None: JPEGs of 640 x 480 made here.
        seed: of grids and made images.
    """
    if data is None:
        paths = [_draw(folder() / f"{i}.jpg", seed=derive_seed(seed, i)) for i in range(min(count, 16))]
    else:
        paths = [record.path for record in open_data(data, split="train", annotations="none").records][:count]
    items = []
    for i in range(count):
        path = paths[i % len(paths)]
        with Image.open(path) as image:
            width, height = image.size
        columns = next(n for n in range(1, crops + 1) if n * n >= crops)
        boxes = grid_boxes(-(-crops // columns), columns, height=height, width=width)
        order = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(derive_seed(seed, i)))[:crops]
        items.append((path, boxes[order].tolist()))
    return items


def exact(count: int, *, crops: int, student_size: int, teacher_size: int, seed: int = 0) -> list[Item]:
    """PNG images of `student_size` by three quarters of it, with boxes of the teacher's own size.

    Boxes lie on whole pixels. Where the image is smaller than a crop, it is made as tall as it must be.
    """
    height = max(3 * student_size // 4, min(teacher_size, student_size))
    assert teacher_size <= student_size, f"crops of {teacher_size} do not fit an image of {student_size}"
    draw, items = np.random.default_rng(seed), []
    for i in range(count):
        path = _draw(folder() / f"{i}.png", seed=derive_seed(seed, i), size=(student_size, height))
        x = draw.integers(0, student_size - teacher_size + 1, crops)
        y = draw.integers(0, height - teacher_size + 1, crops)
        boxes = np.stack([x, y, x + teacher_size, y + teacher_size], axis=1).astype(float)
        items.append((path, boxes.tolist()))
    return items


def to_batch(items: list[Item]) -> Batch:
    """The items as our loader's workers hand them over."""
    samples = [
        Sample(str(i), read_image(path), torch.tensor(boxes).reshape(-1, 4)) for i, (path, boxes) in enumerate(items)
    ]
    return Batch(samples, [])


def panoptic(count: int, data: Path | None) -> Any:
    """Images with panoptic annotations: of a COCO root, or of a rendered world made here."""
    if data is None:
        data = folder() / "world"
        write_world(data, WorldSize(train=0, val=count, test=0, pairs=0, seed=0), processes=1)
    return open_data(data, split="val", annotations="panoptic")


def _draw(path: Path, *, seed: int, size: tuple[int, int] = (640, 480)) -> Path:
    """Write an image of coarse colours under finer ones, about as large on disk as a photograph."""
    draw, (width, height) = np.random.default_rng(seed), size
    layers = np.zeros((height, width, 3), np.float32)
    for cells, share in ((4, 0.5), (24, 0.25), (160, 0.15)):
        noise = draw.integers(0, 256, (cells * height // width + 1, cells, 3), dtype=np.uint8)
        layers += share * np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), np.float32)
    image = Image.fromarray((layers + draw.integers(0, 20, layers.shape)).clip(0, 255).astype(np.uint8))
    image.save(path, quality=90)
    return path
