"""The one strict validator of annotation files: each reader of a data set is made of these pieces.

Two kinds of fault are told apart. A file that contradicts itself (wrong types, unknown or doubled ids, a file name
that leaves its folder) is refused with the file, the entry and the field. A single box that cannot be used (not finite,
outside the image, under one pixel inside it) is ignored and counted in `Dataset.ignored`, which every command that
uses annotations reports; boxes over the edge are clipped. Absent: the masks of instances (`instance_masks.py`).
"""

import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, NoReturn

from foveate.data.images import check_inside
from foveate.data.records import Box, IgnoredEntries
from foveate.errors import InputError
from foveate.types import Category

NOT_FINITE = "box is not finite"
OUTSIDE = "box lies outside the image"
TINY = "box is under 1 pixel inside the image"
REPAIR_FILE = "Correct the file, or fetch it again."
UNTRUSTED_FILE = "Correct the file; do not trust where it came from."


class Listed(NamedTuple):
    """An image as an annotation file lists it: where it lies below the images' folder, and its size [pixels]."""

    name: str
    height: int
    width: int


def count_ignored(ignored: dict[str, IgnoredEntries], reason: str, where: str) -> None:
    """Count one thing that is left out."""
    one = IgnoredEntries(1, where)
    ignored[reason] = ignored[reason] + one if reason in ignored else one


def fail(where: str, need: str, got: str, do: str = REPAIR_FILE) -> NoReturn:
    """Refuse a file.

    Raises:
        InputError: always.
    """
    raise InputError(f"{where}: need {need}; got {got}. {do}")


def short(value: object) -> str:
    """A value as messages show it, at most 80 letters of it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a number, which may be infinite or NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_id(value: object) -> bool:
    """Whether a value of a JSON file can name something: a whole number or a text."""
    return isinstance(value, int | str) and not isinstance(value, bool)


# --------------------------------------------------------------------------------------------------------- COCO's JSON


def load(path: Path, *, kind: str) -> dict[str, Any]:
    """Parse the file and hold it to the outline of COCO: an object with three lists."""
    content = parse(path, kind=kind)
    check_lists(path, content, kind=kind, lists=("images", "annotations", "categories"))
    return content


def parse(path: Path, *, kind: str, unique: bool = False) -> Any:
    """Parse a JSON file, whatever it holds; with `unique` no key may stand twice in one of its objects."""
    where = str(path)
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=partial(_object, where) if unique else None)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{where}: need {kind} file; {reason_of(error)}. Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: need {kind} file in JSON; {type(error).__name__}: {error}. {REPAIR_FILE}"
        ) from error


def read_text(path: Path, *, need: str, max_bytes: int) -> str:
    """Read a small text file in UTF-8, with or without the mark that some editors put first.

    Raises:
        InputError: no such file, another encoding, or too large.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            fail(str(path), f"{need}, at most {max_bytes:,} bytes", f"{size:,}")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: need {need} in UTF-8; {error}. Save it again in that encoding.") from error
    except OSError as error:
        raise InputError(f"{path}: need {need}; {reason_of(error)}. Check the path.") from error


def reason_of(error: OSError) -> str:
    """Why a file could not be read, for a message."""
    return "there is no such file" if isinstance(error, FileNotFoundError) else str(error)


