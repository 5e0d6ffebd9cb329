"""What is distilled in an image: the boxes of its annotations, of proposals, or one's own (Sec. 3.2; Tab. 2).

The forms of a file of boxes are `boxes.py`'s. Boxes that no image can use are left out and counted, as are those of
images that are not in the data. The random grids, which need no file, are `ops.grid`'s.
Deliberately absent: scores (the published rule draws at random from all), and what the proposals were trained on, which
`provenance.py` judges.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.data.boxes import Boxed, parse_boxes
from foveate.data.records import Box, Dataset, Dropped, Record
from foveate.data.strict import OUTSIDE, TINY, clip_box, drop
from foveate.errors import InputError

Name = TypeVar("Name", bound=str | int)
SMALLEST_AREA, LARGEST_AREA = 8.0**2, 1024.0**2  # of a proposal [pixels of the image squared]
ELSEWHERE = "image of the boxes file is not in the data"


def sample_proposals(
    record: Record, *, height: int, width: int, keep: int, generator: torch.Generator
) -> Float[Tensor, "N 4"]:
    """Draw an image's boxes as regions: shuffle, take the first `keep`, leave out those of extreme size.

    Args:
        record: its boxes, clipped already where the file of boxes stated the image's size.
        height: of the decoded image [pixels].
        width: of the decoded image [pixels].
        keep: at most so many.
        generator: of this image and epoch.

    Returns:
        xyxy, pixels of the image, areas in [8^2, 1024^2]; N may be 0, see `corner_box`.
    """
    boxes = torch.tensor(record.boxes, dtype=torch.float32).reshape(-1, 4)  # (N, 4)
    boxes = boxes[torch.randperm(len(boxes), generator=generator)[:keep]]
    boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)  # (N, 2)
    area = sides.prod(dim=1)  # (N,)
    return boxes[(area >= SMALLEST_AREA) & (area <= LARGEST_AREA) & (sides >= 1).all(dim=1)]


def corner_box(*, height: int, width: int) -> Float[Tensor, "1 4"]:
    """What is distilled of an image without a usable box, as published: its top left corner, a quarter of each side.

    Args:
        height: of the image [pixels].
        width: of the image [pixels].
    """
    return torch.tensor([[0.0, 0.0, width / 4, height / 4]])


def with_boxes(dataset: Dataset, path: Path) -> Dataset:
    """Give the images of a data set the boxes of a file, in place of any they have.

    Args:
        dataset: of any kind. An image goes by its id, by its path below the data's folder or the end of that path,
            by its name without suffix, and, in a file of results, by the number that its name or id is.
        path: in any of the three forms.

    Returns:
        The same images with the file's boxes, clipped where their size is known; what is left out is in `dropped`.

    Raises:
        InputError: the file is not one of these, is about none of the images, or states another size than the data.
    """
    found, dropped = parse_boxes(path), dict(dataset.dropped)
    matched = match_images(found, dataset.records, path, dropped, elsewhere=ELSEWHERE)
    taken = {
        index: _boxed_record(dataset.records[index], found[name], f"{path}: image {name!r}", dropped)
        for index, name in matched.items()
    }
    if not taken:
        raise InputError(
            f"--regions {path}: need boxes of the data's images; none of its {len(found)} (such as "
            f"{next(iter(found))!r}) is among the {len(dataset.records)} (such as {str(dataset.records[0].id)!r}). "
            "Is it about another split or data set?"
        )
    if not any(record.boxes for record in taken.values()):
        raise InputError(
            f"--regions {path}: need boxes of at least 1 pixel inside their images; none is. They are in pixels of the "
            "image, not in parts of its sides: xyxy in {file name: ...}, xywh in COCO's form and in results."
        )
    records = tuple(
        taken[place] if place in taken else replace(record, boxes=(), labels=(), crowd=())
        for place, record in enumerate(dataset.records)
    )
    return replace(dataset, records=records, dropped=dropped)


def note_boxless(dataset: Dataset) -> Dataset:
    """Note how many images have no usable box, so that the user is told what is distilled in them; where these are
    more than half, it is a warning with a way out."""
    none = [record for record in dataset.records if not any(map(_is_usable, record.boxes))]
    if not none:
        return dataset
    line = (
        f"{len(none)} of {len(dataset.records)} images have no box of 8 x 8 to 1024 x 1024 pixels: "
        f"their top left corner is distilled (a quarter of each side); the first: {none[0].id}"
    )
    if 2 * len(none) > len(dataset.records):
        line = (
            f"WARNING   {line}. That is most of what is learned from: name boxes of all images with --regions "
            "(`foveate proposals` makes them), or in --data only the images that have some."
        )
    return replace(dataset, notes=(*dataset.notes, line))


def _is_usable(box: Box) -> bool:
    """Whether `sample_proposals` keeps a box, as far as can be told before its image is decoded."""
    width, height = box[2] - max(box[0], 0.0), box[3] - max(box[1], 0.0)
    return width >= 1 and height >= 1 and SMALLEST_AREA <= width * height <= LARGEST_AREA


def _boxed_record(record: Record, boxed: Boxed, where: str, dropped: dict[str, Dropped]) -> Record:
    """A record with the boxes that it can use."""
    stated = None if boxed.height is None or boxed.width is None else (boxed.height, boxed.width)
    if stated is not None and record.size is not None and stated != record.size:
        raise InputError(
            f"{where}: need boxes for {record.size[0]} x {record.size[1]} pixels (height x width), as the data has it; "
            f"got them for {stated[0]} x {stated[1]}. Are the boxes of another version of the data?"
        )
    size = record.size or stated
    kept: list[Box] = []
    for box in boxed.boxes:
        usable = _without_size(box) if size is None else clip_box(box, height=size[0], width=size[1])
        if isinstance(usable, str):
            drop(dropped, usable, where)
        else:
            kept.append(usable)
    height, width = size or (None, None)
    return replace(record, height=height, width=width, boxes=tuple(kept), labels=(), crowd=())


def _without_size(box: Box) -> Box | str:
    """What can be judged of a box before its image is decoded; the rest is `sample_proposals`'."""
    x1, y1, x2, y2 = max(box[0], 0.0), max(box[1], 0.0), box[2], box[3]
    if x2 <= 0 or y2 <= 0:
        return OUTSIDE
    return TINY if x2 - x1 < 1 or y2 - y1 < 1 else (x1, y1, x2, y2)


