"""mIoU of semantic segmentation, of all classes, of those seen in training, and of the others.

Pixels are counted over all images together. Tools differ in which classes the mean is over; here, as in the evaluations
that the paper's table compares with, a class without a pixel of ground truth is in no mean, even if it was predicted.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from foveate.data.semantic import NONE, SemanticData, decode_label_map, read_label_map
from foveate.errors import InputError
from foveate.evaluate.score import list_missing, mean_percent, percent, with_records
from foveate.types import LabelMap

RULE = (
    "IoU of a class = true positive pixels / (its pixels + false positive pixels), over all images; pixels without "
    "ground truth are ignored, those without prediction are missed; means exclude classes without ground truth"
)


class Confusion:
    """How many pixels of each class were predicted as which."""

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes + 1), dtype=np.int64)  # row: ground truth; the last column: no class
        self.ignored = 0  # pixels without ground truth

    def add(self, truth: LabelMap, prediction: LabelMap, *, key: str) -> None:
        """Count an image; `key` is its id.

        Raises:
            InputError: maps of different sizes, or labels beyond the classes.
        """
        classes = len(self.counts)
        if truth.labels.shape != prediction.labels.shape:
            raise InputError(f"image {key}: need a prediction of {_size(truth)} pixels (height x width), as the "
                             f"ground truth; got {_size(prediction)}.")  # fmt: skip
        for what, label_map in (("prediction", prediction), ("ground truth", truth)):
            low, high = label_map.labels.aminmax()
            if low < NONE or high >= classes:
                raise InputError(f"image {key}: need a {what} in 0..{classes - 1}, or -1 for none; got "
                                 f"{int(low)}..{int(high)}.")  # fmt: skip
        # one number per pixel for its pair of true class and predicted class; pixels without a prediction are a class
        columns = classes + 1
        predicted = prediction.labels.to(truth.labels.device)
        predicted = predicted.where(predicted >= 0, classes)
        pairs = (truth.labels * columns + predicted)[truth.labels >= 0]  # (pixels,)
        self.counts += torch.bincount(pairs, minlength=classes * columns).cpu().numpy().reshape(classes, columns)
        self.ignored += truth.labels.numel() - len(pairs)

    def measure(self, names: Sequence[str], *, seen: Sequence[bool] | None = None) -> dict[str, Any]:
        """Summarise; see `evaluate_semantic`, from "rule" on."""
        right = self.counts.diagonal()  # (K,)
        truth, predicted = self.counts.sum(axis=1), self.counts[:, :-1].sum(axis=0)
        has_truth = truth > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = np.where(has_truth, right / (truth + predicted - right), np.nan)
            accuracy = np.where(has_truth, right / truth, np.nan)
        groups = {} if seen is None else {"seen": np.array(seen), "unseen": ~np.array(seen)}
        per_class = [
            {
                "name": name,
                "pixels": int(truth[label]),
                "called": int(predicted[label]),
                "IoU": percent(iou[label]),
                "accuracy": percent(accuracy[label]),
                **({} if seen is None else {"seen": bool(seen[label])}),
            }
            for label, name in enumerate(names)
        ]
        return {
            "rule": RULE,
            "pixels": int(truth.sum()),
            "ignored_pixels": self.ignored,
            "pixels_without_prediction": int(self.counts[:, -1].sum()),
            "classes": {"all": len(names), "with_ground_truth": int(has_truth.sum())},
            "mIoU": mean_percent(iou),
            "mean_accuracy": mean_percent(accuracy),
            "pixel_accuracy": percent(right.sum() / truth.sum()) if truth.sum() else None,
            "groups": {
                name: {"classes": int((has_truth & members).sum()), "mIoU": mean_percent(iou[members])}
                for name, members in groups.items()
            },
            "per_class": per_class,
        }


def evaluate_semantic(
    predictions: Iterable[tuple[str, LabelMap]],
    data: SemanticData,
    *,
    class_of: Sequence[int] | None = None,
    seen: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Measure predictions against semantic ground truth.

    Args:
        predictions: (id of an image, the class of each of its pixels at its own size), each image at most once.
        class_of: class of the data set for each entry of the predictions' vocabulary, so that several names can be one
            class ("background" of VOC's 20b is 39 of 59). None: the vocabulary is the data set's.

    Returns:
        {"data", "notes", "images", "images_without_result", "rule", "pixels", "ignored_pixels",
        "pixels_without_prediction", "classes": {"all", "with_ground_truth"}, "mIoU", "mean_accuracy", "pixel_accuracy":
        percent or None, "groups": {"seen", "unseen": {"classes", "mIoU"}}, "per_class": [{"name", "pixels", "called",
        "IoU", "accuracy", "seen"?}]}

    Raises:
        InputError: an unknown image or one twice, another size, labels beyond the classes, or unreadable ground truth.
    """
    names = data.names
    if seen is not None and len(seen) != len(names):
        raise InputError(f"seen: need one entry for each of {len(names)} classes; got {len(seen)}.")
    if class_of is not None and not all(0 <= label < len(names) for label in class_of):
        raise InputError(f"class_of: need classes in 0..{len(names) - 1}; got {min(class_of)}..{max(class_of)}.")
    class_table = None if class_of is None else torch.tensor([*class_of, NONE])  # -1 indexes the last: no class
    confusion = Confusion(len(names))
    missing = []
    for record, prediction in with_records(predictions, data.dataset):
        key = str(record.id)
        if prediction is not None:
            confusion.add(read_label_map(record, data), _merged(prediction, class_table, key), key=key)
        else:  # all its pixels are missed; the image itself may be unreadable
            missing.append(key)
            truth = decode_label_map(record, data)
            confusion.add(truth, LabelMap(torch.full_like(truth.labels, NONE)), key=key)
    return {
        "data": data.dataset.name,
        "notes": data.dataset.ignored_lines(),
        "images": len(data.dataset.records),
        "images_without_result": list_missing(missing),
        **confusion.measure(names, seen=seen),
    }


def _merged(prediction: LabelMap, table: torch.Tensor | None, key: str) -> LabelMap:
    """Turn labels of the vocabulary into classes of the data set."""
    if table is None:
        return prediction
    labels = prediction.labels
    low, high = labels.aminmax()
    if low < NONE or high >= len(table) - 1:
        raise InputError(f"image {key}: need a prediction in 0..{len(table) - 2}, the vocabulary's classes, or -1; "
                         f"got {int(low)}..{int(high)}.")  # fmt: skip
    return LabelMap(table.to(labels.device)[labels])


def _size(label_map: LabelMap) -> str:
    return " x ".join(map(str, label_map.labels.shape))
