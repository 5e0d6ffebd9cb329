"""Pascal VOC's measure of detection, in which difficult objects are ignored (A.3).

A detection is compared with the object of its class that it overlaps most. If that IoU reaches the threshold, the best
detection of the object is right and its further ones are wrong; detections of a difficult object are ignored. (COCO
ignores a detection if any part of a crowd covers it.)

The rule is that of mmdet's VOCDataset, which made the published transfer results: boxes hold whole pixels, both corners
included, so that a side is x2 - x1 + 1, and precision is averaged at the 11 recalls 0, .1 ... 1 (VOC2007) or is the
area under the curve (VOC2010 and later).
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torchvision.ops import box_iou

from foveate.evaluate.ground_truth import GroundTruth

RIGHT, WRONG, IGNORED = 1, 0, -1
RECALLS = np.arange(0, 1 + 1e-3, 0.1)  # .30000000000000004 and the like are part of the published rule

Average = Literal["11 points", "area"]
AVERAGES: dict[str, Average] = {"voc07": "11 points", "voc12": "area"}
IOUS = {"AP50": 0.5, "AP75": 0.75}
VOC_RULES = {
    style: "as mmdet for VOC: a detection is compared with the object that it overlaps most; difficult objects are "
    f"ignored; corners are pixels, a side is x2 - x1 + 1; AP is {text}"
    for style, text in (
        ("voc07", "the mean precision at 11 recalls (VOC2007)"),
        ("voc12", "the area under precision over recall (VOC2010 and later)"),
    )
}
PIXEL = 1.0  # VOC's corners are pixels, both within the box


def measure_voc(truth: GroundTruth, rows: Float64[np.ndarray, "N 7"]) -> dict[str, Float64[np.ndarray, " K"]]:
    """AP50 and AP75 of each class, in [0, 1]; NaN without an object.

    Args:
        truth: of the style voc07 or voc12.
        rows: detections: image, left, top, width, height, score, label; image and label from 1.
    """
    objects = np.array([item.box for item in truth.objects], dtype=np.float64).reshape(-1, 4)
    objects[:, 2:] += objects[:, :2] - PIXEL  # their last pixel, as mmdet reads annotated boxes, not detections
    classes = np.array([item.label for item in truth.objects], dtype=np.int64)
    difficult = np.array([item.crowd for item in truth.objects], dtype=bool)
    labels, boxes = rows[:, 6].astype(np.int64) - 1, rows[:, 1:5].copy()
    boxes[:, 2:] += boxes[:, :2]
    # rows of each image and of each class
    objects_of = _split_rows(np.array([item.image for item in truth.objects], dtype=np.int64), len(truth.images))
    detections_of = _split_rows(rows[:, 0].astype(np.int64) - 1, len(truth.images))
    per_class, counts = _split_rows(labels, len(truth.names)), truth.counts().tolist()
    measures = {}
    for name, min_iou in IOUS.items():
        matches = np.zeros(len(rows), dtype=np.int64)
        for index, annotated in zip(detections_of, objects_of, strict=True):
            matches[index] = match_image(
                boxes[index], labels[index], objects[annotated], classes[annotated], difficult[annotated],
                min_iou=min_iou, pixel=PIXEL,
            )  # fmt: skip
        average = AVERAGES[truth.style]
        ap = [
            average_precision(rows[index, 5], matches[index], objects=count, average=average)
            for index, count in zip(per_class, counts, strict=True)
        ]
        measures[name] = np.array(ap, dtype=np.float64)  # None becomes NaN
    return measures


def _split_rows(numbers: np.ndarray, count: int) -> list[np.ndarray]:
    """The rows of each of `count` images (or classes), in order."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.searchsorted(numbers[order], np.arange(1, count)))


def match_image(
    boxes: Float64[np.ndarray, "N 4"],
    labels: Int64[np.ndarray, " N"],
    objects: Float64[np.ndarray, "M 4"],
    classes: Int64[np.ndarray, " M"],
    difficult: np.ndarray,
    *,
    min_iou: float = 0.5,
    pixel: float = 1.0,
) -> Int64[np.ndarray, " N"]:
    """Match the detections of one image with its objects.

    Args:
        boxes: of the detections, best first; xyxy, pixels.
        objects: annotated boxes; xyxy, pixels.
        difficult: (M,) bool.
        pixel: added to the width and height of every box: 1 where corners are pixels (VOC), 0 where they are edges.

    Returns:
        RIGHT, WRONG or IGNORED for each detection.
    """
    matches = np.full(len(boxes), WRONG, dtype=np.int64)
    if not len(boxes) or not len(objects):
        return matches
    order = np.argsort(difficult, kind="stable")  # objects that are not difficult win ties
    objects, classes, difficult = objects[order], classes[order], difficult[order]
    grow = np.array([0, 0, pixel, pixel])
    overlap = box_iou(torch.from_numpy(boxes + grow), torch.from_numpy(objects + grow)).numpy()  # (N, M)
    overlap = np.where(labels[:, None] == classes[None], overlap, -1.0)
    closest = overlap.argmax(axis=1)  # (N,)
    hits = np.flatnonzero(overlap.max(axis=1) >= min_iou)
    _, first = np.unique(closest[hits], return_index=True)  # the best detection of each object
    matches[hits[first]] = RIGHT
    matches[hits[difficult[closest[hits]]]] = IGNORED
    return matches


def average_precision(
    scores: Float64[np.ndarray, " N"], matches: Int64[np.ndarray, " N"], *, objects: int, average: Average = "11 points"
) -> float | None:
    """Average the precision over recall, each the maximum at that recall or above.

    Args:
        matches: of `match_image`.
        objects: their number, without difficult ones.
        average: "11 points": the mean at the recalls 0, .1 ... 1 (VOC2007); "area": under the curve (VOC2012).

    Returns:
        In [0, 1]; None without an object.
    """
    if not objects:
        return None
    right = matches[np.argsort(-scores, kind="stable")]
    right = right[right != IGNORED] == RIGHT
    if not len(right):
        return 0.0
    recalled = right.cumsum()
    precision = recalled / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    if average == "area":
        return float(precision[right].sum() / objects)  # each object found is a step of 1 / objects in recall
    index = np.searchsorted(recalled / objects, RECALLS, side="left")
    return float(np.append(precision, 0.0)[index].mean())