def places_of(records: Sequence[Record]) -> dict[str | int, int]:
    """Every way to call an image -> its place; what would call two images calls none."""
    places: dict[str | int, int] = {}
    counts: Counter[str | int] = Counter()
    exact: dict[str | int, int] = {}
    for place, record in enumerate(records):
        exact[record.id] = place
        name = record.path.as_posix() if record.member is None else record.member.key
        path = PurePosixPath(name)
        calls: set[str | int] = {str(record.id), path.stem if record.member is None else path.name}
        calls |= {"/".join(path.parts[-depth:]) for depth in range(1, min(len(path.parts), 4) + 1)}
        calls |= {int(call) for call in calls if isinstance(call, str) and call.isdecimal() and len(call) < 19}
        for call in calls:
            places[call] = place
            counts[call] += 1
    return {call: place for call, place in places.items() if counts[call] == 1} | exact


def match_images(
    names: Iterable[Name], records: Sequence[Record], path: Path, dropped: dict[str, Dropped], *, elsewhere: str
) -> dict[int, Name]:
    """Find which image of the data each entry of a file is about.

    Args:
        names: what the file calls its images.
        records: of the data.
        path: of the file, for messages.
        dropped: receives the entries that are about no image of the data.
        elsewhere: the reason that they are counted under.

    Returns:
        The index of a record -> the name of its entry.

    Raises:
        InputError: two entries are about one image.
    """
    places, matched = places_of(records), {}
    for name in names:
        index, where = find_place(places, name), f"{path}: image {name!r}"
        if index is None:
            drop(dropped, elsewhere, where)
        elif index in matched:
            raise InputError(f"{where}: need every image once; it is {records[index].id}, as another one is.")
        else:
            matched[index] = name
    return matched


def find_place(places: dict[str | int, int], name: str | int) -> int | None:
    """The image that a file means: by its whole name, else by the name without suffix (shards' keys)."""
    if name in places or isinstance(name, int):
        return places.get(name)
    return places.get(name.rpartition(".")[0])
