"""Custom boxes, read strictly: the files that `--boxes` of `foveate embed` and `--regions` of `distill` take.

    COCO     {"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "bbox": [x, y, width, height]}, ...]}
    plain    {"file name": [[x1, y1, x2, y2], ...], ...}
    results  [{"image_id", "bbox": [x, y, width, height], "score"}, ...]    distill only; what detectors write

All in pixels of the image. Unlike `coco.py` this needs no categories and no annotation ids, and returns every box in
the file's order: an embedding file has one row per box. Boxes are not clipped, which needs the decoded image's size.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.data.file_names import read_names
from foveate.data.records import Box
from foveate.data.validation import fail, is_id, is_number, known_id, parse, short


@dataclass(frozen=True)
class ImageBoxes:
    """The boxes of an image in the file's order, and the image size [pixels] where the file states it."""

    boxes: tuple[Box, ...] = ()  # xyxy
    height: int | None = None
    width: int | None = None
    as_corners: bool = False  # the file has [x1, y1, x2, y2], not [x, y, width, height]


def read_boxes(path: Path, *, images: Collection[str]) -> dict[str, ImageBoxes]:
    """Read the boxes of a folder's images from a file in COCO's or the plain form.

    Args:
        images: ids of the images (paths within the folder).

    Returns:
        The boxes by image id: finite numbers, but neither clipped nor ordered (x1 < x2 may not hold).

    Raises:
        InputError: as `parse_boxes`, or the file names an image that is not in the folder.
    """
    found: dict[str, ImageBoxes] = {}
    known = set(images)
    for name, boxes in parse_boxes(path).items():
        if not isinstance(name, str) or name not in known:
            reading = read_names([str(name)], sorted(known))
            meant = [key for key in sorted(known) if Path(key).name == Path(str(name)).name]
            meant = meant or ([*reading.files.values()] if reading is not None else [min(known)])
            need = f"one of the {len(known)} images, by its path within its folder (such as {meant[0]!r})"
            got = f"a name of {len(meant)} images" if len(meant) > 1 else "a name that is not among them"
            fail(f"{path}: image {name!r}", need, got)
        found[name] = boxes
    return found


def parse_boxes(path: Path) -> dict[str | int, ImageBoxes]:
    """Read the boxes of each image from a file in any of the three forms.

    Returns:
        The boxes by the image's file name, or by `image_id` in a list of results; finite numbers, but neither clipped
        nor ordered (x1 < x2 may not hold).

    Raises:
        InputError: another form, a repeated name or id, or a box that is not four finite numbers; names file and entry.
    """
    content = parse(path, kind="a boxes")
    if isinstance(content, dict) and content.get("images") == []:
        fail(str(path), "boxes of at least one image", "COCO's form without images", "Did a filter leave nothing?")
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        return _read_coco(path, content)
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return _read_results(path, content)
    if isinstance(content, dict) and content:
        return {name: ImageBoxes(_read_list(path, name, boxes), as_corners=True) for name, boxes in content.items()}
    fail(
        str(path),
        "COCO's images and annotations, a list of results [{image_id, bbox, score}, ...], or an object "
        "{file name: [[x1, y1, x2, y2], ...]}",
        short(content),
    )


def _read_results(path: Path, content: list[Any]) -> dict[str | int, ImageBoxes]:
    found: dict[str | int, list[Box]] = {}
    for index, result in enumerate(content):
        where = f"{path}: result {index}"
        if not isinstance(result, dict) or not is_id(result.get("image_id")):
            fail(where, "an object with `image_id` and `bbox`", short(result))
        found.setdefault(result["image_id"], []).append(_read_xywh(f"{where}: bbox", result.get("bbox")))
    return {key: ImageBoxes(tuple(boxes)) for key, boxes in found.items()}


def _read_coco(path: Path, content: dict[str, Any]) -> dict[str | int, ImageBoxes]:
    if not isinstance(content.get("images"), list):
        fail(str(path), "a list `images` beside `annotations`", short(content.get("images")))
    names: dict[Any, str] = {}
    found: dict[str, list[Box]] = {}
    sizes: dict[str, tuple[int | None, int | None]] = {}
    for index, image in enumerate(content["images"]):
        where = f"{path}: images[{index}]"
        key, name = (image.get("id"), image.get("file_name")) if isinstance(image, dict) else (None, None)
        if not is_id(key) or not isinstance(name, str):
            fail(where, "an object with `id` and `file_name`", short(image))
        if key in names or name in found:
            fail(where, "a unique `id` and a unique `file_name`", short(image))
        names[key], found[name] = name, []
        sizes[name] = _read_size(where, image)
    for index, annotation in enumerate(content["annotations"]):
        where = f"{path}: annotations[{index}]"
        if not isinstance(annotation, dict):
            fail(where, "an object with `image_id` and `bbox`", short(annotation))
        name = names[known_id(where, annotation, "image_id", names)]
        found[name].append(_read_xywh(f"{where}: bbox", annotation.get("bbox")))
    return {name: ImageBoxes(tuple(boxes), *sizes[name]) for name, boxes in found.items()}


def _read_size(where: str, image: dict[str, Any]) -> tuple[int | None, int | None]:
    """The stated height and width, or neither."""
    size = image.get("height"), image.get("width")
    if size == (None, None):
        return None, None
    if not all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in size):
        fail(where, "`height` and `width` as integer numbers of pixels, or neither", short([*size]))
    return size


def _read_list(path: Path, name: str, boxes: Any) -> tuple[Box, ...]:
    where = f"{path}: image {name!r}"
    if not isinstance(boxes, list):
        fail(where, "a list of boxes [x1, y1, x2, y2]", short(boxes))
    return tuple(_read_four(f"{where}: box {i}", box, form="[x1, y1, x2, y2]") for i, box in enumerate(boxes))


def _read_xywh(where: str, value: Any) -> Box:
    x, y, w, h = _read_four(where, value, form="[x, y, width, height]")
    return _check_finite(where, (x, y, x + w, y + h))


def _read_four(where: str, value: Any, *, form: str) -> Box:
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
        fail(where, f"{form}, four numbers in pixels", short(value))
    try:
        return _check_finite(where, (float(value[0]), float(value[1]), float(value[2]), float(value[3])))
    except OverflowError:  # an integer beyond the range of floats
        fail(where, "finite numbers", short(value))


def _check_finite(where: str, box: Box) -> Box:
    if not all(map(math.isfinite, box)):
        fail(where, "finite numbers", short([*box]))
    return box
