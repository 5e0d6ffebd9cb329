"""Semantic ground truth as it lies on disk: an image beside a map of its pixels' classes.

What is common to the data sets of `stuff.py`, `ade.py`, `context.py` and `voc.py`: pairs of files, and a coding that
says what each number in a map means. A number the coding does not know is an error, never a class and never ignored.
Panoptic annotations (COCO, the rendered world) are semantic ones too, things and stuff by their label.
Deliberately absent: downloads, augmentation, and which of the data sets lies in a folder.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from foveate.data.images import ImageError, check_inside, check_size, list_images, read_image, read_values
from foveate.data.labels import Labels, labels_text, write_labels
from foveate.data.panoptic import read_panoptic_map
from foveate.data.records import Dataset, Record, read_record
from foveate.errors import InputError
from foveate.io.files import written_whole
from foveate.progress import image_bar
from foveate.types import LabelMap, PanopticMap

NONE = -1  # the label of a pixel without a class
UNKNOWN = -2
SUFFIX = ".jpg"  # of all these data sets' images; other files beside them are something else
MAP_SUFFIXES = (".png", ".tif", ".tiff")
PREPARED = "annotations_detectron2"  # folder of maps that were made for detectron2's readers, as Cat-Seg's are
LIST = "labels.txt"  # beside converted maps: their classes
TOLD = 3


@dataclass(frozen=True)
class Coding:
    """What the numbers in a data set's maps mean."""

    labels: Mapping[int, int]  # number -> label, -1: no class
    bits: int  # of a number: 8 or 16


def coding_of(numbers: Sequence[int], *, none: int, maps: Path) -> Coding:
    """What the numbers of maps of 8 bits mean.

    Args:
        numbers: of the classes, in the order of the labels, as the data set's own maps have them.
        none: the number of a pixel without a class there.
        maps: their folder; in one prepared for detectron2 the numbers are the places already, and 255 is none.
    """
    if is_prepared(maps):
        numbers, none = range(len(numbers)), 255
    return Coding({none: NONE} | {number: place for place, number in enumerate(numbers)}, bits=8)


def is_prepared(maps: Path) -> bool:
    """Whether a folder, by its name or that of one above it, holds maps prepared for detectron2."""
    return PREPARED in maps.absolute().parts


@dataclass(frozen=True)
class SemanticData:
    """The images of a split with a class for each pixel."""

    dataset: Dataset  # its categories are the classes, in the order of the labels
    coding: Coding | None  # None: its records are panoptic ones
    has_images: bool = True  # False: they need not be there, and nothing of them is read

    @property
    def names(self) -> list[str]:
        """The name of each class."""
        return [category.name for category in self.dataset.categories]


def from_panoptic(dataset: Dataset) -> SemanticData:
    """See a panoptic data set as a semantic one, things and stuff by their label.

    Raises:
        InputError: it has no panoptic annotations.
    """
    if any(record.panoptic is None for record in dataset.records):
        raise InputError(f"{dataset.name}: need panoptic annotations; it has others. Read the panoptic file.")
    return SemanticData(dataset, None)


def read_label_map(record: Record, data: SemanticData) -> LabelMap:
    """Read the classes of an image's pixels; of the image itself only the header, for its size, where it is there.

    Raises:
        ImageError: a file is missing or damaged, the map is not of the image's size, has other bits than the data
            set's maps, or a number that means nothing there; names the file, the number and a pixel.
    """
    found = decode_label_map(record, data)
    if data.has_images and data.coding is not None and record.size is None and record.member is None:
        height, width = found.labels.shape
        check_size(record.path, (height, width))
    return found


def decode_label_map(record: Record, data: SemanticData) -> LabelMap:
    """Read the classes of an image's pixels without a look at the image, which may be one that cannot be read.

    Raises:
        ImageError: as `read_label_map`, but for the image's size.
    """
    if data.coding is None:
        return flatten(read_panoptic_map(record, data.dataset.categories))
    return _decode(record, data.coding)


def read_image_and_labels(record: Record, data: SemanticData) -> tuple[UInt8[Tensor, "3 H W"], LabelMap]:
    """Read an image and the classes of its pixels; EXIF rotation is applied where that makes the sizes equal.

    Raises:
        ImageError: as `read_label_map`, or the image cannot be used.
    """
    if data.coding is None:
        return read_record(record), read_label_map(record, data)
    found = _decode(record, data.coding)
    height, width = found.labels.shape
    return read_image(record.path, expected_size=(height, width)), found


