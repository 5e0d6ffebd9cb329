"""Images with the class of every pixel, or with every segment, in colour and by name.

A class has one colour in every image (`palette.py`); the segments of a thing class have shades of it. Pixels of no
class stay as they are. Names stand where they have the most room (`naming.py`), each on the colour it names.
Deliberately absent: legends, and the files that other programs read (`map_files.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
MAX_NAME = 30  # letters of a name that are written
CONTOUR = 0.8  # opacity of a contour's white


@dataclass(frozen=True)
class _Name:
    """What is to be written on a segment."""

    text: str
    colour: tuple[int, int, int]


def draw_label_map(
    image: UInt8[Tensor, "3 H W"], found: LabelMap, *, names: Sequence[str], opacity: float = 0.55
) -> Image.Image:
    """Draw the class of every pixel over an image, and each class's name once, in its largest connected part.

    Args:
        names: of the vocabulary; the class's place in it chooses its colour.
        opacity: how much of a colour lies over the image, in [0, 1].

    Returns:
        The image, enlarged by a whole number where its longest side is short. Parts smaller than the square of a
        name's height are coloured, not named.

    Raises:
        InputError: the map is of another size, or has a class without a name.
    """
    labels = found.labels.cpu().numpy()
    _check(image, labels.shape, names, largest=int(labels.max(initial=-1)))
    colours = class_colours(len(names))
    present = [int(place) for place in np.unique(labels) if place >= 0]
    written = {place: _Name(names[place], _rgb(colours[place])) for place in present}
    return _draw(image, labels, colours, written, opacity=opacity)


def draw_panoptic(
    image: UInt8[Tensor, "3 H W"], found: PanopticMap, *, names: Sequence[str], opacity: float = 0.55
) -> Image.Image:
    """Draw the segments of an image, shades of one colour for the things of a class, and the name of each.

    Returns:
        The image, enlarged by a whole number where its longest side is short. Segments whose largest connected part
        is smaller than the square of a name's height are coloured, not named.

    Raises:
        InputError: the map is of another size, or has a class without a name.
    """
    ids = found.ids.cpu()
    _check(image, tuple(ids.shape), names, largest=max((one.label for one in found.segments), default=-1))
    palette = class_colours(len(names))
    colours = np.zeros((len(found.segments), 3), np.uint8)
    counted: dict[int, int] = {}
    for place, one in enumerate(found.segments):
        number = counted.get(one.label, 0) if one.is_thing else 0
        colours[place] = shade_colour(palette[one.label], number)
        counted[one.label] = number + 1
    places = _places(ids, [one.id for one in found.segments])
    written = {place: _Name(names[one.label], _rgb(colours[place])) for place, one in enumerate(found.segments)}
    return _draw(image, places, colours, written, opacity=opacity)


def _check(image: Tensor, shape: tuple[int, ...], names: Sequence[str], *, largest: int) -> None:
    if tuple(image.shape[1:]) != shape:
        raise InputError(
            f"found: need a map of the image's {image.shape[1]} x {image.shape[2]} pixels (height x width); it has "
            f"{shape[0]} x {shape[1]}. Is it of another image, or of the resized one?"
        )
    if largest >= len(names):
        raise InputError(
            f"names: need one for each class of the map, whose last is at place {largest}; got {len(names)}. Give the "
            "whole vocabulary the map was made with."
        )


def _places(ids: Int64[Tensor, "H W"], known: Sequence[int]) -> Int64[np.ndarray, "H W"]:
    """Turn ids into the places of their segments in the list, -1 where there is none."""
    sorted_ids, order = torch.tensor([0, *known]).sort()
    found = torch.searchsorted(sorted_ids, ids.contiguous()).clamp(max=len(known))  # (H, W)
    return torch.where(sorted_ids[found] == ids, order[found] - 1, -1).numpy()


def _draw(
    image: Tensor, places: np.ndarray, colours: np.ndarray, written: dict[int, _Name], *, opacity: float
) -> Image.Image:
    """Lay the colours over the image, a thin white line where two of them meet, and the names on top.

    Args:
        places: (H, W), of a row of `colours`; -1: the image as it is.
    """
    height, width = places.shape
    factor = -(-MIN_SIDE // max(height, width))  # rounded up
    enlarged = Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize((width * factor, height * factor))
    pixels = np.asarray(enlarged).astype(np.float32)  # (H', W', 3)
    places = places.repeat(factor, axis=0).repeat(factor, axis=1)  # (H', W')
    tinted = places >= 0
    pixels[tinted] = (1 - opacity) * pixels[tinted] + opacity * colours[places[tinted]]
    line = _contours(places, width=max(1, max(enlarged.size) // 700))
    pixels[line] = (1 - CONTOUR) * pixels[line] + CONTOUR * 255
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    _write_names(drawn, places, written)
    return drawn


def _contours(places: Int64[np.ndarray, "H W"], *, width: int) -> np.ndarray:
    """Pixels of something that have something else right of or below them, or nothing at any side, in so many
    pixels' reach."""
    line = np.zeros(places.shape, bool)
    for reach in range(1, width + 1):
        for map_, drawn in ((places, line), (places.T, line.T)):  # along rows, then along columns
            meets = map_[:, reach:] != map_[:, :-reach]
            drawn[:, :-reach] |= meets
            drawn[:, reach:] |= meets & (map_[:, :-reach] < 0)
    return line & (places >= 0)


