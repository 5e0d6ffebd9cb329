"""Pictures with the class of each pixel, or their things and stuff, laid over them; and the maps as files (Tab. 5).

A class has one colour, by its place in the vocabulary, in every picture; things of a class are told apart by shades.
Each region is named once, where it is widest. Deliberately absent: legends, and panels of several pictures.
"""

import colorsys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from saccade.files import write_whole
from saccade.show.detections import LEGIBLE
from saccade.types import LabelMap, PanopticMap

LAID = 0.55  # how much of a class's colour lies over a pixel
TURN = 0.618034  # of the hue, from one class to the next: never near one before
TONES = ((0.50, 0.75), (0.62, 0.60), (0.36, 0.85))  # lightness and saturation, in turn
NONE_8, NONE_16 = 255, 65535  # a pixel of no class, in a file
SMALLEST = 0.004  # share of the picture that a region must have to be named
LINE = 0.9  # how dark the line between two regions is

Colour = tuple[int, int, int]


def colour_of(place: int, *, shade: float = 0.0) -> Colour:
    """The colour of a class.

    Args:
        place: in the vocabulary.
        shade: -1 to 1: darker or lighter, for one of several things of the class.
    """
    lightness, saturation = TONES[place % len(TONES)]
    red, green, blue = colorsys.hls_to_rgb(
        (place * TURN) % 1, min(0.85, max(0.2, lightness + 0.18 * shade)), saturation
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_label_map(image: UInt8[Tensor, "3 H W"], found: LabelMap, *, names: Sequence[str]) -> Image.Image:
    """Lay the class of each pixel over a picture.

    Args:
        image: RGB, as it lies on disk.
        found: of the same size; pixels of class -1 stay as they are.
        names: of the vocabulary.

    Returns:
        The picture, enlarged by a whole number where its longest side is short.
    """
    labels = found.labels.cpu()
    present: list[int] = [label for label in labels.unique().tolist() if label >= 0]
    regions = {label: (str(names[label]), colour_of(label)) for label in present}
    return _draw(image, labels, regions)


def draw_panoptic(image: UInt8[Tensor, "3 H W"], found: PanopticMap, *, names: Sequence[str]) -> Image.Image:
    """Lay things and stuff over a picture; as `draw_label_map`, a shade a thing."""
    count: dict[int, int] = {}
    regions: dict[int, tuple[str, Colour]] = {}
    for one in found.segments:
        number = count.get(one.label, 0)
        count[one.label] = number + 1
        regions[one.id] = (names[one.label], colour_of(one.label, shade=(0.0, 1.0, -1.0, 0.5, -0.5)[number % 5]))
    return _draw(image, found.ids.cpu(), regions)


def write_label_map(path: Path, found: LabelMap, *, classes: int) -> None:
    """Write the class of each pixel as a PNG, whole or not at all.

    With up to 255 classes it has 8 bits, 255 for none, and the drawing's colours; else 16 bits, 65535 for none.

    Args:
        path: of the PNG; its folder is made where missing.
        found: places in the vocabulary, or -1.
        classes: how many there are.
    """
    labels = found.labels.cpu().numpy()
    if classes <= NONE_8:
        image = Image.fromarray(np.where(labels < 0, NONE_8, labels).astype(np.uint8))
        image.putpalette([part for place in range(256) for part in (colour_of(place) if place < NONE_8 else (0, 0, 0))])
    else:
        image = Image.fromarray(np.where(labels < 0, NONE_16, labels).astype(np.uint16))
    write_whole(path, _png(image))


def write_panoptic(path: Path, found: PanopticMap) -> None:
    """Write a map of segments as COCO's PNG: the number of a segment is R + 256 G + 65536 B of its colour."""
    ids = found.ids.cpu().numpy().astype(np.int64)
    assert ids.max(initial=0) < 256**3, "numbers of segments fit into a colour"
    write_whole(
        path, _png(Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)))
    )


