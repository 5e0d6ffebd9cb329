"""COCO annotation files -> records, read strictly: what is wrong in a file is found before anything trains on it.

Two kinds of fault are told apart. A file that contradicts itself (wrong types, unknown or doubled ids, a file name
that leaves its folder) is refused with the file, the entry and the field. A single box that cannot be used (not finite,
outside the picture, under one pixel inside it) is left out and counted in `Dataset.dropped`, which every command that
uses annotations reports; boxes over the edge are clipped. The same reader serves training, evaluation (the regions of
Fig. 2 and 3) and the rendered world.
Deliberately absent: polygons and run lengths of instance masks (no protocol here needs them), captions, and where
the files of a split lie (`layout.py`).
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn

from saccade.data.pictures import check_inside
from saccade.types import Category, InputError

Box = tuple[float, float, float, float]

NOT_FINITE = "box is not finite"
OUTSIDE = "box lies outside the picture"
TINY = "box is under 1 pixel inside the picture"
UNANNOTATED = "picture has no panoptic annotation"
LARGEST_COLOUR = 2**24 - 1  # a panoptic id is the 24 bits of one colour; 0 is unlabelled
REPAIR = "Correct the file, or fetch it again."


@dataclass(frozen=True, slots=True)
class Record:
    """One picture of a data set and what is annotated in it; entry i of each tuple belongs to annotation i."""

    id: int | str
    path: Path
    height: int | None = None  # [pixels]; None: not known before decoding (a folder without annotations)
    width: int | None = None
    boxes: tuple[Box, ...] = ()  # xyxy, pixels of the picture, clipped to it
    labels: tuple[int, ...] = ()  # place in the data set's categories
    crowd: tuple[bool, ...] = ()
    segment_ids: tuple[int, ...] = ()  # panoptic only: the colour R + 256 G + 65536 B in the PNG
    panoptic: Path | None = None  # the PNG that holds the masks

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) [pixels], where annotated."""
        return None if self.height is None or self.width is None else (self.height, self.width)


@dataclass(frozen=True)
class Dropped:
    """How much of an annotation file was left out for one reason, and where it happened first."""

    count: int
    first: str  # file and entry

    def __add__(self, other: "Dropped") -> "Dropped":
        return Dropped(self.count + other.count, self.first)


@dataclass(frozen=True)
class Dataset:
    """The pictures of one split, in the file's order; the categories by id; what was left out, by reason."""

    name: str
    categories: tuple[Category, ...]
    records: tuple[Record, ...]
    dropped: dict[str, Dropped]

    def dropped_lines(self) -> list[str]:
        """What was left out when the annotations were read, for the user, one line a reason."""
        return [
            f"{one.count} left out because a {reason}; the first: {one.first}" for reason, one in self.dropped.items()
        ]


def read_instances(json_path: Path | str, image_folder: Path | str) -> Dataset:
    """Read a COCO instances file: pictures with the boxes of things.

    Args:
        json_path: the annotation file; xywh boxes, pixels of the picture.
        image_folder: what its file names are relative to.

    Returns:
        One record a picture, also those without a box; categories by id.

    Raises:
        InputError: the file is not what it must be; names the file, the entry and the field.
    """
    path = Path(json_path)
    content = _load(path, kind="instances")
    categories = _categories(path, content["categories"], need_isthing=False)
    labels = {category.id: label for label, category in enumerate(categories)}
    images = _images(path, content["images"])
    found: dict[int | str, list[tuple[Box, int, bool]]] = {image_id: [] for image_id in images}
    dropped: dict[str, Dropped] = {}
    seen: set[int | str] = set()
    for entry in content["annotations"]:
        if isinstance(entry, dict) and "segments_info" in entry:
            _fail(str(path), "a `bbox` an annotation", "`segments_info`: a panoptic file", "Name the instances file.")
        where = _entry(path, entry, "annotation", seen)
        image = images[_known(where, entry, "image_id", images)]
        label = labels[_known(where, entry, "category_id", labels)]
        crowd = _flag(where, entry, "iscrowd", default=0)
        box = _box(where, entry.get("bbox"), height=image["height"], width=image["width"])
        if isinstance(box, str):
            _drop(dropped, box, where)
        else:
            found[entry["image_id"]].append((box, label, crowd))
    paths = _picture_paths(path, {key: image["file_name"] for key, image in images.items()}, Path(image_folder))
    records = []
    for key, image in images.items():
        boxes, numbers, crowds = zip(*found[key], strict=True) if found[key] else ((), (), ())
        records.append(Record(key, paths[key], image["height"], image["width"], boxes, numbers, crowds))
    return Dataset(path.stem, categories, tuple(records), dropped)


