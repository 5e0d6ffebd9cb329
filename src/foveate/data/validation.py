"""Strict validation of annotation files; every data set reader is built from these functions.

A file that contradicts itself (wrong types, unknown or repeated ids, a file name that leaves its folder) is refused
with the file, the entry and the field. A single unusable box (missing, not finite, outside the image, under 1 pixel
inside it) is ignored and counted in `Dataset.ignored`, which every command reports. Boxes across the border are
clipped; `consistency.py` counts those that contradict their image. 120.0 is read as 120.
"""

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, NoReturn

from foveate.data.file_names import OTHER_SUFFIX, Reading, existing_tail, files_below, read_names, relative_name
from foveate.data.images import check_inside
from foveate.data.records import Box, IgnoredEntries
from foveate.errors import InputError
from foveate.io.content import HEAD, content_kind
from foveate.io.files import reason_of
from foveate.io.json_text import RepeatedKeyError, parse_json
from foveate.types import Category

NOT_FINITE = "box is not finite"
OUTSIDE = "box is outside the image"
TINY = "box is under 1 pixel inside the image"
MAX_SIDE = 2**31 - 1  # of an image [pixels]
REPAIR_FILE = "Correct the file, or fetch it again."
UNTRUSTED_FILE = "Correct the file; do not trust where it came from."
MAX_NAME = 255  # bytes of a part of a path, on any system
MAX_PROBED = 100  # names looked for in another folder


class ListedImage(NamedTuple):
    """An image of an annotation file: its path below the image folder and its size [pixels]."""

    name: str
    height: int
    width: int


def count_ignored(ignored: dict[str, IgnoredEntries], reason: str, where: str) -> None:
    """Count an entry that is ignored."""
    entry = IgnoredEntries(1, where)
    ignored[reason] = ignored[reason] + entry if reason in ignored else entry


def fail(where: str, need: str, got: str, do: str = REPAIR_FILE) -> NoReturn:
    """Raise the InputError that refuses a file: what is needed, what was given, what to do."""
    raise InputError(f"{where}: need {need}; got {got}. {do}")


def short(value: object) -> str:
    """A value as messages show it, in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a number, which may be infinite or NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(value: Any) -> Any:
    """A float without a fraction as an integer, as exporters write 120.0; anything else is returned unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_id(value: object) -> bool:
    """Whether a value of a JSON file can be an id: an integer or a string."""
    return isinstance(value, int | str) and not isinstance(value, bool)


# --------------------------------------------------------------------------------------------------------- COCO's JSON


def parse(path: Path, *, kind: str, keep: bool = True) -> Any:
    """Parse a JSON file.

    Args:
        kind: of the file, for messages.
        keep: False: only check it; its objects become None.

    Raises:
        InputError: it cannot be read, is not JSON, or a key is repeated within an object.
    """
    where = str(path)
    try:
        return parse_json(path.read_bytes(), keep=keep)
    except RepeatedKeyError as error:
        raise InputError(f"{where}: need {error}. {REPAIR_FILE}") from error
    except OSError as error:
        raise InputError(f"{where}: need {kind} file; {reason_of(error)}. Check the path.") from error
    except (ValueError, RecursionError) as error:
        got, do = f"{type(error).__name__}: {error}", REPAIR_FILE
        with path.open("rb") as file:
            content = content_kind(file.read(HEAD))
        if content is not None:
            got, do = f"it is {content.noun}", f"{content.advice}, or give another file."
        elif path.stat().st_size == 0:
            got = "it has 0 bytes"
        elif "Extra data" in str(error):
            got = f"{error} (one object per line? JSON Lines are not read)"
        raise InputError(f"{where}: need {kind} file in JSON; {got}. {do}") from error


def read_text(path: Path, *, need: str, max_bytes: int) -> str:
    """Read a small text file in UTF-8, with or without a byte order mark.

    Raises:
        InputError: the file does not exist, is not UTF-8, or is too large.
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


def check_lists(path: Path, content: Any, *, kind: str, lists: tuple[str, ...]) -> None:
    """Check that a parsed file is an object with these lists."""
    where = str(path)
    named = " and ".join([", ".join(f"`{key}`" for key in lists[:-1]), f"`{lists[-1]}`"])
    need = f"{kind} file: an object with the lists {named}"
    if not isinstance(content, dict):
        fail(where, need, f"a {type(content).__name__} (a file of results?)", "Name the annotation file.")
    for key in lists:
        if not isinstance(content.get(key), list):
            problem = f"`{key}` as {short(content[key])}" if key in content else f"no `{key}`"
            fail(where, need, f"{problem}; its keys are {short(list(content))}", "Name the annotation file.")


def check_entry(where: str | Path, entry: Any, noun: str, seen: Any) -> str:
    """Check that an entry is an object with a unique id; return how messages name it."""
    if not isinstance(entry, dict):
        fail(f"{where}: {noun}", "an object", short(entry))
    key: Any = whole(entry.get("id"))
    if not is_id(key):
        fail(f"{where}: {noun}", "an `id`, an integer or a string", short(key))
    entry["id"] = key
    name = f"{where}: {noun} {short(key)}"
    if key in seen:
        fail(name, f"a unique `id` per {noun}", "the same one twice")
    seen.add(key)
    return name


def field(where: str, entry: dict[str, Any], key: str, kind: type, need: str) -> Any:
    """Return a field of a type; an empty string counts as missing, and 120.0 is the integer 120."""
    value = whole(entry.get(key))
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or value == "":
        fail(where, f"`{key}`, {need}", short(value) if key in entry else "no such field")
    return value


def known_id(where: str, entry: dict[str, Any], key: str, known: dict[Any, Any]) -> Any:
    """Return a field that must be one of the file's ids."""
    value = whole(entry.get(key))
    if not is_id(value) or value not in known:
        fail(where, f"`{key}`, one of the {len(known)} ids in the file", short(value))
    return value


