"""Pictures with a class: what zero-shot classification is measured on.

    DIR/CLASS/*.jpg             one class a picture, ImageNet's layout; `names` says what the folders mean
    annotated things            one class a box; the crops of `evaluate_regions`

Deliberately absent: stuff, whose crops show the things that lie on it.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from foveate.clip.vocabulary import Vocabulary
from foveate.data.records import Dataset, Record
from foveate.errors import InputError
from foveate.evaluate.regions import counting_segments


@dataclass(frozen=True)
class Labelled:
    """Pictures, the classes that compete, and which of them each picture, or each of its boxes, has."""

    dataset: Dataset  # labels of its boxes are places in `classes`
    classes: Vocabulary
    by_picture: dict[str, int] | None  # class of the whole picture by its id; None: its boxes have classes


def class_folders(folder: Dataset, *, names: Path | None = None) -> Labelled:
    """Take the first folder of each picture's path for its class.

    Args:
        folder: of `read_folder`; ids are paths.
        names: JSON, {folder: name or [name, synonym, ...]}, such as ImageNet's n01440764 to tench; folders are named
            as they are called when not given.

    Returns:
        The classes are the folders, sorted.

    Raises:
        InputError: a picture in no folder, fewer than two folders, or names that do not name every folder.
    """
    found: dict[str, int | None] = {}
    for record in folder.records:
        first, slash, _ = str(record.id).partition("/")
        if not slash:
            raise InputError(
                f"{folder.name}: need every picture in the folder of its class, DIR/CLASS/PICTURE; {first} lies beside "
                "them. To measure captions alone, add --no-classify."
            )
        found[first] = None
    order = sorted(found)
    if len(order) < 2:
        raise InputError(f"{folder.name}: need a folder a class, at least two; got {', '.join(order)} alone.")
    words = tuple((name,) for name in order) if names is None else _read_names(names, order)
    place = {name: label for label, name in enumerate(order)}
    by_picture = {str(record.id): place[str(record.id).partition("/")[0]] for record in folder.records}
    return Labelled(folder, Vocabulary(words), by_picture)


def annotated_things(dataset: Dataset, *, crowd: bool = True) -> Labelled:
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
    place = {label: number for number, label in enumerate(things)}
    records = tuple(_only(record, place) for record in counting_segments(dataset, crowd=crowd).records)
    words = tuple((dataset.categories[label].name,) for label in things)
    categories = tuple(dataset.categories[label] for label in things)
    return Labelled(replace(dataset, categories=categories, records=records, file=None), Vocabulary(words), None)


def _only(record: Record, place: dict[int, int]) -> Record:
    """A record with its things alone, labelled by their place among the things."""
    kept = [index for index, label in enumerate(record.labels) if label in place]
    return replace(
        record,
        boxes=tuple(record.boxes[index] for index in kept),
        labels=tuple(place[record.labels[index]] for index in kept),
        crowd=tuple(record.crowd[index] for index in kept),
        segment_ids=(),
        panoptic=None,
    )


def _read_names(path: Path, folders: list[str]) -> tuple[tuple[str, ...], ...]:
    """What each folder is called, from a JSON file."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--names {path}: need a JSON file; {type(error).__name__}: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"--names {path}: need an object, folder to name; got a {type(content).__name__}.")
    missing = [name for name in folders if name not in content]
    if missing:
        raise InputError(f"--names {path}: need a name for every folder; {len(missing)} have none, first {missing[0]}.")
    found = []
    for folder in folders:
        words = [content[folder]] if isinstance(content[folder], str) else content[folder]
        if not isinstance(words, list) or not words or not all(isinstance(one, str) and one.strip() for one in words):
            raise InputError(f"--names {path}: need a name or a list of names for {folder}; got {words!r}.")
        found.append(tuple(words))
    return tuple(found)
