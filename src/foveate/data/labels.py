"""Label spaces: the classes of a data set, each with the number in its files and the words that people call it by.

    id:synonym,synonym   a line, OpenSeg's lists; lines with `invalid_class_id` are skipped. `labels.txt` of COCO-Stuff
                         and of PASCAL Context ("12: street sign") are of the same form
    ["name, synonym", ...]   JSON, CAT-Seg's lists of class names: no ids, the classes in the data set's order
    objectInfo150.txt    columns Idx ... [Stuff] Name, ADE20K's own

No list is shipped: each data set carries its own. Two words are the same if they differ only in capitals, "_" and
blanks. Deliberately absent: prompts and embeddings (`foveate.clip.text`), lists of one's own
(`foveate.clip.vocabulary`).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from foveate.data.validation import fail, read_text, short
from foveate.errors import InputError, listed
from foveate.io.files import write_whole
from foveate.types import Category

INVALID = "invalid_class_id"
MAX_BYTES = 4_000_000
SYNONYMS = ", "  # between the words of a class in a JSON list
STUFF = {"0": True, "1": False}  # ADE20K's column `Stuff` -> is a thing

Repeated = Literal["refuse", "keep"]


@dataclass(frozen=True)
class Labels:
    """K classes; the first word of each is its name."""

    ids: tuple[int, ...]  # as the data set's files number them
    classes: tuple[tuple[str, ...], ...]
    is_thing: tuple[bool, ...] = ()  # none: the list does not say
    notes: tuple[str, ...] = ()  # what else the user must be told

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class."""
        return tuple(words[0] for words in self.classes)

    def categories(self) -> tuple[Category, ...]:
        """The classes as a data set's categories; all things where the list does not say."""
        things = self.is_thing or (True,) * len(self.ids)
        rows = zip(self.ids, self.classes, things, strict=True)
        return tuple(Category(number, words[0], thing, words[1:]) for number, words, thing in rows)

    def choose(self, ids: Iterable[int]) -> "Labels":
        """The classes with these ids, in this order.

        Raises:
            InputError: an id that no class has.
        """
        place = {number: where for where, number in enumerate(self.ids)}
        wanted = list(ids)
        missing = [number for number in wanted if number not in place]
        if missing:
            raise InputError(f"labels: need classes with the ids {missing[:10]}; there are none.")
        chosen = [place[number] for number in wanted]
        things = tuple(self.is_thing[one] for one in chosen) if self.is_thing else ()
        return replace(self, ids=tuple(wanted), classes=tuple(self.classes[one] for one in chosen), is_thing=things)


def read_labels(path: Path | str, *, repeated: Repeated = "refuse", ids: Sequence[int] | None = None) -> Labels:
    """Read a list in OpenSeg's form, or a JSON list of strings.

    Args:
        path: of the text file, one `id:synonym,synonym` a line; or JSON, told by its first character.
        ids: of the classes of a JSON list, which has none; None: 1, 2, 3 ...
        repeated: a word that two classes share is an error, or is kept in both and noted, as official lists have it.

    Returns:
        The classes in the file's order; a word that one class has twice counts once.

    Raises:
        InputError: no class, a line of another form, an id twice, an empty word, or a word in two classes; says where.
    """
    lines = read_text(Path(path), need="a list of classes", max_bytes=MAX_BYTES).splitlines()
    if next((line for line in lines if line.strip()), "").lstrip().startswith("["):
        return _checked(str(path), _json_rows(str(path), "\n".join(lines), ids), repeated=repeated)
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        here = f"{path}: line {number}"
        key, colon, words = line.partition(":")
        if not colon or not key.strip().isdecimal():
            fail(here, "`id:synonym,synonym`", short(line))
        if words.strip() != INVALID:
            rows.append((here, int(key), words.split(",")))
    return _checked(str(path), rows, repeated=repeated)


def write_labels(path: Path, labels: Labels) -> None:
    """Write a list in OpenSeg's form, whole or not at all; the inverse of `read_labels`."""
    write_whole(path, labels_text(labels).encode())


def labels_text(labels: Labels) -> str:
    """What `write_labels` writes."""
    rows = zip(labels.ids, labels.classes, strict=True)
    return "".join(f"{number}:{','.join(' '.join(word.split()) for word in words)}\n" for number, words in rows)


