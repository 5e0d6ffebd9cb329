"""Random views of small images for contrastive pretraining, whole batches at once on the compute device.

Deliberately absent: flips, which would turn one texture of the rendered world into another, and hue jitter (the hues
of the world are random).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor


def random_views(images: UInt8[Tensor, "B 3 H W"], *, generator: torch.Generator) -> Float[Tensor, "B 3 H W"]:
    """Return one random view of each image, in [0, 255]: zoomed, shifted, blurred, brightened, letterboxed."""
    count, device = len(images), images.device

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(count, *shape).uniform_(low, high, generator=generator).to(device)

    # zoom and shift
    zoom, shift = torch.exp(draw(-0.6, 0.05, 1)), draw(-0.25, 0.25, 2)
    affine = torch.zeros(count, 2, 3, device=device)
    affine[:, 0, 0] = affine[:, 1, 1] = zoom[:, 0]
    affine[:, :, 2] = shift * (1 - zoom).clamp(min=0.1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    views = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    # blur every second view, by a random amount
    small = F.interpolate(views, scale_factor=0.5, mode="area")
    blurred = F.interpolate(small, size=views.shape[-2:], mode="bilinear")
    views = torch.lerp(views, blurred, draw(-1.0, 1.0, 1, 1, 1).clamp(min=0))
    # contrast and brightness
    views = (views - 128) * draw(0.7, 1.3, 1, 1, 1) + 128 + draw(-25.0, 25.0, 1, 1, 1)
    return _letterbox(views.clamp(0, 255), draw(0.0, 1.0, 2), draw(0.4, 1.0, 1))


def _letterbox(
    images: Float[Tensor, "B 3 H W"], choice: Float[Tensor, "B 2"], extent: Float[Tensor, "B 1"]
) -> Float[Tensor, "B 3 H W"]:
    """Blacken bars above and below or at the sides of two images in five, as a crop of another aspect has them."""
    height, width = images.shape[-2:]
    y = (torch.arange(height, device=images.device) + 0.5) / height * 2 - 1  # -1..1
    x = (torch.arange(width, device=images.device) + 0.5) / width * 2 - 1
    rows, columns = (y.abs() < extent)[:, None, :, None], (x.abs() < extent)[:, None, None, :]  # (B, 1, H, 1), ...
    inside = torch.where((choice[:, 1] < 0.5)[:, None, None, None], rows.float(), columns.float())
    is_whole = (choice[:, 0] > 0.4)[:, None, None, None]
    return images * torch.where(is_whole, 1.0, inside)
