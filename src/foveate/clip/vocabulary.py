"""User-provided vocabularies: class names with synonyms, as text or from a .txt or .json file, read strictly.

    .txt    one class per line, its synonyms separated by commas; empty lines and lines that begin with # are ignored
    .json   ["cat", "dog"], or [["cat", "kitty"], ["dog"]], or {"cat": ["kitty"], "dog": []}; or strings of synonyms,
            ["cat, kitty", "dog"], split at ", ", as CAT-Seg's lists of class names
    text    "cat, dog": two classes

Names that differ only in capitals, "_" and blanks are the same. A name may occur once, except in a list of strings of
synonyms, since published ones share names between classes; shared names are reported.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.errors import InputError, listed
from foveate.io.files import reason_of
from foveate.types import normalize_name

MAX_BYTES = 16_000_000  # ImageNet's 21,841 classes with all their synonyms take about 1 MB
SUFFIXES = (".txt", ".json")
SYNONYMS = ", "  # between the synonyms of a class in a list of strings


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
            large, or neither .txt nor .json; gives the line or entry.
    """
    if isinstance(text_or_path, str) and not _is_file_name(text_or_path):
        names = enumerate(text_or_path.split(","), start=1)
        return _checked((f"{text_or_path!r}: name {i}", [name]) for i, name in names)
    path = Path(text_or_path)
    match path.suffix.lower():
        case ".txt":
            lines = enumerate(_read(path).splitlines(), start=1)
            classes = [(f"{path}: line {i}", line.split(",")) for i, line in lines if _is_content(line)]
            return _checked(classes, source=str(path))
        case ".json":
            classes, may_share = _json_classes(path)
            return _checked(classes, source=str(path), may_share=may_share)
    raise InputError(f"{path}: need a vocabulary in a .txt or .json file; got one that ends in {path.suffix!r}.")


def _is_file_name(text: str) -> bool:
    """Whether a text names a vocabulary file, or an existing file of another type, which is refused."""
    suffix = Path(text).suffix.lower()
    return suffix in SUFFIXES or (suffix != "" and len(text) < 256 and Path(text).is_file())


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
    if isinstance(content, _Pairs):
        classes = [(f"{path}: entry {name!r}", name, synonyms) for name, synonyms in content]
        return [(where, [name, *_synonyms(where, rest, of=name)]) for where, name, rest in classes], False
    if isinstance(content, list):
        may_share = all(isinstance(entry, str) for entry in content) and any(SYNONYMS in entry for entry in content)
        entries = [(f"{path}: entry {i}", entry) for i, entry in enumerate(content, start=1)]
        return [(where, _synonyms(where, entry)) for where, entry in entries], may_share
    raise InputError(
        f"{path}: need a list of names, a list of lists of synonyms, or an object name -> synonyms; "
        f"got {content!r:.60}."
    )


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its keys, also repeated ones."""


def _synonyms(where: str, value: Any, *, of: str | None = None) -> list[Any]:
    """The names in an entry of a list, or the synonyms of a name in an object."""
    if of is None and isinstance(value, str):
        return value.split(SYNONYMS)
    if isinstance(value, _Pairs) or not isinstance(value, list):
        raise InputError(f"{where}: need a list of synonyms; got {value!r:.60}.")
    return [name for name in value if of is None or name != of]


def _checked(
    classes: Iterable[tuple[str, list[Any]]], *, source: str = "vocabulary", may_share: bool = False
) -> Vocabulary:
    """Check classes, each with its location, for empty and repeated names."""
    checked: list[tuple[str, ...]] = []
    shared: list[str] = []
    owners: dict[str, tuple[str, int]] = {}  # normalised name -> its location, index of its class
    for where, names in classes:
        if not names:
            raise InputError(f"{where}: need at least one name; got an empty list.")
        for name in names:
            if not isinstance(name, str):
                raise InputError(f"{where}: need names as text; got {name!r:.60}.")
            key = normalize_name(name)
            if not key:
                raise InputError(f"{where}: need a name in each position; got an empty one ({name!r}).")
            if key in owners and may_share:
                shared.append(name.strip())
                continue
            if key in owners:
                first, index = owners[key]
                owner = f"class {checked[index][0]!r} has it" if index < len(checked) else "this class has it twice"
                here = f" in class {names[0].strip()!r}" if index < len(checked) and name is not names[0] else ""
                raise InputError(f"{where}: need every name once; got {name.strip()!r} again{here}, {owner} ({first}).")
            owners[key] = (where, len(checked))
        checked.append(tuple(name.strip() for name in names))
    if shared:
        print(f"{source}: {len(shared)} names occur more than once: {listed(shared)}", file=sys.stderr)
    if not checked:
        raise InputError(f"{source}: need at least one class; got none.")
    return Vocabulary(tuple(checked))


def share_words(vocabulary: Vocabulary, known: Vocabulary) -> list[bool]:
    """Whether each class of a vocabulary has a name or synonym in common with a class of another."""
    names = {normalize_name(name) for synonyms in known.classes for name in synonyms}
    return [any(normalize_name(name) in names for name in synonyms) for synonyms in vocabulary.classes]
