"""The ground truth of detection: the objects of a data set, as each benchmark counts them (Sec. 4.3).

    OV-COCO    objects of other categories are removed, then images without any object (4,836 of val remain)
    LVIS       an image counts only for the categories that were searched for in it (federated)
    others     every object of every image

Objects come from the data set's annotation file if it has one: only that has segmentations, the official areas that
define small, medium and large objects, boxes that are not clipped, and LVIS's federated lists. Otherwise (VOC) they are
those of the records.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foveate.data.annotation_file import load
from foveate.data.consistency import box_of_segmentation, usable_areas
from foveate.data.instance_masks import encode_mask
from foveate.data.labels import refuse_repeated
from foveate.data.records import Dataset, IgnoredEntries
from foveate.data.splits import BaseNovel
from foveate.data.validation import ListedImage, check_entry, fail, flag, is_number, known_id, read_xywh, short
from foveate.errors import InputError, listed
from foveate.evaluate.flags import Style
from foveate.types import normalize_name

MAX_COORDINATE = 1e9  # of a box [pixels]
FREQUENCIES = {"rare": "r", "common": "c", "frequent": "f"}
Box = tuple[float, float, float, float]


class Object(NamedTuple):
    """One annotated object."""

    image: int  # index in `GroundTruth.images`
    label: int  # index in `GroundTruth.names`
    box: Box  # left, top, width, height [pixels of the image]
    area: float  # [square pixels]
    crowd: bool  # a crowd; of VOC: difficult
    segmentation: dict[str, Any] | None = None  # COCO's compressed run lengths


@dataclass(frozen=True)
class GroundTruth:
    """The objects that count, and what else a benchmark's rule needs."""

    style: Style
    masks: bool  # masks are measured too
    names: tuple[str, ...]  # of the measured classes
    labels: tuple[int, ...]  # index in `names` of each class of the vocabulary; -1: not measured
    groups: dict[str, list[int]]  # base and novel, and LVIS's frequencies -> indices in `names`
    images: dict[str, int]  # id -> index
    sizes: list[tuple[int, int]]  # (height, width) of each [pixels]
    ignored: frozenset[str]  # ids of images that the rule excludes, with the detections in them
    objects: list[Object]
    federated: list[tuple[list[int], list[int]]] | None  # LVIS: (absent, not exhaustively annotated) classes per image
    rules: tuple[str, ...]  # what was ignored and where values come from, for people
    notable: tuple[str, ...] = ()  # those of them that are printed: what was replaced, ignored or is not measured

    def counts(self) -> np.ndarray:
        """Objects of each class, without crowds."""
        labels = [annotated.label for annotated in self.objects if not annotated.crowd]
        return np.bincount(np.array(labels, dtype=np.int64), minlength=len(self.names))


def open_ground_truth(
    dataset: Dataset,
    *,
    vocabulary: Sequence[str],
    split: BaseNovel | None,
    style: Style,
    masks: bool = False,
    annotations: Path | None = None,
    only_present: bool = False,
) -> GroundTruth:
    """Choose the classes, the images and the objects that count.

    Args:
        vocabulary: class names, in the order of the detections' labels.
        split: base, novel and excluded categories; None: all count.
        style: "voc07" and "voc12" ignore objects that the file marks as `difficult` or `ignore`, as converters of VOC
            do.
        annotations: the data set's annotation file: needed for masks, for LVIS, and for COCO's official areas of small,
            medium and large objects. None: the file that the data set was read from, else areas of the boxes.
        only_present: measure the categories that the vocabulary has; otherwise it must have all that count.

    Raises:
        InputError: hotcoco is missing, a category is not in the vocabulary, or the annotation file is missing or
            damaged.
    """
    import_hotcoco()
    annotations = annotations or dataset.file
    is_voc = style in ("voc07", "voc12")
    if is_voc and masks:
        raise InputError(f"style {style}: measures boxes only; got masks. Remove them, or use the style coco.")
    if annotations is None and (masks or style == "lvis"):
        need = "masks need its segmentations" if masks else "the style lvis needs its federated lists"
        raise InputError(f"{dataset.name}: need an annotation file: {need}. Name it, or measure boxes by COCO's style.")
    names, missing = _classes(dataset, vocabulary, split, only_present=only_present)
    index = {normalize_name(name): number for number, name in enumerate(names)}
    labels = [index.get(normalize_name(category.name), -1) for category in dataset.categories]
    # the objects, from the file if there is one
    federated, notable = None, list[str]()
    if annotations is None:
        objects = _from_records(dataset, labels)
        rules = ["areas are those of the boxes", *dataset.ignored_lines()]
    else:
        content = load(annotations, kind="an annotation")
        objects, rules, notable = _from_file(annotations, content, dataset, labels, masks=masks, difficult=is_voc)
        if style == "lvis":
            federated = _federated(annotations, content, dataset, labels)
    # the images: if categories are excluded, those that still have an object
    counting = list(range(len(dataset.records)))
    if split is not None and split.excluded:
        counting = sorted({annotated.image for annotated in objects})
        rules.append(
            f"{split.rule}; {len(dataset.records) - len(counting)} of {len(dataset.records)} images have no object, "
            "not even a crowd, of a base or novel category and are ignored"
        )
    notable += _unmeasured(counting_names(dataset, split), vocabulary, missing)
    rules += notable
    numbers = {old: new for new, old in enumerate(counting)}
    ids = [str(record.id) for record in dataset.records]
    return GroundTruth(
        style=style,
        masks=masks,
        names=names,
        labels=tuple(index.get(normalize_name(name), -1) for name in vocabulary),
        groups=_groups(dataset, names, split),
        images={ids[old]: new for old, new in numbers.items()},
        sizes=[dataset.records[old].size or (1, 1) for old in counting],
        ignored=frozenset(key for old, key in enumerate(ids) if old not in numbers),
        objects=[annotated._replace(image=numbers[annotated.image]) for annotated in objects],
        federated=None if federated is None else [federated[old] for old in counting],
        rules=tuple(rules),
        notable=tuple(notable),
    )


