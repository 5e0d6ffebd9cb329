"""Images resized as detectron2 does at test: the shortest edge to one length, the longest at most another [pixels].

Pillow's filter on the CPU, since published results depend on its rounding to grey levels.
"""

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor


def shortest_size(height: int, width: int, *, shortest: int, longest: int) -> tuple[int, int]:
    """(height, width) of a resized image, halves rounded up, each at least 1.

    The shortest edge becomes `shortest`, or less where the longest would exceed `longest`.
    """
    scale = shortest / min(height, width)
    h, w = (shortest, scale * width) if height < width else (scale * height, shortest)
    if max(h, w) > longest:
        scale = longest / max(h, w)
        h, w = h * scale, w * scale
    return max(1, int(h + 0.5)), max(1, int(w + 0.5))


def resize_shortest(image: UInt8[Tensor, "3 H W"], *, shortest: int, longest: int) -> UInt8[Tensor, "3 h w"]:
    """Resize an RGB image with Pillow's bilinear filter, on the CPU; see `shortest_size`."""
    height, width = image.shape[1:]
    h, w = shortest_size(height, width, shortest=shortest, longest=longest)
    if (h, w) == (height, width):
        return image.cpu()
    pixels = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    resized = np.array(pixels.resize((w, h), Image.Resampling.BILINEAR))  # (h, w, 3)
    return torch.from_numpy(resized).permute(2, 0, 1)
