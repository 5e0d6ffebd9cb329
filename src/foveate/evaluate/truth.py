"""What a detector is measured against: the objects of a data set in columns, as each benchmark counts them (Sec. 4.3).

    OV-COCO    objects of left-out categories are removed, then pictures without any object (4,836 of val are left)
    LVIS       a picture is asked only for the categories that were looked for in it (federated)
    others     every object of every picture

Objects come from the data set's annotation file where it has one: that alone has segmentations, the areas that the
official AP of small, medium and large objects goes by, boxes that are not clipped, and what was looked for. Where there
is none (VOC), they come from the records. Deliberately absent: the measure itself (`detection.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foveate.data.outlines import outline_of
from foveate.data.records import Dataset
from foveate.data.splits import BaseNovel
from foveate.data.strict import check_entry, fail, flag, known_id, load, short
from foveate.errors import InputError

TOLD = 5  # names in a message
LARGEST = 1e9  # of a box's numbers [pixels]
FREQUENCIES = {"rare": "r", "common": "c", "frequent": "f"}


class Object(NamedTuple):
    """One annotated object."""

    picture: int  # place in `Truth.pictures`
    label: int  # place in `Truth.names`
    box: tuple[float, float, float, float]  # left, top, width, height [pixels of the picture]
    area: float  # [square pixels]
    crowd: bool  # a crowd; of VOC: difficult
    segmentation: dict[str, Any] | None = None  # COCO's compressed run lengths


@dataclass(frozen=True)
class Truth:
    """The objects that count, and what else a benchmark's rule needs."""

    names: tuple[str, ...]  # of the classes that are measured
    places: tuple[int, ...]  # of the vocabulary's classes in `names`; -1: not measured
    groups: dict[str, list[int]]  # base and novel, and LVIS's frequencies -> places in `names`
    pictures: dict[str, int]  # id, as text -> its number
    sizes: list[tuple[int, int]]  # (height, width) of each [pixels]
    passed_over: frozenset[str]  # ids of pictures that the rule leaves out: what is found there does not count
    objects: list[Object]
    looked_for: list[tuple[list[int], list[int]]] | None  # LVIS: of each picture (absent, not all annotated) classes
    rules: tuple[str, ...]  # what was left out and where numbers come from, for people

    def counts(self) -> np.ndarray:
        """How many objects each class has, crowds left out."""
        labels = [one.label for one in self.objects if not one.crowd]
        return np.bincount(np.array(labels, dtype=np.int64), minlength=len(self.names))


def make_truth(
    dataset: Dataset,
    *,
    vocabulary: Sequence[str],
    split: BaseNovel | None,
    annotations: Path | None,
    masks: bool,
    federated: bool,
    only_present: bool,
    difficult: bool = False,
) -> Truth:
    """Choose the classes, the pictures and the objects that count.

    Args:
        dataset: with annotated boxes.
        vocabulary: names of the classes that were asked for, as detections number them.
        split: base and novel categories, and those to leave out; None: there are none, all count.
        annotations: the data set's file, read again for what records do not hold; None: records are all.
        masks: also take the segmentations of that file.
        federated: also take what was looked for in each picture.
        only_present: measure the categories that the vocabulary has, instead of refusing one that lacks some.
        difficult: objects that the file calls `difficult` or `ignore`, as converters of VOC do, are ignored too.

    Raises:
        InputError: a category that was not asked for, or a file that is not what it must be.
    """
    names, left_out = _classes(dataset, vocabulary, split, only_present=only_present)
    place = {name: number for number, name in enumerate(names)}
    labels = [place.get(category.name, -1) for category in dataset.categories]
    if annotations is None:
        objects, looked_for, rules = _of_records(dataset, labels), None, ["areas are those of the boxes"]
        rules += dataset.dropped_lines()
    else:
        content = load(annotations, kind="an annotation")
        objects, rules = _of_file(annotations, content, dataset, labels, masks=masks, difficult=difficult)
        looked_for = _looked_for(annotations, content, dataset, labels) if federated else None
    kept = list(range(len(dataset.records)))
    if split is not None and split.left_out:
        kept = sorted({one.picture for one in objects})
        rules.append(
            f"{split.rule}; {len(dataset.records) - len(kept)} of {len(dataset.records)} pictures have no object, not "
            "even a crowd, of a base or novel category and are left out"
        )
    if left_out:
        rules.append(f"{len(left_out)} categories that the vocabulary lacks are not measured")
    numbers = {old: new for new, old in enumerate(kept)}
    ids = [str(record.id) for record in dataset.records]
    return Truth(
        names=names,
        places=tuple(place.get(name, -1) for name in vocabulary),
        groups=_groups(dataset, names, split),
        pictures={ids[old]: new for old, new in numbers.items()},
        sizes=[dataset.records[old].size or (1, 1) for old in kept],
        passed_over=frozenset(key for old, key in enumerate(ids) if old not in numbers),
        objects=[one._replace(picture=numbers[one.picture]) for one in objects],
        looked_for=None if looked_for is None else [looked_for[old] for old in kept],
        rules=tuple(rules),
    )


