"""Label spaces: the classes of a data set, with their ids in its files and their names.

    id:synonym,synonym       one class per line, OpenSeg's lists (lines with `invalid_class_id` are skipped), and
                             `labels.txt` of COCO-Stuff and PASCAL Context ("12: street sign")
    ["name, synonym", ...]   JSON, CAT-Seg's lists of class names: no ids, the classes in the data set's order
    objectInfo150.txt        columns Idx ... [Stuff] Name, ADE20K's own

No list is part of the package: each data set has its own. Names are compared as by
`foveate.types.normalize_name`.
`foveate.clip.text` embeds names in prompt templates; `foveate.clip.vocabulary` reads custom lists.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from foveate.data.validation import fail, read_text, short
from foveate.errors import InputError, listed
from foveate.io.files import write_whole
from foveate.io.json_text import parse_json
from foveate.types import Category, normalize_name, repeated_name

INVALID = "invalid_class_id"
MAX_BYTES = 4_000_000
SYNONYMS = ", "  # separates the synonyms of a class in a JSON list
STUFF = {"0": True, "1": False}  # ADE20K's column `Stuff` -> is_thing

Repeated = Literal["refuse", "keep"]


@dataclass(frozen=True)
class Labels:
    """K classes; the first name of each is its main name, the others are synonyms."""

    ids: tuple[int, ...]  # in the data set's files
    classes: tuple[tuple[str, ...], ...]
    is_thing: tuple[bool, ...] = ()  # empty: not in the list
    notes: tuple[str, ...] = ()  # lines to report to the user

    @property
    def names(self) -> tuple[str, ...]:
        """The main name of each class."""
        return tuple(names[0] for names in self.classes)

    def categories(self) -> tuple[Category, ...]:
        """The classes as a data set's categories; all are things if the list does not say."""
        is_thing = self.is_thing or (True,) * len(self.ids)
        rows = zip(self.ids, self.classes, is_thing, strict=True)
        return tuple(Category(number, names[0], thing, names[1:]) for number, names, thing in rows)

    def choose(self, ids: Iterable[int]) -> "Labels":
        """The classes with these ids, in this order; InputError if an id does not exist."""
        index_of = {number: index for index, number in enumerate(self.ids)}
        ids = tuple(ids)
        missing = [number for number in ids if number not in index_of]
        if missing:
            raise InputError(
                f"labels: need classes with the ids {missing[:10]}; the list has none. Give the whole list."
            )
        indices = [index_of[number] for number in ids]
        is_thing = tuple(self.is_thing[index] for index in indices) if self.is_thing else ()
        return replace(self, ids=ids, classes=tuple(self.classes[index] for index in indices), is_thing=is_thing)


def read_labels(path: Path | str, *, repeated: Repeated = "refuse", ids: Sequence[int] | None = None) -> Labels:
    """Read a list in OpenSeg's form, or a JSON list of strings (recognised by its first character).

    Args:
        path: of the text file.
        repeated: a name in two classes is an error ("refuse"), or stays in both with a note ("keep"), as in official
            lists.
        ids: of the classes of a JSON list, which has none; None: 1, 2, 3 ...

    Returns:
        The classes in the file's order; a name that one class has twice counts once.

    Raises:
        InputError: no class, a line of another form, a repeated id, an empty name, or a name in two classes; names the
            line.
    """
    lines = read_text(Path(path), need="a list of classes", max_bytes=MAX_BYTES).splitlines()
    if next((line for line in lines if line.strip()), "").lstrip().startswith("["):
        return _check_rows(str(path), _json_rows(str(path), "\n".join(lines), ids), repeated=repeated)
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        key, colon, names = line.partition(":")
        if not colon or not key.strip().isdecimal():
            fail(where, "`id:synonym,synonym`", short(line))
        if names.strip() != INVALID:
            rows.append((where, int(key), names.split(",")))
    return _check_rows(str(path), rows, repeated=repeated)


def write_labels(path: Path, labels: Labels) -> None:
    """Write a list in OpenSeg's form, whole or not at all; the inverse of `read_labels`."""
    write_whole(path, labels_text(labels).encode())


def labels_text(labels: Labels) -> str:
    """The content of a file of `write_labels`."""
    rows = zip(labels.ids, labels.classes, strict=True)
    return "".join(f"{number}:{','.join(' '.join(name.split()) for name in names)}\n" for number, names in rows)


