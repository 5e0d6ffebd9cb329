"""Semantic ground truth: an image and a label map, which has one value per pixel.

Common to the readers in `datasets/`: pairs of files, and a coding that maps the values of a data set's maps to labels.
A value that the coding lacks is an error, never a class and never ignored. Panoptic annotations (COCO, the rendered
world) are semantic ones too: each segment's pixels have its label.
"""

import io
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from foveate.data.annotations import REMOVED, RelabelledRecords, objects_of
from foveate.data.images import ImageError, check_inside, check_size, list_images, read_image, read_values
from foveate.data.labels import Labels, labels_text, write_labels
from foveate.data.panoptic import read_panoptic_map
from foveate.data.records import Dataset, IgnoredEntries, Record, read_record
from foveate.errors import InputError, listed
from foveate.io.files import write_whole
from foveate.progress import image_bar
from foveate.types import LabelMap, PanopticMap

NONE = -1  # label of a pixel without a class
UNKNOWN = -2
SUFFIX = ".jpg"  # of the images of all these data sets; maps may be in the same folder
MAP_SUFFIXES = (".png", ".tif", ".tiff")
PREPARED = "annotations_detectron2"  # folder of label maps prepared for detectron2's readers, as CAT-Seg's are
LIST = "labels.txt"  # beside converted maps: their classes
MAX_LISTED = 3  # names in a message


@dataclass(frozen=True)
class Coding:
    """The meaning of the values in a data set's label maps."""

    labels: Mapping[int, int]  # value -> label, the index in the vocabulary; -1: no class
    bits: int  # per value: 8 or 16


def coding_of(numbers: Sequence[int], *, none: int, maps: Path) -> Coding:
    """The coding of 8-bit maps.

    Args:
        numbers: values of the classes in the data set's own maps, in the order of the labels.
        none: value of a pixel without a class there.
        maps: folder of the maps; in one prepared for detectron2, values are labels and 255 is no class.
    """
    if is_prepared(maps):
        numbers, none = range(len(numbers)), 255
    return Coding({none: NONE} | {number: label for label, number in enumerate(numbers)}, bits=8)


def is_prepared(maps: Path) -> bool:
    """Whether a folder, by its name or that of one above it, holds maps prepared for detectron2."""
    return PREPARED in maps.absolute().parts


@dataclass(frozen=True)
class SemanticData:
    """The images of a split with their label maps."""

    dataset: Dataset  # its categories are the classes, in the order of the labels
    coding: Coding | None  # None: its records are panoptic ones
    has_images: bool = True  # False: the images need not exist

    @property
    def names(self) -> list[str]:
        """The name of each class."""
        return [category.name for category in self.dataset.categories]


def from_panoptic(dataset: Dataset) -> SemanticData:
    """Use a panoptic data set as a semantic one, with the labels of things and stuff.

    Raises:
        InputError: it has no panoptic annotations.
    """
    if any(record.panoptic is None for record in dataset.records):
        raise InputError(f"{dataset.name}: need panoptic annotations; it has others. Read the panoptic file.")
    return SemanticData(dataset, None)


def read_label_map(record: Record, data: SemanticData) -> LabelMap:
    """Read the label map of an image, and check its size against the image's header if the image exists.

    Raises:
        ImageError: a file is missing or damaged, the map has another size than the image or other bits than the data
            set's maps, or an unknown value; names the file, the value and a pixel.
    """
    label_map = decode_label_map(record, data)
    if data.has_images and data.coding is not None and record.size is None and record.member is None:
        height, width = label_map.labels.shape
        check_size(record.path, (height, width))
    return label_map


def decode_label_map(record: Record, data: SemanticData) -> LabelMap:
    """Read the label map of an image, which may be unreadable itself.

    Raises:
        ImageError: as `read_label_map`, except for the image's size.
    """
    if data.coding is None:
        return flatten(read_panoptic_map(record, data.dataset.categories))
    assert record.semantic is not None, f"{record.id}: not a record of a semantic data set"
    values = read_values(record.semantic, bits=data.coding.bits, expected_size=record.size)  # (H, W)
    # look-up table: value -> label
    coding = data.coding.labels
    table = torch.full((2**data.coding.bits,), UNKNOWN, dtype=torch.int64)
    table[torch.tensor(list(coding), dtype=torch.int64)] = torch.tensor(list(coding.values()))
    labels = table[values]  # (H, W)
    unknown = (labels == UNKNOWN).nonzero()  # (pixels, 2)
    if len(unknown):
        row, column = unknown[0].tolist()
        raise ImageError(
            f"{record.semantic}: need values of the data set's {len(set(coding.values()) - {NONE})} classes, or of "
            f"none; got {int(values[row, column])} in row {row}, column {column} ({len(unknown)} such pixels). Is "
            "this the map of another data set, or was it converted already?"
        )
    return LabelMap(labels)


