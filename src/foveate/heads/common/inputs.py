"""Training images as F-ViT and the mask generator get them: jittered or as they are, with masks of their size."""

import torch

from foveate.errors import InputError
from foveate.ops.jitter import Jitter, draw_jitter, no_jitter
from foveate.types import Sample


def choose_jitter(sample: Sample, *, size: int, scales: tuple[float, float] | None, flip: bool) -> Jitter:
    """Draw how an image is resized, cropped and mirrored, from torch's global random stream.

    Args:
        sample: the image.
        size: side of the square input [pixels].
        scales: smallest and largest scale of the large-scale jitter; None: the image is fitted into the square.
        flip: mirror half of the images.
    """
    height, width = sample.image.shape[1:]
    if scales is not None:
        return draw_jitter(height, width, size=size, low=scales[0], high=scales[1], flip=flip)
    return no_jitter(height, width, size=size, flip=flip and bool(torch.rand(()) < 0.5))


def check_masks(sample: Sample) -> None:
    """Refuse segments whose masks were not read.

    Raises:
        InputError: the masks have another size than the image.
    """
    size, found = tuple(sample.image.shape[1:]), None if sample.segments is None else sample.segments.masks.shape[1:]
    if found is None or tuple(found) != size:
        got = "no segments" if found is None else tuple(found)
        raise InputError(
            f"image {sample.id}: masks must have the image's size {size}; got {got}. Read the data with masks."
        )
