"""PQ of panoptic segmentation, of all classes, of things, and of stuff (Tab. 5).

    PQ = SQ * RQ = (sum of IoU over matches) / (matches + half the false + half the missed), mean over classes

The rule is panopticapi's. A segment matches one of the same class with more than half in common; ground truth's void
inside a predicted segment is left out of their union. A crowd is never matched and never missed; a predicted segment
that is for more than half in void and in a crowd of its class together is not false (of several crowds of a class in an
image the last one counts). hotcoco has the same measure, of files; this one takes predictions one by one, and a test
holds the two equal. Deliberately absent: a model, boundary PQ; AP of masks is in `detection.py`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from foveate.data.panoptic import read_panoptic_map
from foveate.data.records import Dataset
from foveate.errors import InputError
from foveate.evaluate.score import mean_percent, percent
from foveate.types import Category, PanopticMap, SegmentInfo

RULE = (
    "as panopticapi: matches have an IoU above 0.5, void is left out of the union, crowds are neither matched nor "
    "missed; means leave out classes with neither a ground-truth segment nor a false one"
)
MAX_LISTED = 5  # images without a result, and segments without pixels


class PanopticTally:
    """Matches, false and missed segments of each class."""

    def __init__(self, classes: int) -> None:
        self.iou = np.zeros(classes)
        self.matched, self.false, self.missed = np.zeros((3, classes), dtype=np.int64)

    def add(self, truth: PanopticMap, found: PanopticMap, *, key: str) -> None:
        """Match the segments of an image; `key` is its id for messages.

        Raises:
            InputError: maps of different sizes, or a map that does not fit its segments.
        """
        if truth.ids.shape != found.ids.shape:
            raise InputError(f"image {key}: need a prediction of {tuple(truth.ids.shape)} pixels (height, width), as "
                             f"the ground truth; got {tuple(found.ids.shape)}.")  # fmt: skip
        rows, columns = _segment_of_pixel(truth, f"{key}: ground truth"), _segment_of_pixel(found, f"{key}: prediction")
        for segment in (*truth.segments, *found.segments):
            if not 0 <= segment.label < len(self.iou):
                raise InputError(f"image {key}: need labels in 0..{len(self.iou) - 1}; segment {segment.id} has "
                                 f"{segment.label}.")  # fmt: skip
        shape = (len(truth.segments) + 1, len(found.segments) + 1)
        common = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1])  # pixels; 0: void
        common = common.reshape(shape)
        self._match(truth.segments, found.segments, common)

    def _match(self, truth: Sequence[SegmentInfo], found: Sequence[SegmentInfo], common: np.ndarray) -> None:
        """Count, by the pixels that each pair has in common."""
        true_areas, found_areas = common.sum(axis=1), common.sum(axis=0)
        crowds = {segment.label: row for row, segment in enumerate(truth, start=1) if segment.is_crowd}
        matches: set[int] = set()
        for row, segment in enumerate(truth, start=1):
            if segment.is_crowd:
                continue
            match = 0
            for column in (np.flatnonzero(common[row, 1:]) + 1).tolist():
                union = true_areas[row] + found_areas[column] - common[row, column] - common[0, column]
                if found[column - 1].label == segment.label and 2 * common[row, column] > union:
                    match = column
                    self.iou[segment.label] += common[row, column] / union
            matches.add(match)
            (self.matched if match else self.missed)[segment.label] += 1
        # a segment without a match is false, unless most of it is void or a crowd of its class
        for column, segment in enumerate(found, start=1):
            if column in matches:
                continue
            ignored = common[0, column]
            if segment.label in crowds:
                ignored = ignored + common[crowds[segment.label], column]
            if 2 * ignored <= found_areas[column]:
                self.false[segment.label] += 1

    def measure(self, categories: Sequence[Category]) -> dict[str, Any]:
        """Summarise; see `evaluate_panoptic`, from "rule" on."""
        things = np.array([category.is_thing for category in categories], dtype=bool)
        weight = self.matched + (self.false + self.missed) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            rq = np.where(weight > 0, self.matched / weight, np.nan)
            sq = np.where(weight > 0, np.where(self.matched > 0, self.iou / self.matched, 0), np.nan)
            pq = np.where(weight > 0, self.iou / weight, np.nan)
        groups = {"all": np.ones_like(things), "things": things, "stuff": ~things}
        return {
            "rule": RULE,
            **{
                name: {
                    "PQ": mean_percent(pq[members]),
                    "SQ": mean_percent(sq[members]),
                    "RQ": mean_percent(rq[members]),
                    "classes": int((weight[members] > 0).sum()),
                }
                for name, members in groups.items()
            },
            "per_class": [
                {
                    "name": category.name,
                    "is_thing": category.is_thing,
                    "PQ": percent(pq[label]),
                    "SQ": percent(sq[label]),
                    "RQ": percent(rq[label]),
                    "matched": int(self.matched[label]),
                    "false": int(self.false[label]),
                    "missed": int(self.missed[label]),
                }
                for label, category in enumerate(categories)
            ],
        }


def evaluate_panoptic(found: Iterable[tuple[str, PanopticMap]], dataset: Dataset) -> dict[str, Any]:
    """Measure predictions against panoptic ground truth.

    Args:
        found: (id of an image, its segments at the image's own size), each image at most once; a label is an index in
            the data set's categories, which also say what is a thing.
        dataset: from `data.coco.read_panoptic`.

    Returns:
        {"data", "notes", "images", "images_without_result", "rule", "all", "things", "stuff": {"PQ", "SQ", "RQ":
        percent or None, "classes"}, "per_class": [{"name", "is_thing", "PQ", "SQ", "RQ", "matched", "false",
        "missed"}]}. Segments of images without a result are missed.

    Raises:
        InputError: an unknown image or one twice, another size, a map that does not fit its segments, or ground truth
            that cannot be read.
    """
    if any(record.panoptic is None for record in dataset.records):
        raise InputError(f"{dataset.name}: need panoptic annotations; it has others. Read the panoptic file.")
    tally = PanopticTally(len(dataset.categories))
    missing = {str(record.id): record for record in dataset.records}
    for key, prediction in found:
        record = missing.pop(key, None)
        if record is None:
            raise InputError(f"image {key}: need predictions of each image of {dataset.name} once; it is not among "
                             "them, or came twice.")  # fmt: skip
        tally.add(read_panoptic_map(record, dataset.categories), prediction, key=key)
    for key, record in missing.items():
        truth = read_panoptic_map(record, dataset.categories)
        tally.add(truth, PanopticMap(torch.zeros_like(truth.ids), ()), key=key)
    return {
        "data": dataset.name,
        "notes": dataset.ignored_lines(),
        "images": len(dataset.records),
        "images_without_result": {"count": len(missing), "first": list(missing)[:MAX_LISTED]},
        **tally.measure(dataset.categories),
    }


def _segment_of_pixel(panoptic: PanopticMap, where: str) -> np.ndarray:
    """Of each pixel the number of its segment, from 1; 0: none. (pixels,)"""
    ids = np.array([0, *(segment.id for segment in panoptic.segments)], dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    if (np.diff(ids[order]) == 0).any() or ids.min() < 0:
        raise InputError(f"image {where}: need an id of at least 1 for each segment, each once; got {ids[1:][:20]}.")
    pixels = panoptic.ids.cpu().numpy().ravel()
    indices = np.searchsorted(ids[order], pixels).clip(max=len(ids) - 1)
    wrong = pixels[ids[order][indices] != pixels]
    if len(wrong):
        raise InputError(f"image {where}: need a map of its {len(ids) - 1} segments; {len(wrong)} pixels are of "
                         f"segment {wrong[0]}, which is none.")  # fmt: skip
    numbers = order[indices]
    areas = np.bincount(numbers, minlength=len(ids))[1:]
    without = [segment.id for segment, area in zip(panoptic.segments, areas, strict=True) if not area]
    if without:
        raise InputError(f"image {where}: need pixels of each segment; there are none of {without[:MAX_LISTED]}.")
    return numbers