def flatten(panoptic: PanopticMap) -> LabelMap:
    """Turn segments into classes; pixels of no segment have none."""
    ids = torch.tensor([0, *(one.id for one in panoptic.segments)], dtype=torch.int64)  # (N + 1,)
    labels = torch.tensor([NONE, *(one.label for one in panoptic.segments)], dtype=torch.int64)
    ids, order = ids.sort()
    device = panoptic.ids.device
    places = torch.searchsorted(ids.to(device), panoptic.ids.contiguous())  # (H, W)
    return LabelMap(labels[order].to(device)[places])


def pair_files(
    name: str,
    *,
    image_folder: Path,
    maps: Path,
    labels: Labels,
    coding: Coding,
    only: Sequence[str] | None = None,
    with_images: bool = True,
) -> SemanticData:
    """Put each image of a folder beside its map, which has the same path in another folder.

    Args:
        name: of the data set and split, for messages.
        image_folder: folder of the images, JPEG; those in folders below count too.
        maps: folder of the maps, PNG or TIFF.
        labels: the classes.
        coding: what the maps' numbers mean.
        only: paths without suffix of the images that count, in this order; None: all, sorted.
        with_images: False: the images need not be there; each map that counts stands for one.

    Returns:
        One record an image, its id the path without suffix; sizes are not known before decoding.

    Raises:
        InputError: a folder is missing, an image has no map, or `only` names an image that is not there.
    """
    for folder, what in ((image_folder, "images"), (maps, "label maps")):
        if not folder.is_dir() and (with_images or folder == maps):
            raise InputError(f"{folder}: need the folder of the {what} of {name}; there is none. Check the path.")
    there = _list_maps(maps)
    if with_images:
        found = [path for path in list_images(image_folder) if path.suffix.lower() == SUFFIX]
        known = {path.relative_to(image_folder).with_suffix("").as_posix(): path for path in found}
    else:
        known = {key: image_folder / f"{key}{SUFFIX}" for key in sorted(there)}
    wanted = list(known) if only is None else list(only)
    for files, folder, what in ((known, image_folder, "image"), (there, maps, "label map")):
        missing = [key for key in wanted if key not in files]
        if missing or not wanted:
            raise InputError(
                f"{folder}: need a {what} for each of the {len(wanted)} images of {name}; {len(missing)} have none: "
                f"{', '.join(missing[:TOLD])}{' ...' if len(missing) > TOLD else ''}. Is the download whole, and this "
                "the folder of the same split?"
            )
    extra = len(there) - len(wanted) if only is None else 0
    notes = (*labels.notes, *([f"{extra} label maps have no image and are not read"] if extra else []))
    records = tuple(Record(key, known[key], semantic=there[key]) for key in wanted)
    return SemanticData(Dataset(name, labels.categories(), records, {}, notes), coding, has_images=with_images)


def first_folder(root: Path, names: Sequence[str], *, what: str) -> Path:
    """Find the first of several places that a folder may have below a root.

    Raises:
        InputError: none is there.
    """
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise InputError(f"{root}: need the folder of the {what}; looked for {', '.join(names)}. Check the path.")