def import_hotcoco() -> Any:
    """The package that matches detections with objects; InputError if it is not installed."""
    try:
        import hotcoco
    except ImportError as error:
        raise InputError(
            f"detection: needs the package hotcoco; it cannot be imported ({error}). Install it with "
            "pip install hotcoco."
        ) from error
    return hotcoco


def _classes(
    dataset: Dataset, vocabulary: Sequence[str], split: BaseNovel | None, *, only_present: bool
) -> tuple[tuple[str, ...], list[str]]:
    """The names of the measured classes, and of those that the vocabulary lacks."""
    refuse_repeated("vocabulary", vocabulary, do="Remove one.")
    refuse_repeated(dataset.name, [category.name for category in dataset.categories])
    counting, requested = counting_names(dataset, split), {*map(normalize_name, vocabulary)}
    missing = [name for name in counting if normalize_name(name) not in requested]
    if only_present and missing and len(missing) == len(counting):
        raise InputError(
            f"{dataset.name}: need at least one of its {len(counting)} categories in the vocabulary, as "
            f"{counting[0]!r}; got {short(list(vocabulary))}. Write names as in the annotation file."
        )
    if not counting or (missing and not only_present):
        raise InputError(
            f"{dataset.name}: need all its {len(counting)} categories in the vocabulary; {len(missing)} are not: "
            f"{listed([repr(name) for name in missing])}. Names are written as in the annotation file. Add them; "
            "--vocab measures only those that it names."
        )
    return tuple(name for name in counting if normalize_name(name) in requested), missing


def _unmeasured(counting: Sequence[str], vocabulary: Sequence[str], missing: Sequence[str]) -> list[str]:
    """Lines about the categories that the vocabulary lacks, and about its names that are no category that counts."""
    known = {*map(normalize_name, counting)}
    unknown = [name for name in vocabulary if normalize_name(name) not in known]
    counts = (
        (missing, "categories that the vocabulary lacks are not measured"),
        (unknown, "classes of the vocabulary are no category that counts, and are not measured"),
    )
    return [f"{len(names)} {text}: {listed([repr(name) for name in names])}" for names, text in counts if names]


def counting_names(dataset: Dataset, split: BaseNovel | None) -> list[str]:
    """The categories that a split does not exclude."""
    left_out = set() if split is None else set(split.excluded)
    return [category.name for category in dataset.categories if category.name not in left_out]


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


def _from_records(dataset: Dataset, labels: Sequence[int]) -> list[Object]:
    return [
        Object(image, labels[label], (x1, y1, x2 - x1, y2 - y1), (x2 - x1) * (y2 - y1), crowd)
        for image, record in enumerate(dataset.records)
        for (x1, y1, x2, y2), label, crowd in zip(record.boxes, record.labels, record.crowd, strict=True)
        if labels[label] >= 0
    ]