def _object(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        fail(where, "every name once in an object", f"{short(twice)} twice")
    return found


def check_lists(path: Path, content: Any, *, kind: str, lists: tuple[str, ...]) -> None:
    """Hold a parsed file to the outline of COCO: an object with these lists."""
    where = str(path)
    named = " and ".join([", ".join(f"`{key}`" for key in lists[:-1]), f"`{lists[-1]}`"])
    need = f"{kind} file: an object with the lists {named}"
    if not isinstance(content, dict):
        fail(where, need, f"a {type(content).__name__} (a file of results?)", "Name the annotation file.")
    for key in lists:
        if not isinstance(content.get(key), list):
            problem = f"`{key}` as {short(content[key])}" if key in content else f"no `{key}`"
            fail(where, need, f"{problem}; its keys are {short(list(content))}", "Name the annotation file.")


def check_entry(where: str | Path, entry: Any, noun: str, seen: set[int | str]) -> str:
    """Check that an entry is an object with an id of its own; return how messages call it."""
    if not isinstance(entry, dict):
        fail(f"{where}: {noun}", "an object", short(entry))
    key: Any = entry.get("id")
    if not is_id(key):
        fail(f"{where}: {noun}", "an `id`, a whole number or a string", short(key))
    here = f"{where}: {noun} {short(key)}"
    if key in seen:
        fail(here, f"every {noun}'s `id` once", "this one twice")
    seen.add(key)
    return here


def field(where: str, entry: dict[str, Any], key: str, kind: type, need: str) -> Any:
    """Take a field of a type; an empty text counts as none."""
    value = entry.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or value == "":
        fail(where, f"`{key}`, {need}", short(value) if key in entry else "no such field")
    return value


def known_id(where: str, entry: dict[str, Any], key: str, known: dict[Any, Any]) -> Any:
    """Take a field that must name something the file lists."""
    value = entry.get(key)
    if not is_id(value) or value not in known:
        fail(where, f"`{key}`, one of the {len(known)} ids the file lists", short(value))
    return value


def flag(where: str, entry: dict[str, Any], key: str, *, default: int | None) -> bool:
    """Take a field that is 0 or 1."""
    value = entry.get(key, default)
    if not isinstance(value, int) or value not in (0, 1):
        fail(where, f"`{key}`, 0 or 1", short(value) if key in entry else "no such field")
    return bool(value)


def list_categories(path: Path, entries: list[Any], *, need_isthing: bool = False) -> tuple[Category, ...]:
    """Read the categories of a file, by id."""
    found = []
    seen: set[int | str] = set()
    for entry in entries:
        where = check_entry(path, entry, "category", seen)
        number = field(where, entry, "id", int, "a whole number")
        name = field(where, entry, "name", str, "its name")
        found.append(Category(number, name, flag(where, entry, "isthing", default=None if need_isthing else 1)))
    return tuple(sorted(found, key=lambda category: category.id))


def file_name(where: str, entry: dict[str, Any]) -> str:
    """Where an entry's file lies, as COCO says it."""
    return field(where, entry, "file_name", str, "the name of an image file")


def list_images(
    path: Path, entries: list[Any], *, name_of: Callable[[str, dict[str, Any]], str] = file_name
) -> dict[int | str, Listed]:
    """Read the images of a file, by id, in its order.

    Args:
        path: of the file.
        entries: its `images`.
        name_of: (how messages call the entry, the entry) -> where its image lies below the images' folder.
    """
    found = {}
    seen: set[int | str] = set()
    texts: set[str] = set()
    for entry in entries:
        where = check_entry(path, entry, "image", seen)
        name = name_of(where, entry)
        for key in ("height", "width"):
            if field(where, entry, key, int, "a whole number of pixels") < 1:
                fail(where, f"`{key}` of at least 1 pixel", short(entry[key]))
        if str(entry["id"]) in texts:  # 1 and "1": messages and results could not tell them apart
            fail(where, "ids that differ as text", "the same id as a number and as a string")
        texts.add(str(entry["id"]))
        found[entry["id"]] = Listed(name, entry["height"], entry["width"])
    return found


# ------------------------------------------------------------------------------------------------------------ the boxes


def box_of(where: str, value: Any, *, height: int, width: int) -> Box | str:
    """Turn an annotation's xywh into xyxy clipped to the image, or into the reason why it cannot be used."""
    if not isinstance(value, list) or len(value) != 4:
        fail(where, "`bbox`, [x, y, width, height] in pixels", short(value))
    if not all(map(is_number, value)):
        fail(where, "`bbox` of four numbers", short(value))
    try:
        x, y, w, h = map(float, value)
    except OverflowError:  # a whole number beyond the floats
        return NOT_FINITE
    return clip_box((x, y, x + w, y + h), height=height, width=width)


def clip_box(box: Box, *, height: int, width: int) -> Box | str:
    """Clip xyxy to the image [pixels], or say why the box cannot be used."""
    if not all(map(math.isfinite, box)):
        return NOT_FINITE
    if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
        return OUTSIDE
    x1, y1, x2, y2 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))
    return TINY if x2 - x1 < 1 or y2 - y1 < 1 else (x1, y1, x2, y2)


def image_paths(json_path: Path, names: dict[int | str, str], folder: Path) -> dict[int | str, Path]:
    """Join file names to their folder; none may leave it, by its text or through a link, and one must be there."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: need the folder of the files that {json_path} names; there is none. Check the path."
        )
    for key, name in names.items():
        if escapes(name):
            fail(
                f"{json_path}: image {short(key)}",
                f"`file_name` inside {folder}",
                f"{short(name)}, which leads elsewhere",
                UNTRUSTED_FILE,
            )
    paths = {key: folder / name for key, name in names.items()}
    there: dict[Path, bool] = {}  # file -> whether it is a link; one pass over a folder, not one look-up an image
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


def escapes(name: str) -> bool:
    """Whether a file name leads out of the folder it is relative to, on any system, or is no file name at all."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return posix.is_absolute() or bool(windows.anchor) or ".." in posix.parts + windows.parts or "\0" in name
