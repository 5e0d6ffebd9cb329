"""Reads COCO-like annotation files a part at a time: LVIS's training file, parsed at once, takes 8 GB of memory.

The bytes are searched once for the members of the top-level object and for a comma between two entries of a list in
every megabyte. What is between two such commas is then parsed on its own, so that the entries of one megabyte exist at
a time. The categories and the first images, which show whose file it is, are cached: a later start parses nothing where
the objects are cached too (`annotations.py`).
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from importlib.metadata import version
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from foveate.data.validation import REPAIR_FILE, check_lists, parse, unused_categories
from foveate.errors import InputError
from foveate.io.files import default_cache, write_whole
from foveate.io.json_text import parse_json

WHOLE_BYTES = 4_000_000  # a smaller file is parsed at once
PART_BYTES = 1_000_000  # entries are parsed in parts of about this size
MAX_MEMBERS, MAX_KEY = 1_000, 10_000  # of the top-level object of a file that is parsed in parts; bytes of a key
FIRST_IMAGES = 200  # cached beside the categories; `lvis.py` and `objects365.py` probe as many
FORMAT = 1  # of everything that is cached of an annotation file; raise it when other boxes would be read from it
LISTS = ("images", "annotations", "categories")
QUOTE, COMMA, OPENING, CLOSING = b'"'[0], b","[0], b"{[", b"}]"
STEPS = np.zeros(256, dtype=np.int8)  # by which a byte changes the depth
STEPS[list(OPENING)], STEPS[list(CLOSING)] = 1, -1
STRUCTURAL = STEPS != 0
STRUCTURAL[[QUOTE, COMMA]] = True
MEMBER = re.compile(rb'\s*("(?:[^"\\]|\\.)*")\s*:\s*', re.DOTALL)


class Entries(Iterable[Any]):
    """A list of an annotation file; each iteration parses it again, but for its first entries."""

    def __init__(self, first: Sequence[Any], every: Callable[[], Iterable[Any]] | None) -> None:
        """Store the first entries, and what parses all; None: there are no more."""
        self._first, self._every = first, every

    def __iter__(self) -> Iterator[Any]:
        if self._every is None:
            return iter(self._first)
        return chain(self._first, self._rest(self._every))

    def _rest(self, every: Callable[[], Iterable[Any]]) -> Iterator[Any]:
        yield from islice(every(), len(self._first), None)


class Span(NamedTuple):
    """A value in the file: its first byte, the byte after it, and the commas between the parts of a list."""

    begin: int
    end: int
    commas: list[int]


def load(path: Path, *, kind: str) -> dict[str, Any]:
    """Read a file with COCO's three lists.

    Args:
        kind: of the file, for messages.

    Returns:
        "categories": a list; "images" and "annotations": `Entries`, parsed when they are iterated over; "unused": of
        `unused_categories`.

    Raises:
        InputError: it is not JSON, or lacks a list. What is wrong within a list of a large file is reported when it is
            iterated over.
    """
    cached = None if (identity := identity_of(path)) is None else cache_path(path, "outline.json")
    with suppress(OSError, ValueError, LookupError, TypeError):  # missing, or damaged: read the file
        digest, text = cached.read_bytes().split(b"\n") if cached is not None else (b"", b"{}")
        outline = json.loads(text)
        if outline["identity"] == identity and digest == _digest_of(text):
            images = Entries(outline["images"], partial(_entries, path, kind, "images") if outline["more"] else None)
            annotations = Entries([], partial(_entries, path, kind, "annotations"))
            lists = {"categories": outline["categories"], "images": images, "annotations": annotations}
            return {**lists, "unused": dict(outline["unused"])}
    content = _parse(path, kind=kind)
    content["unused"] = unused_categories(content)
    if cached is not None and identity == identity_of(path):
        first = [*islice(content["images"], FIRST_IMAGES + 1)]
        outline = {"identity": identity, "categories": content["categories"], "images": first[:FIRST_IMAGES]}
        outline |= {"more": len(first) > FIRST_IMAGES, "unused": [*content["unused"].items()]}
        text = json.dumps(outline).encode()
        with suppress(OSError):
            for stale in cached.parent.glob(f"{cached.name.partition('.')[0]}.*"):  # of another content of the file
                stale.unlink(missing_ok=True)
            write_whole(cached, _digest_of(text) + b"\n" + text, shared=True)
    return content


def load_list(path: Path, *, kind: str) -> Any:
    """Parse a file that is one list, of a large one as `Entries`; a file of something else as what it is."""
    try:
        if path.stat().st_size > WHOLE_BYTES:
            with path.open("rb") as file:
                span = _find_list(file)
            return Entries((), partial(_parse_parts, path, span, kind=kind))
    except (OSError, ValueError):
        pass  # said by `parse`
    return parse(path, kind=kind)


def identity_of(path: Path) -> str | None:
    """What identifies the content of a file in the cache; None: nothing is cached, or the file cannot be read."""
    if default_cache() is None:
        return None
    try:
        status = path.stat()
        signature = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        digest = _digest(path.resolve(), signature)
    except OSError:
        return None
    return json.dumps([FORMAT, version("foveate"), str(path.resolve()), status.st_size, digest])


def cache_path(path: Path, suffix: str) -> Path | None:
    """The cached file of an annotation file; None: nothing is cached."""
    cache = default_cache()
    name = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()[:32]
    return None if cache is None else cache / "annotations" / f"{name}.{suffix}"


def _digest_of(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


@lru_cache(maxsize=16)
def _digest(path: Path, signature: tuple[int, ...]) -> str:
    """The digest of a file, which is computed once while its size and times are the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------- the parts


def _entries(path: Path, kind: str, key: str) -> Iterable[Any]:
    return _parse(path, kind=kind)[key]


