"""The images that a command works on, in order: what identifies its unfinished work, and names what changed since.

A listing has a line per image, a JSON list of its name and of what else of it counts (such as a checksum of its boxes).
The number of lines and their digest belong to the identity of the work; the lines are stored beside it:

    images.txt.gz    the digest, then a line per image; 4 MB for a million names like 000000000139.jpg
"""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from foveate.io.files import write_whole

LISTED = "images.txt.gz"
SHOWN = 3  # names in a message
_ROWS = 4096  # lines digested at once


@dataclass(frozen=True)
class Listing:
    """The images of a command; the lines are made anew whenever they are needed, since there may be millions."""

    make: Callable[[], Iterable[Sequence[Any]]]  # the rows, in order: name, what else counts

    def lines(self) -> Iterator[str]:
        """A line per image, without its end."""
        return (json.dumps(row) for row in self.make())

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The number of images, and the sha256 of the lines."""
        digest, count, lines = hashlib.sha256(), 0, self.lines()
        while rows := [*islice(lines, _ROWS)]:
            digest.update("".join(rows).encode())
            count += len(rows)
        return {"count": count, "sha256": digest.hexdigest()}


def keep_listing(path: Path, listing: Listing) -> None:
    """Write the lines to a file, unless it has them already."""
    digest = listing.identity["sha256"]
    if next(_read_lines(path), None) == digest:
        return
    buffer, lines = io.BytesIO(), listing.lines()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=3, mtime=0) as file:
        file.write(f"{digest}\n".encode())
        while rows := [*islice(lines, _ROWS)]:
            file.write("".join(f"{row}\n" for row in rows).encode())
    write_whole(path, buffer.getvalue(), shared=True)


def changes_since(path: Path, listing: Listing) -> str:
    """How the images differ from those in a file of lines, in words, with the first few of each kind; "": they do not.

    The file may be missing or damaged.
    """
    digest, *lines = [*_read_lines(path)] or [""]
    if digest == listing.identity["sha256"]:
        return ""
    try:
        before = [json.loads(line) for line in lines]
    except ValueError:
        before = []
    if not before:
        return f"which ones changed is not known, because {path} is missing or damaged"
    return changes_between(before, listing)


def changes_between(before: Sequence[Sequence[Any]], listing: Listing, *, is_ordered: bool = True) -> str:
    """As `changes_since`, for rows; those that have only a name are compared by that."""
    was, now = {name: rest for name, *rest in before}, {name: rest for name, *rest in listing.make()}
    kinds = {
        "gone or renamed": [name for name in was if name not in now],
        "new": [name for name in now if name not in was],
        "changed": [name for name, rest in was.items() if rest and now.get(name, rest) not in ([], rest)],
    }
    parts = [f"{len(found):,} {kind} ({_few(found)})" for kind, found in kinds.items() if found]
    if is_ordered and not parts:
        moved = next((name for name, other in zip(now, was, strict=True) if name != other), None)
        parts = ["one is listed twice" if moved is None else f"the same ones in another order, from {moved} on"]
    return ", ".join(parts)


def checksum(*parts: bytes | memoryview) -> str:
    """Eight hexadecimal digits of bytes, against accidents: a collision hides one change among four billion."""
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return f"{value:08x}"


def _few(names: Sequence[Any]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(str(name) for name in names[:SHOWN]) + more


def _read_lines(path: Path) -> Iterator[str]:
    """The lines of a file; none of one that is missing, and those before the damage."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                yield line.rstrip("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return
