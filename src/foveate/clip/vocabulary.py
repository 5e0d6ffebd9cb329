"""Vocabularies of one's own: class names with synonyms, typed or from a .txt or .json file, read strictly.

    .txt    one class a line, its synonyms separated by commas; empty lines and lines that begin with # say nothing
    .json   ["cat", "dog"], or [["cat", "kitty"], ["dog"]], or {"cat": ["kitty"], "dog": []}; or strings of synonyms,
            ["cat, kitty", "dog"], split at ", ", as CAT-Seg's lists of class names are
    typed   "cat, dog": two classes

Two names are the same if they differ only in capitals, "_" and blanks. No name may stand twice, except in a list of
strings of synonyms, since published ones share names between classes; these are told. Absent: the vocabularies of data
sets, which come with their annotations, and embeddings (`foveate.clip.text`).
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.errors import InputError, listed
from foveate.types import normalize_name

MAX_BYTES = 16_000_000  # ImageNet's 21,841 classes with all their synonyms take about 1 MB
SUFFIXES = (".txt", ".json")
SYNONYMS = ", "  # between the words of a class in a list of strings


@dataclass(frozen=True)
class Vocabulary:
    """K classes, each the words it goes by; the first is its name."""

    classes: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class."""
        return tuple(words[0] for words in self.classes)


def read_vocabulary(text_or_path: str | Path) -> Vocabulary:
    """Read a vocabulary from a file, or from what was typed.

    Args:
        text_or_path: a .txt or .json file (see the module), or class names separated by commas.

    Returns:
        The classes in the order given. In a JSON object a key is the class's name and counts among its words.

    Raises:
        InputError: no class, an empty name, a name twice in one class or in two, something else than text, a file that
            is not UTF-8, too large, or neither .txt nor .json; says where.
    """
    if isinstance(text_or_path, str) and not _is_file_name(text_or_path):
        return _checked((f"{text_or_path!r}: name {i}", [word]) for i, word in _numbered(text_or_path.split(",")))
    path = Path(text_or_path)
    match path.suffix.lower():
        case ".txt":
            lines = _numbered(_read(path).splitlines())
            written = [(i, line) for i, line in lines if line.strip() and not line.strip().startswith("#")]
            return _checked(((f"{path}: line {i}", line.split(",")) for i, line in written), source=str(path))
        case ".json":
            classes, may_share = _json_classes(path)
            return _checked(classes, source=str(path), may_share=may_share)
    raise InputError(f"{path}: need a vocabulary in a .txt or .json file; got one that ends in {path.suffix!r}.")


def _is_file_name(text: str) -> bool:
    """Whether what was typed names a vocabulary file; any other file that is there is refused as one, not a class."""
    suffix = Path(text).suffix.lower()
    return suffix in SUFFIXES or (suffix != "" and len(text) < 256 and Path(text).is_file())


def _numbered(items: Iterable[Any]) -> list[tuple[int, Any]]:
    return [*enumerate(items, start=1)]


def _read(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path}: need a vocabulary of at most {MAX_BYTES:,} bytes; it has {size:,}.")
        return path.read_bytes().decode("utf-8-sig")  # as UTF-8, with or without the mark some editors put first
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: need text in UTF-8; byte {error.start} is not. Save it again in that encoding."
        ) from error
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(f"{path}: need a vocabulary file; {reason}. Check the path.") from error


def _json_classes(path: Path) -> tuple[list[tuple[str, list[Any]]], bool]:
    """The words of each class of a JSON file with where they stand, and whether classes may share them."""
    try:
        content = json.loads(_read(path), object_pairs_hook=_Pairs)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: need JSON; {type(error).__name__}: {error}. Correct the file.") from error
    if isinstance(content, _Pairs):
        entries = [(f"{path}: entry {name!r}", name, _words(path, repr(name), others)) for name, others in content]
        return [(where, [name, *(word for word in words if word != name)]) for where, name, words in entries], False
    if isinstance(content, list):
        texts = [one for one in content if isinstance(one, str)]
        may_share = len(texts) == len(content) and any(SYNONYMS in one for one in texts)
        each = [
            (f"{path}: entry {i}", one.split(SYNONYMS) if isinstance(one, str) else _words(path, i, one))
            for i, one in _numbered(content)
        ]
        return each, may_share
    raise InputError(
        f"{path}: need a list of names, a list of lists of synonyms, or an object name -> synonyms; "
        f"got {_short(content)}."
    )


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its keys, also those that stand in it twice."""


def _words(path: Path, entry: object, value: Any) -> list[Any]:
    if isinstance(value, _Pairs) or not isinstance(value, list):
        raise InputError(f"{path}: entry {entry}: need a list of synonyms; got {_short(value)}.")
    return value


def _checked(
    classes: Iterable[tuple[str, list[Any]]], *, source: str = "vocabulary", may_share: bool = False
) -> Vocabulary:
    """Hold the classes, each with where it stands, to the rules."""
    found: list[tuple[str, ...]] = []
    shared: list[str] = []
    known: dict[str, tuple[str, int]] = {}  # a word as it is compared -> where it stands, its class
    for where, words in classes:
        if not words:
            raise InputError(f"{where}: need at least one name; got an empty list.")
        for word in words:
            if not isinstance(word, str):
                raise InputError(f"{where}: need names as text; got {_short(word)}.")
            key = normalize_name(word)
            if not key:
                raise InputError(f"{where}: need a name in each place; got an empty one ({word!r}).")
            if key in known and may_share:
                shared.append(word.strip())
                continue
            if key in known:
                first, place = known[key]
                other = f"class {found[place][0]!r} has it" if place < len(found) else "this class has it twice"
                here = f" in class {words[0].strip()!r}" if place < len(found) and word is not words[0] else ""
                raise InputError(f"{where}: need every name once; got {word.strip()!r} again{here}, {other} ({first}).")
            known[key] = (where, len(found))
        found.append(tuple(word.strip() for word in words))
    if shared:
        told = f"{len(shared)} names stand there more than once, each in its class: {listed(shared)}"
        print(f"{source}: {told}", file=sys.stderr)
    if not found:
        raise InputError(f"{source}: need at least one class; got none.")
    return Vocabulary(tuple(found))


def share_words(asked: Vocabulary, known: Vocabulary) -> list[bool]:
    """Which of the classes asked for go by any word that a known class goes by.

    Args:
        asked: the K classes.
        known: those that something was trained on.
    """
    words = {normalize_name(word) for one in known.classes for word in one}
    return [any(normalize_name(word) in words for word in one) for one in asked.classes]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
