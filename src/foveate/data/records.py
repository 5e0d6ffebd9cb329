"""What every data set reader returns: the images of a split, their files, and their annotations."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, overload

from jaxtyping import UInt8
from torch import Tensor

from foveate.data.images import header_size, read_image
from foveate.types import Category

Box = tuple[float, float, float, float]
Item = TypeVar("Item")


class LazySequence(Sequence[Item]):
    """A sequence whose subclasses create an item on demand, in `item`; it is indexed and compared as a tuple is."""

    @abstractmethod
    def item(self, index: int) -> Item:
        """The item at an index in 0..len(self)-1."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Item, ...]: ...
    def __getitem__(self, index: int | slice) -> Item | tuple[Item, ...]:
        if isinstance(index, slice):
            return tuple(self.item(i) for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.item(index % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LazySequence | tuple):
            return NotImplemented
        return len(self) == len(other) and all(own == item for own, item in zip(self, other, strict=True))


@dataclass(frozen=True, slots=True)
class Member:
    """A file within a tar shard, which is read in place and never extracted."""

    key: str  # the file name up to the first dot of its last part; shared by an image and its text
    offset: int  # [bytes] from the start of the shard to the content
    size: int  # [bytes]


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a data set and its annotations; entry i of each tuple belongs to annotation i."""

    id: int | str
    path: Path
    height: int | None = None  # [pixels]; None: not known before decoding (a folder without annotations)
    width: int | None = None
    boxes: tuple[Box, ...] = ()  # xyxy, pixels of the image, clipped to it
    labels: tuple[int, ...] = ()  # index into the data set's categories; empty for proposals, which have no class
    crowd: tuple[bool, ...] = ()
    segment_ids: tuple[int, ...] = ()  # panoptic only: the colour R + 256 G + 65536 B in the PNG
    panoptic: Path | None = None  # the panoptic PNG
    masks: tuple[bytes, ...] = ()  # compressed run lengths, see `instance_masks.py`; empty unless requested
    member: Member | None = None  # the part of the file at `path` that is the image; None: the whole file
    semantic: Path | None = None  # the label map, see `semantic.py`

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) [pixels], where annotated."""
        return None if self.height is None or self.width is None else (self.height, self.width)


@dataclass(frozen=True)
class IgnoredEntries:
    """The entries of annotation files that were ignored for one reason."""

    count: int
    first: str  # file and entry of the first one

    def __add__(self, other: "IgnoredEntries") -> "IgnoredEntries":
        return IgnoredEntries(self.count + other.count, self.first)


@dataclass(frozen=True)
class Consistency:
    """What the annotations of a file contradict; see `consistency.py`."""

    kinds: dict[str, IgnoredEntries] = field(default_factory=dict)  # what was counted, by kind; nothing is ignored
    doubt: str = ""  # why the file is refused unless the user accepts it
    outside: tuple[int | str, ...] = ()  # ids of images whose boxes fit only the turned image; the first ones


@dataclass(frozen=True)
class Dataset:
    """The images of one split in the file's order, and the categories sorted by id."""

    name: str
    categories: tuple[Category, ...]
    records: Sequence[Record]  # a tuple, or created on demand: millions of shards' or annotated ones fit in memory
    ignored: dict[str, IgnoredEntries]  # by reason
    notes: tuple[str, ...] = ()  # other lines to report to the user
    captions: Sequence[tuple[str, ...]] = ()  # of each record, in the same order; empty: none were read
    file: Path | None = None  # the COCO, LVIS or Objects365 file of the boxes and categories, if any
    remarks: dict[str, str] = field(default_factory=dict)  # image id -> what was odd when it was decoded; filled then
    consistency: Consistency = Consistency()

    def ignored_lines(self) -> list[str]:
        """What was ignored when the data was read, what contradicts, the notes, and the remarks so far, a line each."""
        lines = [f"{entries.count} ignored: {reason}; the first: {entries.first}"
                 for reason, entries in self.ignored.items()]  # fmt: skip
        kinds = self.consistency.kinds.items()
        return [
            *lines,
            *(f"{entries.count} found: {kind}; the first: {entries.first}" for kind, entries in kinds),
            *self.notes,
            *remark_lines(self.remarks),
        ]

    def ignored_sentence(self) -> str:
        """The lines as the end of a message that refuses data in which nothing is left; empty: there are none."""
        lines = self.ignored_lines()
        return f" When it was read: {'. '.join(lines)}." if lines else ""


def remark_lines(remarks: dict[str, str]) -> list[str]:
    """A line for each remark: the number of images, and the first."""
    first: dict[str, str] = {}
    for key, remark in remarks.items():
        first.setdefault(remark, key)
    counts = Counter(remarks.values())
    return [f"{counts[remark]} used: {remark}; the first: {key}" for remark, key in first.items()]


def read_record(record: Record, *, remarks: list[str] | None = None) -> UInt8[Tensor, "3 H W"]:
    """Decode a record's image within the bounds of `read_image`.

    The expected size is the annotated one, or else that of the label map; EXIF rotation is applied where the sizes
    then agree.

    Args:
        remarks: as for `read_image`.

    Raises:
        ImageError: the image does not exist, cannot be decoded, or is not of that size.
    """
    if record.member is None:
        size = record.size
        if size is None and record.semantic is not None:
            size = header_size(record.semantic)
        return read_image(record.path, expected_size=size, remarks=remarks)
    part, name = (record.member.offset, record.member.size), f"{record.path}:{record.member.key}"
    return read_image(record.path, expected_size=record.size, part=part, name=name, remarks=remarks)