def _parse(path: Path, *, kind: str) -> dict[str, Any]:
    """The three lists of a file; of a large one, images and annotations are `Entries`."""
    try:
        if path.stat().st_size <= WHOLE_BYTES:
            return _parse_whole(path, kind=kind)
        with path.open("rb") as file:
            spans = _find_members(file)
            if not all(_is_list(file, spans.get(key)) for key in LISTS):
                return _parse_whole(path, kind=kind)  # which says what is wrong with it
            for key in spans.keys() - LISTS:
                parse_json(_read(file, spans[key].begin, spans[key].end))
    except (OSError, ValueError, RecursionError):
        parse(path, kind=kind, keep=False)  # which says what is wrong, in little memory
        return _parse_whole(path, kind=kind)
    lists = {key: Entries((), partial(_parse_parts, path, spans[key], kind=kind)) for key in LISTS}
    return {**lists, "categories": [*lists["categories"]]}


def _parse_whole(path: Path, *, kind: str) -> dict[str, Any]:
    content = parse(path, kind=kind)
    check_lists(path, content, kind=kind, lists=LISTS)
    return {key: content[key] for key in LISTS}


def _parse_parts(path: Path, span: Span, *, kind: str) -> Iterator[Any]:
    """The entries of a list."""
    with path.open("rb") as file:
        for comma, following in pairwise((span.begin, *span.commas, span.end - 1)):
            try:
                entries = parse_json(b"[%b]" % _read(file, comma + 1, following))
                if not entries and span.commas:
                    raise ValueError("a comma without an entry")
            except (ValueError, RecursionError) as error:
                parse(path, kind=kind, keep=False)
                raise InputError(f"{path}: need {kind} file in JSON; {error}. {REPAIR_FILE}") from error
            yield from entries


def _find_members(file: BinaryIO) -> dict[str, Span]:
    """The values of the object in a file; ValueError where its brackets do not match, or something is beside it."""
    bounds, commas, end = [], [], -1  # commas between members, and between the entries of all lists
    for at, codes, depths in _structure(file):
        if end >= 0 or (not bounds and codes[0] != OPENING[0]):
            raise ValueError("not one object")
        first = [] if bounds else [int(at[0])]
        outer = np.flatnonzero((depths == 0) | ((depths == 1) & (codes == COMMA)))
        if len(outer) and depths[outer[-1]] == 0:
            if outer[-1] != len(at) - 1:
                raise ValueError("something after the object")
            end = int(at[-1])
        bounds += [*first, *at[outer].tolist()]
        commas += at[np.flatnonzero((depths == 2) & (codes == COMMA))[-1:]].tolist()
        if len(bounds) > MAX_MEMBERS or (depths < 0).any():
            raise ValueError("not an annotation file")
    if end < 0 or _read(file, 0, bounds[0]).strip() or _read(file, end + 1, None).strip():
        raise ValueError("not one whole object")
    spans: dict[str, Span] = {}
    for begin, stop in pairwise(bounds):
        match = MEMBER.match(_read(file, begin + 1, min(stop, begin + MAX_KEY)))
        if match is None:
            raise ValueError("a member without a key")
        if (key := json.loads(match[1])) in spans:
            raise ValueError("a key twice")
        first = begin + 1 + match.end()
        ending = _read(file, max(first, stop - MAX_KEY), stop)  # with the space before the comma
        end = stop - len(ending) + len(ending.rstrip())
        spans[key] = Span(first, end, [comma for comma in commas if begin < comma < stop])
    return spans


def _find_list(file: BinaryIO) -> Span:
    """The list in a file; ValueError where its brackets do not match, or something is beside it."""
    begin, end, commas = -1, -1, []
    for at, codes, depths in _structure(file):
        if end >= 0 or (begin < 0 and codes[0] != OPENING[1]) or (depths[:-1] < 1).any():
            raise ValueError("not one list")
        begin = int(at[0]) if begin < 0 else begin
        commas += at[np.flatnonzero((depths == 1) & (codes == COMMA))[-1:]].tolist()
        if depths[-1] < 1:
            end = int(at[-1])
    if end < 0 or _read(file, end, end + 1) != b"]" or (_read(file, 0, begin) + _read(file, end + 1, None)).strip():
        raise ValueError("not one whole list")
    return Span(begin, end + 1, commas)


def _structure(file: BinaryIO) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The positions of brackets and commas outside strings, their codes, and the depths after them, part by part."""
    start, depth, in_string = 0, 0, False
    while part := file.read(PART_BYTES):
        while part.endswith(b"\\") and (more := file.read(1)):  # a pair of \ and another byte stays together
            part += more
        plain = part.replace(rb"\\", b"__").replace(rb"\"", b"__") if b"\\" in part else part
        every = np.frombuffer(plain, dtype=np.uint8)
        at = np.flatnonzero(STRUCTURAL[every])
        codes = every[at]
        is_quote = codes == QUOTE
        within = (np.cumsum(is_quote) + in_string) % 2 == 1  # a string, after each byte
        in_string = bool(within[-1]) if len(within) else in_string
        at, codes = at[~is_quote & ~within], codes[~is_quote & ~within]
        depths = depth + np.cumsum(STEPS[codes], dtype=np.int64)
        if len(at):
            depth = int(depths[-1])
            yield start + at, codes, depths
        start += len(part)


def _is_list(file: BinaryIO, span: Span | None) -> bool:
    return span is not None and [_read(file, at, at + 1) for at in (span.begin, span.end - 1)] == [b"[", b"]"]


def _read(file: BinaryIO, begin: int, end: int | None) -> bytes:
    file.seek(begin)
    return file.read() if end is None else file.read(end - begin)
