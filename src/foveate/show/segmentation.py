"""Drawings of label maps and panoptic maps: images with the class of every pixel, or with every segment, named.

A class has the same colour in every image (`palette.py`); the segments of a thing class have shades of it. Pixels of no
class are unchanged. Names are written where they have the most room (`naming.py`), on their colour.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from foveate.errors import InputError
from foveate.show.naming import largest_parts, roomiest_place
from foveate.show.palette import DARK_TEXT, LIGHT_TEXT, class_colours, shade_colour
from foveate.types import LabelMap, PanopticMap

MIN_SIDE = 480  # smaller images are enlarged until their longest side has at least so many pixels
SEARCH_SIDE = 640  # positions of names are searched in a map whose longest side is at most about twice this [pixels]
MAX_NAME = 30  # characters of a name that are written
CONTOUR = 0.8  # opacity of a contour's white


def draw_label_map(
    image: UInt8[Tensor, "3 H W"], label_map: LabelMap, *, names: Sequence[str], opacity: float = 0.55
) -> Image.Image:
    """Draw the class of every pixel over an image, and each class's name once, in its largest connected part.

    Args:
        names: of the vocabulary; a class's index determines its colour.
        opacity: of the colours, in [0, 1].

    Returns:
        The image, enlarged by a whole factor if its longest side is short. Parts smaller than the square of a name's
        height are coloured, not named.

    Raises:
        InputError: the map has another size, or a class without a name.
    """
    labels = label_map.labels.cpu().numpy()
    _check(image, labels.shape, names, largest=int(labels.max(initial=-1)))
    return _draw(image, labels, class_colours(len(names)), names, opacity=opacity)


def draw_panoptic(
    image: UInt8[Tensor, "3 H W"], panoptic: PanopticMap, *, names: Sequence[str], opacity: float = 0.55
) -> Image.Image:
    """Draw the segments of an image, shades of one colour for the things of a class, and the name of each.

    Arguments, result and errors are those of `draw_label_map`.
    """
    ids = panoptic.ids.cpu()
    labels = [segment.label for segment in panoptic.segments]
    _check(image, tuple(ids.shape), names, largest=max(labels, default=-1))
    palette = class_colours(len(names))
    colours = np.zeros((len(labels), 3), np.uint8)
    counts: dict[int, int] = {}
    for index, segment in enumerate(panoptic.segments):
        number = counts.get(segment.label, 0) if segment.is_thing else 0
        colours[index] = shade_colour(palette[segment.label], number)
        counts[segment.label] = number + 1
    indices = _segment_indices(ids, [segment.id for segment in panoptic.segments])
    return _draw(image, indices, colours, [names[label] for label in labels], opacity=opacity)


def _check(image: Tensor, shape: tuple[int, ...], names: Sequence[str], *, largest: int) -> None:
    if tuple(image.shape[1:]) != shape:
        raise InputError(
            f"map: need the image's {image.shape[1]} x {image.shape[2]} pixels (height x width); it has "
            f"{shape[0]} x {shape[1]}. Is it of another image, or of the resized one?"
        )
    if largest >= len(names):
        raise InputError(
            f"names: need one for each class of the map, whose largest is {largest}; got {len(names)}. Give the "
            "whole vocabulary the map was made with."
        )


def _segment_indices(ids: Int64[Tensor, "H W"], segment_ids: Sequence[int]) -> Int64[np.ndarray, "H W"]:
    """The index of each pixel's segment in the list; -1: none."""
    sorted_ids, order = torch.tensor([0, *segment_ids]).sort()
    positions = torch.searchsorted(sorted_ids, ids.contiguous()).clamp(max=len(segment_ids))  # (H, W)
    return torch.where(sorted_ids[positions] == ids, order[positions] - 1, -1).numpy()


