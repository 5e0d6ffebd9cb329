"""Boxes in YOLO's text files -> records: a file per image, beside the images in a folder `labels`.

    images/train/1.jpg    labels/train/1.txt    *.yaml or classes.txt         or {train,valid,test}/{images,labels}/

A line is `CLASS CX CY W H` in fractions of the upright image's sides, or `CLASS X1 Y1 X2 Y2 ...`, a polygon, of which
the extent is used. Sizes are read from the images' headers. The class names are `names` of a YAML file of the root, or
the lines of classes.txt; paths in the YAML file are not followed. An image without a text file has no objects.
"""

import math
from pathlib import Path
from typing import Any

import yaml

from foveate.data.images import ImageError, list_images, upright_size
from foveate.data.records import Box, Dataset, IgnoredEntries, Record
from foveate.data.validation import clip_box, count_ignored, fail, read_text, short
from foveate.errors import InputError
from foveate.types import Category

MAX_TEXT = 10_000_000  # bytes
MAX_FRACTION = 1.1  # a fraction above it is a number of pixels
NO_IMAGE = "label file without an image"


def read_yolo(root: Path, *, images: Path, labels: Path) -> Dataset:
    """Read one split in YOLO's layout.

    Args:
        root: has the class names.
        images: folder of the split's images.
        labels: folder of their text files, with the same names.

    Returns:
        One record per image, sorted by path, which is its id; one without a size cannot be read.

    Raises:
        InputError: there are no class names or no images, or a line is malformed; names the file and the line.
    """
    names = _class_names(root)
    listing = list_images(images)
    ignored = {reason: IgnoredEntries(*entries) for reason, entries in listing.ignored.items()}
    records, unlabelled, used = list[Record](), list[str](), set[Path]()
    for path in listing.images:
        key = path.relative_to(images)
        text = labels / key.with_suffix(".txt")
        used.add(text)
        try:
            height, width = upright_size(path)
        except ImageError:  # which is counted when it is read
            records.append(Record(key.as_posix(), path))
            continue
        objects = _read_objects(text, len(names), height=height, width=width, ignored=ignored)
        if objects is None:
            unlabelled.append(key.as_posix())
        boxes, numbers = zip(*objects, strict=True) if objects else ((), ())
        records.append(Record(key.as_posix(), path, height, width, boxes, numbers, (False,) * len(boxes)))
    for path in sorted(labels.rglob("*.txt")):
        if path not in used and path.name != "classes.txt":
            count_ignored(ignored, NO_IMAGE, str(path))
    if len(unlabelled) == len(records):
        raise InputError(f"{labels}: need text files with the names of the images; the {len(records)} images in "
                         f"{images} have none. Is it the folder of another split?")  # fmt: skip
    note = f"{len(unlabelled)} of {len(records)} images have no label file; they are used as images without objects"
    notes = (f"{note}; the first: {unlabelled[0]}",) if unlabelled else ()
    categories = tuple(Category(number, name, True) for number, name in enumerate(names))
    return Dataset(f"{root.resolve().name} {images.name}", categories, tuple(records), ignored, notes)


def _class_names(root: Path) -> list[str]:
    """The class names, in the order of their numbers."""
    files = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    found = {path: names for path in files if (names := _yaml_names(path)) is not None}
    lists = [path for path in (root / "classes.txt", root / "labels/classes.txt") if path.is_file()]
    if not found and lists:
        text = read_text(lists[0], need="the class names, one per line", max_bytes=MAX_TEXT)
        found[lists[0]] = [line.strip() for line in text.splitlines() if line.strip()]
    if len({tuple(names) for names in found.values()}) != 1:
        got = "none" if not found else f"different ones in {', '.join(map(str, found))}"
        raise InputError(f"{root}: need the class names of YOLO's layout in one .yaml file (`names`) or classes.txt; "
                         f"got {got}. Write them, one per line, into {root / 'classes.txt'}.")  # fmt: skip
    return next(iter(found.values()))


def _yaml_names(path: Path) -> list[str] | None:
    """The field `names` of a YAML file, a list or an object by number; None: it has no such field."""
    try:
        content: Any = yaml.safe_load(read_text(path, need="a description in YAML", max_bytes=MAX_TEXT))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: need a description in YAML; {type(error).__name__}: {error}. Correct it.") from error
    names = content.get("names") if isinstance(content, dict) else None
    if names is None:
        return None
    if isinstance(names, dict) and names.keys() == {*range(len(names))}:
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        fail(str(path), "`names`, the names of the classes 0, 1, ...", short(names))
    return [str(name) for name in names]


def _read_objects(
    path: Path, classes: int, *, height: int, width: int, ignored: dict[str, IgnoredEntries]
) -> list[tuple[Box, int]] | None:
    """The (box, class) of each object of an image [pixels]; None: there is no such file."""
    if not path.exists():
        return None
    objects: list[tuple[Box, int]] = []
    text = read_text(path, need="objects in YOLO's form, one per line", max_bytes=MAX_TEXT)
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        label, values = _read_line(where, line, classes)
        if len(values) == 4:
            cx, cy, w, h = values
            x1, y1, x2, y2 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
        else:
            x1, y1, x2, y2 = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
        box = clip_box((x1 * width, y1 * height, x2 * width, y2 * height), height=height, width=width)
        if isinstance(box, str):
            count_ignored(ignored, box, where)
        else:
            objects.append((box, label))
    return objects


def _read_line(where: str, line: str, classes: int) -> tuple[int, list[float]]:
    """The class and the fractions of one object."""
    form = "`CLASS CX CY W H` in fractions of the sides, or a class and a polygon"
    words = line.split()
    try:
        label, values = int(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        fail(where, form, short(line))
    if len(values) == 5:
        fail(where, form, f"six numbers, as of predictions with a score: {short(line)}")
    if len(values) < 4 or len(values) % 2:
        fail(where, form, short(line))
    if not 0 <= label < classes:
        fail(where, f"a class in 0..{classes - 1}", str(label))
    if any(math.isfinite(value) and abs(value) > MAX_FRACTION for value in values):
        fail(where, form, f"numbers above 1, as in pixels: {short(line)}")
    return label, values