def read_image_and_labels(
    record: Record, data: SemanticData, *, remarks: list[str] | None = None
) -> tuple[UInt8[Tensor, "3 H W"], LabelMap]:
    """Read an image and its label map; EXIF rotation is applied if that makes the sizes equal.

    Args:
        remarks: as for `read_image`.

    Raises:
        ImageError: as `read_label_map` and `read_image`.
    """
    if data.coding is None:
        return read_record(record, remarks=remarks), read_label_map(record, data)
    label_map = decode_label_map(record, data)
    height, width = label_map.labels.shape
    return read_image(record.path, expected_size=(height, width), remarks=remarks), label_map


def flatten(panoptic: PanopticMap) -> LabelMap:
    """Convert segments to labels; pixels outside all segments have no class."""
    ids = torch.tensor([0, *(segment.id for segment in panoptic.segments)], dtype=torch.int64)  # (N + 1,)
    labels = torch.tensor([NONE, *(segment.label for segment in panoptic.segments)], dtype=torch.int64)
    ids, order = ids.sort()
    device = panoptic.ids.device
    indices = torch.searchsorted(ids.to(device), panoptic.ids.contiguous())  # (H, W)
    return LabelMap(labels[order].to(device)[indices])


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
    """Pair each image of a folder with its label map, which has the same path in another folder.

    Args:
        name: of the data set and split, for messages.
        image_folder: folder of the images, also in folders below it; of .jpg and another suffix .jpg is used.
        maps: folder of the label maps, PNG or TIFF.
        only: paths without suffix of the images to use, in this order; None: all, sorted.
        with_images: False: the images need not exist; each map stands for one.

    Returns:
        One record per image, its id the path without suffix; sizes are not known before decoding.

    Raises:
        InputError: a folder is missing, an image has no map, or an image of `only` does not exist.
    """
    for folder, what in ((image_folder, "images"), (maps, "label maps")):
        if not folder.is_dir() and (with_images or folder == maps):
            raise InputError(f"{folder}: need the folder of the {what} of {name}; not found. Check the path.")
    map_paths = _list_maps(maps)
    ignored: dict[str, IgnoredEntries] = {}
    if with_images:
        listing = list_images(image_folder)
        ignored = {reason: IgnoredEntries(*entries) for reason, entries in listing.ignored.items()}
        images = _images_by_key(listing.images, image_folder, known={*map_paths, *(only or ())})
    else:
        images = {key: image_folder / f"{key}{SUFFIX}" for key in sorted(map_paths)}
    keys = list(images) if only is None else list(only)
    for paths, folder, what in ((images, image_folder, "image"), (map_paths, maps, "label map")):
        missing = [key for key in keys if key not in paths]
        if missing or not keys:
            raise InputError(
                f"{folder}: need a {what} for each of the {len(keys)} images of {name}; {len(missing)} have none: "
                f"{listed(missing, MAX_LISTED)}. Is the download complete, and is this the folder of the same split?"
            )
    extra = len(map_paths) - len(keys) if only is None else 0
    notes = (*labels.notes, *([f"{extra} label maps ignored: no image with that name"] if extra else []))
    records = tuple(Record(key, images[key], semantic=map_paths[key]) for key in keys)
    return SemanticData(Dataset(name, labels.categories(), records, ignored, notes), coding, has_images=with_images)


def _images_by_key(paths: Sequence[Path], folder: Path, *, known: Collection[str]) -> dict[str, Path]:
    """The images by their path without suffix: .jpg, and others where a map or a list has that name."""
    images: dict[str, Path] = {}
    for path in paths:
        key, is_usual = path.relative_to(folder).with_suffix("").as_posix(), path.suffix.lower() == SUFFIX
        if is_usual or (key in known and key not in images):
            images[key] = path
    return images


def first_folder(root: Path, names: Sequence[str], *, what: str) -> Path:
    """Find the first of several folders that exists below a root.

    Raises:
        InputError: none exists.
    """
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise InputError(f"{root}: need the folder of the {what}; found none of {', '.join(names)}. Check the path.")