def _draw(
    image: Tensor, indices: np.ndarray, colours: np.ndarray, names: Sequence[str], *, opacity: float
) -> Image.Image:
    """Lay the colours over the image, with thin white lines between them, and the names on top.

    Args:
        indices: (H, W), into `colours` (N, 3) and `names`; -1: the image is unchanged.
    """
    height, width = indices.shape
    factor = -(-MIN_SIDE // max(height, width))  # rounded up
    enlarged = Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize((width * factor, height * factor))
    pixels = np.asarray(enlarged).astype(np.float32)  # (H', W', 3)
    indices = indices.repeat(factor, axis=0).repeat(factor, axis=1)  # (H', W')
    tinted = indices >= 0
    pixels[tinted] = (1 - opacity) * pixels[tinted] + opacity * colours[indices[tinted]]
    line = _contours(indices, width=max(1, max(enlarged.size) // 700))
    pixels[line] = (1 - CONTOUR) * pixels[line] + CONTOUR * 255
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    _write_names(drawn, indices, colours, names)
    return drawn


def _contours(indices: Int64[np.ndarray, "H W"], *, width: int) -> np.ndarray:
    """Pixels of an index within `width` pixels of another index to the right or below, or of -1 at any side."""
    line = np.zeros(indices.shape, bool)
    for reach in range(1, width + 1):
        for map_, drawn in ((indices, line), (indices.T, line.T)):  # along rows, then along columns
            meets = map_[:, reach:] != map_[:, :-reach]
            drawn[:, :-reach] |= meets
            drawn[:, reach:] |= meets & (map_[:, :-reach] < 0)
    return line & (indices >= 0)


def _write_names(drawn: Image.Image, indices: np.ndarray, colours: np.ndarray, names: Sequence[str]) -> None:
    """Write each name where it has the most room, small regions first, because they have the least choice.

    A name is skipped if its region is tiny, or if it would cover another name everywhere.
    """
    pen = ImageDraw.Draw(drawn)
    size = max(12, max(drawn.size) // 55)
    font, side, above = ImageFont.load_default(size), size // 3, size // 4
    step = max(1, max(drawn.size) // SEARCH_SIDE)
    parts = largest_parts(np.ascontiguousarray(indices[::step, ::step]))
    taken: list[tuple[int, int, int, int]] = []  # x1, y1, x2, y2 of names [pixels]
    for index, inside in sorted(parts.items(), key=lambda item: int(item[1].sum())):
        text = names[index] if len(names[index]) <= MAX_NAME else f"{names[index][: MAX_NAME - 3]}..."
        left, top, right, bottom = map(int, pen.textbbox((0, 0), text, font=font))
        wide, high = right - left + 2 * side, bottom - top + 2 * above
        if inside.sum() * step**2 < high**2:
            continue
        ys, xs = _starts(inside.shape[0], high, step, drawn.height), _starts(inside.shape[1], wide, step, drawn.width)
        position = roomiest_place(inside, height=high / step, width=wide / step, free=_free(ys, xs, high, wide, taken))
        if position is None:
            continue
        x, y = int(xs[position[1]]), int(ys[position[0]])
        taken.append((x, y, x + wide, y + high))
        red, green, blue = colours[index].tolist()
        ink = DARK_TEXT if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else LIGHT_TEXT
        pen.rounded_rectangle(taken[-1], radius=size // 4, fill=(red, green, blue))
        pen.text((x + side - left, y + above - top), text, fill=ink, font=font)


def _starts(count: int, length: int, step: int, end: int) -> np.ndarray:
    """The start of a name centred at each position of an axis, moved into the image."""
    return (np.arange(count) * step - length // 2).clip(0, max(0, end - length))


def _free(ys: np.ndarray, xs: np.ndarray, high: int, wide: int, taken: list[tuple[int, int, int, int]]) -> np.ndarray:
    """Where a name can be centred without covering another one."""
    free = np.ones((len(ys), len(xs)), bool)
    for x1, y1, x2, y2 in taken:
        free &= ~((ys <= y2) & (ys + high >= y1))[:, None] | ~((xs <= x2) & (xs + wide >= x1))
    return free