def read_panoptic(json_path: Path | str, image_folder: Path | str, png_folder: Path | str) -> Dataset:
    """Read a COCO panoptic file: pictures with segments of things and stuff (masks stay in the PNGs until asked for).

    Args:
        json_path: the annotation file.
        image_folder: what the pictures' file names are relative to.
        png_folder: what the annotations' file names are relative to.

    Returns:
        One record an annotated picture; categories by id, `is_thing` from the file.

    Raises:
        InputError: the file is not what it must be; names the file, the entry and the field.
    """
    path = Path(json_path)
    content = _load(path, kind="panoptic")
    categories = _categories(path, content["categories"], need_isthing=True)
    labels = {category.id: label for label, category in enumerate(categories)}
    images = _images(path, content["images"])
    dropped: dict[str, Dropped] = {}
    found: dict[int | str, tuple[list[tuple[Box, int, bool, int]], str]] = {}
    for entry in content["annotations"]:
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        where = f"{path}: annotation of image {image_id}"
        if not isinstance(entry, dict) or not isinstance(entry.get("segments_info"), list):
            _fail(
                where,
                "`segments_info`, a list",
                f"{_short(entry)}",
                "Is this an instances file? Name the panoptic one.",
            )
        image = images[_known(where, entry, "image_id", images)]
        if image_id in found:
            _fail(where, "one annotation a picture", "a second one", REPAIR)
        name = _field(where, entry, "file_name", str, "the name of a PNG file")
        segments = _segments(where, entry["segments_info"], labels, image, dropped)
        found[entry["image_id"]] = (segments, name)
    paths = _picture_paths(path, {key: images[key]["file_name"] for key in found}, Path(image_folder))
    pngs = _picture_paths(path, {key: name for key, (_, name) in found.items()}, Path(png_folder))
    records = []
    for key, image in images.items():
        if key in found:
            segments = found[key][0]
            boxes, numbers, crowds, ids = zip(*segments, strict=True) if segments else ((), (), (), ())
            size = (image["height"], image["width"])
            records.append(Record(key, paths[key], *size, boxes, numbers, crowds, ids, pngs[key]))
        else:
            _drop(dropped, UNANNOTATED, f"{path}: image {_short(key)}")
    return Dataset(path.stem, categories, tuple(records), dropped)


def _segments(
    where: str, infos: list[Any], labels: dict[int, int], image: dict[str, Any], dropped: dict[str, Dropped]
) -> list[tuple[Box, int, bool, int]]:
    """The usable segments of one picture: (box, label, crowd, colour id)."""
    found = []
    seen: set[int | str] = set()
    for info in infos:
        here = _entry(where, info, "segment", seen)
        if not isinstance(info["id"], int) or not 1 <= info["id"] <= LARGEST_COLOUR:
            _fail(here, f"an `id` in 1..{LARGEST_COLOUR} (a colour)", _short(info["id"]), REPAIR)
        label = labels[_known(here, info, "category_id", labels)]
        crowd = _flag(here, info, "iscrowd", default=0)
        box = _box(here, info.get("bbox"), height=image["height"], width=image["width"])
        if isinstance(box, str):
            _drop(dropped, box, here)
        else:
            found.append((box, label, crowd, info["id"]))
    return found


# ------------------------------------------------------------------------------------------------------ one field each


def _drop(dropped: dict[str, Dropped], reason: str, where: str) -> None:
    one = Dropped(1, where)
    dropped[reason] = dropped[reason] + one if reason in dropped else one


