"""PQ of panoptic segmentation, of all classes, of things, and of stuff (Tab. 5).

    PQ = SQ * RQ = (sum of IoU over matches) / (matches + half the false + half the missed), mean over classes

The rule is panopticapi's. A segment matches one of the same class with more than half in common; ground truth's void
inside a found segment is left out of their union. A crowd is never matched and never missed; what was found and lies
for more than half in void and in a crowd of its class together is not false (of several crowds of a class in a picture
the last one counts). hotcoco has the same measure, of files; this one takes predictions as they come, and a test holds
the two equal. Deliberately absent: a model, boundary PQ; AP of masks is in `detection.py`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from foveate.data.panoptic import read_panoptic_map
from foveate.data.records import Dataset
from foveate.errors import InputError
from foveate.types import Category, PanopticMap, SegmentInfo

RULE = (
    "as panopticapi: matches have an IoU above 0.5, void is left out of the union, crowds are neither matched nor "
    "missed; means leave out classes with neither a ground-truth segment nor a false one"
)
TOLD = 5


class PanopticTally:
    """Matches, false and missed segments of each class."""

    def __init__(self, classes: int) -> None:
        self.iou = np.zeros(classes)
        self.matched, self.false, self.missed = np.zeros((3, classes), dtype=np.int64)

    def add(self, truth: PanopticMap, found: PanopticMap, *, key: str) -> None:
        """Match the segments of a picture; `key` is its id for messages.

        Raises:
            InputError: maps of different sizes, or a map that does not fit its segments.
        """
        if truth.ids.shape != found.ids.shape:
            raise InputError(f"picture {key}: need a prediction of {tuple(truth.ids.shape)} pixels (height, width), as "
                             f"the ground truth; got {tuple(found.ids.shape)}.")  # fmt: skip
        rows, columns = _places(truth, f"{key}: ground truth"), _places(found, f"{key}: prediction")
        for one in (*truth.segments, *found.segments):
            if not 0 <= one.label < len(self.iou):
                raise InputError(f"picture {key}: need labels in 0..{len(self.iou) - 1}; segment {one.id} has "
                                 f"{one.label}.")  # fmt: skip
        wide = len(found.segments) + 1
        shape = (len(truth.segments) + 1, wide)
        common = np.bincount(rows * wide + columns, minlength=shape[0] * wide).reshape(shape)  # pixels; 0: void
        self._match(truth.segments, found.segments, common)

    def _match(self, truth: Sequence[SegmentInfo], found: Sequence[SegmentInfo], common: np.ndarray) -> None:
        """Count, by the pixels that each pair has in common."""
        own, theirs = common.sum(axis=1), common.sum(axis=0)
        crowds = {one.label: place for place, one in enumerate(truth, start=1) if one.is_crowd}
        hit: set[int] = set()
        for place, one in enumerate(truth, start=1):
            if one.is_crowd:
                continue
            match = 0
            for other in (np.flatnonzero(common[place, 1:]) + 1).tolist():
                union = own[place] + theirs[other] - common[place, other] - common[0, other]
                if found[other - 1].label == one.label and 2 * common[place, other] > union:
                    match = other
                    self.iou[one.label] += common[place, other] / union
            hit.add(match)
            (self.matched if match else self.missed)[one.label] += 1
        for place, one in enumerate(found, start=1):
            if place in hit:
                continue
            excused = common[0, place] + (common[crowds[one.label], place] if one.label in crowds else 0)
            if 2 * excused <= theirs[place]:
                self.false[one.label] += 1

    def merge(self, other: "PanopticTally") -> None:
        """Take the counts of other pictures."""
        self.iou += other.iou
        self.matched += other.matched
        self.false += other.false
        self.missed += other.missed

    def measure(self, categories: Sequence[Category]) -> dict[str, Any]:
        """Sum up; see `evaluate_panoptic`, from "rule" on."""
        things = np.array([one.is_thing for one in categories], dtype=bool)
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
                    "PQ": _mean(pq[members]),
                    "SQ": _mean(sq[members]),
                    "RQ": _mean(rq[members]),
                    "classes": int((weight[members] > 0).sum()),
                }
                for name, members in groups.items()
            },
            "per_class": [
                {
                    "name": one.name,
                    "is_thing": one.is_thing,
                    "PQ": _mean(pq[place : place + 1]),
                    "SQ": _mean(sq[place : place + 1]),
                    "RQ": _mean(rq[place : place + 1]),
                    "matched": int(self.matched[place]),
                    "false": int(self.false[place]),
                    "missed": int(self.missed[place]),
                }
                for place, one in enumerate(categories)
            ],
        }


def evaluate_panoptic(found: Iterable[tuple[str, PanopticMap]], dataset: Dataset) -> dict[str, Any]:
    """Measure predictions against panoptic ground truth.

    Args:
        found: (id of a picture, its segments at the picture's own size), each picture at most once; a label is a place
            in the data set's categories, which also say what is a thing.
        dataset: from `data.coco.read_panoptic`.

    Returns:
        {"data", "notes", "pictures", "pictures_without_result", "rule", "all", "things", "stuff": {"PQ", "SQ", "RQ":
        percent or None, "classes"}, "per_class": [{"name", "is_thing", "PQ", "SQ", "RQ", "matched", "false",
        "missed"}]}. Segments of pictures without a result are missed.

    Raises:
        InputError: an unknown picture or one twice, another size, a map that does not fit its segments, or ground truth
            that cannot be read.
    """
    if any(record.panoptic is None for record in dataset.records):
        raise InputError(f"{dataset.name}: need panoptic annotations; it has others. Read the panoptic file.")
    tally = PanopticTally(len(dataset.categories))
    open_ = {str(record.id): record for record in dataset.records}
    for key, prediction in found:
        record = open_.pop(key, None)
        if record is None:
            raise InputError(f"picture {key}: need predictions of each picture of {dataset.name} once; it is none of "
                             "them, or came twice.")  # fmt: skip
        tally.add(read_panoptic_map(record, dataset.categories), prediction, key=key)
    for key, record in open_.items():
        truth = read_panoptic_map(record, dataset.categories)
        tally.add(truth, PanopticMap(torch.zeros_like(truth.ids), ()), key=key)
    return {
        "data": dataset.name,
        "notes": dataset.dropped_lines(),
        "pictures": len(dataset.records),
        "pictures_without_result": {"count": len(open_), "first": list(open_)[:TOLD]},
        **tally.measure(dataset.categories),
    }


def _places(panoptic: PanopticMap, where: str) -> np.ndarray:
    """Of each pixel the place of its segment, from 1; 0: none. (pixels,)"""
    ids = np.array([0, *(one.id for one in panoptic.segments)], dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    if (np.diff(ids[order]) == 0).any() or ids.min() < 0:
        raise InputError(f"picture {where}: need an id of at least 1 for each segment, each once; got {ids[1:][:20]}.")
    pixels = panoptic.ids.cpu().numpy().ravel()
    places = np.searchsorted(ids[order], pixels).clip(max=len(ids) - 1)
    wrong = pixels[ids[order][places] != pixels]
    if len(wrong):
        raise InputError(f"picture {where}: need a map of its {len(ids) - 1} segments; {len(wrong)} pixels are of "
                         f"segment {wrong[0]}, which is none.")  # fmt: skip
    found = order[places]
    without = [one.id for one, count in zip(panoptic.segments, np.bincount(found, minlength=len(ids))[1:], strict=True)
               if not count]  # fmt: skip
    if without:
        raise InputError(f"picture {where}: need pixels of each segment; there are none of {without[:TOLD]}.")
    return found


def _mean(values: np.ndarray) -> float | None:
    """The mean in percent over what is not NaN; None where all is."""
    kept = values[~np.isnan(values)]
    return float(100 * kept.mean()) if len(kept) else None
