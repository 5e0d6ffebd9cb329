"""Label maps and panoptic maps as files, for Foveate and other programs.

A label map is a PNG of class indices, with the colours of `segmentation.py` if 8 bits suffice; `read_values` is the
inverse. A panoptic map is COCO's colour-coded PNG and a record of its JSON; `read_panoptic` and `read_panoptic_map` are
the inverse.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from foveate.errors import InputError
from foveate.io.files import write_whole
from foveate.io.outputs import MARK
from foveate.show.palette import class_colours
from foveate.types import LabelMap, PanopticMap

NONE_8, NONE_16 = 2**8 - 1, 2**16 - 1  # pixels of no class
LARGEST_ID = 2**24 - 1  # the 24 bits of one colour


def write_label_map(path: Path, label_map: LabelMap, *, classes: int, made_by: str = "foveate") -> None:
    """Write the class of every pixel as a PNG, atomically.

    Up to 255 classes: 8 bits with a palette, 255 for none. More: 16-bit grey, 65535 for none.

    Args:
        classes: of the vocabulary, not of the map, so that all files of a run have the same depth.
        made_by: the command, as the mark of the file.

    Raises:
        InputError: too many classes for 16 bits, the map has a class beyond them, or the name is not that of a PNG.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: need a name that ends in .png, for a map whose numbers must not change.")
    if not 1 <= classes <= NONE_16:
        raise InputError(f"classes: need 1 to {NONE_16}, as many as 16 bits hold; got {classes}.")
    labels = label_map.labels.cpu().numpy()
    lowest, largest = int(labels.min(initial=0)), int(labels.max(initial=-1))
    if lowest < -1 or largest >= classes:
        raise InputError(
            f"label_map: need classes 0 to {classes - 1}, or -1; got {lowest} to {largest}. Was the map made with "
            "another vocabulary?"
        )
    none = NONE_8 if classes <= NONE_8 else NONE_16
    values = np.where(labels < 0, none, labels).astype(np.uint8 if none == NONE_8 else np.uint16)  # (H, W)
    image = Image.fromarray(values)
    if none == NONE_8:
        image.putpalette(class_colours(NONE_8).tobytes() + bytes(3))  # black for none
    write_whole(path, _png(image, made_by))


def panoptic_png(panoptic: PanopticMap, *, made_by: str = "foveate") -> bytes:
    """Encode a map's ids as COCO's PNG: the colour R + 256 G + 65536 B of a pixel is its segment, black none."""
    ids = panoptic.ids.cpu()  # (H, W)
    smallest, largest = (int(ids.min()), int(ids.max())) if ids.numel() else (0, 0)
    assert smallest >= 0 and largest <= LARGEST_ID, f"ids {smallest}..{largest} are no colours of 24 bits"
    colours = torch.stack([ids & 255, ids >> 8 & 255, ids >> 16], dim=2)  # (H, W, 3)
    return _png(Image.fromarray(colours.numpy().astype(np.uint8)), made_by)


def panoptic_record(panoptic: PanopticMap, *, image_id: int | str, file_name: str) -> dict[str, Any]:
    """Describe a map as an annotation of COCO's panoptic JSON; a category's id is its index in the vocabulary plus 1.

    Segments without a pixel are removed, as the format requires.
    """
    ids = panoptic.ids.cpu().numpy()
    assert np.isin(ids, [0, *(segment.id for segment in panoptic.segments)]).all(), (
        "the map has ids that no segment has"
    )
    infos = []
    for segment in panoptic.segments:
        rows, columns = (ids == segment.id).nonzero()
        if len(rows):
            x, y = int(columns.min()), int(rows.min())
            infos.append({
                "id": segment.id, "category_id": segment.label + 1, "area": len(rows),
                "bbox": [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y],
                "iscrowd": int(segment.is_crowd), "score": segment.score,
            })  # fmt: skip
    return {"image_id": image_id, "file_name": file_name, "segments_info": infos}


def panoptic_categories(names: Sequence[str], is_thing: Sequence[bool]) -> list[dict[str, Any]]:
    """List a vocabulary as the "categories" of COCO's panoptic JSON, with the ids of `panoptic_record`."""
    assert len(names) == len(is_thing), f"{len(names)} names, {len(is_thing)} kinds"
    return [
        {"id": number, "name": name, "isthing": int(thing)}
        for number, (name, thing) in enumerate(zip(names, is_thing, strict=True), start=1)
    ]


def _png(image: Image.Image, made_by: str) -> bytes:
    content, texts = BytesIO(), PngInfo()
    texts.add_text(MARK, made_by)
    image.save(content, format="PNG", pnginfo=texts)
    return content.getvalue()
