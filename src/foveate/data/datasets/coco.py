"""COCO annotation files -> records: things with boxes, and panoptic segments.

The same reader serves training, evaluation (the regions of Fig. 2 and 3) and the rendered world; what it holds a file
to is in `validation.py`, and LVIS and Objects365, whose boxes are written the same way, use `list_things`.
Deliberately absent: captions, and where the files of a split lie (`layout.py`).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.data.instance_masks import encode_mask
from foveate.data.records import Box, Dataset, IgnoredEntries, Record
from foveate.data.validation import (
    Listed,
    box_of,
    check_entry,
    count_ignored,
    fail,
    field,
    file_name,
    flag,
    image_paths,
    known_id,
    list_categories,
    list_images,
    load,
    short,
)
from foveate.types import Category

UNANNOTATED = "image has no panoptic annotation"
LARGEST_COLOUR = 2**24 - 1  # a panoptic id is the 24 bits of one colour; 0 is unlabelled


def read_instances(json_path: Path | str, image_folder: Path | str, *, with_masks: bool = False) -> Dataset:
    """Read a COCO instances file: images with the boxes of things.

    Args:
        json_path: the annotation file; xywh boxes, pixels of the image.
        image_folder: what its file names are relative to.
        with_masks: read the masks too.

    Returns:
        One record an image, also those without a box; categories by id.

    Raises:
        InputError: the file is not what it must be; names the file, the entry and the field.
    """
    path = Path(json_path)
    content = load(path, kind="a COCO instances")
    categories = list_categories(path, content["categories"])
    return list_things(path, content, Path(image_folder), categories=categories, with_masks=with_masks)


def list_things(
    path: Path,
    content: dict[str, Any],
    folder: Path | None,
    *,
    categories: tuple[Category, ...],
    name_of: Callable[[str, dict[str, Any]], str] = file_name,
    with_masks: bool = False,
) -> Dataset:
    """Turn the parsed content of an instances file into records.

    Args:
        path: of the file, for messages.
        content: from `strict.load`.
        folder: what the images' names are relative to; None: they need not be there, nothing of them is read.
        categories: of the file, by id.
        name_of: (how messages call the entry, the entry) -> where its image lies below the folder.
        with_masks: read the masks too; objects without one are left out.

    Raises:
        InputError: as `read_instances`.
    """
    labels = {category.id: label for label, category in enumerate(categories)}
    images = list_images(path, content["images"], name_of=name_of)
    found: dict[int | str, list[tuple[Box, int, bool, bytes]]] = {image_id: [] for image_id in images}
    ignored: dict[str, IgnoredEntries] = {}
    seen: set[int | str] = set()
    for entry in content["annotations"]:
        if isinstance(entry, dict) and "segments_info" in entry:
            fail(str(path), "a `bbox` an annotation", "`segments_info`: a panoptic file", "Name the instances file.")
        where = check_entry(path, entry, "annotation", seen)
        image = images[known_id(where, entry, "image_id", images)]
        label = labels[known_id(where, entry, "category_id", labels)]
        crowd = flag(where, entry, "iscrowd", default=0)
        box = box_of(where, entry.get("bbox"), height=image.height, width=image.width)
        size = {"height": image.height, "width": image.width}
        outline = encode_mask(where, entry.get("segmentation"), **size) if with_masks else b""
        if isinstance(box, str) or isinstance(outline, str):
            count_ignored(ignored, box if isinstance(box, str) else str(outline), where)
        else:
            found[entry["image_id"]].append((box, label, crowd, outline))
    paths = _paths(path, {key: image.name for key, image in images.items()}, folder)
    records = []
    for key, image in images.items():
        boxes, numbers, crowds, masks = zip(*found[key], strict=True) if found[key] else ((), (), (), ())
        record = Record(key, paths[key], image.height, image.width, boxes, numbers, crowds)
        records.append(replace(record, masks=masks) if with_masks else record)
    return Dataset(path.stem, categories, tuple(records), ignored, file=path)


def read_panoptic(json_path: Path | str, image_folder: Path | str | None, png_folder: Path | str) -> Dataset:
    """Read a COCO panoptic file: images with segments of things and stuff (masks stay in the PNGs until asked for).

    Args:
        json_path: the annotation file.
        image_folder: what the images' file names are relative to; None: they need not be there.
        png_folder: what the annotations' file names are relative to.

    Returns:
        One record an annotated image; categories by id, `is_thing` from the file.

    Raises:
        InputError: the file is not what it must be; names the file, the entry and the field.
    """
    path = Path(json_path)
    content = load(path, kind="a COCO panoptic")
    categories = list_categories(path, content["categories"], need_isthing=True)
    labels = {category.id: label for label, category in enumerate(categories)}
    images = list_images(path, content["images"])
    ignored: dict[str, IgnoredEntries] = {}
    found: dict[int | str, tuple[list[tuple[Box, int, bool, int]], str]] = {}
    for entry in content["annotations"]:
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        where = f"{path}: annotation of image {image_id}"
        if not isinstance(entry, dict) or not isinstance(entry.get("segments_info"), list):
            fail(
                where,
                "`segments_info`, a list",
                f"{short(entry)}",
                "Is this an instances file? Name the panoptic one.",
            )
        image = images[known_id(where, entry, "image_id", images)]
        if image_id in found:
            fail(where, "one annotation an image", "a second one")
        name = field(where, entry, "file_name", str, "the name of a PNG file")
        segments = _segments(where, entry["segments_info"], labels, image, ignored)
        found[entry["image_id"]] = (segments, name)
    paths = _paths(path, {key: images[key].name for key in found}, image_folder)
    pngs = image_paths(path, {key: name for key, (_, name) in found.items()}, Path(png_folder))
    records = []
    for key, image in images.items():
        if key in found:
            segments = found[key][0]
            boxes, numbers, crowds, ids = zip(*segments, strict=True) if segments else ((), (), (), ())
            size = (image.height, image.width)
            records.append(Record(key, paths[key], *size, boxes, numbers, crowds, ids, pngs[key]))
        else:
            count_ignored(ignored, UNANNOTATED, f"{path}: image {short(key)}")
    return Dataset(path.stem, categories, tuple(records), ignored)


def _paths(path: Path, names: dict[int | str, str], folder: Path | str | None) -> dict[int | str, Path]:
    """Where the images lie; without a folder their names, which nobody opens."""
    if folder is None:
        return {key: Path(name) for key, name in names.items()}
    return image_paths(path, names, Path(folder))


def _segments(
    where: str, infos: list[Any], labels: dict[int, int], image: Listed, ignored: dict[str, IgnoredEntries]
) -> list[tuple[Box, int, bool, int]]:
    """The usable segments of one image: (box, label, crowd, colour id)."""
    found = []
    seen: set[int | str] = set()
    for info in infos:
        here = check_entry(where, info, "segment", seen)
        if not isinstance(info["id"], int) or not 1 <= info["id"] <= LARGEST_COLOUR:
            fail(here, f"an `id` in 1..{LARGEST_COLOUR} (a colour)", short(info["id"]))
        label = labels[known_id(here, info, "category_id", labels)]
        crowd = flag(here, info, "iscrowd", default=0)
        box = box_of(here, info.get("bbox"), height=image.height, width=image.width)
        if isinstance(box, str):
            count_ignored(ignored, box, here)
        else:
            found.append((box, label, crowd, info["id"]))
    return found
