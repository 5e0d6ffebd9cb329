"""Large-scale jitter and mirroring of an image on its way to the padded square (A.3): what the detector learns from.

A scale between .1 and 2 says how long the image's longest side becomes, in sides of the square; what is then larger
than the square is cut at a random place. The cut comes first and in whole pixels of the image, so that nothing is
resized that is thrown away. Parameters are drawn on the host, pixels move on the device. Deliberately absent: colours,
crops that keep a share of the boxes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Num
from torch import Tensor

from foveate.ops.boxes import clip_boxes
from foveate.ops.resample import fitted_size, normalize, pad_right_bottom, resize_longest, resize_longest_bilinear

SHORTEST_SIDE = 1.0  # of a box that is kept [pixels of the input]
LEAST_SHARE = 0.1  # of its area that must be seen
_CHUNK = 2**26  # values of masks resized at once: 256 MB of float32


@dataclass(frozen=True)
class Jitter:
    """Which part of an image is seen, and how large."""

    top: int  # of the part [pixels of the image], likewise the next three
    left: int
    height: int
    width: int
    longest: int  # the part's longest side once resized [pixels of the input]
    flip: bool  # left and right exchanged

    @property
    def fitted(self) -> tuple[int, int]:
        """(height, width) of the part once resized [pixels of the input]."""
        return fitted_size(self.height, self.width, size=self.longest)


def no_jitter(height: int, width: int, *, size: int, flip: bool = False) -> Jitter:
    """The whole image, its longest side as long as the square's.

    Args:
        height: of the image [pixels].
        width: likewise.
        size: side of the square input [pixels].
        flip: exchange left and right.
    """
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
    """Draw a scale, a place and a side.

    Args:
        height: of the image [pixels].
        width: likewise.
        size: side of the square input [pixels].
        low: least scale.
        high: greatest scale; scales are uniform between.
        flip: mirror every other image.
        generator: source of all randomness; None: torch's global stream.
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
    """Turn a scale and a place into whole pixels.

    Args:
        height: of the image [pixels].
        width: likewise.
        size: side of the square input [pixels].
        scale: of the image's longest side [sides of the square].
        down: where the part lies, 0 at the top to 1 at the bottom; without meaning where all is seen.
        across: likewise, from the left.
        flip: exchange left and right.
    """
    factor = scale * size / max(height, width)  # input pixels an image pixel
    seen_height, seen_width = (min(side, max(1, round(size / factor))) for side in (height, width))
    top = min(int(down * (height - seen_height + 1)), height - seen_height)
    left = min(int(across * (width - seen_width + 1)), width - seen_width)
    longest = min(size, max(1, round(max(seen_height, seen_width) * factor)))
    return Jitter(top, left, seen_height, seen_width, longest, flip)


def jitter_image(
    image: Num[Tensor, "3 H W"],
    jitter: Jitter,
    *,
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    resize: Literal["bilinear", "bicubic"] = "bicubic",
) -> Float[Tensor, "3 size size"]:
    """Cut, resize, mirror, normalise, pad; bicubic, not jittered, `foveate.ops.resample.square_input` with pad "zero".

    Args:
        image: uint8 or floating point, in [0, 255], on the compute device.
        jitter: what is seen.
        size: side of the square [pixels].
        mean: colour statistics of the tower.
        std: likewise.
        resize: bilinear = without antialiasing, rounded to grey levels, as cv2 (published detectors), bicubic =
            antialiased, as Pillow (all other inputs of a tower).
    """
    resized = {"bilinear": resize_longest_bilinear, "bicubic": resize_longest}[resize](
        _cut(image, jitter), size=jitter.longest
    )  # (3, h, w)
    resized = resized.flip(2) if jitter.flip else resized
    return pad_right_bottom(normalize(resized, mean=mean, std=std), height=size, width=size)


def jitter_boxes(boxes: Float[Tensor, "N 4"], jitter: Jitter) -> tuple[Float[Tensor, "N 4"], Bool[Tensor, " N"]]:
    """Carry boxes along; each axis by its own factor, clipped.

    Args:
        boxes: xyxy, pixels of the image.
        jitter: what is seen.

    Returns:
        xyxy, pixels of the input, clipped to what is seen; and which are worth keeping: at least 1 pixel wide and
        high, and with at least a tenth of their area.
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
    is_large = (after >= SHORTEST_SIDE).all(dim=1)
    return clipped, is_large & (after.prod(dim=1) >= LEAST_SHARE * before.prod(dim=1))


def jitter_masks(masks: Bool[Tensor, "N H W"], jitter: Jitter, *, size: int) -> Bool[Tensor, "N size size"]:
    """Carry masks along: what is covered to at least a half.

    Args:
        masks: of the image.
        jitter: what is seen.
        size: side of the square [pixels].
    """
    cut, (height, width) = _cut(masks, jitter), jitter.fitted
    parts = [masks.new_zeros((0, height, width))]
    for some in cut.split(max(1, _CHUNK // max(1, cut[:1].numel()))) if len(cut) else ():
        values = F.interpolate(some[None].float(), size=(height, width), mode="bilinear", antialias=True)
        parts.append(values[0] >= 0.5)
    resized = torch.cat(parts)  # (N, h, w)
    resized = resized.flip(2) if jitter.flip else resized
    return pad_right_bottom(resized, height=size, width=size)


def _cut(planes: Tensor, jitter: Jitter) -> Tensor:
    return planes[:, jitter.top : jitter.top + jitter.height, jitter.left : jitter.left + jitter.width]
