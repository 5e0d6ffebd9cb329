"""Images and regions of a caller, checked and packed into the batches that a tower runs.

Only this file handles lists of images: below it, images are one tensor (B, 3, H, W) with the patch grid of each image
that fills only its top left.
"""

import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from foveate.errors import InputError
from foveate.ops.pool import shrink_masks
from foveate.ops.resample import pad_right_bottom

Images = Float[Tensor, "B 3 H W"] | list[Float[Tensor, "3 _ _"]]
MAX_NORMALISED = 16.0  # white is 2 to 3; an image in [0, 255] is above
Grid = tuple[int, int]  # (h, w) of the patches of an image


class PackedBatch(NamedTuple):
    """Images that run through a tower together."""

    images: Float[Tensor, "B 3 H W"]
    grids: list[Grid] | None  # of each image at the top left; None: no image is padded

    def unpad(self, maps: Float[Tensor, "B C h w"]) -> list[Float[Tensor, "C _ _"]]:
        """The map of each image, without padding."""
        if self.grids is None:
            return list(maps)
        return [image_map[:, :h, :w] for image_map, (h, w) in zip(maps, self.grids, strict=True)]


def pack_images(images: Images, *, patch: int, together: bool, like: Tensor) -> list[PackedBatch]:
    """Check images and pack them into one or more batches.

    Args:
        images: as in the methods of `Clip`.
        patch: side of a patch [pixels].
        together: pack a list into one padded batch; otherwise each of its images is a batch.
        like: tensor of the type that the tower computes in, and on the device of the batch of an empty list.

    Raises:
        InputError: an error of `check_images`, or an image on the CPU is not finite.
    """
    check_images(images, patch)
    if isinstance(images, Tensor):
        _check_finite(images)
        return [PackedBatch(images.to(like.dtype), None)]
    if not images:
        return [PackedBatch(like.new_zeros(0, 3, patch, patch), None)]
    batches = []
    for group in [images] if together else [[image] for image in images]:
        height, width = (max(image.shape[side] for image in group) for side in (1, 2))
        batch = torch.stack([pad_right_bottom(image, height=height, width=width) for image in group])
        _check_finite(batch)
        grids = image_grids(group, patch)
        batches.append(PackedBatch(batch.to(like.dtype), None if len(set(grids)) == 1 else grids))
    return batches


def pack_regions(regions: list[Bool[Tensor, "_ _ _"]], grid: Grid) -> Bool[Tensor, "B Q L"]:
    """Pad the regions of each image, (N_i, h_i, w_i) on its patch grid, to the grid of the batch and Q = max N_i."""
    count = max(len(part) for part in regions)
    rows = [pad_right_bottom(part, height=grid[0], width=grid[1]).flatten(1) for part in regions]  # (N, L) each
    return torch.stack([F.pad(row, (0, 0, 0, count - len(row))) for row in rows])


