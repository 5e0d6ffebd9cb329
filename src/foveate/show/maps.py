"""The dense map of one picture without its padding, and the sheet of panels that all maps are drawn on.

Sheets have a row a picture: the picture itself, then one panel a model, so that before and after stand side by side.
Deliberately absent: pyplot and its global figures; every sheet is an object of its own.
"""

import textwrap
from io import BytesIO
from math import ceil
from pathlib import Path

import torch
from jaxtyping import Float, Num, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.errors import InputError
from foveate.io.files import write_whole
from foveate.ops.resample import fitted_size, square_input

PANEL = 2.4  # longest side of a panel [inches]
INK, QUIET = "#1f2328", "#59636e"


@torch.inference_mode()
def dense_map(clip: Clip, image: UInt8[Tensor, "3 H W"], *, size: int, head: Head = "value") -> Float[Tensor, "D h w"]:
    """Compute the dense embeddings of one picture, as in training on a padded square, and drop the padding (Sec. 3.1).

    Args:
        clip: the model.
        image: RGB.
        size: side of the padded square input [pixels].
        head: how the last block makes dense tokens.

    Returns:
        L2-normalised embeddings of the locations that the picture touches, on the CPU; those at the right and bottom
        may reach beyond it.
    """
    clip.eval()
    image = image.to(next(clip.parameters()).device)
    square = square_input(image, size=size, mean=clip.mean, std=clip.std, pad=clip.pad)  # (3, size, size)
    dense = clip.encode_dense(square[None], head=head)[0]  # (D, h, w)
    fitted = fitted_size(image.shape[1], image.shape[2], size=size)
    rows, columns = (ceil(side / clip.patch_size) for side in fitted)
    return dense[:, :rows, :columns].cpu()


def extent_of(values: Num[Tensor, "h w"], *, patch: int) -> tuple[float, float, float, float]:
    """Say where a map of locations lies on the resized picture: left, right, bottom, top [pixels]."""
    rows, columns = values.shape
    return (0.0, float(columns * patch), float(rows * patch), 0.0)


def new_sheet(
    pictures: list[tuple[str, UInt8[Tensor, "3 _ _"]]], *, headings: list[str], size: int, note: str, scale: float = 0.0
) -> tuple[Figure, list[list[Axes]]]:
    """Lay out a sheet, a row a picture: the picture, then a panel a heading with the picture already in it.

    Args:
        pictures: a short title and RGB, a row each.
        headings: of the panels beside the picture.
        size: longest side a picture has in the coordinates of its panels [pixels].
        note: one or two lines below the sheet that say how to read it.
        scale: room for a scale at the right of each row [inches].

    Returns:
        The sheet, and for each row its panels beside the picture; their coordinates are pixels of the resized picture.

    Raises:
        InputError: no picture.
    """
    if not pictures:
        raise InputError("pictures: need at least one to draw; got none")
    shapes = [fitted_size(image.shape[1], image.shape[2], size=size) for _, image in pictures]
    width = PANEL * max(wide for _, wide in shapes) / size * (len(headings) + 1)  # [inches]
    height = PANEL * sum(high for high, _ in shapes) / size  # [inches]
    left, right, top, bottom = 0.3, 0.1 + scale, 0.35, 0.4  # margins [inches]
    total = (left + width + right, top + height + bottom)
    figure = Figure(figsize=total, dpi=160, facecolor="white")
    panels = figure.subplots(
        len(pictures), len(headings) + 1, squeeze=False,
        gridspec_kw={
            "left": left / total[0], "right": 1 - right / total[0], "wspace": 0.03, "hspace": 0.03,
            "bottom": bottom / total[1], "top": 1 - top / total[1], "height_ratios": [high for high, _ in shapes],
        },
    )  # fmt: skip
    for row, (title, image), (high, wide) in zip(panels, pictures, shapes, strict=True):
        for axes in row:
            axes.imshow(image.permute(1, 2, 0).cpu().numpy(), extent=(0, wide, high, 0))
            axes.set(xticks=[], yticks=[], frame_on=False, anchor="NW", autoscale_on=False)
        row[0].set_ylabel(title, fontsize=7, color=QUIET)
    for axes, heading in zip(panels[0], ["picture", *headings], strict=True):
        axes.set_title(heading, fontsize=9, color=INK, loc="left", pad=4)
    lines = textwrap.fill(note, int((total[0] - left) / 0.055))  # [inches], of a letter of 7 points
    figure.text(left / total[0], 0.08 / total[1], lines, fontsize=7, color=QUIET)
    return figure, [list(row[1:]) for row in panels]


def write_sheet(figure: Figure, path: Path) -> None:
    """Write a sheet as a PNG, all of it or nothing; its folder is made where missing."""
    png = BytesIO()
    figure.savefig(png, format="png")
    write_whole(path, png.getvalue())
