"""Images with classes and captions, for zero-shot classification and retrieval.

    DIR/CLASS/*.jpg             one class per image, ImageNet's layout; `names` maps folders to class names
    annotated things            one class per box; cropped as in `evaluate_regions`
    captions_SPLIT2017.json     captions of a COCO root, or the texts of tar shards

Deliberately absent: stuff, whose crops show the things in front of it.
"""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveate.clip.vocabulary import Vocabulary
from foveate.data.captions import only_captioned, with_captions
from foveate.data.labels import refuse_repeated
from foveate.data.records import Consistency, Dataset
from foveate.data.sources import open_data
from foveate.data.validation import parse
from foveate.errors import InputError, listed
from foveate.evaluate.segments import counting_segments, select_boxes
from foveate.types import is_code, normalize_name, repeated_name

SPLITS = ("val", "valid", "validation", "test", "testing", "train", "training")  # the best to measure first


@dataclass(frozen=True)
class LabelledImages:
    """Images, the classes that compete, and the class of each image or of each of its boxes."""

    dataset: Dataset  # labels of its boxes index `classes`
    classes: Vocabulary
    by_image: dict[str, int] | None  # class of the whole image by its id; None: its boxes have classes


def open_labelled(
    data: Path, *, split: str, names: Path | None, classify: bool = True, retrieve: bool = True, accept: bool = False
) -> tuple[LabelledImages | None, Dataset | None]:
    """Open classes and captions of a folder of class folders, a COCO root or tar shards.

    Args:
        names: JSON of the names of class folders, see `class_folders`.
        accept: as for `open_data`.

    Returns:
        The images with classes, and the images with captions; None if the data has none or they are not requested.

    Raises:
        InputError: the data is none of these, or has neither of the two.
    """
    if names is not None and (data / "annotations").is_dir():
        raise InputError(f"--labels {names}: names class folders; {data} has annotations, and their categories' names.")
    labelled = images = None
    has_captions = retrieve and (data / "annotations" / f"captions_{split}2017.json").is_file()
    if classify or not has_captions:
        dataset = open_data(data, split=split, annotations="instances", accept=accept)
        if len(dataset.records) and dataset.records[0].member is not None:  # tar shards
            images = dataset if retrieve else None
        elif classify:
            labelled = annotated_things(dataset) if dataset.categories else class_folders(dataset, names=names)
            images = (
                replace(dataset, ignored={}, notes=(), consistency=Consistency()) if has_captions else None
            )  # reported once, with the classes
    elif has_captions:
        images = open_data(data, split=split, annotations="none")
    captioned = None if images is None else only_captioned(with_captions(images, root=data, split=split))
    if labelled is None and captioned is None:
        raise InputError(
            f"{data}: need class folders, annotated things, or captions to measure by; found none of those requested."
        )
    return labelled, captioned


def class_folders(folder: Dataset, *, names: Path | None = None) -> LabelledImages:
    """Take the first folder of each image's path as its class; the classes are the folders, sorted.

    A folder without an image is a class too: it competes, and is noted.

    Args:
        folder: of `read_folder`; ids are paths.
        names: JSON, {folder: name or [name, synonym, ...]}, such as ImageNet's n01440764 to tench; None: the names of
            the folders.

    Raises:
        InputError: an image in no folder, fewer than two folders, folders that are splits, or without `names` folders
            that are no words or are the same word, or a folder without a name.
    """
    folders: dict[str, str] = {}  # id of an image -> its class folder
    for record in folder.records:
        class_folder, slash, _ = str(record.id).partition("/")
        if not slash:
            raise InputError(
                f"{folder.name}: need every image in the folder of its class, DIR/CLASS/IMAGE; {class_folder} is not. "
                "Add --task retrieve to measure only captions."
            )
        folders[str(record.id)] = class_folder
    first = folder.records[0]
    root = first.path.parents[str(first.id).count("/")]
    _refuse_splits(root, {*folders.values()})
    empty = _empty_folders(root, {*folders.values()})
    if empty:
        note = f"{len(empty)} class folders have no image, and compete as classes: {listed(empty)}"
        folder = replace(folder, notes=(*folder.notes, note))
    order = sorted({*folders.values(), *empty})
    if len(order) < 2:
        raise InputError(f"{folder.name}: need one folder per class, at least two; got only {', '.join(order)}.")
    if names is None:
        _refuse_codes(folder.name, order)
        refuse_repeated(folder.name, order, do="Merge or rename these folders.")
    classes = tuple((name,) for name in order) if names is None else _read_names(names, order)
    labels = {name: label for label, name in enumerate(order)}
    return LabelledImages(folder, Vocabulary(classes), {key: labels[name] for key, name in folders.items()})


