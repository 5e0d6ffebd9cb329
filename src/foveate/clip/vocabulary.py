"""User-provided vocabularies: class names with synonyms, as text or from a .txt or .json file, read strictly.

    .txt    one class per line, its synonyms separated by commas; empty lines and lines that begin with # are ignored
    .json   ["cat", "dog"], or [["cat", "kitty"], ["dog"]], or {"cat": ["kitty"], "dog": []}; or strings of synonyms,
            ["cat, kitty", "dog"], split at ", ", as CAT-Seg's lists of class names
    text    "cat, dog": two classes

Other forms are read as what they are, and reported: numbers or WordNet ids before all names ("0: cat", "1,dog"), a line
of column names, {"base": names, "novel": names}, {"names": ...}, {"classes": ...}, {"categories": [{"id", "name"}]},
ImageNet's {"0": ["n01440764", "tench"]}, {"cat": 0}. What could mean two things is refused.

Names are compared as by `foveate.types.normalize_name`. A name may occur once, except in a list of strings of synonyms,
since published ones share names between classes; shared names are reported.
"""

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.errors import InputError, listed
from foveate.io.files import reason_of
from foveate.types import is_code, normalize_name

MAX_BYTES = 16_000_000  # ImageNet's 21,841 classes with all their synonyms take about 1 MB
SUFFIXES = (".txt", ".json")
FILE_SUFFIXES = (*SUFFIXES, ".csv", ".tsv", ".yaml", ".yml")
SYNONYMS = ", "  # between the synonyms of a class in a list of strings
SEPARATORS = re.compile("[;|\n\r\t\uff0c\uff1b\u3001]")  # that a name does not have; the last are full-width
NUMBERED = re.compile(r"(\d+|n\d{8})\s*([:.)=\t]|-\s|\s)\s*(\S.*)")  # a number or WordNet id before a name
HEADINGS = {"id", "idx", "index", "number", "class id", "category id", "name", "class", "class name", "category",
            "category name", "label", "synonyms"}  # fmt: skip
WRAPPERS = ("names", "classes", "categories", "id2label")  # keys of the classes in files with more than them


@dataclass(frozen=True)
class Vocabulary:
    """K classes, each a tuple of its name and synonyms."""

    classes: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class."""
        return tuple(names[0] for names in self.classes)


def read_vocabulary(text_or_path: str | Path) -> Vocabulary:
    """Read a vocabulary from a file, or from class names separated by commas.

    Args:
        text_or_path: a .txt or .json file (see the module), or class names. In a JSON object, a key is the name of a
            class.

    Raises:
        InputError: no class, an empty or repeated name, a name that is not text, or a file that is not UTF-8, too
            large, or neither .txt nor .json; a name that is a number, a WordNet id or a file, or has another separator
            than a comma; gives the line or entry.
    """
    if isinstance(text_or_path, str) and not _is_file_name(text_or_path):
        names = enumerate(text_or_path.split(","), start=1)
        return _checked([(f"{text_or_path!r}: name {i}", [name]) for i, name in names])
    path = Path(text_or_path)
    match path.suffix.lower():
        case ".txt":
            return _checked(_without_headings(path, _line_classes(path)), source=str(path))
        case ".json":
            classes, may_share = _json_classes(path)
            return _checked(classes, source=str(path), may_share=may_share)
    raise InputError(
        f"{path}: need a vocabulary in a .txt or .json file; got one that ends in {path.suffix!r}. Write its names to "
        "a .txt file, one class per line."
    )


def _is_file_name(text: str) -> bool:
    """Whether a text names a vocabulary file, or an existing file of another type, which is refused."""
    suffix = Path(text).suffix.lower()
    return suffix in SUFFIXES or ((suffix != "" or "/" in text) and len(text) < 256 and Path(text).is_file())


def _line_classes(path: Path) -> list[tuple[str, list[Any]]]:
    lines = enumerate(_read(path).splitlines(), start=1)
    return [(f"{path}: line {i}", line.split(",")) for i, line in lines if _is_content(line)]


def _without_headings(path: Path, classes: list[tuple[str, list[Any]]]) -> list[tuple[str, list[Any]]]:
    """The lines without a first one of column names."""
    if len(classes) < 2 or not {normalize_name(name) for name in classes[0][1]} <= HEADINGS:
        return classes
    _report(f"{classes[0][0]}: {','.join(classes[0][1])!r} is read as the names of columns, not as a class")
    return classes[1:]


def _is_content(line: str) -> bool:
    return bool(line.strip()) and not line.strip().startswith("#")


def _read(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path}: need a vocabulary of at most {MAX_BYTES:,} bytes; it has {size:,}.")
        return path.read_bytes().decode("utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: need text in UTF-8; byte {error.start} is not. Save it again in that encoding."
        ) from error
    except OSError as error:
        raise InputError(f"{path}: need a vocabulary file; {reason_of(error)}. Check the path.") from error


def _json_classes(path: Path) -> tuple[list[tuple[str, list[Any]]], bool]:
    """The names of each class of a JSON file with their location, and whether classes may share them."""
    text = _read(path)
    try:
        content = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: need JSON; {type(error).__name__}: {error}. Correct the file.") from error
    content = _classes_of(path, content)
    if isinstance(content, _Pairs):
        classes = [(f"{path}: entry {name!r}", name, synonyms) for name, synonyms in content]
        return [(where, [name, *_synonyms(where, rest, of=name)]) for where, name, rest in classes], False
    if isinstance(content, list):
        content = [_name_of(entry) for entry in content]
        may_share = all(isinstance(entry, str) for entry in content) and any(SYNONYMS in entry for entry in content)
        entries = [(f"{path}: entry {i}", entry) for i, entry in enumerate(content, start=1)]
        return [(where, _synonyms(where, entry)) for where, entry in entries], may_share
    raise InputError(
        f"{path}: need a list of names, a list of lists of synonyms, or an object name -> synonyms; "
        f"got {content!r:.60}."
    )


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its keys, also repeated ones."""


