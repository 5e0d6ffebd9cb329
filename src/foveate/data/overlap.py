"""Images that are in two data sets: a held-out loss of training images says nothing."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from foveate.data.records import Record

MAX_COMPARED = 500_000  # images of the larger set; the others are not looked at
MAX_READ = 2_000  # of those, files of equal size that are read
MAX_SECONDS = 30.0  # of looking at sizes and reading: other processes wait

Place = tuple[Path, int]  # the file without links, and the first byte in it


def shared_images(records: Sequence[Record], chosen: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Find the images of `chosen` that `records` have too, by file or by content.

    Files of another size are not read. Two files with the same image in other bytes are two images.

    Returns:
        Pairs (of `chosen`, of `records`), in the order of `chosen`.
    """
    folders: dict[Path, Path] = {}
    sought = {_place(record, folders): record for record in chosen}
    shared: dict[Place, Record] = {}
    compared = list(islice(records, MAX_COMPARED))
    for record in compared:
        place = _place(record, folders)
        if place in sought:
            shared[place] = record
    # the others by content, where the sizes agree
    by_size: dict[int, list[Place]] = {}
    for place, record in sought.items():
        if place not in shared:
            by_size.setdefault(_size(record), []).append(place)
    digests: dict[Place, str] = {}
    for record in islice(_of_sizes(compared, by_size.keys() - {-1, 0}) if by_size else (), MAX_READ):
        digest = _digest(record)
        for place in by_size[_size(record)]:
            if place not in digests:
                digests[place] = _digest(sought[place])
            if digest and digest == digests[place]:
                shared.setdefault(place, record)
    return [(record, shared[place]) for place, record in sought.items() if place in shared]


def _of_sizes(records: Sequence[Record], sizes: set[int]) -> Iterator[Record]:
    deadline = time.monotonic() + MAX_SECONDS
    for record in records:
        if time.monotonic() > deadline:
            return
        if _size(record) in sizes:
            yield record


def _place(record: Record, folders: dict[Path, Path]) -> Place:
    parent = record.path.parent
    if parent not in folders:
        folders[parent] = parent.resolve()
    return folders[parent] / record.path.name, 0 if record.member is None else record.member.offset


def _size(record: Record) -> int:
    """The number of bytes of an image; -1 if its file cannot be read."""
    if record.member is not None:
        return record.member.size
    with suppress(OSError, ValueError):
        return record.path.stat().st_size
    return -1


def _digest(record: Record) -> str:
    """The sha256 of an image's bytes; "" if its file cannot be read."""
    with suppress(OSError, ValueError), record.path.open("rb") as file:
        file.seek(0 if record.member is None else record.member.offset)
        return hashlib.sha256(file.read(_size(record))).hexdigest()
    return ""
