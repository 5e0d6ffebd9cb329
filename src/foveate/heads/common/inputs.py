"""Inputs of F-ViT and of the mask generator: jitter of the images, and a check of the masks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveate.errors import InputError
from foveate.ops.jitter import Jitter, draw_jitter, jitter_image, no_jitter
from foveate.types import Sample


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and back."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def jittered_inputs(
    samples: list[Sample], jitters: list[Jitter], *, device: torch.device, **options: Any
) -> Float[Tensor, "B 3 H W"]:
    """Normalised, padded inputs of images; the options are those of `jitter_image`."""
    images = [sample.image.to(device, non_blocking=True) for sample in samples]
    return torch.stack([jitter_image(image, jitter, **options) for image, jitter in zip(images, jitters, strict=True)])


def choose_jitter(
    sample: Sample, *, size: int, scales: tuple[float, float] | None, flip: bool, training: bool
) -> Jitter:
    """Draw how an image is resized, cropped and mirrored, from torch's global random stream.

    Args:
        size: side of the square input [pixels].
        scales: smallest and largest scale of the large-scale jitter; None: the image is fitted into the square.
        flip: mirror half of the images.
        training: else the image is fitted into the square and not mirrored.
    """
    height, width = sample.image.shape[1:]
    flip = flip and training
    if scales is not None and training:
        return draw_jitter(height, width, size=size, low=scales[0], high=scales[1], flip=flip)
    return no_jitter(height, width, size=size, flip=flip and bool(torch.rand(()) < 0.5))


def check_masks(sample: Sample) -> None:
    """Refuse segments without masks of the image's size.

    Raises:
        InputError: the masks were not read, or have another size.
    """
    size = tuple(sample.image.shape[1:])
    got = "no segments" if sample.segments is None else tuple(sample.segments.masks.shape[1:])
    if got != size:
        raise InputError(
            f"image {sample.id}: masks must have the image's size {size}; got {got}. Read the data with masks."
        )
