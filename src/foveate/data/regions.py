"""The regions of an image that are distilled: annotated boxes, proposals, or custom boxes (Sec. 3.2; Tab. 2).

`boxes.py` reads the files of boxes. Unusable boxes, and boxes of images that are not in the data, are ignored and
counted. Scores are not used: the published rule draws at random from all boxes. `ops.grid` draws the random grids, and
`provenance.py` checks which classes the proposals were trained on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from foveate.data.annotations import objects_of
from foveate.data.boxes import ImageBoxes, parse_boxes
from foveate.data.consistency import check_file_boxes
from foveate.data.file_names import MAX_DEPTH, read_names
from foveate.data.records import Box, Dataset, IgnoredEntries, Item, Record
from foveate.data.validation import OUTSIDE, TINY, clip_box, count_ignored
from foveate.errors import InputError

Name = TypeVar("Name", bound=str | int)
MIN_AREA, MAX_AREA = 8.0**2, 1024.0**2  # of a proposal [pixels of the image squared]
UNKNOWN_IMAGE = "image of the boxes file is not in the data"
AMBIGUOUS = "name means two images; give its path below the folder"


def sample_proposals(
    record: Record, *, height: int, width: int, keep: int, generator: torch.Generator
) -> Float[Tensor, "N 4"]:
    """Draw an image's boxes as regions: shuffle, take the first `keep`, remove those of extreme size.

    Args:
        record: its boxes are clipped already if the file of boxes stated the image's size.
        height, width: of the decoded image [pixels].
        keep: maximum number of boxes.
        generator: of this image and epoch.

    Returns:
        xyxy, pixels of the image, areas in [8^2, 1024^2]; N may be 0, see `corner_box`.
    """
    boxes = torch.tensor(record.boxes, dtype=torch.float32).reshape(-1, 4)  # (N, 4)
    boxes = boxes[torch.randperm(len(boxes), generator=generator)[:keep]]
    boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)  # (N, 2)
    area = sides.prod(dim=1)  # (N,)
    return boxes[(area >= MIN_AREA) & (area <= MAX_AREA) & (sides >= 1).all(dim=1)]


def corner_box(*, height: int, width: int) -> Float[Tensor, "1 4"]:
    """The region of an image without a usable box, as published: the top left corner, a quarter of each side."""
    return torch.tensor([[0.0, 0.0, width / 4, height / 4]])


def with_boxes(dataset: Dataset, path: Path, *, accept: bool = False) -> Dataset:
    """Replace the boxes of a data set by those of a file.

    Args:
        dataset: of any kind. The file may name an image by its id, by its path below the data's folder or the end of
            that path, by its name without suffix, and, in a list of results, by the integer that its name or id is.
        path: in any of the three forms of `boxes.py`.
        accept: use boxes that contradict their images although they are the rule; see `consistency.py`.

    Returns:
        The same images with the file's boxes, clipped where the image size is known.

    Raises:
        InputError: the file has another form, names none of the images, or states another image size than the data;
            or its boxes contradict their images.
    """
    boxes_by_name, ignored, notes = parse_boxes(path), dict(dataset.ignored), list(dataset.notes)
    matched = match_images(boxes_by_name, dataset.records, path, ignored, reason=UNKNOWN_IMAGE, notes=notes)
    boxed = {
        index: _replace_boxes(dataset.records[index], boxes_by_name[name], f"{path}: image {name!r}", ignored)
        for index, name in matched.items()
    }
    pairs = [(dataset.records[index], boxes_by_name[name]) for index, name in matched.items()]
    consistency = check_file_boxes(path, pairs, accept=accept)
    if not boxed:
        twice = ignored.get(AMBIGUOUS)
        raise InputError(
            f"--regions {path}: need boxes of the data's images; none of its {len(boxes_by_name)} (such as "
            f"{next(iter(boxes_by_name))!r}) is among the {len(dataset.records)} (such as "
            f"{str(dataset.records[0].id)!r}). "
            + (f"{twice.count}: {AMBIGUOUS} ({twice.first})." if twice else
               "Is this the file of another split or data set?")
        )  # fmt: skip
    if not any(record.boxes for record in boxed.values()):
        raise InputError(
            f"--regions {path}: need boxes of at least 1 pixel inside their images; got none. Boxes are in pixels of "
            "the image, not in fractions of its sides: xyxy in {file name: ...}, xywh in COCO's form and in results."
        )
    records = tuple(
        boxed[index] if index in boxed else replace(record, boxes=(), labels=(), crowd=())
        for index, record in enumerate(dataset.records)
    )
    return replace(dataset, records=records, ignored=ignored, notes=tuple(notes), consistency=consistency)


def note_boxless(dataset: Dataset) -> Dataset:
    """Add a note with the number of images without a usable box; a warning where these are more than half."""
    objects = objects_of(dataset.records)
    boxless = np.flatnonzero(~objects.any_per_image(_are_usable(objects.boxes)))
    if not len(boxless):
        return dataset
    line = (
        f"{len(boxless)} of {len(dataset.records)} images have no box of 8 x 8 to 1024 x 1024 pixels: "
        f"their top left corner is distilled (a quarter of each side); the first: {dataset.records[int(boxless[0])].id}"
    )
    if 2 * len(boxless) > len(dataset.records):
        line = (
            f"WARNING   {line}. That is most of the training data: give --regions a file with boxes of all "
            "images (`foveate proposals` writes one), or a --data with boxes in most images."
        )
    return replace(dataset, notes=(*dataset.notes, line))


def _are_usable(boxes: np.ndarray) -> np.ndarray:
    """Whether `sample_proposals` keeps each box of (N, 4), as far as known before its image is decoded."""
    width, height = (boxes[:, 2:] - boxes[:, :2].clip(min=0)).T
    area = width * height
    return (width >= 1) & (height >= 1) & (area >= MIN_AREA) & (area <= MAX_AREA)


def _replace_boxes(record: Record, given: ImageBoxes, where: str, ignored: dict[str, IgnoredEntries]) -> Record:
    """The record with the usable ones of the given boxes, which have no class."""
    stated = None if given.height is None or given.width is None else (given.height, given.width)
    if stated is not None and record.size is not None and stated != record.size:
        raise InputError(
            f"{where}: need boxes for {record.size[0]} x {record.size[1]} pixels (height x width), as in the data; "
            f"got them for {stated[0]} x {stated[1]}. Are the boxes of another version of the data?"
        )
    size = record.size or stated
    usable: list[Box] = []
    for box in given.boxes:
        clipped = _clip_to_origin(box) if size is None else clip_box(box, height=size[0], width=size[1])
        if isinstance(clipped, str):
            count_ignored(ignored, clipped, where)
        else:
            usable.append(clipped)
    height, width = size or (None, None)
    return replace(record, height=height, width=width, boxes=tuple(usable), labels=(), crowd=())


def _clip_to_origin(box: Box) -> Box | str:
    """`clip_box` where the image size is not known yet; `sample_proposals` clips the other sides."""
    x1, y1, x2, y2 = max(box[0], 0.0), max(box[1], 0.0), box[2], box[3]
    if x2 <= 0 or y2 <= 0:
        return OUTSIDE
    return TINY if x2 - x1 < 1 or y2 - y1 < 1 else (x1, y1, x2, y2)


def index_by_name(records: Sequence[Record]) -> tuple[dict[str | int, int], dict[str | int, tuple[int, int]]]:
    """Every name that identifies an image -> its index; and the names of two images -> the indices of the first two."""
    indices: dict[str | int, int] = {}
    twice: dict[str | int, tuple[int, int]] = {}
    exact: dict[str | int, int] = {}
    for index, record in enumerate(records):
        exact[record.id] = index
        path = PurePosixPath(record.path.as_posix() if record.member is None else record.member.key)
        names: set[str | int] = {str(record.id), path.stem if record.member is None else path.name}
        names |= {"/".join(path.parts[-depth:]) for depth in range(1, min(len(path.parts), 4) + 1)}
        names |= {int(name) for name in names if isinstance(name, str) and name.isdecimal() and len(name) < 19}
        for name in names:
            first = indices.setdefault(name, index)
            if first != index:
                twice.setdefault(name, (first, index))
    unique = {name: index for name, index in indices.items() if name not in twice} | exact
    return unique, {name: pair for name, pair in twice.items() if name not in exact}


def match_images(
    names: Iterable[Name],
    records: Sequence[Record],
    path: Path,
    ignored: dict[str, IgnoredEntries],
    *,
    reason: str,
    notes: list[str],
) -> dict[int, Name]:
    """Find the image of each entry of a file.

    Args:
        names: the file's names of its images.
        records: of the data.
        path: of the file, for messages.
        ignored: receives the entries whose image is not in the data.
        reason: key of these entries in `ignored`.
        notes: receives a line if the names are not used as written (see `file_names.py`).

    Returns:
        Index of a record -> name of its entry.

    Raises:
        InputError: two entries match one image.
    """
    names = list(names)
    indices, twice = index_by_name(records)
    found = {name: find_index(indices, name) for name in names}
    doubled = {name: find_index(twice, name) for name in names if found[name] is None}
    if not any(index is not None for index in (*found.values(), *doubled.values())):
        found |= _read_otherwise([name for name in names if isinstance(name, str)], records, path, notes)
    matched: dict[int, Name] = {}
    for name in names:
        index, where = found[name], f"{path}: image {name!r}"
        pair = doubled.get(name)
        if index is None and pair is not None:
            count_ignored(ignored, AMBIGUOUS, f"{where} is {records[pair[0]].id} and {records[pair[1]].id}")
        elif index is None:
            count_ignored(ignored, reason, where)
        elif index in matched:
            raise InputError(f"{where}: need every image once; it is {records[index].id}, which {matched[index]!r} is "
                             "too. Remove one of the two.")  # fmt: skip
        else:
            matched[index] = name
    return matched


def _read_otherwise(names: list[str], records: Sequence[Record], path: Path, notes: list[str]) -> dict[str, int]:
    """The index of the image that each name means, where none is a name as written and there is no doubt."""
    files: dict[str, int] = {}
    for index, record in enumerate(records):
        parts = record.path.parts if record.member is None else PurePosixPath(record.member.key).parts
        files.setdefault("/".join(parts[-MAX_DEPTH:]), index)
    reading = read_names(names, list(files))
    if reading is None or reading.doubt:
        return {}
    notes.append(f"{path}: {reading.line()}")
    return {name: files[file] for name, file in reading.files.items()}


def find_index(indices: dict[str | int, Item], name: str | int) -> Item | None:
    """Look up an image by its whole name, else by the name without suffix (shards' keys)."""
    if name in indices or isinstance(name, int):
        return indices.get(name)
    return indices.get(name.rpartition(".")[0])
