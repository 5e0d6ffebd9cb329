"""Images as the published systems of masks see them at test: the shortest edge resized, padded to whole multiples.

Deliberately absent: the padded square of training (`foveate.ops.jitter`).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from foveate.heads.panoptic.merge import Frame
from foveate.ops.resample import normalize, pad_right_bottom
from foveate.ops.shortest import resize_shortest

Pad = Literal["zero", "black"]


def framed_input(
    image: UInt8[Tensor, "3 _ _"],
    *,
    shortest: int,
    longest: int,
    multiple: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    pad: Pad,
    device: torch.device,
) -> tuple[Float[Tensor, "3 H W"], Frame]:
    """Resize, normalise and pad an image, no more than its own sides need.

    Args:
        image: RGB, as it lies on disk.
        shortest: edge of the input [pixels].
        longest: most that the other may have [pixels].
        multiple: of the padded sides [pixels].
        mean: of each channel, in [0, 1].
        std: likewise.
        pad: zero = zeros after normalisation (Mask2Former, MaskFormer), black = black before it (ODISE, whose
            normalisation is none: a mean of 0).
        device: device of the result.

    Returns:
        The input, and how the image lies in it.
    """
    resized = resize_shortest(image, shortest=shortest, longest=longest).to(device).float()
    h, w = resized.shape[1:]
    height, width = (-(-side // multiple) * multiple for side in (h, w))
    if pad == "black":
        padded = normalize(pad_right_bottom(resized, height=height, width=width), mean=mean, std=std)
    else:
        padded = pad_right_bottom(normalize(resized, mean=mean, std=std), height=height, width=width)
    return padded, Frame((height, width), (h, w))


def alike(frames: Sequence[Frame]) -> list[list[int]]:
    """Places of the inputs of one size, so that they are run together and none is padded for another's sake."""
    places: dict[tuple[int, int], list[int]] = {}
    for place, frame in enumerate(frames):
        places.setdefault(frame.padded, []).append(place)
    return list(places.values())
