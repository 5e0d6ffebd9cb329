"""PQ of panoptic segmentation, of all classes, of things, and of stuff (Tab. 5).

    PQ = SQ * RQ = (sum of IoU over matches) / (matches + half the false + half the missed), mean over classes

The rule is panopticapi's. Two segments of a class match if their IoU is above 0.5, where the ground truth's void inside
the predicted segment is excluded from the union. A crowd is never matched and never missed; a predicted segment is not
false if more than half of it is void or in a crowd of its class (of several crowds of a class the last one counts).
hotcoco has the same measure for files; this one takes predictions one by one, and a test compares the two.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from foveate.data.panoptic import read_panoptic_map
from foveate.data.records import Dataset
from foveate.errors import InputError
from foveate.evaluate.score import MAX_LISTED, list_missing, mean_percent, percent, with_records
from foveate.types import Category, PanopticMap, SegmentInfo

RULE = (
    "as panopticapi: matches have an IoU above 0.5, void is excluded from the union, crowds are neither matched nor "
    "missed; means exclude classes with neither a ground-truth segment nor a false one"
)


class PanopticTally:
    """Matches, false and missed segments of each class."""

    def __init__(self, classes: int) -> None:
        self.iou = np.zeros(classes)
        self.matched, self.false, self.missed = np.zeros((3, classes), dtype=np.int64)

    def add(self, truth: PanopticMap, prediction: PanopticMap, *, key: str) -> None:
        """Match the segments of an image; `key` is its id.

        Raises:
            InputError: maps of different sizes, or a map that does not fit its segments.
        """
        if truth.ids.shape != prediction.ids.shape:
            raise InputError(f"image {key}: need a prediction of {tuple(truth.ids.shape)} pixels (height, width), as "
                             f"the ground truth; got {tuple(prediction.ids.shape)}.")  # fmt: skip
        rows = _segment_of_pixel(truth, f"{key}: ground truth")
        columns = _segment_of_pixel(prediction, f"{key}: prediction")
        for segment in (*truth.segments, *prediction.segments):
            if not 0 <= segment.label < len(self.iou):
                raise InputError(f"image {key}: need labels in 0..{len(self.iou) - 1}; segment {segment.id} has "
                                 f"{segment.label}.")  # fmt: skip
        shape = (len(truth.segments) + 1, len(prediction.segments) + 1)
        overlap = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1])
        self._match(truth.segments, prediction.segments, overlap.reshape(shape))

    def _match(self, truth: Sequence[SegmentInfo], predicted: Sequence[SegmentInfo], overlap: np.ndarray) -> None:
        """Count matched, missed and false segments by the pixels that each pair shares; index 0 is void."""
        true_areas, predicted_areas = overlap.sum(axis=1), overlap.sum(axis=0)
        crowds = {segment.label: row for row, segment in enumerate(truth, start=1) if segment.is_crowd}
        matches: set[int] = set()
        for row, segment in enumerate(truth, start=1):
            if segment.is_crowd:
                continue
            match = 0
            for column in (np.flatnonzero(overlap[row, 1:]) + 1).tolist():
                union = true_areas[row] + predicted_areas[column] - overlap[row, column] - overlap[0, column]
                if predicted[column - 1].label == segment.label and 2 * overlap[row, column] > union:
                    match = column
                    self.iou[segment.label] += overlap[row, column] / union
            matches.add(match)
            (self.matched if match else self.missed)[segment.label] += 1
        # a segment without a match is false, unless most of it is void or a crowd of its class
        for column, segment in enumerate(predicted, start=1):
            if column in matches:
                continue
            ignored = overlap[0, column]
            if segment.label in crowds:
                ignored = ignored + overlap[crowds[segment.label], column]
            if 2 * ignored <= predicted_areas[column]:
                self.false[segment.label] += 1

    def measure(self, categories: Sequence[Category]) -> dict[str, Any]:
        """Summarise; see `evaluate_panoptic`, from "rule" on."""
        things = np.array([category.is_thing for category in categories], dtype=bool)
        weight = self.matched + (self.false + self.missed) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            rq = np.where(weight > 0, self.matched / weight, np.nan)
            sq = np.where(weight > 0, np.where(self.matched > 0, self.iou / self.matched, 0), np.nan)
            pq = np.where(weight > 0, self.iou / weight, np.nan)
        measures = {"PQ": pq, "SQ": sq, "RQ": rq}
        groups = {"all": np.ones_like(things), "things": things, "stuff": ~things}
        return {
            "rule": RULE,
            **{
                name: {
                    **{key: mean_percent(values[members]) for key, values in measures.items()},
                    "classes": int((weight[members] > 0).sum()),
                }
                for name, members in groups.items()
            },
            "per_class": [
                {
                    "name": category.name,
                    "is_thing": category.is_thing,
                    **{key: percent(values[label]) for key, values in measures.items()},
                    "matched": int(self.matched[label]),
                    "false": int(self.false[label]),
                    "missed": int(self.missed[label]),
                }
                for label, category in enumerate(categories)
            ],
        }


def evaluate_panoptic(predictions: Iterable[tuple[str, PanopticMap]], dataset: Dataset) -> dict[str, Any]:
    """Measure predictions against panoptic ground truth.

    Args:
        predictions: (id of an image, its segments at the image's own size), each image at most once; labels index the
            data set's categories, which also define things.

    Returns:
        {"data", "notes", "images", "images_without_result", "rule", "all", "things", "stuff": {"PQ", "SQ", "RQ":
        percent or None, "classes"}, "per_class": [{"name", "is_thing", "PQ", "SQ", "RQ", "matched", "false",
        "missed"}]}. Segments of images without a result are missed.

    Raises:
        InputError: an unknown image or one twice, another size, a map that does not fit its segments, or unreadable
            ground truth.
    """
    if any(record.panoptic is None for record in dataset.records):
        raise InputError(f"{dataset.name}: need panoptic annotations; it has others. Read the panoptic file.")
    tally = PanopticTally(len(dataset.categories))
    missing = []
    for record, prediction in with_records(predictions, dataset):
        truth = read_panoptic_map(record, dataset.categories)
        if prediction is None:
            missing.append(str(record.id))
            prediction = PanopticMap(torch.zeros_like(truth.ids), ())
        tally.add(truth, prediction, key=str(record.id))
    return {
        "data": dataset.name,
        "notes": dataset.ignored_lines(),
        "images": len(dataset.records),
        "images_without_result": list_missing(missing),
        **tally.measure(dataset.categories),
    }


def _segment_of_pixel(panoptic: PanopticMap, where: str) -> np.ndarray:
    """(pixels,), the number of each pixel's segment, from 1; 0: none."""
    ids = np.array([0, *(segment.id for segment in panoptic.segments)], dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    if (np.diff(ids[order]) == 0).any() or ids.min() < 0:
        raise InputError(f"image {where}: need an id of at least 1 for each segment, each once; got {ids[1:][:20]}.")
    pixels = panoptic.ids.cpu().numpy().ravel()
    indices = np.searchsorted(ids[order], pixels).clip(max=len(ids) - 1)
    wrong = pixels[ids[order][indices] != pixels]
    if len(wrong):
        raise InputError(f"image {where}: need a map of its {len(ids) - 1} segments; {len(wrong)} pixels are of "
                         f"segment {wrong[0]}, which is not listed.")  # fmt: skip
    numbers = order[indices]
    areas = np.bincount(numbers, minlength=len(ids))[1:]
    without = [segment.id for segment, area in zip(panoptic.segments, areas, strict=True) if not area]
    if without:
        raise InputError(f"image {where}: need pixels of each segment; got none of {without[:MAX_LISTED]}.")
    return numbers
