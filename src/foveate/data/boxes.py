"""Custom boxes, read strictly: what `--boxes` of `foveate embed` and `--regions` of `foveate distill` take.

    COCO     {"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "bbox": [x, y, width, height]}, ...]}
    plain    {"file name": [[x1, y1, x2, y2], ...], ...}
    results  [{"image_id", "bbox": [x, y, width, height], "score"}, ...]    distill only; what detectors write

All in pixels of the image. Unlike `coco.py` this asks for no categories and no ids of annotations, and keeps every
box: whoever embeds them wants one row a box in the file's order, or to be told which one has none. Where COCO's images
state `height` and `width`, the image must have them. Absent: clipping, which needs the decoded image's size.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.data.records import Box
from foveate.data.strict import fail, is_id, is_number, known_id, parse, short


@dataclass(frozen=True)
class Boxed:
    """The boxes of an image in the file's order, and the size that they are meant for [pixels], where it is stated."""

    boxes: tuple[Box, ...] = ()  # xyxy
    height: int | None = None
    width: int | None = None


def read_boxes(path: Path, *, images: Collection[str]) -> dict[str, Boxed]:
    """Read the boxes of each image, in the file's order, and hold the file to the images at hand.

    Args:
        path: a JSON file in the COCO or the plain form.
        images: the ids (paths within the folder) of the images at hand.

    Returns:
        The boxes by the image's id: finite numbers, but neither clipped nor ordered (x1 < x2 may not hold).

    Raises:
        InputError: as `parse_boxes`, or an image that is not at hand.
    """
    found: dict[str, Boxed] = {}
    known = set(images)
    for name, boxed in parse_boxes(path).items():
        if not isinstance(name, str) or name not in known:
            near = next((one for one in known if Path(one).name == Path(str(name)).name), min(known))
            fail(
                f"{path}: image {name!r}",
                f"an image among the {len(known)} named, by its path within its folder (such as {near!r})",
                "none of that name",
            )
        found[name] = boxed
    return found


def parse_boxes(path: Path) -> dict[str | int, Boxed]:
    """Read the boxes of each image, in the file's order, whatever images there are.

    Args:
        path: a JSON file in any of the three forms.

    Returns:
        The boxes by the file's name of the image, or by its `image_id` in a list of results; finite numbers, but
        neither clipped nor ordered (x1 < x2 may not hold).

    Raises:
        InputError: not such a file, a name or an image twice, or a box that is not four finite numbers; names the
            file and the entry.
    """
    content = parse(path, kind="a boxes", unique=True)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        return _read_coco(path, content)
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return _read_results(path, content)
    if isinstance(content, dict) and content:
        return {name: Boxed(_read_list(path, name, value)) for name, value in content.items()}
    fail(
        str(path),
        "COCO's images and annotations, a list of results [{image_id, bbox, score}, ...], or an object "
        "{file name: [[x1, y1, x2, y2], ...]}",
        short(content),
    )


def _read_results(path: Path, content: list[Any]) -> dict[str | int, Boxed]:
    found: dict[str | int, list[Box]] = {}
    for place, result in enumerate(content):
        where = f"{path}: result {place}"
        if not isinstance(result, dict) or not is_id(result.get("image_id")):
            fail(where, "an object with `image_id` and `bbox`", short(result))
        found.setdefault(result["image_id"], []).append(_read_xywh(f"{where}: bbox", result.get("bbox")))
    return {key: Boxed(tuple(boxes)) for key, boxes in found.items()}


def _read_coco(path: Path, content: dict[str, Any]) -> dict[str | int, Boxed]:
    if not isinstance(content.get("images"), list):
        fail(str(path), "a list `images` beside `annotations`", short(content.get("images")))
    names: dict[Any, str] = {}
    found: dict[str, list[Box]] = {}
    sizes: dict[str, tuple[int | None, int | None]] = {}
    for place, image in enumerate(content["images"]):
        where = f"{path}: images[{place}]"
        key, name = (image.get("id"), image.get("file_name")) if isinstance(image, dict) else (None, None)
        if not is_id(key) or not isinstance(name, str):
            fail(where, "an object with `id` and `file_name`", short(image))
        if key in names or name in found:
            fail(where, "every `id` and every `file_name` once", short(image))
        names[key], found[name] = name, []
        sizes[name] = _size(where, image)
    for place, annotation in enumerate(content["annotations"]):
        where = f"{path}: annotations[{place}]"
        if not isinstance(annotation, dict):
            fail(where, "an object with `image_id` and `bbox`", short(annotation))
        name = names[known_id(where, annotation, "image_id", names)]
        found[name].append(_read_xywh(f"{where}: bbox", annotation.get("bbox")))
    return {name: Boxed(tuple(boxes), *sizes[name]) for name, boxes in found.items()}


def _size(where: str, image: dict[str, Any]) -> tuple[int | None, int | None]:
    """The stated height and width, or neither."""
    size = image.get("height"), image.get("width")
    if size == (None, None):
        return None, None
    if not all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in size):
        fail(where, "`height` and `width` as whole numbers of pixels, or neither", short([*size]))
    return size


def _read_list(path: Path, name: str, value: Any) -> tuple[Box, ...]:
    if not isinstance(value, list):
        fail(f"{path}: image {name!r}", "a list of boxes [x1, y1, x2, y2]", short(value))
    where = f"{path}: image {name!r}: box"
    return tuple(_four(f"{where} {place}", box, form="[x1, y1, x2, y2]") for place, box in enumerate(value))


def _read_xywh(where: str, value: Any) -> Box:
    x, y, w, h = _four(where, value, form="[x, y, width, height]")
    return _finite(where, (x, y, x + w, y + h))


def _four(where: str, value: Any, *, form: str) -> Box:
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
        fail(where, f"{form}, four numbers in pixels", short(value))
    try:
        return _finite(where, (float(value[0]), float(value[1]), float(value[2]), float(value[3])))
    except OverflowError:  # a whole number beyond the floats
        fail(where, "finite numbers", short(value))


def _finite(where: str, box: Box) -> Box:
    if not all(map(math.isfinite, box)):
        fail(where, "finite numbers", short([*box]))
    return box