def panoptic_record(found: PanopticMap, *, picture: int, file_name: str) -> dict[str, Any]:
    """A picture's entry in COCO's panoptic `annotations`; a category's id is its place in the vocabulary, from 1.

    Args:
        found: its segments.
        picture: the id of the picture.
        file_name: of the PNG.
    """
    ids, entries = found.ids.cpu(), []
    for one in found.segments:
        rows, columns = (ids == one.id).nonzero(as_tuple=True)
        x, y = int(columns.min()), int(rows.min())
        box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
        entries.append({"id": one.id, "category_id": one.label + 1, "area": len(rows), "bbox": box, "iscrowd": 0,
                        "score": round(one.score, 5)})  # fmt: skip
    return {"image_id": picture, "file_name": file_name, "segments_info": entries}


def widest_place(regions: Int64[Tensor, "H W"]) -> Int64[Tensor, "H W"]:
    """How far each pixel is from the nearest of another region or from the border, in steps of a king [pixels].

    Args:
        regions: a number a pixel.
    """
    padded = F.pad(regions[None, None].float(), (1, 1, 1, 1), value=-2.0)
    highest, lowest = F.max_pool2d(padded, 3, stride=1), -F.max_pool2d(-padded, 3, stride=1)
    inside = (highest == lowest).float()  # (1, 1, H, W): all around is the same region
    distance = torch.zeros_like(inside)
    while bool(inside.any()):
        distance += inside
        inside = -F.max_pool2d(F.pad(-inside, (1, 1, 1, 1)), 3, stride=1)
    return distance[0, 0].long()


def _draw(
    image: UInt8[Tensor, "3 H W"], regions: Int64[Tensor, "H W"], known: dict[int, tuple[str, Colour]]
) -> Image.Image:
    """Lay regions over a picture, draw the lines between them, and name each."""
    height, width = image.shape[1:]
    assert regions.shape == (height, width), f"a map of {tuple(regions.shape)} over a picture of {(height, width)}"
    pixels = image.permute(1, 2, 0).cpu().numpy().astype(np.float32)  # (H, W, 3)
    numbers = regions.numpy()
    for number, (_, colour) in known.items():
        inside = numbers == number
        pixels[inside] = (1 - LAID) * pixels[inside] + LAID * np.array(colour, np.float32)
    factor = max(1, LEGIBLE // max(height, width))
    large = pixels.round().astype(np.uint8).repeat(factor, axis=0).repeat(factor, axis=1)
    edges = numbers.repeat(factor, axis=0).repeat(factor, axis=1)
    line = np.zeros(edges.shape, dtype=bool)
    line[:, 1:] |= edges[:, 1:] != edges[:, :-1]
    line[1:] |= edges[1:] != edges[:-1]
    large[line] = (large[line] * (1 - LINE)).astype(np.uint8)
    drawn = Image.fromarray(large)
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(max(12, max(drawn.size) // 48))
    depth = widest_place(regions)
    for number, (name, colour) in known.items():
        inside = regions == number
        if int(inside.sum()) < SMALLEST * height * width:
            continue
        y, x = divmod(int(torch.where(inside, depth, -1).argmax()), width)
        _name(pen, name, ((x + 0.5) * factor, (y + 0.5) * factor), colour, font)
    return drawn


def _name(
    pen: ImageDraw.ImageDraw,
    text: str,
    centre: tuple[float, float],
    colour: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """A name in white on its colour, darkened, within the picture."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    wide, high = right - left + 6, bottom - top + 4
    x = min(max(0.0, centre[0] - wide / 2), max(0.0, pen.im.size[0] - wide))
    y = min(max(0.0, centre[1] - high / 2), max(0.0, pen.im.size[1] - high))
    red, green, blue = (round(0.5 * part) for part in colour)
    pen.rectangle([x, y, x + wide, y + high], fill=(red, green, blue))
    pen.text((x + 3 - left, y + 2 - top), text, fill="white", font=font)


def _png(image: Image.Image) -> bytes:
    content = BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()
