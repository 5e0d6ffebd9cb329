"""COCO annotation files -> records: boxes of things, and panoptic segments.

LVIS and Objects365, whose boxes have the same form, use `list_things`. Captions are read in `data/captions.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.data.consistency import Checks
from foveate.data.instance_masks import encode_mask
from foveate.data.records import Box, Dataset, Record
from foveate.data.validation import (
    ListedImage,
    check_entry,
    count_ignored,
    escapes,
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
    unused_categories,
)
from foveate.types import Category

UNANNOTATED = "image has no panoptic annotation"
MAX_COLOUR = 2**24 - 1  # a panoptic id is the 24 bits of one colour; 0 is unlabelled


def read_instances(json_path: Path | str, image_folder: Path | str, *, with_masks: bool = False) -> Dataset:
    """Read a COCO instances file: images with the boxes of things.

    Args:
        json_path: the annotation file; xywh boxes, pixels of the image.
        image_folder: the folder that its file names are relative to.
        with_masks: read the masks too.

    Returns:
        One record per image, also without boxes; categories sorted by id.

    Raises:
        InputError: the file is malformed; names the file, the entry and the field.
    """
    path = Path(json_path)
    content = load(path, kind="a COCO instances")
    categories = list_categories(path, content)
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
    """Convert the parsed content of an instances file to records.

    Args:
        path: of the file, for messages.
        content: from `validation.load`.
        folder: the folder that the image names are relative to; None: the images are not needed.
        categories: of the file, sorted by id.
        name_of: (the entry's name in messages, the entry) -> the path of its image below the folder.
        with_masks: read the masks too; objects without one are ignored.

    Raises:
        InputError: as `read_instances`.
    """
    labels = {category.id: label for label, category in enumerate(categories)}
    images = list_images(path, content["images"], name_of=name_of)
    things: dict[int | str, list[tuple[Box, int, bool, bytes]]] = {key: [] for key in images}
    checks = Checks(path)
    checks.see_images(images)
    ignored = checks.ignored
    seen: set[int | str] = set()
    for entry in content["annotations"]:
        if isinstance(entry, dict) and "segments_info" in entry:
            fail(str(path), "a `bbox` per annotation", "`segments_info`: a panoptic file", "Give the instances file.")
        where = check_entry(path, entry, "annotation", seen)
        image = images[known_id(where, entry, "image_id", images)]
        label = labels[known_id(where, entry, "category_id", labels)]
        crowd = flag(where, entry, "iscrowd", default=0)
        size = {"height": image.height, "width": image.width}
        mask = encode_mask(where, entry.get("segmentation"), **size, faults=checks.kinds) if with_masks else b""
        box = checks.box_of(where, entry, image, label=label, crowd=crowd, mask=mask)
        if isinstance(box, str) or isinstance(mask, str):
            count_ignored(ignored, box if isinstance(box, str) else str(mask), where)
        else:
            things[entry["image_id"]].append((box, label, crowd, mask))
    paths = _image_paths(path, {key: image.name for key, image in images.items()}, folder)
    records = []
    for key, image in images.items():
        boxes, numbers, crowds, masks = zip(*things[key], strict=True) if things[key] else ((), (), (), ())
        record = Record(key, paths[key], image.height, image.width, boxes, numbers, crowds)
        records.append(replace(record, masks=masks) if with_masks else record)
    notes, consistency = tuple(unused_categories(content).values()), checks.finish()
    return Dataset(path.stem, categories, tuple(records), ignored, notes, file=path, consistency=consistency)


def read_panoptic(json_path: Path | str, image_folder: Path | str | None, png_folder: Path | str) -> Dataset:
    """Read a COCO panoptic file: images with segments of things and stuff, whose masks stay in the PNGs.

    Args:
        image_folder: the folder that image file names are relative to; None: the images are not needed.
        png_folder: the folder that the annotations' file names are relative to.

    Returns:
        One record per annotated image; categories sorted by id, `is_thing` from the file.

    Raises:
        InputError: the file is malformed; names the file, the entry and the field.
    """
    path = Path(json_path)
    content = load(path, kind="a COCO panoptic")
    categories = list_categories(path, content, need_isthing=True)
    labels = {category.id: label for label, category in enumerate(categories)}
    images = list_images(path, content["images"])
    checks = Checks(path)
    checks.see_images(images)
    ignored = checks.ignored
    annotated: dict[int | str, tuple[list[tuple[Box, int, bool, int]], str]] = {}
    for entry in content["annotations"]:
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        where = f"{path}: annotation of image {image_id}"
        if not isinstance(entry, dict) or not isinstance(entry.get("segments_info"), list):
            fail(where, "`segments_info`, a list", short(entry), "Is this an instances file? Give the panoptic file.")
        image = images[known_id(where, entry, "image_id", images)]
        if image_id in annotated:
            fail(where, "one annotation per image", "a second one")
        name = field(where, entry, "file_name", str, "the name of a PNG file")
        png = None if escapes(name) else Path(png_folder) / name
        segments = _segments(where, entry["segments_info"], labels, image, checks, png)
        annotated[entry["image_id"]] = (segments, name)
    paths = _image_paths(path, {key: images[key].name for key in annotated}, image_folder)
    pngs = image_paths(path, {key: name for key, (_, name) in annotated.items()}, Path(png_folder))
    records = []
    notes, consistency = tuple(unused_categories(content).values()), checks.finish()
    for key, image in images.items():
        if key in annotated:
            segments = annotated[key][0]
            boxes, numbers, crowds, ids = zip(*segments, strict=True) if segments else ((), (), (), ())
            size = (image.height, image.width)
            records.append(Record(key, paths[key], *size, boxes, numbers, crowds, ids, pngs[key]))
        else:
            count_ignored(ignored, UNANNOTATED, f"{path}: image {short(key)}")
    return Dataset(path.stem, categories, tuple(records), ignored, notes, consistency=consistency)


def _image_paths(path: Path, names: dict[int | str, str], folder: Path | str | None) -> dict[int | str, Path]:
    """The images' paths; without a folder their names, which are not opened."""
    if folder is None:
        return {key: Path(name) for key, name in names.items()}
    return image_paths(path, names, Path(folder))


def _segments(
    where: str, entries: list[Any], labels: dict[int, int], image: ListedImage, checks: Checks, png: Path | None
) -> list[tuple[Box, int, bool, int]]:
    """The usable segments of one image: (box, label, crowd, id)."""
    segments = []
    seen: set[int | str] = set()
    for entry in entries:
        name = check_entry(where, entry, "segment", seen)
        if not isinstance(entry["id"], int) or not 1 <= entry["id"] <= MAX_COLOUR:
            fail(name, f"an `id` in 1..{MAX_COLOUR} (a colour)", short(entry["id"]))
        label = labels[known_id(name, entry, "category_id", labels)]
        crowd = flag(name, entry, "iscrowd", default=0)
        box = checks.box_of(name, entry, image, label=label, crowd=crowd, png=png)
        if isinstance(box, str):
            count_ignored(checks.ignored, box, name)
        else:
            segments.append((box, label, crowd, entry["id"]))
    return segments
