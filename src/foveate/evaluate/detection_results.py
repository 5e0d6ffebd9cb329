"""Detections <-> the list of results that COCO's and LVIS's servers take, one JSON file for all images.

    [{"image_id": 42, "category_id": 18, "bbox": [x, y, width, height], "score": 0.9, "segmentation"?: lengths}, ...]

A file is checked against the data set's images and categories. Its numbers stay float64 and as they were written:
rounded to float32, or converted to corners and back, an IoU of exactly .60 may fall below the threshold, and cocoapi's
own example loses .05 AP.
"""

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from foveate.data.annotation_file import Entries, load_list
from foveate.data.records import Dataset, IgnoredEntries
from foveate.data.validation import count_ignored, fail, is_id, is_number, short, whole
from foveate.errors import InputError
from foveate.io.files import written_whole
from foveate.ops.boxes import xywh_to_xyxy, xyxy_to_xywh
from foveate.ops.paste import boxes_of_rle, fault_of_rle
from foveate.types import Detections, normalize_name

MAX_FLOAT = 1e30  # a number that float32 can hold
UNKNOWN_IMAGE = "result is of an image that is not measured"  # what is skipped, as `IgnoredEntries` is reported
UNKNOWN_CATEGORY = "result is of a category that is not measured"


def write_results(
    path: Path, predictions: Iterable[tuple[str, Detections]], dataset: Dataset, *, vocabulary: Sequence[str]
) -> int:
    """Write detections; the inverse of `read_results`.

    Args:
        dataset: has the ids of images and categories in its annotation file.
        vocabulary: names of the classes; a detection's label is an index in it.

    Returns:
        The number of detections.

    Raises:
        InputError: a class that is no category of the data set, an unknown image, or values that are not finite.
    """
    ids = check_categories(path, dataset, vocabulary=vocabulary)
    keys = {str(record.id): record.id for record in dataset.records}
    count = 0
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write("[")
        for key, detections in predictions:
            if key not in keys:
                raise InputError(f"image {key}: need detections of the images of {dataset.name}; it is not among them.")
            wrong = detections.labels[(detections.labels < 0) | (detections.labels >= len(vocabulary))]
            if len(wrong):
                raise InputError(f"image {key}: need labels below {len(vocabulary)}, the vocabulary's classes; got "
                                 f"{int(wrong[0])}.")  # fmt: skip
            try:
                lines = [json.dumps(entry, allow_nan=False) for entry in _entries(keys[key], detections, ids)]
            except ValueError as error:
                raise InputError(f"image {key}: need finite boxes and scores; {error}.") from error
            file.write("".join((",\n" if count + index else "\n") + line for index, line in enumerate(lines)))
            count += len(lines)
        file.write("\n]\n")
    return count


def check_categories(path: Path, dataset: Dataset, *, vocabulary: Sequence[str]) -> list[int]:
    """The category ids of the classes of a vocabulary.

    Raises:
        InputError: a class is no category of the data set.
    """
    ids = {normalize_name(category.name): category.id for category in dataset.categories}
    unknown = [name for name in vocabulary if normalize_name(name) not in ids]
    if unknown:
        raise InputError(
            f"{path}: need a vocabulary of categories of {dataset.name}, which have ids; {len(unknown)} of "
            f"{len(vocabulary)} are none, such as {unknown[0]!r}. Remove them, or write no file of results."
        )
    return [ids[normalize_name(name)] for name in vocabulary]


def left_top_sides(detections: Detections) -> Float64[Tensor, "N 4"]:
    """Left, top, width and height; as in the file, for detections that were read from one."""
    return xyxy_to_xywh(detections.boxes.double()) if detections.xywh is None else detections.xywh


