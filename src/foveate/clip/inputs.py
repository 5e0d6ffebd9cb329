"""Images and regions as a caller gives them: checked, laid into the batches that a tower runs, and cut apart again.

The one place that knows lists of images: everywhere below, images are one tensor (B, 3, H, W) with the grids of those
that fill only its top left.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from foveate.errors import InputError
from foveate.ops.pool import shrink_masks
from foveate.ops.resample import pad_right_bottom

Images = Float[Tensor, "B 3 H W"] | list[Float[Tensor, "3 _ _"]]
Grid = tuple[int, int]  # (h, w) of an image's patches


class PackedBatch(NamedTuple):
    """Images that run through a tower together."""

    images: Float[Tensor, "B 3 H W"]
    grids: list[Grid] | None  # of each image, where it fills only the top left; None: all fill theirs

    def cut(self, maps: Float[Tensor, "B C h w"]) -> list[Float[Tensor, "C _ _"]]:
        """Each image's own part of a batch of maps."""
        if self.grids is None:
            return list(maps)
        return [own[:, :h, :w] for own, (h, w) in zip(maps, self.grids, strict=True)]


def pack_images(images: Images, *, patch: int, together: bool, like: Tensor) -> list[PackedBatch]:
    """Check images and lay them into batches.

    Args:
        images: of `Clip`'s methods.
        patch: side of a patch [pixels].
        together: lay a list into one padded batch, and not each image into its own.
        like: a tensor of the type that the tower computes in; an empty list is laid where it is.

    Returns:
        At least one batch.

    Raises:
        InputError: what `check_images` refuses, or an image that is not finite (looked at on the CPU).
    """
    check_images(images, patch)
    if isinstance(images, Tensor):
        _check_finite(images)
        return [PackedBatch(images.to(like.dtype), None)]
    if not images:
        return [PackedBatch(like.new_zeros(0, 3, patch, patch), None)]
    batches = []
    for part in [images] if together else [[image] for image in images]:
        height, width = (max(image.shape[side] for image in part) for side in (1, 2))
        batch = torch.stack([pad_right_bottom(image, height=height, width=width) for image in part])
        _check_finite(batch)
        grids = image_grids(part, patch)
        batches.append(PackedBatch(batch.to(like.dtype), None if len(set(grids)) == 1 else grids))
    return batches


def pack_regions(regions: list[Bool[Tensor, "_ _ _"]], grid: Grid) -> Bool[Tensor, "B Q L"]:
    """Lay the regions of each image, on its own patch grid, out on the larger grid of their batch; Q is the most."""
    most = max(len(own) for own in regions)
    rows = [pad_right_bottom(own, height=grid[0], width=grid[1]).flatten(1) for own in regions]  # (N, L) each
    return torch.stack([F.pad(own, (0, 0, 0, most - len(own))) for own in rows])


def image_grids(images: Images, patch: int) -> list[Grid]:
    """The patch grid of each image."""
    return [(image.shape[-2] // patch, image.shape[-1] // patch) for image in images]


def masks_on_grid(masks: Tensor, grid: Grid, *, patch: int, name: str) -> Bool[Tensor, "N h w"]:
    """Bring the masks of one image to its patch grid, where they are not on it.

    Raises:
        InputError: masks of another size or type.
    """
    pixels = (grid[0] * patch, grid[1] * patch)
    if masks.ndim != 3 or tuple(masks.shape[1:]) not in (grid, pixels):
        raise InputError(
            f"{name}: need (N, {pixels[0]}, {pixels[1]}) in pixels, or (N, {grid[0]}, {grid[1]}), the patch grid; "
            f"got {tuple(masks.shape)}."
        )
    if masks.dtype != torch.bool:
        raise InputError(f"{name}: need bool; got {masks.dtype}. Compare them with a threshold first.")
    return masks if tuple(masks.shape[1:]) == grid else shrink_masks(masks, grid=grid)


def check_images(images: Images, patch: int) -> None:
    """Refuse what is no batch or list of normalised images.

    Raises:
        InputError: another type or shape, or H or W is not a multiple of the patch size.
    """
    if isinstance(images, list):
        for i, image in enumerate(images):
            _check_batch(image[None], f"images[{i}]", patch)
    else:
        _check_batch(images, "images", patch)


def check_regions(regions: list[Tensor], images: Images, name: str) -> None:
    """Refuse regions that are not a list of one tensor per image."""
    strange = [type(own).__name__ for own in regions if not isinstance(own, Tensor)]
    if isinstance(regions, Tensor) or strange or len(regions) != len(images):
        got = f"one tensor {tuple(regions.shape)}" if isinstance(regions, Tensor) else str(len(regions))
        raise InputError(
            f"{name}: need a list of one tensor per image, {len(images)} in all; got {(*strange, got)[0]}. "
            "An image without regions takes an empty tensor."
        )


def _check_batch(images: Tensor, name: str, patch: int) -> None:
    if not isinstance(images, Tensor):
        raise InputError(f"{name}: need a tensor, or a list of them; got {type(images).__name__}.")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise InputError(f"{name}: need (B, 3, H, W), or a list of (3, H, W); got {tuple(images.shape)}.")
    if not images.is_floating_point():
        raise InputError(f"{name}: need normalised floating point; got {images.dtype}. See foveate.ops.resample.")
    height, width = images.shape[2:]
    if height % patch or width % patch:
        raise InputError(
            f"{name}: height and width must be multiples of the patch size {patch}; got {height} x {width}. "
            "Pad them with foveate.ops.resample.pad_right_bottom."
        )


def _check_finite(images: Float[Tensor, "B 3 H W"]) -> None:
    """Refuse NaN and infinity on the CPU; elsewhere the look would wait for the device. A fake tensor holds none."""
    if type(images) is Tensor and images.device.type == "cpu" and not torch.compiler.is_compiling():
        finite = images.isfinite().flatten(1).all(dim=1)  # (B,)
        if not finite.all():
            index = int((~finite).nonzero()[0])
            raise InputError(f"images: need finite numbers; image {index} holds NaN or infinity.")