def _classes_of(path: Path, content: Any) -> Any:
    """The list of classes, or the object name -> synonyms, in JSON of any form; another form than these is reported."""
    if not isinstance(content, _Pairs) or not content:
        return content
    parts = dict(content)
    if parts.keys() <= {"base", "novel"} and all(isinstance(part, list) for part in parts.values()):
        _report(f"{path}: read as the names of base and novel classes, {' then '.join(parts)}")
        return [name for part in parts.values() for name in part]
    wrapper = next((key for key in WRAPPERS if isinstance(parts.get(key), list)), None)
    if wrapper is not None:
        _report(f"{path}: read as a file with the classes in {wrapper!r}")
        return _classes_of(path, parts[wrapper])
    keys, values = zip(*content, strict=True)
    numbers = [int(key) for key in keys if key.isdecimal()]
    if len(numbers) == len(content):
        _refuse_repeated(path, numbers)
        _report(f"{path}: read as classes by their numbers, {min(numbers)} to {max(numbers)}")
        return [value for _, value in sorted(zip(numbers, values, strict=True), key=lambda pair: pair[0])]
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        _refuse_repeated(path, [*values])
        _report(f"{path}: read as the numbers of classes, {min(values)} to {max(values)}")
        return sorted(keys, key=parts.__getitem__)
    if all(is_code(key) for key in keys) and not any(value == [] for value in values):
        _report(f"{path}: read as the names of {len(keys)} WordNet ids")
        return [*values]
    return content


def _refuse_repeated(path: Path, numbers: list[int]) -> None:
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise InputError(f"{path}: need a number per class; got {twice} twice. Correct the file.")


def _name_of(entry: Any) -> Any:
    """The name of a category as annotation files list it, [its name]; other entries are not changed."""
    return [dict(entry)["name"]] if isinstance(entry, _Pairs) and "name" in dict(entry) else entry


def _report(line: str) -> None:
    print(line, file=sys.stderr)


def _synonyms(where: str, value: Any, *, of: str | None = None) -> list[Any]:
    """The names in an entry of a list, or the synonyms of a name in an object."""
    if of is None and isinstance(value, str):
        return value.split(SYNONYMS)
    if isinstance(value, _Pairs) or not isinstance(value, list):
        raise InputError(f"{where}: need a list of synonyms; got {value!r:.60}.")
    return [name for name in value if of is None or name != of]


