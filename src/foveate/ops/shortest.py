"""Images as detectron2 resizes them at test: the shortest edge to a length, the longest not above another.

Pillow's filter on grey levels, on the CPU, since a published number depends on its rounding. Deliberately absent: the
padded square of a tower (`resample`).
"""

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor


def shortest_size(height: int, width: int, *, shortest: int, longest: int) -> tuple[int, int]:
    """Say how large an image becomes when its shortest edge is resized.

    Args:
        height: of the image [pixels].
        width: of the image [pixels].
        shortest: wished length of the shortest edge [pixels].
        longest: most that the longest edge may become [pixels]; the shortest is then shorter than wished.

    Returns:
        (height, width), halves rounded up, each at least 1.
    """
    scale = shortest / min(height, width)
    h, w = (shortest, scale * width) if height < width else (scale * height, shortest)
    if max(h, w) > longest:
        scale = longest / max(h, w)
        h, w = h * scale, w * scale
    return max(1, int(h + 0.5)), max(1, int(w + 0.5))


def resize_shortest(image: UInt8[Tensor, "3 H W"], *, shortest: int, longest: int) -> UInt8[Tensor, "3 h w"]:
    """Resize the shortest edge of an image by Pillow's bilinear filter.

    Args:
        image: RGB.
        shortest: see `shortest_size`.
        longest: likewise.

    Returns:
        The image on the CPU, rounded to grey levels.
    """
    height, width = image.shape[1:]
    h, w = shortest_size(height, width, shortest=shortest, longest=longest)
    if (h, w) == (height, width):
        return image.cpu()
    pixels = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    resized = np.array(pixels.resize((w, h), Image.Resampling.BILINEAR))  # (h, w, 3)
    return torch.from_numpy(resized).permute(2, 0, 1)
