"""Images with classes and captions, for zero-shot classification and retrieval.

    DIR/CLASS/*.jpg             one class per image, ImageNet's layout; `names` maps folders to class names
    annotated things            one class per box; cropped as in `evaluate_regions`
    captions_SPLIT2017.json     captions of a COCO root, or the texts of tar shards

Deliberately absent: stuff, whose crops show the things in front of it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from foveate.clip.vocabulary import Vocabulary
from foveate.data.captions import only_captioned, with_captions
from foveate.data.records import Consistency, Dataset
from foveate.data.sources import open_data
from foveate.data.validation import parse
from foveate.errors import InputError
from foveate.evaluate.segments import counting_segments, select_boxes


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

    Args:
        folder: of `read_folder`; ids are paths.
        names: JSON, {folder: name or [name, synonym, ...]}, such as ImageNet's n01440764 to tench; None: the names of
            the folders.

    Raises:
        InputError: an image in no folder, fewer than two folders, or a folder without a name.
    """
    folders: dict[str, str] = {}  # id of an image -> its class folder
    for record in folder.records:
        first, slash, _ = str(record.id).partition("/")
        if not slash:
            raise InputError(
                f"{folder.name}: need every image in the folder of its class, DIR/CLASS/IMAGE; {first} is not. "
                "Add --task retrieve to measure only captions."
            )
        folders[str(record.id)] = first
    order = sorted(set(folders.values()))
    if len(order) < 2:
        raise InputError(f"{folder.name}: need one folder per class, at least two; got only {', '.join(order)}.")
    classes = tuple((name,) for name in order) if names is None else _read_names(names, order)
    labels = {name: label for label, name in enumerate(order)}
    return LabelledImages(folder, Vocabulary(classes), {key: labels[first] for key, first in folders.items()})


def annotated_things(dataset: Dataset, *, crowd: bool = True) -> LabelledImages:
    """Take the boxes of things that count in `evaluate_regions`; only things compete. InputError without things."""
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
    content = parse(path, kind="a --labels")
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
