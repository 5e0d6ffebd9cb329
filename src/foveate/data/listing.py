"""Records -> the listing that identifies unfinished work on them; see `foveate.io.listing`."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from foveate.data.records import Record
from foveate.io.listing import Listing, checksum


def list_trained(records: Sequence[Record]) -> Listing:
    """What a training draws from: names, annotations, and sizes within shards.

    Image files are not touched, since a start would take minutes on a network drive: one that was replaced under the
    same name, and the size of the same image, is not noticed.
    """
    return Listing(partial(_trained_rows, records))


def list_files(records: Sequence[Record]) -> Listing:
    """What a result is computed from: names, lengths [bytes] and times of change [ns] of the image files."""
    return Listing(partial(_file_rows, records))


def _trained_rows(records: Sequence[Record]) -> Iterator[list[Any]]:
    for record in records:
        # a number is of the annotation file: the file's name is what a user looks for
        name = record.id if isinstance(record.id, str) else f"{record.path.name} ({record.id})"
        parts = [] if record.member is None else [str(record.member.size).encode()]
        if len(record.boxes):
            columns = ((record.boxes, np.float32), (record.labels, np.int64), (record.crowd, np.bool_))
            parts += [np.asarray(values, kind).tobytes() for values, kind in columns]
            parts += [np.asarray(record.segment_ids, np.int64).tobytes(), *record.masks]
        yield [name, checksum(*parts)] if parts else [name]


def _file_rows(records: Sequence[Record]) -> Iterator[list[Any]]:
    for record in records:
        try:
            status = record.path.stat()
            yield [record.id, status.st_size, status.st_mtime_ns]
        except OSError:
            yield [record.id, -1, -1]