def read_object_info(path: Path | str, *, repeated: Repeated = "keep") -> Labels:
    """Read ADE20K's `objectInfo150.txt`; its classes share a few words ("screen", "ground"), which it keeps.

    Raises:
        InputError: as `read_labels`.
    """
    lines = read_text(Path(path), need="a list of classes", max_bytes=MAX_BYTES).splitlines()
    header = [name.strip() for name in lines[0].split("\t")] if lines else []
    if not {"Idx", "Name"} <= {*header}:
        fail(f"{path}: line 1", "columns, `Idx` and `Name` among them, apart by tabs", short(lines[0] if lines else ""))
    rows, things = [], []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        here, cells = f"{path}: line {number}", [cell.strip() for cell in line.split("\t")]
        if len(cells) != len(header):
            fail(here, f"{len(header)} columns", f"{len(cells)}")
        row = dict(zip(header, cells, strict=True))
        if not row["Idx"].isdecimal() or row.get("Stuff", "0") not in STUFF:
            fail(here, "`Idx`, a whole number, and `Stuff`, 0 or 1", short(line))
        rows.append((here, int(row["Idx"]), row["Name"].split(",")))
        things.append(STUFF[row.get("Stuff", "0")])
    return replace(_checked(str(path), rows, repeated=repeated), is_thing=tuple(things) if "Stuff" in header else ())


def class_names(
    categories: Sequence[Category], labels: Path | None, *, name: str, report: Callable[[str], object]
) -> Labels:
    """The names of each category, from a list or from the annotation file.

    Args:
        categories: of a data set.
        labels: a list in OpenSeg's form, by the ids of the categories or in their order; None: their own names.
        name: of the data set, for the user.
        report: prints names that two classes share.

    Raises:
        InputError: a list that is damaged or of other classes.
    """
    own = labels_of(categories)
    if labels is None:
        return own
    given = read_labels(labels, repeated="keep")
    for line in given.notes:
        report(f"{line}; the best name of a class counts, so that these classes tie there")
    if set(own.ids) <= set(given.ids):
        return replace(given.choose(own.ids), is_thing=own.is_thing)
    if len(given.ids) != len(own.ids):
        raise InputError(
            f"--labels {labels}: need the names of {len(own.ids)} classes, by their ids or in their order; got "
            f"{len(given.ids)} classes, other ids among them."
        )
    report(f"--labels {labels}: its ids are not those of {name}; its classes are taken in their order")
    return replace(given, ids=own.ids, is_thing=own.is_thing)


def labels_of(categories: Sequence[Category]) -> Labels:
    """The label space of a data set whose annotation file lists its categories (COCO, LVIS, the rendered world)."""
    return Labels(
        ids=tuple(one.id for one in categories),
        classes=tuple((one.name, *one.synonyms) for one in categories),
        is_thing=tuple(one.is_thing for one in categories),
    )


def normalise_name(word: str) -> str:
    """A word as it is compared with others."""
    return " ".join(word.replace("_", " ").lower().split())


def _json_rows(source: str, text: str, ids: Sequence[int] | None) -> list[tuple[str, int, list[str]]]:
    """The classes of a JSON list, each with where it stands and its id."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: need a JSON list of names; {type(error).__name__}: {error}.") from error
    strange = [one for one in content if not isinstance(one, str)]
    if strange:
        fail(source, "a JSON list of names as text", short(strange[0]))
    if ids is not None and len(ids) != len(content):
        fail(source, f"{len(ids)} classes in the data set's order", f"{len(content)}")
    numbers = range(1, len(content) + 1) if ids is None else ids
    rows = enumerate(zip(numbers, content, strict=True), start=1)
    return [(f"{source}: entry {place}", number, one.split(SYNONYMS)) for place, (number, one) in rows]


def _checked(source: str, rows: list[tuple[str, int, list[str]]], *, repeated: Repeated) -> Labels:
    """Hold the classes, each with where it stands, to the rules."""
    ids: set[int] = set()
    owner: dict[str, int] = {}  # a word as it is compared -> the place of the first class that has it
    classes: list[tuple[str, ...]] = []
    shared: list[str] = []
    for place, (here, number, words) in enumerate(rows):
        if number in ids:
            fail(here, "every id once", f"{number} again")
        ids.add(number)
        kept: dict[str, str] = {}
        for word in (one.strip() for one in words):
            key = normalise_name(word)
            if not key:
                fail(here, "a word in each place", f"an empty one among {short(words)}")
            first = owner.setdefault(key, place)
            if first != place and key not in kept:
                pair = f"{word!r} in the classes {classes[first][0]!r} and {words[0].strip()!r}"
                if repeated == "refuse":
                    fail(here, "every word in one class", pair, 'Remove it from one, or keep it (repeated="keep").')
                shared.append(pair)
            kept.setdefault(key, word)
        classes.append(tuple(kept.values()))
    if not rows:
        fail(source, "at least one class", "none")
    notes = (f"{source}: {len(shared)} words stand in two classes: {listed(shared)}",) if shared else ()
    return Labels(tuple(number for _, number, _ in rows), tuple(classes), notes=notes)
