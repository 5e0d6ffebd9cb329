"""The dense map of one image without its padding, and the sheet of panels that all maps are drawn on.

Sheets have one row per image: the image itself, then one panel per model, so that before and after are side by side.
"""

import textwrap
from math import ceil

import torch
from jaxtyping import Float, Num, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.errors import InputError
from foveate.ops.resample import fitted_size, square_input
from foveate.show.palette import INK, QUIET

PANEL = 2.4  # longest side of a panel [inches]


@torch.inference_mode()
def dense_map(clip: Clip, image: UInt8[Tensor, "3 H W"], *, size: int, head: Head = "value") -> Float[Tensor, "D h w"]:
    """The dense map of one image, padded to a square of `size` pixels as in training, without the padding (Sec. 3.1).

    Returns:
        L2-normalised embeddings of the locations that the image touches, on the CPU; those at the right and bottom
        may include padding.
    """
    clip.eval()
    image = image.to(next(clip.parameters()).device)
    square = square_input(image, size=size, mean=clip.mean, std=clip.std, pad=clip.pad)  # (3, size, size)
    dense = clip.encode_dense(square[None], head=head)[0]  # (D, h, w)
    fitted = fitted_size(image.shape[1], image.shape[2], size=size)
    rows, columns = (ceil(side / clip.patch_size) for side in fitted)
    return dense[:, :rows, :columns].cpu()


def extent_of(values: Num[Tensor, "h w"], *, patch: int) -> tuple[float, float, float, float]:
    """The extent of a map of locations on the resized image: left, right, bottom, top [pixels]."""
    rows, columns = values.shape
    return (0.0, float(columns * patch), float(rows * patch), 0.0)


def new_sheet(
    images: list[tuple[str, UInt8[Tensor, "3 _ _"]]], *, headings: list[str], size: int, note: str, scale: float = 0.0
) -> tuple[Figure, list[list[Axes]]]:
    """Lay out a sheet, one row per image: the image, then one panel per heading with the image already in it.

    Args:
        images: a short title and RGB, one row each.
        size: longest side of an image in the coordinates of its panels [pixels].
        scale: room for a scale at the right of each row [inches].

    Returns:
        The sheet, and the panels of each row beside the image; their coordinates are pixels of the resized image.
    """
    if not images:
        raise InputError("images: need at least one to draw; got none.")
    shapes = [fitted_size(image.shape[1], image.shape[2], size=size) for _, image in images]
    width = PANEL * max(wide for _, wide in shapes) / size * (len(headings) + 1)  # [inches]
    height = PANEL * sum(high for high, _ in shapes) / size  # [inches]
    left, right, top, bottom = 0.3, 0.1 + scale, 0.35, 0.4  # margins [inches]
    total = (left + width + right, top + height + bottom)
    figure = Figure(figsize=total, dpi=160, facecolor="white")
    panels = figure.subplots(
        len(images), len(headings) + 1, squeeze=False,
        gridspec_kw={
            "left": left / total[0], "right": 1 - right / total[0], "wspace": 0.03, "hspace": 0.03,
            "bottom": bottom / total[1], "top": 1 - top / total[1], "height_ratios": [high for high, _ in shapes],
        },
    )  # fmt: skip
    for row, (title, image), (high, wide) in zip(panels, images, shapes, strict=True):
        for axes in row:
            axes.imshow(image.permute(1, 2, 0).cpu().numpy(), extent=(0, wide, high, 0))
            axes.set(xticks=[], yticks=[], frame_on=False, anchor="NW", autoscale_on=False)
        row[0].set_ylabel(title, fontsize=7, color=QUIET)
    for axes, heading in zip(panels[0], ["image", *headings], strict=True):
        axes.set_title(heading, fontsize=9, color=INK, loc="left", pad=4)
    lines = textwrap.fill(note, int((total[0] - left) / 0.055))  # [inches], of a letter of 7 points
    figure.text(left / total[0], 0.08 / total[1], lines, fontsize=7, color=QUIET)
    return figure, [list(row[1:]) for row in panels]