def image_grids(images: Images, patch: int) -> list[Grid]:
    """The patch grid of each image."""
    return [(image.shape[-2] // patch, image.shape[-1] // patch) for image in images]


def masks_on_grid(masks: Tensor, grid: Grid, *, patch: int, name: str) -> Bool[Tensor, "N h w"]:
    """Resize masks of an image to its patch grid, unless they have its size; refuse other sizes and types."""
    pixels = (grid[0] * patch, grid[1] * patch)
    if masks.ndim != 3 or tuple(masks.shape[1:]) not in (grid, pixels):
        raise InputError(
            f"{name}: need (N, {pixels[0]}, {pixels[1]}) in pixels, or (N, {grid[0]}, {grid[1]}), the patch grid; "
            f"got {tuple(masks.shape)}. Resize them to the image."
        )
    if masks.dtype != torch.bool:
        raise InputError(f"{name}: need bool; got {masks.dtype}. Compare them with a threshold first.")
    return masks if tuple(masks.shape[1:]) == grid else shrink_masks(masks, grid=grid)


def check_images(images: Images, patch: int) -> None:
    """Refuse images that are not a batch or a list of normalised images with sides that are multiples of the patch."""
    if isinstance(images, list):
        for i, image in enumerate(images):
            _check_batch(image[None], f"images[{i}]", patch)
    else:
        _check_batch(images, "images", patch)


def check_regions(regions: list[Tensor], images: Images, name: str) -> None:
    """Refuse regions that are not a list of one tensor per image."""
    wrong_types = [type(part).__name__ for part in regions if not isinstance(part, Tensor)]
    if isinstance(regions, Tensor) or wrong_types or len(regions) != len(images):
        got = f"one tensor {tuple(regions.shape)}" if isinstance(regions, Tensor) else str(len(regions))
        raise InputError(
            f"{name}: need a list of one tensor per image, {len(images)} in all; got {(*wrong_types, got)[0]}. "
            "For an image without regions pass an empty tensor."
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
    """Refuse NaN and infinity on the CPU; elsewhere the check would wait for the device. Fake tensors have none."""
    if type(images) is Tensor and images.device.type == "cpu" and not torch.compiler.is_compiling():
        finite = images.isfinite().flatten(1).all(dim=1)  # (B,)
        if not finite.all():
            index = int((~finite).nonzero()[0])
            raise InputError(f"images: need finite numbers; image {index} holds NaN or infinity. Check its source.")


def warn_unnormalised(images: Images, *, mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Warn if images are not normalised with `mean` and `std`, by their range; waits for their device.

    Returns:
        Whether there were values to look at; tensors without any (fake ones, or traced by the compiler) have none.
    """
    if torch.compiler.is_compiling():
        return False
    parts = images if isinstance(images, list) else [images]
    is_real = all(type(part) is Tensor and part.numel() and part.device.type != "meta" for part in parts)
    if not is_real or not parts:
        return False
    low, high = torch.stack([torch.stack(part.detach().float().aminmax()) for part in parts]).T
    low, high = low.min().item(), high.max().item()
    lowest = min(-centre / scale for centre, scale in zip(mean, std, strict=True))  # of black
    if high > MAX_NORMALISED:
        found = "[0, 255]" if low >= 0 else f"[{low:.4g}, {high:.4g}]"
    elif low >= 0 and high <= 1 and high - low > 0.5 and lowest < 0:
        found = "[0, 1]"
    else:
        return True
    warnings.warn(
        f"images: need normalised ones, (x - mean) / std of x in [0, 1]; got values in {found}. Divide by 255 if they "
        "are in [0, 255], and use foveate.ops.resample.normalize or the model's mean and std.",
        stacklevel=4,
    )
    return True


def check_tokens(tokens: Tensor, text: dict[str, Any]) -> None:
    """Refuse tokens that do not fit the text tower.

    Args:
        text: "text_cfg" of the model.

    Raises:
        InputError: another type or length; on the CPU also a token that the tower does not have.
    """
    length, count = text.get("context_length", 77), text.get("vocab_size", 49408)
    if tokens.dtype not in (torch.int64, torch.int32):
        raise InputError(f"tokens: need int64, of `tokenize`; got {tokens.dtype}. Pass the texts, or tokenize them.")
    if tokens.ndim != 2 or tokens.shape[1] != length:
        raise InputError(
            f"tokens: need (B, {length}), the context length, of `tokenize`; got {tuple(tokens.shape)}. Tokenize the "
            "texts with this model's tokenizer."
        )
    if torch.compiler.is_compiling():
        return
    if type(tokens) is Tensor and tokens.device.type == "cpu" and tokens.numel():
        low, high = (int(bound) for bound in tokens.aminmax())
        if low < 0 or high >= count:
            raise InputError(
                f"tokens: need 0 to {count - 1}; got {low} to {high}. Tokenize the texts with this model's tokenizer."
            )
