"""Detections drawn on images, base classes in blue and novel ones in red (App. D)."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from foveate.io.files import write_whole
from foveate.io.outputs import MARK
from foveate.show.palette import BASE, NOVEL
from foveate.types import Detections

MIN_SIDE = 640  # smaller images are enlarged to about this longest side [pixels]
OPACITY = 0.35  # of the colour over a masked pixel


def draw_detections(
    image: UInt8[Tensor, "3 H W"],
    detections: Detections,
    *,
    names: Sequence[str],
    is_novel: Sequence[bool],
    min_score: float = 0.0,
) -> Image.Image:
    """Draw the detections (in pixels of the image) with at least this score, the best on top.

    Returns:
        The image, enlarged by a whole factor if its longest side is short.
    """
    height, width = image.shape[1:]
    pixels = image.permute(1, 2, 0).cpu().numpy().astype(np.float32)  # (H, W, 3)
    shown = [index for index, score in enumerate(detections.scores.tolist()) if score >= min_score][::-1]
    colours = {index: NOVEL if is_novel[int(detections.labels[index])] else BASE for index in shown}
    if detections.masks is not None:
        pixels = _lay_masks(pixels, detections, shown, colours)
    factor = max(1, MIN_SIDE // max(height, width))
    drawn = Image.fromarray(pixels.round().astype(np.uint8)).resize((width * factor, height * factor))
    pen = ImageDraw.Draw(drawn)
    stroke = max(2, max(drawn.size) // 400)
    font = ImageFont.load_default(max(12, max(drawn.size) // 55))
    for index in shown:
        corners = [side * factor for side in detections.boxes[index].tolist()]
        pen.rectangle(corners, outline=colours[index], width=stroke)
    for index in shown:  # after all boxes, so that no line crosses a name
        text = f"{names[int(detections.labels[index])]} {detections.scores[index]:.2f}"
        _write(pen, text, (detections.boxes[index, :2] * factor).tolist(), colours[index], font)
    return drawn


def write_image(image: Image.Image, path: Path, *, made_by: str) -> None:
    """Write an image atomically as a JPEG, with the mark of its command."""
    content = BytesIO()
    image.save(content, format="JPEG", quality=92, comment=f"{MARK}: {made_by}")
    write_whole(path, content.getvalue())


def _lay_masks(
    pixels: np.ndarray, detections: Detections, shown: Sequence[int], colours: dict[int, tuple[int, int, int]]
) -> np.ndarray:
    """Tint the pixels of each mask."""
    from pycocotools import mask as coco

    assert detections.masks is not None
    for index in shown:
        encoded: Any = detections.masks[index]
        inside = coco.decode(encoded).astype(bool)  # (H, W)
        pixels[inside] = (1 - OPACITY) * pixels[inside] + OPACITY * np.array(colours[index], np.float32)
    return pixels


def _write(
    pen: ImageDraw.ImageDraw,
    text: str,
    corner: Sequence[float],
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """A name in white on its colour, above the box if it fits there, else inside."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    wide, high = right - left + 6, bottom - top + 4
    x = min(max(0.0, corner[0]), max(0.0, pen.im.size[0] - wide))
    y = corner[1] - high if corner[1] >= high else corner[1]
    pen.rectangle([x, y, x + wide, y + high], fill=colour)
    pen.text((x + 3 - left, y + 2 - top), text, fill="white", font=font)