def start_maps(out: Path, labels: Labels) -> None:
    """Begin a folder of converted maps, or go on with one: write the list of its classes there.

    Raises:
        InputError: it holds something else, or maps of other classes, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: need a folder for the maps; this is a file. Name another.")
    there = out.is_dir() and any(out.iterdir())
    kept = out / LIST
    if there and not (kept.is_file() and kept.read_bytes() == labels_text(labels).encode()):
        what = f"its {LIST} has other classes" if kept.is_file() else f"it holds other things and no {LIST}"
        raise InputError(
            f"{out}: need a folder that is new, empty, or of maps of the same {len(labels.ids)} classes; {what}. "
            "Name another."
        )
    if not there:
        write_labels(kept, labels)


def write_maps(
    targets: Mapping[Path, Path],
    read: Callable[[Path], Int64[Tensor, "H W"]],
    *,
    home: Path,
    bits: int,
    progress: str | None,
) -> int:
    """Convert files to maps, but for those whose map is not older, so that a conversion that was stopped is resumed.

    Args:
        targets: each file -> its map.
        read: gives the numbers of a file.
        home: the folder that no file may lead out of.
        bits: as for `write_map`.
        progress: title of a bar; None: no bar.

    Returns:
        How many maps were written.
    """
    written = 0
    with image_bar(show=progress is not None) as bar:
        for source, target in bar.track(targets.items(), total=len(targets), description=progress or ""):
            check_inside(source, home)
            if not target.is_file() or target.stat().st_mtime_ns < source.stat().st_mtime_ns:
                write_map(target, read(source), bits=bits)
                written += 1
    return written


def write_map(path: Path, values: Int64[Tensor, "H W"], *, bits: int) -> None:
    """Write a map of numbers, whole or not at all: PNG of 8 bits, or TIFF of 16; the inverse of `read_values`."""
    assert (bits, path.suffix) in ((8, ".png"), (16, ".tif")), f"{path}: {bits} bits"
    image = Image.fromarray(values.numpy().astype(np.uint8 if bits == 8 else np.uint16))
    with written_whole(path) as partial:
        if bits == 8:
            image.save(partial, format="PNG")
        else:
            image.save(partial, format="TIFF", compression="tiff_adobe_deflate")


def _decode(record: Record, coding: Coding) -> LabelMap:
    assert record.semantic is not None, f"{record.id}: not a record of a semantic data set"
    values = read_values(record.semantic, bits=coding.bits, expected_size=record.size)  # (H, W)
    table = torch.full((2**coding.bits,), UNKNOWN, dtype=torch.int64)
    table[torch.tensor(list(coding.labels), dtype=torch.int64)] = torch.tensor(list(coding.labels.values()))
    labels = table[values]  # (H, W)
    wrong = (labels == UNKNOWN).nonzero()  # (pixels, 2)
    if len(wrong):
        row, column = wrong[0].tolist()
        count = len(set(coding.labels.values()) - {NONE})
        raise ImageError(
            f"{record.semantic}: need numbers of the data set's {count} classes, or of none; got "
            f"{int(values[row, column])} in row {row}, column {column}, {len(wrong)} such pixels in all. Is this the "
            "map of another data set, or one that was converted already?"
        )
    return LabelMap(labels)


def _list_maps(folder: Path) -> dict[str, Path]:
    """The maps of a folder and those below it, by their path without suffix."""
    found = {}
    for parent, _, names in os.walk(folder, followlinks=False):
        for one in names:
            path = Path(parent, one)
            if path.suffix.lower() in MAP_SUFFIXES:
                if path.is_symlink():
                    check_inside(path, folder)
                found[path.relative_to(folder).with_suffix("").as_posix()] = path
    return found


def only_classes(data: SemanticData, names: Sequence[str]) -> SemanticData:
    """Keep some classes, as learning from the base ones alone needs it; pixels of the others have none.

    No map is read for that, and no image is left out, also none without a pixel of these classes.

    Args:
        data: any semantic data; of panoptic records the segments of the other classes go.
        names: of the classes that stay, in their new order.

    Raises:
        InputError: no name, one twice, one that is no class, or one that two classes have.
    """
    known = data.names
    wanted = list(names)
    wrong = [name for name in wanted if known.count(name) != 1 or wanted.count(name) != 1]
    if wrong or not wanted:
        told = ", ".join(map(repr, wrong[:TOLD])) or "none"
        raise InputError(f"classes: need names that {len(known)} classes of {data.dataset.name} have once, each once, "
                         f"such as {known[0]!r}; got {told}. Names are written as in the list.")  # fmt: skip
    places = {known.index(name): place for place, name in enumerate(wanted)}
    dataset = data.dataset
    note = f"{len(wanted)} of {len(known)} classes count; pixels of the others have none"
    chosen = replace(
        dataset,
        categories=tuple(dataset.categories[old] for old in places),
        notes=(*dataset.notes, *([note] if len(wanted) < len(known) else [])),
    )
    if data.coding is None:
        return replace(data, dataset=replace(chosen, records=tuple(_only(one, places) for one in dataset.records)))
    numbers = {number: places.get(place, NONE) for number, place in data.coding.labels.items()}
    return replace(data, dataset=chosen, coding=replace(data.coding, labels=numbers))


def _only(record: Record, places: Mapping[int, int]) -> Record:
    """A panoptic record with the segments of some labels, which get new ones."""
    kept = [i for i, label in enumerate(record.labels) if label in places]
    return replace(
        record,
        boxes=tuple(record.boxes[i] for i in kept),
        labels=tuple(places[record.labels[i]] for i in kept),
        crowd=tuple(record.crowd[i] for i in kept),
        segment_ids=tuple(record.segment_ids[i] for i in kept),
    )


def with_labels(data: SemanticData, labels: Labels) -> SemanticData:
    """Give a data set's classes other words, such as OpenSeg's synonyms, by their ids.

    Raises:
        InputError: the list lacks an id of the data set.
    """
    ids = [category.id for category in data.dataset.categories]
    chosen = labels.choose(ids)
    things = tuple(category.is_thing for category in data.dataset.categories)
    categories = replace(chosen, is_thing=things).categories()
    notes = (*data.dataset.notes, *labels.notes)
    return replace(data, dataset=replace(data.dataset, categories=categories, notes=notes))
