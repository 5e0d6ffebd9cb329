"""mIoU of semantic segmentation, of all classes, of those seen in training, and of the others.

Counts of pixels in whole numbers, over all pictures together. Tools differ in which classes the mean is over; here, as
in the evaluations that the paper's table compares with, a class without a pixel of ground truth is in no mean, although
it may have been predicted. Deliberately absent: a model, and the mean over pictures.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from foveate.data.records import Record
from foveate.data.semantic import NONE, SemanticData, read_map, read_truth
from foveate.errors import InputError
from foveate.types import LabelMap

RULE = (
    "IoU of a class = pixels of it found / (pixels of it + pixels falsely called so), over all pictures; pixels "
    "without ground truth do not count, those without prediction are missed; means leave out classes without ground "
    "truth"
)
TOLD = 5


class Confusion:
    """How many pixels of each class were called what."""

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes + 1), dtype=np.int64)  # row: ground truth; the last column: no class
        self.ignored = 0  # pixels without ground truth

    def add(self, truth: LabelMap, found: LabelMap, *, key: str) -> None:
        """Count a picture; `key` is its id for messages.

        Raises:
            InputError: maps of different sizes, or a class that is none.
        """
        classes = len(self.counts)
        if truth.labels.shape != found.labels.shape:
            raise InputError(f"picture {key}: need a prediction of {_size(truth)} pixels (height x width), as the "
                             f"ground truth; got {_size(found)}.")  # fmt: skip
        for what, one in (("prediction", found), ("ground truth", truth)):
            low, high = one.labels.aminmax()
            if low < NONE or high >= classes:
                raise InputError(f"picture {key}: need a {what} in 0..{classes - 1}, or -1 for none; got "
                                 f"{int(low)}..{int(high)}.")  # fmt: skip
        wide = classes + 1
        guess = found.labels.to(truth.labels.device)
        guess = guess.where(guess >= 0, classes)
        pairs = (truth.labels * wide + guess)[truth.labels >= 0]  # (pixels,)
        self.counts += torch.bincount(pairs, minlength=classes * wide).cpu().numpy().reshape(classes, wide)
        self.ignored += truth.labels.numel() - len(pairs)

    def merge(self, other: "Confusion") -> None:
        """Take the counts of other pictures."""
        self.counts += other.counts
        self.ignored += other.ignored

    def measure(self, names: Sequence[str], *, seen: Sequence[bool] | None = None) -> dict[str, Any]:
        """Sum up.

        Args:
            names: of the classes.
            seen: which of them training has shown.

        Returns:
            See `evaluate_semantic`, from "rule" on.
        """
        right = self.counts.diagonal()  # (K,)
        truth, called = self.counts.sum(axis=1), self.counts[:, :-1].sum(axis=0)
        there = truth > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = np.where(there, right / (truth + called - right), np.nan)
            accuracy = np.where(there, right / truth, np.nan)
        groups = {} if seen is None else {"seen": np.array(seen), "unseen": ~np.array(seen)}
        rows = zip(names, truth.tolist(), called.tolist(), iou, accuracy, strict=True)
        per_class = [
            {"name": name, "pixels": pixels, "called": calls, "IoU": _percent(one), "accuracy": _percent(share)}
            for name, pixels, calls, one, share in rows
        ]
        if seen is not None:
            per_class = [{**row, "seen": bool(one)} for row, one in zip(per_class, seen, strict=True)]
        return {
            "rule": RULE,
            "pixels": int(truth.sum()),
            "ignored_pixels": self.ignored,
            "pixels_without_prediction": int(self.counts[:, -1].sum()),
            "classes": {"all": len(names), "with_ground_truth": int(there.sum())},
            "mIoU": _mean(iou),
            "mean_accuracy": _mean(accuracy),
            "pixel_accuracy": _percent(right.sum() / truth.sum()) if truth.sum() else None,
            "groups": {
                name: {"classes": int((there & members).sum()), "mIoU": _mean(iou[members])}
                for name, members in groups.items()
            },
            "per_class": per_class,
        }


def evaluate_semantic(
    found: Iterable[tuple[str, LabelMap]],
    data: SemanticData,
    *,
    places: Sequence[int] | None = None,
    seen: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Measure predictions against semantic ground truth.

    Args:
        found: (id of a picture, the class of each of its pixels at its own size), each picture at most once.
        data: the ground truth.
        places: of the vocabulary that was asked for, which class of the data set each place is, so that many words can
            stand for one class ("background" of VOC's 20b is 39 of 59). None: the vocabulary is the data set's.
        seen: which of the data set's classes training has shown.

    Returns:
        {"data", "notes", "pictures", "pictures_without_result", "rule", "pixels", "ignored_pixels",
        "pixels_without_prediction", "classes": {"all", "with_ground_truth"}, "mIoU", "mean_accuracy", "pixel_accuracy":
        percent or None, "groups": {"seen", "unseen": {"classes", "mIoU"}}, "per_class": [{"name", "pixels", "called",
        "IoU", "accuracy", "seen"?}]}

    Raises:
        InputError: an unknown picture or one twice, another size, a class that is none, or ground truth that cannot be
            read.
    """
    names = data.names
    if seen is not None and len(seen) != len(names):
        raise InputError(f"seen: need one entry for each of {len(names)} classes; got {len(seen)}.")
    if places is not None and not all(0 <= place < len(names) for place in places):
        raise InputError(f"places: need classes in 0..{len(names) - 1}; got {min(places)}..{max(places)}.")
    table = None if places is None else torch.tensor([*places, NONE])  # -1 indexes the last: no class
    confusion = Confusion(len(names))
    open_ = {str(record.id): record for record in data.dataset.records}
    for key, prediction in found:
        record = open_.pop(key, None)
        if record is None:
            raise InputError(f"picture {key}: need predictions of each picture of {data.dataset.name} once; it is none "
                             "of them, or came twice.")  # fmt: skip
        confusion.add(read_truth(record, data), _placed(prediction, table, key), key=key)
    for record in open_.values():
        _miss(confusion, record, data)
    return {
        "data": data.dataset.name,
        "notes": data.dataset.dropped_lines(),
        "pictures": len(data.dataset.records),
        "pictures_without_result": {"count": len(open_), "first": list(open_)[:TOLD]},
        **confusion.measure(names, seen=seen),
    }


def _placed(prediction: LabelMap, table: torch.Tensor | None, key: str) -> LabelMap:
    """Turn places in the vocabulary into classes of the data set."""
    if table is None:
        return prediction
    labels = prediction.labels
    low, high = labels.aminmax()
    if low < NONE or high >= len(table) - 1:
        raise InputError(f"picture {key}: need a prediction in 0..{len(table) - 2}, the vocabulary's classes, or -1; "
                         f"got {int(low)}..{int(high)}.")  # fmt: skip
    return LabelMap(table.to(labels.device)[labels])


def _miss(confusion: Confusion, record: Record, data: SemanticData) -> None:
    """Count all of a picture as missed."""
    truth = read_map(record, data)  # the picture may be one that cannot be read
    confusion.add(truth, LabelMap(torch.full_like(truth.labels, NONE)), key=str(record.id))


def _size(one: LabelMap) -> str:
    return " x ".join(map(str, one.labels.shape))


def _percent(value: float) -> float | None:
    return None if np.isnan(value) else float(100 * value)


def _mean(values: np.ndarray) -> float | None:
    """The mean in percent over what is not NaN; None where all is."""
    kept = values[~np.isnan(values)]
    return float(100 * kept.mean()) if len(kept) else None
