"""Large-scale jitter and mirroring of an image and its targets, into the padded square (A.3): the detector's training.

The longest side of the image becomes 0.1 to 2 times the side of the square; an image larger than the square is cropped
at random. The crop is cut first, in whole pixels of the image, so that only used pixels are resized. Parameters are
drawn on the host; height and width are those of the image, size is the side of the square, all in pixels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Num
from torch import Tensor

from foveate.ops.boxes import clip_boxes
from foveate.ops.resample import fitted_size, normalize, pad_right_bottom, resize_longest, resize_longest_bilinear

MIN_SIDE = 1.0  # of a box worth training on [pixels of the input]
MIN_VISIBLE_AREA = 0.1  # of its area
_MAX_VALUES = 2**26  # of masks resized at once: 256 MB of float32


@dataclass(frozen=True)
class Jitter:
    """The crop of an image that is used, and its size in the input."""

    top: int  # of the crop [pixels of the image], as the next three
    left: int
    height: int
    width: int
    longest: int  # longest side of the resized crop [pixels of the input]
    flip: bool  # mirrored left to right

    @property
    def fitted(self) -> tuple[int, int]:
        """(height, width) of the resized crop [pixels of the input]."""
        return fitted_size(self.height, self.width, size=self.longest)


def no_jitter(height: int, width: int, *, size: int, flip: bool = False) -> Jitter:
    """The whole image, with its longest side as long as the square's."""
    return Jitter(0, 0, height, width, size, flip)


def draw_jitter(
    height: int,
    width: int,
    *,
    size: int,
    low: float = 0.1,
    high: float = 2.0,
    flip: bool = True,
    generator: torch.Generator | None = None,
) -> Jitter:
    """Draw the scale, uniform in [low, high], the position of the crop, and with `flip` whether to mirror (1 in 2).

    Without a generator torch's global one is used.
    """
    scale, down, across, coin = torch.rand(4, generator=generator).tolist()
    return place_jitter(
        height,
        width,
        size=size,
        scale=low + (high - low) * scale,
        down=down,
        across=across,
        flip=flip and coin < 0.5,
    )


def place_jitter(height: int, width: int, *, size: int, scale: float, down: float, across: float, flip: bool) -> Jitter:
    """Convert a scale and a position to whole pixels.

    Args:
        scale: longest side of the image [sides of the square].
        down: position of the crop in [0, 1], from top to bottom; no effect where the whole height is used.
        across: likewise, from left to right.
    """
    factor = scale * size / max(height, width)  # input pixels per image pixel
    crop_height, crop_width = (min(side, max(1, round(size / factor))) for side in (height, width))
    top = min(int(down * (height - crop_height + 1)), height - crop_height)
    left = min(int(across * (width - crop_width + 1)), width - crop_width)
    longest = min(size, max(1, round(max(crop_height, crop_width) * factor)))
    return Jitter(top, left, crop_height, crop_width, longest, flip)


def jitter_image(
    image: Num[Tensor, "3 H W"],
    jitter: Jitter,
    *,
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    resize: Literal["bilinear", "bicubic"] = "bicubic",
) -> Float[Tensor, "3 size size"]:
    """Crop, resize, mirror, normalise and zero-pad an image.

    Bicubic and without jitter this equals `foveate.ops.resample.square_input` with pad "zero".

    Args:
        image: uint8 or floating point, in [0, 255], on the compute device.
        mean: of the RGB channels, in [0, 1]; `std` likewise.
        resize: "bilinear": not antialiased, rounded to grey levels, as cv2 (published detectors); "bicubic":
            antialiased, as Pillow (all other inputs of a tower).
    """
    resized = {"bilinear": resize_longest_bilinear, "bicubic": resize_longest}[resize](
        _cut(image, jitter), size=jitter.longest
    )  # (3, h, w)
    resized = resized.flip(2) if jitter.flip else resized
    return pad_right_bottom(normalize(resized, mean=mean, std=std), height=size, width=size)


def jitter_boxes(boxes: Float[Tensor, "N 4"], jitter: Jitter) -> tuple[Float[Tensor, "N 4"], Bool[Tensor, " N"]]:
    """Convert boxes from pixels of the image to pixels of the input, each axis by its own factor, clipped to the crop.

    Returns:
        The boxes; and which of them are at least 1 pixel wide and high and have a tenth of their area inside the crop.
    """
    height, width = jitter.fitted
    across, down = width / jitter.width, height / jitter.height
    shift = boxes.new_tensor([jitter.left, jitter.top, jitter.left, jitter.top])
    moved = (boxes - shift) * boxes.new_tensor([across, down, across, down])  # (N, 4)
    if jitter.flip:
        x1, y1, x2, y2 = moved.unbind(dim=1)
        moved = torch.stack([width - x2, y1, width - x1, y2], dim=1)
    clipped = clip_boxes(moved, height=height, width=width)
    before, after = moved[:, 2:] - moved[:, :2], clipped[:, 2:] - clipped[:, :2]  # (N, 2) each
    is_large = (after >= MIN_SIDE).all(dim=1)
    return clipped, is_large & (after.prod(dim=1) >= MIN_VISIBLE_AREA * before.prod(dim=1))


def jitter_masks(masks: Bool[Tensor, "N H W"], jitter: Jitter, *, size: int) -> Bool[Tensor, "N size size"]:
    """Crop, resize, mirror and pad masks: a pixel of the input belongs to a mask that covers at least half of it."""
    cropped, (height, width) = _cut(masks, jitter), jitter.fitted
    chunks = [masks.new_zeros((0, height, width))]
    for chunk in cropped.split(max(1, _MAX_VALUES // max(1, cropped[:1].numel()))) if len(cropped) else ():
        values = F.interpolate(chunk[None].float(), size=(height, width), mode="bilinear", antialias=True)
        chunks.append(values[0] >= 0.5)
    resized = torch.cat(chunks)  # (N, h, w)
    resized = resized.flip(2) if jitter.flip else resized
    return pad_right_bottom(resized, height=size, width=size)


def _cut(planes: Tensor, jitter: Jitter) -> Tensor:
    return planes[:, jitter.top : jitter.top + jitter.height, jitter.left : jitter.left + jitter.width]
