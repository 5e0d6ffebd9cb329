"""COCO annotation files -> records: boxes of things, and panoptic segments.

LVIS and Objects365, whose boxes have the same form, use `list_things`. Captions are read in `data/captions.py`.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from foveate.data.annotation_file import load
from foveate.data.annotations import AnnotatedRecords, Arrays, IdSet, ObjectList, packed, stored_arrays
from foveate.data.consistency import Checks
from foveate.data.instance_masks import encode_mask
from foveate.data.records import Box, Consistency, Dataset, IgnoredEntries
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
    naming: str = "file_name",
    with_masks: bool = False,
) -> Dataset:
    """Convert the content of an instances file to records.

    Args:
        path: of the file.
        content: from `annotation_file.load`.
        folder: the folder that the image names are relative to; None: the images are not needed.
        categories: of the file, sorted by id.
        name_of: (the entry's name in messages, the entry) -> the path of its image below the folder.
        naming: what `name_of` does, in a word: the objects are cached with the names that it returned.
        with_masks: read the masks too; objects without one are ignored.

    Raises:
        InputError: as `read_instances`.
    """
    labels = {category.id: label for label, category in enumerate(categories)}

    def read() -> tuple[Arrays, dict[str, Any]]:
        images = list_images(path, content["images"], name_of=name_of)
        numbers = {key: number for number, key in enumerate(images)}
        things, checks, seen = ObjectList(), Checks(path), IdSet()
        checks.see_images(images)
        for entry in content["annotations"]:
            where = _check_instance(path, entry, seen)
            key = known_id(where, entry, "image_id", images)
            thing = _thing(where, entry, labels, images[key], checks, with_masks=with_masks)
            if isinstance(thing, str):
                count_ignored(checks.ignored, thing, where)
            else:
                box, label, crowd, mask = thing
                things.add(numbers[key], box, label, crowd=crowd, mask=mask)
        return {**_image_arrays(images), **things.arrays(len(images), masks=with_masks)}, _facts(checks, content)

    arrays, facts, stored = stored_arrays(path, f"{naming}, masks: {with_masks}", read)
    records, notes = AnnotatedRecords(arrays, folders=(folder,), stored=stored), [*facts["notes"]]
    records = _with_files(path, records, "names", folder, notes)
    ignored, consistency = _found(facts)
    return Dataset(path.stem, categories, records, ignored, tuple(notes), file=path, consistency=consistency)


def _check_instance(path: Path, entry: Any, seen: IdSet) -> str:
    """Check that an entry can be an object; return how messages name it."""
    if isinstance(entry, dict) and "segments_info" in entry:
        fail(str(path), "a `bbox` per annotation", "`segments_info`: a panoptic file", "Give the instances file.")
    return check_entry(path, entry, "annotation", seen)


def _thing(
    where: str, entry: dict[str, Any], labels: dict[int, int], image: ListedImage, checks: Checks, *, with_masks: bool
) -> tuple[Box, int, bool, bytes] | str:
    """The box, label, crowd and mask of an object, or the reason why it is ignored."""
    label = labels[known_id(where, entry, "category_id", labels)]
    crowd = flag(where, entry, "iscrowd", default=0)
    size = {"height": image.height, "width": image.width}
    mask = encode_mask(where, entry.get("segmentation"), **size, faults=checks.kinds) if with_masks else b""
    box = checks.box_of(where, entry, image, label=label, crowd=crowd, mask=mask)
    if isinstance(box, str):
        return box
    return mask if isinstance(mask, str) else (box, label, crowd, mask)


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

    def read() -> tuple[Arrays, dict[str, Any]]:
        images = list_images(path, content["images"])
        numbers = {key: number for number, key in enumerate(images)}
        things, checks, pngs = ObjectList(), Checks(path), {}
        checks.see_images(images)
        for entry in content["annotations"]:
            image_id = entry.get("image_id") if isinstance(entry, dict) else None
            where = f"{path}: annotation of image {image_id}"
            if not isinstance(entry, dict) or not isinstance(entry.get("segments_info"), list):
                need = "Is this an instances file? Give the panoptic file."
                fail(where, "`segments_info`, a list", short(entry), need)
            key = known_id(where, entry, "image_id", images)
            if key in pngs:
                fail(where, "one annotation per image", "a second one")
            pngs[key] = name = field(where, entry, "file_name", str, "the name of a PNG file")
            png = None if escapes(name) else Path(png_folder) / name
            for box, label, crowd, number in _segments(where, entry["segments_info"], labels, images[key], checks, png):
                things.add(numbers[key], box, label, crowd=crowd, segment=number)
        facts = _facts(checks, content)  # before images are counted, which are no objects
        if others := [key for key in images if key not in pngs]:
            facts["ignored"][UNANNOTATED] = [len(others), f"{path}: image {short(others[0])}"]
        annotated = {key: image for key, image in images.items() if key in pngs}
        arrays = things.arrays(len(images), segments=True)
        arrays["ends"] = arrays["ends"][[*(numbers[key] for key in annotated), len(images)]]  # the others have none
        arrays |= {**_image_arrays(annotated), **packed("pngs", (pngs[key] for key in annotated))}
        return arrays, facts

    arrays, facts, stored = stored_arrays(path, f"panoptic, {Path(png_folder).resolve()}", read)
    folders = (None if image_folder is None else Path(image_folder), Path(png_folder))
    records, notes = AnnotatedRecords(arrays, folders=folders, stored=stored), [*facts["notes"]]
    for key, folder in zip(("names", "pngs"), folders, strict=True):
        records = _with_files(path, records, key, folder, notes)
    ignored, consistency = _found(facts)
    return Dataset(path.stem, categories, records, ignored, tuple(notes), consistency=consistency)


def _facts(checks: Checks, content: dict[str, Any]) -> dict[str, Any]:
    """What was found in a file beside the arrays, as it is cached."""
    found = checks.finish()
    return {
        "ignored": {reason: [entries.count, entries.first] for reason, entries in checks.ignored.items()},
        "kinds": {kind: [entries.count, entries.first] for kind, entries in found.kinds.items()},
        "doubt": found.doubt,
        "outside": [*found.outside],
        "decoded": checks.decoded,  # PNGs
        "notes": [*unused_categories(content).values()],
    }


def _found(facts: dict[str, Any]) -> tuple[dict[str, IgnoredEntries], Consistency]:
    """The inverse of `_facts`."""
    ignored, kinds = (
        {reason: IgnoredEntries(*entries) for reason, entries in facts[key].items()} for key in ("ignored", "kinds")
    )
    return ignored, Consistency(kinds, facts["doubt"], tuple(facts["outside"]))


def _image_arrays(images: dict[int | str, ListedImage]) -> Arrays:
    sizes = np.array([(image.height, image.width) for image in images.values()], dtype=np.int64).reshape(-1, 2)
    names = packed("names", (image.name for image in images.values()))
    return {"sizes": sizes, **packed("ids", map(json.dumps, images)), **names}


def _with_files(
    path: Path, records: AnnotatedRecords, key: str, folder: Path | None, notes: list[str]
) -> AnnotatedRecords:
    """Check the files of the images (or PNGs) in a folder; the records with the paths that were found."""
    if folder is None:
        return records
    names = records.names(key)
    paths = image_paths(path, names, folder, notes=notes)
    if all(found == folder / name for found, name in zip(paths.values(), names.values(), strict=True)):
        return records
    found = packed(key, (os.path.relpath(file, folder) for file in paths.values()))
    return AnnotatedRecords({**records.arrays, **found}, folders=records.folders)


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