def flag(where: str, entry: dict[str, Any], key: str, *, default: int | None) -> bool:
    """Return a field that is 0 or 1; null is the default."""
    value = whole(entry.get(key))
    value = default if value is None else value
    if not isinstance(value, int) or value not in (0, 1):
        fail(where, f"`{key}`, 0 or 1", short(value) if key in entry else "no such field")
    return bool(value)


def list_categories(path: Path, content: dict[str, Any], *, need_isthing: bool = False) -> tuple[Category, ...]:
    """Read the categories of a file, sorted by id, without those that `unused_categories` names."""
    categories = []
    seen: set[int | str] = set()
    unused = unused_categories(content)
    for entry in content["categories"]:
        where = check_entry(path, entry, "category", seen)
        number = field(where, entry, "id", int, "an integer")
        name = field(where, entry, "name", str, "its name")
        if number in unused:
            continue
        is_thing = flag(where, entry, "isthing", default=None if need_isthing else 1)
        categories.append(Category(number, name, is_thing))
    return tuple(sorted(categories, key=lambda category: category.id))


def unused_categories(content: dict[str, Any]) -> dict[int | str, str]:
    """The categories that exporters add and that are no classes: a line for people by id.

    They own no object, and are called background, or are the supercategory of others (the root of a tree). In a file
    without annotations none is left out.
    """
    if "unused" in content:
        return content["unused"]
    entries = [entry for entry in content["categories"] if isinstance(entry, dict) and is_id(whole(entry.get("id")))]
    named = [entry for entry in entries if isinstance(entry.get("name"), str)]
    parents = {parent for entry in named if (parent := short(entry.get("supercategory"))) != short(entry["name"])}
    suspects: dict[int | str, str] = {}
    for entry in named:
        is_parent = short(entry["name"]) in parents
        if is_parent or entry["name"].strip("_- ").lower() == "background":
            reason = "is the supercategory of others" if is_parent else "names the background"
            text = f"category {short(entry['name'])} is not used as a class: it {reason} and owns no object"
            suspects[whole(entry["id"])] = text
    if not suspects:
        return {}
    is_empty = True
    for entry in content.get("annotations", ()):
        is_empty = False
        parts = entry.get("segments_info", [entry]) if isinstance(entry, dict) else []
        for part in parts if isinstance(parts, list) else []:
            key = part.get("category_id") if isinstance(part, dict) else None
            if is_number(key):
                suspects.pop(whole(key), None)
    return {} if is_empty else suspects


def file_name(where: str, entry: dict[str, Any]) -> str:
    """The path of an entry's image, in COCO's field."""
    return field(where, entry, "file_name", str, "the name of an image file")


def list_images(
    path: Path, entries: list[Any], *, name_of: Callable[[str, dict[str, Any]], str] = file_name
) -> dict[int | str, ListedImage]:
    """Read the images of a file by id, in its order.

    Args:
        name_of: (the entry's name in messages, the entry) -> the path of its image below the image folder.
    """
    images = {}
    seen: set[int | str] = set()
    texts: set[str] = set()
    for entry in entries:
        where = check_entry(path, entry, "image", seen)
        name = name_of(where, entry)
        height, width = (field(where, entry, key, int, "an integer number of pixels") for key in ("height", "width"))
        for key, side in (("height", height), ("width", width)):
            if not 1 <= side <= MAX_SIDE:
                fail(where, f"`{key}` of at least 1 pixel", short(entry[key]))
        if str(entry["id"]) in texts:  # 1 and "1" would look the same in messages and results
            fail(where, "ids that differ as text", "the same id as a number and as a string")
        texts.add(str(entry["id"]))
        images[entry["id"]] = ListedImage(name, height, width)
    return images


# ------------------------------------------------------------------------------------------------------------ the boxes


