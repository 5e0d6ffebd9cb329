"""The modules to export, of the image tower alone, with names for their inputs, output and axes.

A graph accepts any number of images and regions, and any height and width that are multiples of the patch size. With a
fixed size, the positions are constants in the file. Not supported: the `masked` head of regions.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from foveate.clip.dense import check_head
from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.errors import InputError
from foveate.export.flags import What
from foveate.ops.pool import pool_indexed_boxes
from foveate.ops.resample import check_side

Axes = list[str | int]  # of a tensor: a name if free, a number if fixed

LEAST_PATCHES = 2  # per axis; the exporter specialises axes of length 1
_REGIONS = 7


class Graph(nn.Module):
    """A computation of the image tower; the text tower is not part of the module, so it is not saved."""

    def __init__(self, clip: Clip, *, head: Head):
        super().__init__()
        self.visual = clip.visual
        self.gates = clip.gates if head == "values3" else None
        self.unsaved: tuple[Clip] = (clip,)  # modules in a tuple are not registered
        self.head: Head = head


class Dense(Graph):
    """Images to their dense feature map (Sec. 3.1)."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, D, h, w)."""
        return self.unsaved[0].encode_dense(images, head=self.head)


class Regions(Graph):
    """Images and boxes to one embedding per box (Sec. 3.1)."""

    def forward(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        """(B, 3, H, W), (R, 4), (R,) to (R, D)."""
        dense = self.unsaved[0].encode_dense(images, head=self.head)  # (B, D, h, w)
        return pool_indexed_boxes(dense, boxes, image_index, stride=self.unsaved[0].patch_size)


class Image(Graph):
    """Images to their image embeddings, as in CLIP."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, D)."""
        return self.unsaved[0].encode_image(images)


@dataclass(frozen=True)
class Plan:
    """A module to export, with its inputs and the names of its axes."""

    module: nn.Module
    inputs: dict[str, Axes]  # by name, in order
    output: str
    axes: Axes  # of the output
    dynamic: tuple[dict[int, Any], ...]  # torch.export's dynamic shapes, in the order of the inputs
    shapes: tuple[tuple[int, int, int], ...]  # (batch, height, width) of the comparisons; the first is traced


def plan_export(clip: Clip, *, what: What, head: Head = "value", size: int | None = None) -> Plan:
    """Choose the module to trace, and the shapes to compare at.

    Args:
        clip: in evaluation mode.
        what: "dense", "regions" (dense feature map and box pooling in one graph) or "image".
        head: of the dense feature map, see `foveate.clip.heads`.
        size: fixed height and width [pixels]; None: both are free.

    Raises:
        InputError: the head is not defined for the tower or for "image", or the size is not a multiple of the patch.
    """
    patch = clip.patch_size
    if what == "image" and head != "value":
        raise InputError(f"--head: is for dense feature maps; --what image does not use it; got {head}. Remove it.")
    check_head(clip.visual, head)
    if size is not None:
        check_side(size, patch=patch, flag="--size")
    batch, regions = Dim("batch", min=1), Dim("regions", min=0)
    free = {0: batch}
    if size is None:
        free |= {2: patch * Dim("h", min=LEAST_PATCHES), 3: patch * Dim("w", min=LEAST_PATCHES)}
    side: Axes = ["height", "width"] if size is None else [size, size]
    grid: Axes = [f"height / {patch}", f"width / {patch}"] if size is None else [size // patch, size // patch]
    images: dict[str, Axes] = {"images": ["batch", 3, *side]}
    boxes: dict[str, Axes] = {"boxes": ["regions", 4], "image_index": ["regions"]}
    shapes = _shapes(clip) if size is None else tuple((count, size, size) for count in (2, 1, 3))
    match what:
        case "dense":
            axes = ["batch", clip.embed_dim, *grid]
            return Plan(Dense(clip, head=head), images, "dense", axes, (free,), shapes)
        case "regions":
            dynamic = (free, {0: regions}, {0: regions})
            axes = ["regions", clip.embed_dim]
            return Plan(Regions(clip, head=head), images | boxes, "regions", axes, dynamic, shapes)
        case "image":
            return Plan(Image(clip, head=head), images, "image", ["batch", clip.embed_dim], (free,), shapes)


def example_inputs(plan: Plan, shape: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """The inputs of a plan for a shape (batch, height, width), always the same.

    They are noise, and boxes inside, at, across and beyond the border of the images.
    """
    batch, height, width = shape
    generator = torch.Generator().manual_seed(batch)
    images = torch.randn(batch, 3, height, width, generator=generator)
    if "boxes" not in plan.inputs:
        return (images,)
    boxes = torch.tensor(
        [
            [0, 0, width, height],
            [width - 3.5, height - 2.25, width, height],
            [0, 0, 0.75, 0.5],
            [-9, -4, width + 7, height + 30],
            [0.3 * width, 0, 0.9 * width, 0.6 * height],
            [0.5 * width, 0.5 * height, 0.5 * width + 1, height],
            [0, 0.2 * height, 0.4 * width, height - 0.5],
        ]
    )[: _REGIONS - batch % 2]  # another number of regions for another number of images
    return images, boxes, torch.arange(len(boxes)) % batch


def _shapes(clip: Clip) -> tuple[tuple[int, int, int], ...]:
    """The shape to trace, neither native nor square; the native size; a smaller one; with different batch sizes."""
    patch, native = clip.patch_size, clip.native_size // clip.patch_size
    grids = ((2, native + 1, native + 2), (1, native, native), (3, max(LEAST_PATCHES, native // 2), native))
    return tuple((batch, patch * down, patch * across) for batch, down, across in grids)