def start_maps(out: Path, labels: Labels) -> None:
    """Create a folder of converted maps with the list of its classes, or resume one.

    Raises:
        InputError: the folder contains something else or maps of other classes, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: need a folder for the maps; this is a file. Choose another name.")
    list_path = out / LIST
    if not (out.is_dir() and any(out.iterdir())):
        write_labels(list_path, labels)
    elif not (list_path.is_file() and list_path.read_bytes() == labels_text(labels).encode()):
        what = f"its {LIST} has other classes" if list_path.is_file() else f"it has other files and no {LIST}"
        raise InputError(
            f"{out}: need a folder that is new, empty, or has maps of the same {len(labels.ids)} classes; {what}. "
            "Choose another name."
        )


def write_maps(
    targets: Mapping[Path, Path],
    read: Callable[[Path], Int64[Tensor, "H W"]],
    *,
    home: Path,
    bits: int,
    progress: str | None,
) -> int:
    """Convert files to maps, skipping those whose map is not older, so that a stopped conversion is resumed.

    Args:
        targets: file -> its map.
        read: returns the values of a file.
        home: the folder that no file may lead out of.
        bits: as for `write_map`.
        progress: title of a bar; None: no bar.

    Returns:
        Number of maps written.
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
    """Write a label map, whole or not at all: PNG of 8 bits, or TIFF of 16; the inverse of `read_values`."""
    assert (bits, path.suffix) in ((8, ".png"), (16, ".tif")), f"{path}: {bits} bits"
    image = Image.fromarray(values.numpy().astype(np.uint8 if bits == 8 else np.uint16))
    content = io.BytesIO()
    if bits == 8:
        image.save(content, format="PNG")
    else:
        image.save(content, format="TIFF", compression="tiff_adobe_deflate")
    write_whole(path, content.getvalue())


def _list_maps(folder: Path) -> dict[str, Path]:
    """The label maps of a folder and those below it, by their path without suffix."""
    maps = {}
    for parent, _, names in os.walk(folder, followlinks=False):
        for path in (Path(parent, name) for name in names):
            if path.suffix.lower() in MAP_SUFFIXES:
                if path.is_symlink():
                    check_inside(path, folder)
                maps[path.relative_to(folder).with_suffix("").as_posix()] = path
    return maps


def only_classes(data: SemanticData, names: Sequence[str]) -> SemanticData:
    """Select some classes, as training on base classes needs it; pixels of the others have no class.

    No map is read for this, and every image stays, also without a pixel of these classes.

    Args:
        data: any semantic data; segments of the other classes are removed from panoptic records.
        names: of the classes, in their new order.

    Raises:
        InputError: no names, a repeated or unknown name, or one that two classes have.
    """
    known = data.names
    invalid = [name for name in names if known.count(name) != 1 or list(names).count(name) != 1]
    if invalid or not names:
        got = ", ".join(map(repr, invalid[:MAX_LISTED])) or "none"
        raise InputError(
            f"classes: need unique names of the {len(known)} classes of {data.dataset.name}, such as {known[0]!r}; "
            f"got {got}. Write the names as in the list of classes."
        )
    new_labels = {known.index(name): label for label, name in enumerate(names)}
    dataset = data.dataset
    note = f"{len(names)} of {len(known)} classes are used; pixels of the others have no class"
    selected = replace(
        dataset,
        categories=tuple(dataset.categories[label] for label in new_labels),
        notes=(*dataset.notes, *([note] if len(names) < len(known) else [])),
    )
    if data.coding is None:
        chosen = np.array([new_labels.get(label, REMOVED) for label in range(len(dataset.categories))])
        labels = chosen[objects_of(dataset.records).labels]
        return replace(data, dataset=replace(selected, records=RelabelledRecords(dataset.records, labels)))
    coding = {number: new_labels.get(label, NONE) for number, label in data.coding.labels.items()}
    return replace(data, dataset=selected, coding=replace(data.coding, labels=coding))


def with_labels(data: SemanticData, labels: Labels) -> SemanticData:
    """Replace the names of a data set's classes, such as by OpenSeg's synonyms, matched by id.

    Raises:
        InputError: the list lacks an id of the data set.
    """
    categories = data.dataset.categories
    chosen = labels.choose(category.id for category in categories)
    chosen = replace(chosen, is_thing=tuple(category.is_thing for category in categories))
    notes = (*data.dataset.notes, *labels.notes)
    return replace(data, dataset=replace(data.dataset, categories=chosen.categories(), notes=notes))