def read_xywh(where: str, value: Any) -> Box | None:
    """Read an annotation's `bbox`: x, y, width, height, which may be infinite or NaN; None: it is missing or empty."""
    if value is None or value == [] or value == [None] * 4:
        return None
    if not isinstance(value, list) or len(value) != 4:
        fail(where, "`bbox`, [x, y, width, height] in pixels", short(value))
    if not {*map(type, value)} <= {int, float}:
        fail(where, "`bbox` of four numbers", short(value))
    try:
        x, y, w, h = map(float, value)
    except OverflowError:  # an integer beyond the range of floats
        return math.inf, math.inf, math.inf, math.inf
    return x, y, w, h


def clip_box(box: Box, *, height: int, width: int) -> Box | str:
    """Clip xyxy to the image [pixels], or return the reason why the box is ignored."""
    if not all(map(math.isfinite, box)):
        return NOT_FINITE
    if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
        return OUTSIDE
    x1, y1, x2, y2 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))
    return TINY if x2 - x1 < 1 or y2 - y1 < 1 else (x1, y1, x2, y2)


def image_paths(
    json_path: Path, names: dict[int | str, str], folder: Path, *, notes: list[str] | None = None
) -> dict[int | str, Path]:
    """Join file names to their folder; none may lead out of it, also through a link, and at least one must exist.

    If none exists as written, the files that they mean are looked for in the folder (see `file_names.py`).

    Args:
        json_path: of the file that names them, for messages.
        names: by the image's id; absolute ones must be in the folder.
        folder: of the images.
        notes: receives a line if the names are not used as written.

    Raises:
        InputError: the folder does not exist, a name or a link leads out of it, or no image is found; names the reason.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: need the folder of the files named in {json_path}; not found. Check the path.")
    names = {key: relative_name(name, folder) for key, name in names.items()}
    for key, name in names.items():
        if escapes(name):
            tail = existing_tail(name, folder, is_safe=lambda tail: not escapes(tail))
            do = UNTRUSTED_FILE if tail is None else f"Name the images relative to the folder: {tail} exists in it."
            where = f"{json_path}: image {short(key)}"
            fail(where, f"`file_name` inside {folder}", f"{short(name)}, which leads out of it", do)
    paths = {key: folder / name for key, name in names.items()}
    is_link = _existing(paths.values(), folder)
    if paths and not any(path in is_link for path in paths.values()):
        reading = _read_names(json_path, list(dict.fromkeys(names.values())), folder)
        paths = {key: folder / reading.files.get(name, name) for key, name in names.items()}
        is_link = _existing(paths.values(), folder)
        if notes is not None:
            notes.append(f"{json_path}: {reading.line()}")
    for path in paths.values():
        if is_link.get(path):
            check_inside(path, folder)
    return paths


def _existing(paths: Iterable[Path], folder: Path) -> dict[Path, bool]:
    """The files in the folders of some paths, and whether each is a link; a pass over each folder, no look-ups."""
    is_link: dict[Path, bool] = {}
    for parent in {path.parent for path in paths}:
        if parent.is_dir():
            check_inside(parent, folder)
            with os.scandir(parent) as entries:
                is_link.update({parent / entry.name: entry.is_symlink() for entry in entries})
    return is_link


def _read_names(json_path: Path, names: list[str], folder: Path) -> Reading:
    """The files that names mean, none of which exists as written; InputError if that is in doubt."""
    files = files_below(folder)
    reading = read_names(names, files)
    if reading is not None and not reading.doubt and reading.how.endswith(OTHER_SUFFIX):
        with (folder / next(iter(reading.files.values()))).open("rb") as file:
            head = file.read(26)
        if head.startswith(b"\x89PNG") and head[25:] in (b"\0", b"\3"):  # grey or a palette
            reading = replace(reading, doubt="these may be label maps")
    if reading is not None and not reading.doubt:
        return reading
    above = folder.absolute().parent
    is_above = any((above / name).is_file() for name in names[:MAX_PROBED])
    if is_above:
        do = f"They exist in {above}: give that folder."
    elif reading is not None:
        do = f"They cannot be taken for others: {reading.line()}, but {reading.doubt}. Correct the names or the folder."
    elif files:
        do = f"It has {len(files)} images, such as {files[0]}: is it the folder of another split?"
    else:
        do = "It has no images: is this the folder of another split?"
    raise InputError(
        f"{json_path}: need the files it names in {folder}; none of {len(names)} exists (the first: {names[0]!r}). {do}"
    )


def escapes(name: str) -> bool:
    """Whether a file name leads out of its folder, on any system, or is not a file name at all."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if len(name) > MAX_NAME and any(len(part.encode(errors="replace")) > MAX_NAME for part in posix.parts):
        return True
    return posix.is_absolute() or bool(windows.anchor) or ".." in posix.parts + windows.parts or "\0" in name