def read_object_info(path: Path | str, *, repeated: Repeated = "keep") -> Labels:
    """Read ADE20K's `objectInfo150.txt`, in which some classes share names ("screen", "ground").

    Raises:
        InputError: as `read_labels`.
    """
    lines = read_text(Path(path), need="a list of classes", max_bytes=MAX_BYTES).splitlines()
    header = [name.strip() for name in lines[0].split("\t")] if lines else []
    if not {"Idx", "Name"} <= {*header}:
        fail(f"{path}: line 1", "tab-separated columns with `Idx` and `Name`", short(lines[0] if lines else ""))
    rows, is_thing = [], []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        where, cells = f"{path}: line {number}", [cell.strip() for cell in line.split("\t")]
        if len(cells) != len(header):
            fail(where, f"{len(header)} columns", f"{len(cells)}")
        row = dict(zip(header, cells, strict=True))
        if not row["Idx"].isdecimal() or row.get("Stuff", "0") not in STUFF:
            fail(where, "`Idx`, an integer, and `Stuff`, 0 or 1", short(line))
        rows.append((where, int(row["Idx"]), row["Name"].split(",")))
        is_thing.append(STUFF[row.get("Stuff", "0")])
    labels = _check_rows(str(path), rows, repeated=repeated)
    return replace(labels, is_thing=tuple(is_thing) if "Stuff" in header else ())


def class_names(
    categories: Sequence[Category], labels: Path | None, *, name: str, report: Callable[[str], object]
) -> Labels:
    """The names of each category, from a list or from the annotation file.

    Args:
        categories: of a data set.
        labels: a list in OpenSeg's form, by the ids of the categories or in their order; None: their own names.
        name: of the data set, for messages.
        report: receives lines about names that two classes share.

    Raises:
        InputError: a malformed list, or one of other classes.
    """
    known = labels_of(categories)
    if labels is None:
        return known
    given = read_labels(labels, repeated="keep")
    for line in given.notes:
        report(f"{line}; a class is scored by its best name, so these classes tie there")
    if set(known.ids) <= set(given.ids):
        return replace(given.choose(known.ids), is_thing=known.is_thing)
    if len(given.ids) != len(known.ids):
        raise InputError(
            f"--labels {labels}: need the names of {len(known.ids)} classes, by their ids or in their order; got "
            f"{len(given.ids)} classes, other ids among them."
        )
    report(f"--labels {labels}: its ids are not those of {name}; its classes are used in their order")
    return replace(given, ids=known.ids, is_thing=known.is_thing)


def refuse_repeated(source: str, names: Iterable[str], *, do: str = "Correct the annotation file.") -> None:
    """Refuse names that are compared as the same; they are the text of classes, which could not be told apart."""
    twice = repeated_name(names)
    if twice is not None:
        is_equal = twice[0] == twice[1]
        got = f"{twice[0]!r} twice" if is_equal else f"{twice[0]!r} and {twice[1]!r}, which are compared as the same"
        fail(source, "every name once", got, do)


def labels_of(categories: Sequence[Category]) -> Labels:
    """The label space of a data set whose annotation file lists its categories (COCO, LVIS, the rendered world)."""
    return Labels(
        ids=tuple(category.id for category in categories),
        classes=tuple((category.name, *category.synonyms) for category in categories),
        is_thing=tuple(category.is_thing for category in categories),
    )


def _json_rows(source: str, text: str, ids: Sequence[int] | None) -> list[tuple[str, int, list[str]]]:
    """The rows (where, id, names) of a JSON list."""
    try:
        content = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: need a JSON list of names; {type(error).__name__}: {error}.") from error
    for entry in content:
        if not isinstance(entry, str):
            fail(source, "a JSON list of names as strings", short(entry))
    if ids is not None and len(ids) != len(content):
        fail(source, f"{len(ids)} classes in the data set's order", f"{len(content)}")
    numbers = range(1, len(content) + 1) if ids is None else ids
    rows = enumerate(zip(numbers, content, strict=True), start=1)
    return [(f"{source}: entry {index}", number, entry.split(SYNONYMS)) for index, (number, entry) in rows]


def _check_rows(source: str, rows: list[tuple[str, int, list[str]]], *, repeated: Repeated) -> Labels:
    """Check rows of (where, id, names)."""
    ids: set[int] = set()
    first_class: dict[str, int] = {}  # normalised name -> index of the first class that has it
    classes: list[tuple[str, ...]] = []
    shared: list[str] = []
    for index, (where, number, names) in enumerate(rows):
        if number in ids:
            fail(where, "unique ids", f"{number} twice")
        ids.add(number)
        unique: dict[str, str] = {}
        for name in (name.strip() for name in names):
            key = normalize_name(name)
            if not key:
                fail(where, "names that are not empty", short(names))
            first = first_class.setdefault(key, index)
            if first != index and key not in unique:
                pair = f"{name!r} in the classes {classes[first][0]!r} and {names[0].strip()!r}"
                if repeated == "refuse":
                    fail(where, "unique names", pair, 'Remove it from one, or keep both (repeated="keep").')
                shared.append(pair)
            unique.setdefault(key, name)
        classes.append(tuple(unique.values()))
    if not rows:
        fail(source, "at least one class", "none")
    notes = (f"{source}: {len(shared)} names are in two classes: {listed(shared)}",) if shared else ()
    return Labels(tuple(number for _, number, _ in rows), tuple(classes), notes=notes)