def _entries(image_id: int | str, detections: Detections, ids: Sequence[int]) -> Iterable[dict[str, Any]]:
    boxes = left_top_sides(detections).tolist()
    masks = detections.masks or [None] * len(boxes)
    rows = zip(boxes, detections.scores.tolist(), detections.labels.tolist(), masks, strict=True)
    for box, score, label, mask in rows:
        entry = {"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score}
        yield entry if mask is None else {**entry, "segmentation": mask}


def read_results(
    path: Path, dataset: Dataset, *, vocabulary: Sequence[str], skipped: dict[str, IgnoredEntries] | None = None
) -> list[tuple[str, Detections]]:
    """Read a file of results; the inverse of `write_results`.

    Args:
        skipped: receives the counts of entries of images and categories that are not measured; None: refuse them.

    Returns:
        (id, its detections, best first) of every image of the data set, in its order. Boxes and scores are float64, and
        `xywh` has the numbers of the file. Masks if every entry of the file has one.

    Raises:
        InputError: no such list, no entry of an image (or of a category) of the data set, an entry with an unknown
            image or category without `skipped`, a box or score that is not finite, a negative size, or run lengths that
            do not fit the image; names the file, the entry and the reason.
    """
    content = load_list(path, kind="a results")
    if not isinstance(content, list | Entries):
        fail(str(path), "a list of results", f"a {type(content).__name__}", "Is this the annotation file?")
    index = {normalize_name(name): label for label, name in enumerate(vocabulary)}
    names = {category.id: normalize_name(category.name) for category in dataset.categories}
    labels = {number: index[name] for number, name in names.items() if name in index}
    sizes = {record.id: record.size for record in dataset.records}
    first = next(iter(content), None)
    rows = _Rows(sizes, masks=isinstance(first, dict) and "segmentation" in first)
    _check_same_data(path, content, dataset, sizes)
    for number, entry in enumerate(content):
        where = f"{path}: entry {number}"
        if not isinstance(entry, dict):
            fail(where, "an object", short(entry))
        is_image, is_category = _is_known(entry.get("image_id"), sizes), _is_known(entry.get("category_id"), labels)
        if skipped is not None and not (is_image and is_category):
            count_ignored(skipped, UNKNOWN_CATEGORY if is_image else UNKNOWN_IMAGE, where)
            continue
        _check_known(where, entry, "image_id", sizes, of=f"the images of {dataset.name}")
        _check_known(where, entry, "category_id", labels, of="the categories of the vocabulary")
        size, label = sizes[entry["image_id"]], labels[entry["category_id"]]
        rows.add(entry["image_id"], label, *_read(where, entry, size, masks=rows.masks is not None))
    return rows.detections()


class _Rows:
    """Detections in the order of a file, as flat arrays: 1.5 million as Python objects take 500 MB."""

    def __init__(self, images: Iterable[int | str], *, masks: bool) -> None:
        self._numbers = {key: number for number, key in enumerate(images)}
        self._images, self._labels, self._scores, self._sides = array("q"), array("q"), array("d"), array("d")
        self.masks: list[Any] | None = [] if masks else None

    def add(self, image: int | str, label: int, score: float, sides: list[float], mask: Any) -> None:
        """Append a detection of an image: left, top, width and height."""
        self._images.append(self._numbers[image])
        self._labels.append(label)
        self._scores.append(score)
        self._sides.extend(sides)
        if self.masks is not None:
            self.masks.append(mask)

    def detections(self) -> list[tuple[str, Detections]]:
        """The detections of each image, best first."""
        images, scores = np.array(self._images, dtype=np.int64), np.array(self._scores, dtype=np.float64)
        order = np.lexsort((-scores, images))  # stable
        xywh = torch.from_numpy(np.array(self._sides, dtype=np.float64).reshape(-1, 4)[order])
        xyxy, scores = xywh_to_xyxy(xywh), torch.from_numpy(scores[order])
        labels = torch.from_numpy(np.array(self._labels, dtype=np.int64)[order])
        ends = np.cumsum(np.bincount(images, minlength=len(self._numbers))).tolist()
        detections = []
        for key, first, end in zip(self._numbers, [0, *ends], ends, strict=False):
            of = slice(first, end)
            masks = None if self.masks is None else tuple(self.masks[index] for index in order[of].tolist())
            detections.append((str(key), Detections(xyxy[of], scores[of], labels[of], masks, xywh=xywh[of])))
        return detections


def _check_same_data(path: Path, content: Iterable[Any], dataset: Dataset, images: Mapping[Any, Any]) -> None:
    """Refuse a file without a single image, or a single category, of the data set."""
    categories = {category.id: None for category in dataset.categories}
    for key, ids, of in (("image_id", images, "images"), ("category_id", categories, "categories")):
        first, count = None, 0
        for entry in content:
            if isinstance(entry, dict):
                if _is_known(entry.get(key), ids):
                    break
                first, count = entry if first is None else first, count + 1
        else:
            if first is not None:
                where = f"{path}: entry 0 (and all {count} entries)"
                _check_known(where, first, key, ids, of=f"the {of} of {dataset.name}")


def _is_known(value: Any, ids: Mapping[Any, Any]) -> bool:
    return is_id(whole(value)) and value in ids


def _check_known(where: str, entry: dict[str, Any], key: str, ids: Mapping[Any, Any], *, of: str) -> None:
    """Refuse an entry with an unknown id."""
    value = entry.get(key)
    if not _is_known(value, ids):
        example = f", such as {short(next(iter(ids)))}" if ids else ""
        need = f"`{key}`, one of the {len(ids)} ids of {of}{example}"
        fail(where, need, short(value), "Was it made for other data?")


def _read(
    where: str, entry: Mapping[str, Any], size: tuple[int, int] | None, *, masks: bool
) -> tuple[float, list[float], Any]:
    """(score, xywh, mask) of an entry."""
    score: Any = entry.get("score")
    mask: Any = entry.get("segmentation")
    if not _is_number(score):
        fail(where, "`score`, a finite number", short(score))
    if masks != (mask is not None):
        fail(where, "`segmentation` in every entry or in none", "an entry of the other kind")
    if masks:
        height, width = size or (0, 0)
        fault = fault_of_rle(mask, height=height, width=width)
        if fault is not None or not isinstance(mask["counts"], str):
            fail(where, "`segmentation`, compressed run lengths", fault or "a list of counts")
    box: Any = entry.get("bbox", boxes_of_rle([mask])[0].tolist() if masks else None)
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        fail(where, "`bbox`, [x, y, width, height] of finite numbers", short(box))
    if box[2] < 0 or box[3] < 0:
        fail(where, "`bbox` with a width and a height of at least 0", short(box), "Is it [x1, y1, x2, y2]?")
    return float(score), [float(side) for side in box], mask


def _is_number(value: Any) -> bool:
    """Whether it is a number that float32 can hold; NaN is not."""
    return is_number(value) and abs(value) < MAX_FLOAT
