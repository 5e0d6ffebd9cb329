"""Images with classes and captions, for zero-shot classification and retrieval.

    DIR/CLASS/*.jpg             one class per image, ImageNet's layout; `names` maps folders to class names
    annotated things            one class per box; cropped as in `evaluate_regions`
    captions_SPLIT2017.json     captions of a COCO root, or the texts of tar shards

Deliberately absent: stuff, whose crops show the things in front of it.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from foveate.clip.vocabulary import Vocabulary
from foveate.data.captions import only_captioned, with_captions
from foveate.data.records import Dataset
from foveate.data.sources import open_data
from foveate.errors import InputError
from foveate.evaluate.segments import counting_segments, select_boxes


@dataclass(frozen=True)
class LabelledImages:
    """Images, the classes that compete, and which of them each image, or each of its boxes, has."""

    dataset: Dataset  # labels of its boxes index `classes`
    classes: Vocabulary
    by_image: dict[str, int] | None  # class of the whole image by its id; None: its boxes have classes


def open_labelled(
    data: Path, *, split: str, names: Path | None, classify: bool = True, retrieve: bool = True
) -> tuple[LabelledImages | None, Dataset | None]:
    """Find classes and captions in a folder of class folders, a COCO root or tar shards.

    Args:
        data: a folder of class folders (ImageNet's layout), a COCO root, or tar shards with texts.
        split: of a COCO root.
        names: JSON of the names of class folders, see `class_folders`.
        classify: look for classes.
        retrieve: look for captions.

    Returns:
        The images with classes and the images with captions; None where there are none, or they are not wanted.

    Raises:
        InputError: the data are none of these, or neither of the two is found.
    """
    if names is not None and (data / "annotations").is_dir():
        raise InputError(f"--labels {names}: names class folders; {data} has annotations, and their categories' names.")
    labelled = images = None
    has_captions = retrieve and (data / "annotations" / f"captions_{split}2017.json").is_file()
    if classify or not has_captions:
        dataset = open_data(data, split=split, annotations="instances")
        if len(dataset.records) and dataset.records[0].member is not None:  # tar shards
            images = dataset if retrieve else None
        elif classify:
            labelled = annotated_things(dataset) if dataset.categories else class_folders(dataset, names=names)
            images = replace(dataset, dropped={}, notes=()) if has_captions else None  # reported once, with the classes
    elif has_captions:
        images = open_data(data, split=split, annotations="none")
    captioned = None if images is None else only_captioned(with_captions(images, root=data, split=split))
    if labelled is None and captioned is None:
        raise InputError(
            f"{data}: need class folders, annotated things, or captions to measure by; found none of those requested."
        )
    return labelled, captioned


def class_folders(folder: Dataset, *, names: Path | None = None) -> LabelledImages:
    """Take the first folder of each image's path as its class.

    Args:
        folder: of `read_folder`; ids are paths.
        names: JSON, {folder: name or [name, synonym, ...]}, such as ImageNet's n01440764 to tench; None: the names of
            the folders.

    Returns:
        The classes are the folders, sorted.

    Raises:
        InputError: an image in no folder, fewer than two folders, or names that do not name every folder.
    """
    folders: dict[str, str] = {}  # id of an image -> its class folder
    for record in folder.records:
        first, slash, _ = str(record.id).partition("/")
        if not slash:
            raise InputError(
                f"{folder.name}: need every image in the folder of its class, DIR/CLASS/IMAGE; {first} is in none. "
                "To measure captions alone, add --no-classify."
            )
        folders[str(record.id)] = first
    order = sorted(set(folders.values()))
    if len(order) < 2:
        raise InputError(f"{folder.name}: need one folder per class, at least two; got {', '.join(order)} alone.")
    classes = tuple((name,) for name in order) if names is None else _read_names(names, order)
    labels = {name: label for label, name in enumerate(order)}
    return LabelledImages(folder, Vocabulary(classes), {key: labels[first] for key, first in folders.items()})


def annotated_things(dataset: Dataset, *, crowd: bool = True) -> LabelledImages:
    """Take the boxes of things that count in `evaluate_regions`; only things compete.

    Args:
        dataset: with annotated boxes.
        crowd: keep boxes marked as crowds.

    Raises:
        InputError: no category is a thing.
    """
    things = [label for label, category in enumerate(dataset.categories) if category.is_thing]
    if not things:
        raise InputError(f"{dataset.name}: need annotated things to classify; it has none.")
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
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--labels {path}: need a JSON file; {type(error).__name__}: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"--labels {path}: need an object, folder to name; got a {type(content).__name__}.")
    missing = [name for name in folders if name not in content]
    if missing:
        raise InputError(
            f"--labels {path}: need a name for every folder; {len(missing)} have none, first {missing[0]}."
        )
    classes = []
    for folder in folders:
        names = [content[folder]] if isinstance(content[folder], str) else content[folder]
        if (
            not isinstance(names, list)
            or not names
            or not all(isinstance(name, str) and name.strip() for name in names)
        ):
            raise InputError(f"--labels {path}: need a name or a list of names for {folder}; got {names!r}.")
        classes.append(tuple(names))
    return tuple(classes)
