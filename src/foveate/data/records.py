"""What every reader of data sets gives: the images of a split, where each lies, and what is annotated in it.

Deliberately absent: how any data set writes them (`coco.py`, `lvis.py`, `voc.py`, `objects365.py`, `folder.py`,
`shards.py`) and which of them lies in a folder (`sources.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from foveate.data.images import header_size, read_image
from foveate.types import Category

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Member:
    """A file within a tar shard, which is read where it lies and never extracted."""

    key: str  # what its image and its text are called before the first dot
    offset: int  # [bytes] from the start of the shard to its content
    size: int  # [bytes]


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a data set and what is annotated in it; entry i of each tuple belongs to annotation i."""

    id: int | str
    path: Path
    height: int | None = None  # [pixels]; None: not known before decoding (a folder without annotations)
    width: int | None = None
    boxes: tuple[Box, ...] = ()  # xyxy, pixels of the image, clipped to it
    labels: tuple[int, ...] = ()  # place in the data set's categories; none for boxes that are only proposals
    crowd: tuple[bool, ...] = ()
    segment_ids: tuple[int, ...] = ()  # panoptic only: the colour R + 256 G + 65536 B in the PNG
    panoptic: Path | None = None  # the PNG that holds the masks
    masks: tuple[bytes, ...] = ()  # compressed run lengths, see `instance_masks.py`; only where they were asked for
    member: Member | None = None  # where the image lies in the file at `path`; None: it is the whole file
    semantic: Path | None = None  # the file with the class of each pixel, see `semantic.py`

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) [pixels], where annotated."""
        return None if self.height is None or self.width is None else (self.height, self.width)


@dataclass(frozen=True)
class IgnoredEntries:
    """How much of an annotation file was left out for one reason, and where it happened first."""

    count: int
    first: str  # file and entry

    def __add__(self, other: "IgnoredEntries") -> "IgnoredEntries":
        return IgnoredEntries(self.count + other.count, self.first)


@dataclass(frozen=True)
class Dataset:
    """The images of one split, in the file's order; the categories by id; what was left out, by reason."""

    name: str
    categories: tuple[Category, ...]
    records: Sequence[Record]  # a tuple; of tar shards a view that makes them when asked, millions fit in memory
    ignored: dict[str, IgnoredEntries]
    notes: tuple[str, ...] = ()  # what else the user must be told
    captions: Sequence[tuple[str, ...]] = ()  # of each record, in the same order; empty: none were read
    file: Path | None = None  # the COCO, LVIS or Objects365 file of these boxes and categories; None: there is none

    def ignored_lines(self) -> list[str]:
        """What was left out when the data was read, and the notes, for the user, one line each."""
        lines = [
            f"{one.count} left out because a {reason}; the first: {one.first}" for reason, one in self.ignored.items()
        ]
        return [*lines, *self.notes]


def read_record(record: Record) -> UInt8[Tensor, "3 H W"]:
    """Decode a record's image, within the bounds of `read_image`, wherever it lies.

    Its size is the annotated one, or else that of its map of classes: EXIF rotation is applied where they then agree.

    Raises:
        ImageError: there is no such image, or it cannot be used or is not of that size.
    """
    if record.member is None:
        size = record.size
        if size is None and record.semantic is not None:
            size = header_size(record.semantic)
        return read_image(record.path, expected_size=size)
    part = (record.member.offset, record.member.size)
    return read_image(record.path, expected_size=record.size, part=part, name=f"{record.path}:{record.member.key}")