def _classes(
    dataset: Dataset, vocabulary: Sequence[str], split: BaseNovel | None, *, only_present: bool
) -> tuple[tuple[str, ...], list[str]]:
    """The names of the classes that are measured, and of those that the vocabulary lacks."""
    for what, names in (("vocabulary", vocabulary), (dataset.name, [one.name for one in dataset.categories])):
        if len(set(names)) < len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise InputError(f"{what}: need every class once; {twice!r} stands there twice.")
    without = set() if split is None else {*split.left_out}
    asked = [category.name for category in dataset.categories if category.name not in without]
    known = set(vocabulary)
    missing = [name for name in asked if name not in known]
    if only_present and missing and len(missing) == len(asked):
        raise InputError(
            f"{dataset.name}: need at least one of its {len(asked)} categories in the vocabulary, as {asked[0]!r}; "
            f"got {short(list(vocabulary))}. Names are written as in the annotation file."
        )
    if not asked or (missing and not only_present):
        told = ", ".join(map(repr, missing[:TOLD])) + (" ..." if len(missing) > TOLD else "")
        raise InputError(
            f"{dataset.name}: need all its {len(asked)} categories in the vocabulary; {len(missing)} are not: {told}. "
            "Names are written as in the annotation file. Add them; --vocab measures only those that it names."
        )
    return tuple(name for name in asked if name in known), missing


def _groups(dataset: Dataset, names: Sequence[str], split: BaseNovel | None) -> dict[str, list[int]]:
    groups = {}
    if split is not None:
        parts = {"base": set(split.base), "novel": set(split.novel)}
        groups = {key: [number for number, name in enumerate(names) if name in part] for key, part in parts.items()}
    frequency = {category.name: category.frequency for category in dataset.categories}
    if any(frequency.values()):
        for key, letter in FREQUENCIES.items():
            groups[key] = [number for number, name in enumerate(names) if frequency[name] == letter]
    return groups


def _of_records(dataset: Dataset, labels: Sequence[int]) -> list[Object]:
    return [
        Object(picture, labels[label], (x1, y1, x2 - x1, y2 - y1), (x2 - x1) * (y2 - y1), crowd)
        for picture, record in enumerate(dataset.records)
        for (x1, y1, x2, y2), label, crowd in zip(record.boxes, record.labels, record.crowd, strict=True)
        if labels[label] >= 0
    ]


def _of_file(
    path: Path, content: dict[str, Any], dataset: Dataset, labels: Sequence[int], *, masks: bool, difficult: bool
) -> tuple[list[Object], list[str]]:
    """The objects of the data set's pictures as the file has them: boxes are not clipped, none is left out for its
    size. Also what must be told."""
    pictures = {record.id: number for number, record in enumerate(dataset.records)}
    listed = {image.get("id"): None for image in content["images"] if isinstance(image, dict)}
    strange = [key for key in pictures if key not in listed]
    if strange:
        raise InputError(
            f"{path}: need the annotations of the pictures of {dataset.name}; {len(strange)} of {len(pictures)} are not"
            f" listed, such as {short(strange[0])}. Name the file that the pictures were opened with."
        )
    places = {category.id: label for category, label in zip(dataset.categories, labels, strict=True)}
    seen: set[int | str] = set()
    objects, refused, unmeasured = [], 0, 0
    for entry in content["annotations"]:
        where = check_entry(path, entry, "annotation", seen)
        picture = pictures.get(known_id(where, entry, "image_id", listed))
        label = places[known_id(where, entry, "category_id", places)]
        if picture is None or label < 0:
            continue
        box = _box_of_file(where, entry.get("bbox"))
        if box is None:
            refused += 1
            continue
        area = entry.get("area", box[2] * box[3])
        if isinstance(area, bool) or not isinstance(area, int | float) or not 0 <= area < LARGEST**2:
            fail(where, "`area`, a number of pixels", short(area))
        segmentation = None
        if masks:
            size = dataset.records[picture].size
            assert size is not None, f"{where}: a picture of an annotation file has a size"
            outline = outline_of(where, entry.get("segmentation"), height=size[0], width=size[1])
            if isinstance(outline, str):
                refused += 1
                continue
            segmentation = {"size": list(size), "counts": outline.decode("ascii")}
        unmeasured += "area" not in entry
        ignored = ("iscrowd", "difficult", "ignore") if difficult else ("iscrowd",)
        crowd = any(flag(where, entry, key, default=0) for key in ignored)
        objects.append(Object(picture, label, box, float(area), crowd, segmentation))
    rules = ["boxes and areas are those of the annotation file, none is clipped or left out for its size"]
    if unmeasured:
        rules.append(f"areas are those of the boxes where the file has none ({unmeasured} objects)")
    if refused:
        rules.append(f"{refused} objects without a finite box or, where masks count, without a mask are left out")
    return objects, rules


def _box_of_file(where: str, value: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(value, list) or len(value) != 4:
        fail(where, "`bbox`, [x, y, width, height] in pixels", short(value))
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in value):
        fail(where, "`bbox` of four numbers", short(value))
    x, y, w, h = (float(one) if abs(one) < LARGEST else math.inf for one in value)  # NaN too
    return (x, y, w, h) if all(map(math.isfinite, (x, y, w, h))) and w >= 0 and h >= 0 else None


def _looked_for(
    path: Path, content: dict[str, Any], dataset: Dataset, labels: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """Of each picture the classes that are known to be absent, and those of which not every object is annotated."""
    places = {category.id: label for category, label in zip(dataset.categories, labels, strict=True)}
    found = {}
    for image in content["images"]:
        lists = []
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            value = image.get(key)
            if not isinstance(value, list) or not all(isinstance(one, int) and one in places for one in value):
                fail(
                    f"{path}: image {short(image.get('id'))}",
                    f"`{key}`, a list of categories' ids, as LVIS has it",
                    short(value),
                    "Name LVIS's file, or measure without its rule (style coco).",
                )
            lists.append([places[one] for one in value if places[one] >= 0])
        found[image["id"]] = (lists[0], lists[1])
    return [found[record.id] for record in dataset.records]