def _write_names(drawn: Image.Image, places: np.ndarray, written: dict[int, _Name]) -> None:
    """Write each name where it has the most room, small regions first, because they have the least choice.

    A name is left out where its region is tiny, or has no pixel around which it would cover no other name.
    """
    pen = ImageDraw.Draw(drawn)
    size = max(12, max(drawn.size) // 55)
    font, side, above = ImageFont.load_default(size), size // 3, size // 4
    step = max(1, max(drawn.size) // SEARCH_SIDE)
    parts = largest_parts(np.ascontiguousarray(places[::step, ::step]))
    taken: list[tuple[int, int, int, int]] = []  # x1, y1, x2, y2 of names [pixels]
    for place, inside in sorted(parts.items(), key=lambda item: int(item[1].sum())):
        name = written[place]
        text = name.text if len(name.text) <= MAX_NAME else f"{name.text[: MAX_NAME - 3]}..."
        left, top, right, bottom = map(int, pen.textbbox((0, 0), text, font=font))
        wide, high = right - left + 2 * side, bottom - top + 2 * above
        if inside.sum() * step**2 < high**2:
            continue
        ys, xs = _starts(inside.shape[0], high, step, drawn.height), _starts(inside.shape[1], wide, step, drawn.width)
        found = roomiest_place(inside, height=high / step, width=wide / step, free=_free(ys, xs, high, wide, taken))
        if found is None:
            continue
        x, y = int(xs[found[1]]), int(ys[found[0]])
        taken.append((x, y, x + wide, y + high))
        red, green, blue = name.colour
        ink = DARK_TEXT if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else LIGHT_TEXT
        pen.rounded_rectangle(taken[-1], radius=size // 4, fill=name.colour)
        pen.text((x + side - left, y + above - top), text, fill=ink, font=font)


def _starts(count: int, length: int, step: int, end: int) -> np.ndarray:
    """Where a name begins whose middle is at each place of an axis, moved so that it lies within the image."""
    return (np.arange(count) * step - length // 2).clip(0, max(0, end - length))


def _free(ys: np.ndarray, xs: np.ndarray, high: int, wide: int, taken: list[tuple[int, int, int, int]]) -> np.ndarray:
    """Where a name may have its middle without covering another."""
    free = np.ones((len(ys), len(xs)), bool)
    for x1, y1, x2, y2 in taken:
        free &= ~((ys <= y2) & (ys + high >= y1))[:, None] | ~((xs <= x2) & (xs + wide >= x1))
    return free


def _rgb(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = colour.tolist()
    return red, green, blue