def _fail(where: str, need: str, got: str, do: str) -> NoReturn:
    raise InputError(f"{where}: need {need}; got {got}. {do}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _load(path: Path, *, kind: str) -> dict[str, Any]:
    """Parse the file and hold it to the outline of COCO: an object with three lists."""
    where = str(path)
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(f"{where}: need a COCO {kind} file; {reason}. Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: need a COCO {kind} file in JSON; {type(error).__name__}: {error}. {REPAIR}"
        ) from error
    need = f"a COCO {kind} file: an object with the lists `images`, `annotations` and `categories`"
    if not isinstance(content, dict):
        _fail(where, need, f"a {type(content).__name__} (a file of results?)", "Name the annotation file.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            problem = f"`{key}` as {_short(content[key])}" if key in content else f"no `{key}`"
            _fail(where, need, f"{problem}; its keys are {_short(list(content))}", "Name the annotation file.")
    return content


def _entry(where: str | Path, entry: Any, noun: str, seen: set[int | str]) -> str:
    """Check that an entry is an object with an id of its own; return how messages call it."""
    if not isinstance(entry, dict):
        _fail(f"{where}: {noun}", "an object", _short(entry), REPAIR)
    key: Any = entry.get("id")
    if isinstance(key, bool) or not isinstance(key, int | str):
        _fail(f"{where}: {noun}", "an `id`, a whole number or a string", _short(key), REPAIR)
    here = f"{where}: {noun} {_short(key)}"
    if key in seen:
        _fail(here, f"every {noun}'s `id` once", "this one twice", REPAIR)
    seen.add(key)
    return here


def _field(where: str, entry: dict[str, Any], key: str, kind: type, need: str) -> Any:
    value = entry.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or value == "":
        _fail(where, f"`{key}`, {need}", _short(value) if key in entry else "no such field", REPAIR)
    return value


def _known(where: str, entry: dict[str, Any], key: str, known: dict[Any, Any]) -> Any:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str) or value not in known:
        _fail(where, f"`{key}`, one of the {len(known)} ids the file lists", _short(value), REPAIR)
    return value


def _flag(where: str, entry: dict[str, Any], key: str, *, default: int | None) -> bool:
    value = entry.get(key, default)
    if not isinstance(value, int) or value not in (0, 1):
        _fail(where, f"`{key}`, 0 or 1", _short(value) if key in entry else "no such field", REPAIR)
    return bool(value)


def _categories(path: Path, entries: list[Any], *, need_isthing: bool) -> tuple[Category, ...]:
    found = []
    seen: set[int | str] = set()
    for entry in entries:
        where = _entry(path, entry, "category", seen)
        number = _field(where, entry, "id", int, "a whole number")
        name = _field(where, entry, "name", str, "its name")
        found.append(Category(number, name, _flag(where, entry, "isthing", default=None if need_isthing else 1)))
    return tuple(sorted(found, key=lambda category: category.id))


def _images(path: Path, entries: list[Any]) -> dict[int | str, dict[str, Any]]:
    found = {}
    seen: set[int | str] = set()
    texts: set[str] = set()
    for entry in entries:
        where = _entry(path, entry, "image", seen)
        _field(where, entry, "file_name", str, "the name of a picture file")
        for key in ("height", "width"):
            if _field(where, entry, key, int, "a whole number of pixels") < 1:
                _fail(where, f"`{key}` of at least 1 pixel", _short(entry[key]), REPAIR)
        if str(entry["id"]) in texts:  # 1 and "1": messages and results could not tell them apart
            _fail(where, "ids that differ as text", "the same id as a number and as a string", REPAIR)
        texts.add(str(entry["id"]))
        found[entry["id"]] = entry
    return found


def _box(where: str, value: Any, *, height: int, width: int) -> Box | str:
    """Turn an annotation's xywh into xyxy clipped to the picture, or into the reason why it cannot be used."""
    if not isinstance(value, list) or len(value) != 4:
        _fail(where, "`bbox`, [x, y, width, height] in pixels", _short(value), REPAIR)
    for number in value:
        if isinstance(number, bool) or not isinstance(number, int | float):
            _fail(where, "`bbox` of four numbers", _short(value), REPAIR)
    try:
        x, y, w, h = map(float, value)
    except OverflowError:  # a whole number beyond the floats
        return NOT_FINITE
    if not all(map(math.isfinite, (x, y, x + w, y + h))):
        return NOT_FINITE
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return OUTSIDE
    return TINY if x2 - x1 < 1 or y2 - y1 < 1 else (x1, y1, x2, y2)


# ------------------------------------------------------------------------------------------------------- names of files


def _picture_paths(json_path: Path, names: dict[int | str, str], folder: Path) -> dict[int | str, Path]:
    """Join file names to their folder; none may leave it, by its text or through a link, and one must be there."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: need the folder of the files that {json_path} names; there is none. Check the path."
        )
    for key, name in names.items():
        if _escapes(name):
            _fail(
                f"{json_path}: image {_short(key)}",
                f"`file_name` inside {folder}",
                f"{_short(name)}, which leads elsewhere",
                "Correct the file; do not trust where it came from.",
            )
    paths = {key: folder / name for key, name in names.items()}
    there: dict[Path, bool] = {}  # file -> whether it is a link; one pass over a folder, not one look-up a picture
    for parent in {path.parent for path in paths.values()}:
        if parent.is_dir():
            check_inside(parent, folder)
            with os.scandir(parent) as entries:
                there.update({parent / entry.name: entry.is_symlink() for entry in entries})
    for path in paths.values():
        if there.get(path):
            check_inside(path, folder)
    if paths and not any(path in there for path in paths.values()):
        first = next(iter(paths.values()))
        raise InputError(
            f"{json_path}: need the files it names in {folder}; none of {len(paths)} is there (the first: {first}). "
            "Is this the folder of another split?"
        )
    return paths


def _escapes(name: str) -> bool:
    """Whether a file name leads out of the folder it is relative to, on any system, or is no file name at all."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return posix.is_absolute() or bool(windows.anchor) or ".." in posix.parts + windows.parts or "\0" in name