def _checked(
    classes: list[tuple[str, list[Any]]], *, source: str = "vocabulary", may_share: bool = False
) -> Vocabulary:
    """Check classes, each with its location, for empty and repeated names."""
    checked: list[tuple[str, ...]] = []
    shared: list[str] = []
    owners: dict[str, tuple[str, int]] = {}  # normalised name -> its location, index of its class
    for where, names in _without_numbers(source, classes):
        if not names:
            raise InputError(f"{where}: need at least one name; got an empty list.")
        names = [_clean(where, name) for name in names]
        for position, name in enumerate(names):
            key = normalize_name(name)
            if key in owners and may_share:
                shared.append(name)
                continue
            if key in owners:
                first, index = owners[key]
                owner = f"class {checked[index][0]!r} has it" if index < len(checked) else "this class has it twice"
                here = f" in class {names[0]!r}" if index < len(checked) and position else ""
                raise InputError(f"{where}: need every name once; got {name!r} again{here}, {owner} ({first}).")
            owners[key] = (where, len(checked))
        checked.append(tuple(names))
    if shared:
        _report(f"{source}: {len(shared)} names occur more than once: {listed(shared)}")
    if not checked:
        raise InputError(f"{source}: need at least one class; got none.")
    if len(checked) == 1 < len(checked[0]):
        _report(f"{source}: one class, {checked[0][0]!r}, of which {listed(checked[0][1:])} are synonyms; write one "
                "class per line or entry if these are classes")  # fmt: skip
    return Vocabulary(tuple(checked))


def _clean(where: str, name: Any) -> str:
    """A name without blanks and quotes around it.

    Raises:
        InputError: it is no name.
    """
    if not isinstance(name, str):
        raise InputError(f"{where}: need names as text; got {name!r:.60}.")
    text = name.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    if not normalize_name(text):
        raise InputError(f"{where}: need a name in each position; got an empty one ({name!r}).")
    if text[0] in '"[{' or text[-1] == '"' or SEPARATORS.search(text):
        raise InputError(f"{where}: need names separated by commas; got {text!r:.60}. Write them as: dog, cat.")
    if text.lower().endswith(FILE_SUFFIXES):
        raise InputError(
            f"{where}: need a class name, or one file alone; got {text!r}, and no such file. Check the path."
        )
    if is_code(text):
        kind = "a number" if text.isdecimal() else "a WordNet id"
        raise InputError(f"{where}: need class names; got {text!r}, {kind}. Write what it stands for, in words.")
    return text


def _without_numbers(source: str, classes: list[tuple[str, list[Any]]]) -> list[tuple[str, list[Any]]]:
    """The classes without numbers or WordNet ids, if each begins with one, in rising order; this is reported."""
    pairs = [_split_number(names) for _, names in classes]
    found = [pair for pair in pairs if pair is not None]
    if len(found) < max(2, len(classes)):
        return classes
    codes = [code for code, _ in found]
    if codes[0].isdecimal():
        numbers = [int(code) if code.isdecimal() else -1 for code in codes]
        if numbers != sorted({*numbers}) or numbers[0] not in (0, 1):
            return classes
    elif any(code.isdecimal() for code in codes):
        return classes
    _report(f"{source}: {codes[0]!r} to {codes[-1]!r} before the {len(codes)} names are ids, not part of the names")
    rest = [(where, names) for (where, _), (_, names) in zip(classes, found, strict=True)]
    return _without_numbers(source, rest)


def _split_number(names: list[Any]) -> tuple[str, list[Any]] | None:
    """The number or WordNet id that the names of a class begin with, and the names without it; None: there is none."""
    first = names[0].strip() if names and isinstance(names[0], str) else ""
    if is_code(first) and len(names) > 1:
        return first, names[1:]
    match = NUMBERED.fullmatch(first)
    return None if match is None else (match[1], [match[3], *names[1:]])


def named_as(vocabulary: Vocabulary, known: Iterable[str]) -> tuple[str, ...]:
    """Of each class the name, or else the first synonym, that is one of the known names; its name if none is."""
    names = {*map(normalize_name, known)}
    return tuple(
        next((name for name in synonyms if normalize_name(name) in names), synonyms[0])
        for synonyms in vocabulary.classes
    )


def share_words(vocabulary: Vocabulary, known: Vocabulary) -> list[bool]:
    """Whether each class of a vocabulary has a name or synonym in common with a class of another."""
    names = {normalize_name(name) for synonyms in known.classes for name in synonyms}
    return [any(normalize_name(name) in names for name in synonyms) for synonyms in vocabulary.classes]