def _from_file(
    path: Path, content: dict[str, Any], dataset: Dataset, labels: Sequence[int], *, masks: bool, difficult: bool
) -> tuple[list[Object], list[str], list[str]]:
    """The objects of the data set's images as in the file, not clipped and of any size; the rules; the notable ones."""
    images = {record.id: number for number, record in enumerate(dataset.records)}
    sizes = [record.size for record in dataset.records]
    in_file = {image.get("id"): None for image in content["images"] if isinstance(image, dict)}
    missing = [key for key in images if key not in in_file]
    if missing:
        raise InputError(
            f"{path}: need the annotations of the images of {dataset.name}; {len(missing)} of {len(images)} are not"
            f" listed, such as {short(missing[0])}. Name the file that the images were opened with."
        )
    by_id = {category.id: label for category, label in zip(dataset.categories, labels, strict=True)}
    seen: set[int | str] = set()
    objects, ignored_objects, without_area = [], 0, 0
    faults: dict[str, IgnoredEntries] = {}
    for entry in content["annotations"]:
        where = check_entry(path, entry, "annotation", seen)
        image = images.get(known_id(where, entry, "image_id", in_file))
        label = by_id[known_id(where, entry, "category_id", by_id)]
        if image is None or label < 0:
            continue
        size = sizes[image]
        assert size is not None, f"{where}: an image of an annotation file has a size"
        box = _read_box(where, entry, size)
        if box is None:
            ignored_objects += 1
            continue
        area = entry.get("area")
        if area is not None and not is_number(area):
            fail(where, "`area`, a number of pixels", short(area))
        segmentation = None
        if masks:
            outline = encode_mask(where, entry.get("segmentation"), height=size[0], width=size[1], faults=faults)
            if isinstance(outline, str):
                ignored_objects += 1
                continue
            segmentation = {"size": list(size), "counts": outline.decode("ascii")}
        without_area += area is None
        crowd_keys = ("iscrowd", "difficult", "ignore") if difficult else ("iscrowd",)
        crowd = any(flag(where, entry, key, default=0) for key in crowd_keys)
        number = math.nan if area is None or abs(area) >= MAX_COORDINATE**2 else float(area)
        objects.append(Object(image, label, box, number, crowd, segmentation))
    areas, replaced = usable_areas([item.area for item in objects], [item.box for item in objects])
    objects = [item._replace(area=area) for item, area in zip(objects, areas.tolist(), strict=True)]
    rules = ["boxes and areas are those of the annotation file, none is clipped or ignored for its size"]
    if without_area:
        rules.append(f"areas are those of the boxes where the file has none ({without_area} objects)")
    notable = []
    if replaced.sum() > without_area:
        notable.append(
            f"areas are those of the boxes where the file has 0, a negative one or one far from the box's "
            f"({replaced.sum() - without_area} objects)"
        )
    notable += [f"{entries.count} found: {fault}; the first: {entries.first}" for fault, entries in faults.items()]
    if ignored_objects:
        notable.append(
            f"{ignored_objects} objects without a finite box or, where masks count, without a mask are ignored"
        )
    return objects, rules, notable


def _read_box(where: str, entry: dict[str, Any], size: tuple[int, int]) -> Box | None:
    """The box as in the file, or the extent of the object's mask; None: it cannot be used."""
    box = read_xywh(where, entry.get("bbox"))
    box = box_of_segmentation(where, entry, ListedImage("", *size)) if box is None else box
    if box is None:
        return None
    x, y, w, h = (side if abs(side) < MAX_COORDINATE else math.inf for side in box)  # NaN too
    return (x, y, w, h) if all(map(math.isfinite, (x, y, w, h))) and w >= 0 and h >= 0 else None


def _federated(
    path: Path, content: dict[str, Any], dataset: Dataset, labels: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """Per image the classes that are known to be absent, and those that are not exhaustively annotated."""
    by_id = {category.id: label for category, label in zip(dataset.categories, labels, strict=True)}
    by_image = {}
    for image in content["images"]:
        lists = []
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            value = image.get(key)
            if not isinstance(value, list) or not all(isinstance(number, int) and number in by_id for number in value):
                fail(
                    f"{path}: image {short(image.get('id'))}",
                    f"`{key}`, a list of categories' ids, as LVIS has it",
                    short(value),
                    "Name LVIS's file, or measure without its rule (style coco).",
                )
            lists.append([by_id[number] for number in value if by_id[number] >= 0])
        by_image[image["id"]] = (lists[0], lists[1])
    return [by_image[record.id] for record in dataset.records]
