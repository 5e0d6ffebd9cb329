"""Inputs of the published segmenters at test: the shortest edge resized, padded to whole multiples."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from foveate.heads.panoptic.merge import Frame
from foveate.ops.resample import normalize, pad_right_bottom
from foveate.ops.shortest import resize_shortest

Pad = Literal["zero", "black"]
Result = TypeVar("Result")


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
    """Resize, normalise and pad an image, with as little padding as possible.

    Args:
        image: RGB.
        shortest: edge of the input [pixels].
        longest: max of the other edge [pixels].
        multiple: of the padded sides [pixels].
        mean: of each channel, in [0, 1].
        std: likewise.
        pad: "zero": zeros after normalisation (Mask2Former, MaskFormer); "black": black before it (ODISE).
        device: device of the result.

    Returns:
        The input, and the extent of the image in it.
    """
    resized = resize_shortest(image, shortest=shortest, longest=longest).to(device).float()
    h, w = resized.shape[1:]
    height, width = (-(-side // multiple) * multiple for side in (h, w))
    if pad == "black":
        padded = normalize(pad_right_bottom(resized, height=height, width=width), mean=mean, std=std)
    else:
        padded = pad_right_bottom(normalize(resized, mean=mean, std=std), height=height, width=width)
    return padded, Frame((height, width), (h, w))


def run_by_size(
    inputs: Sequence[tuple[Float[Tensor, "3 _ _"], Frame]], run: Callable[[Tensor], Sequence[Result]]
) -> list[Result]:
    """Run inputs in batches of one size, so that no input is padded to another's size.

    Args:
        inputs: of `framed_input`.
        run: a batch of images -> one result per image.

    Returns:
        The results, in the order of the inputs.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, (_, frame) in enumerate(inputs):
        by_size.setdefault(frame.padded, []).append(index)
    results: dict[int, Result] = {}
    for indices in by_size.values():
        batch = run(torch.stack([inputs[index][0] for index in indices]))
        results |= zip(indices, batch, strict=True)
    return [results[index] for index in range(len(inputs))]