def _empty_folders(root: Path, full: Collection[str]) -> list[str]:
    """The folders beside those of the classes that have no image; hidden ones are none."""
    beside = [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
    return sorted(name for name in beside if name not in full)


def _refuse_splits(root: Path, folders: Collection[str]) -> None:
    """Refuse folders train, val and test, in which the class folders are."""
    splits = sorted(
        (folder for folder in folders if folder.lower() in SPLITS), key=lambda name: SPLITS.index(name.lower())
    )
    if splits and (len(splits) == len(folders) or len(splits) > 1):
        raise InputError(
            f"{root}: need one folder per class, DIR/CLASS/IMAGE; found the splits {listed(splits)}. Give the folder "
            f"of one: --data {root}/{splits[0]}."
        )


def _refuse_codes(name: str, folders: Sequence[str]) -> None:
    codes = [folder for folder in folders if is_code(folder)]
    if codes:
        kind = "numbers" if codes[0].isdecimal() else "WordNet ids"
        raise InputError(
            f"{name}: need class folders named in words, which are the text of the classes; {len(codes)} of "
            f"{len(folders)} are {kind}, such as {codes[0]}. Give their names: --labels FILE, a JSON object such as "
            f'{{"{codes[0]}": "name"}}.'
        )


def annotated_things(dataset: Dataset, *, crowd: bool = True) -> LabelledImages:
    """Take the boxes of things that count in `evaluate_regions`; only things compete. InputError without things."""
    things = [label for label, category in enumerate(dataset.categories) if category.is_thing]
    if not things:
        raise InputError(f"{dataset.name}: need annotated things to classify; it has none.")
    refuse_repeated(dataset.name, [dataset.categories[label].name for label in things])
    index = {label: number for number, label in enumerate(things)}
    records = []
    for record in counting_segments(dataset, crowd=crowd).records:
        record = select_boxes(record, [number for number, label in enumerate(record.labels) if label in index])
        labels = tuple(index[label] for label in record.labels)
        records.append(replace(record, labels=labels, segment_ids=(), panoptic=None))
    names = tuple((dataset.categories[label].name,) for label in things)
    categories = tuple(dataset.categories[label] for label in things)
    return LabelledImages(
        replace(dataset, categories=categories, records=tuple(records), file=None), Vocabulary(names), None
    )


def _read_names(path: Path, folders: list[str]) -> tuple[tuple[str, ...], ...]:
    """The class names of each folder, from a JSON file."""
    content = parse(path, kind="a --labels")
    if not isinstance(content, dict):
        raise InputError(f"--labels {path}: need an object, folder to name; got a {type(content).__name__}.")
    content = {normalize_name(name): value for name, value in _by_folder(content, folders).items()}
    missing = [name for name in folders if normalize_name(name) not in content]
    if missing:
        raise InputError(
            f"--labels {path}: need a name for every folder; {len(missing)} have none, first {missing[0]}."
        )
    classes = []
    for folder in folders:
        value = content[normalize_name(folder)]
        names = [value] if isinstance(value, str) else value
        if (
            not isinstance(names, list)
            or not names
            or not all(isinstance(name, str) and name.strip() for name in names)
        ):
            raise InputError(f"--labels {path}: need a name or a list of names for {folder}; got {names!r}.")
        classes.append(tuple(names))
    twice = repeated_name(names[0] for names in classes)
    if twice is not None:
        print(f"--labels {path}: {twice[0]!r} is the name of several folders; they tie, which counts as wrong",
              file=sys.stderr)  # fmt: skip
    return tuple(classes)


def _by_folder(content: dict[str, Any], folders: Collection[str]) -> dict[str, Any]:
    """Folder -> names, also of ImageNet's class index {"0": ["n01440764", "tench"]}."""
    pairs = [value for value in content.values() if isinstance(value, list) and len(value) == 2]
    is_index = len(pairs) == len(content) and all(isinstance(pair[0], str) and is_code(pair[0]) for pair in pairs)
    return dict(pairs) if is_index and not content.keys() & {*folders} else content
