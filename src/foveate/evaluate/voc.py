"""Pascal VOC's measure of detection: difficult objects neither count nor are counted against a detector (A.3).

A detection is compared with the object of its class that it overlaps most. If that IoU reaches the threshold, the best
detection of the object is right and its others are wrong; of a difficult object none counts at all. COCO's rule for
ignored objects differs: a crowd is overlapped by any part of it.

The rule is that of mmdet's VOCDataset, which made the published transfer numbers: boxes hold whole pixels, both corners
included, so that a side is x2 - x1 + 1, and precision is averaged at the 11 recalls 0, .1 ... 1 (VOC2007) or is the
area under the curve (VOC2010 and later).
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torchvision.ops import box_iou

IOU = 0.5
RIGHT, WRONG, IGNORED = 1, 0, -1
RECALLS = np.arange(0, 1 + 1e-3, 0.1)  # .30000000000000004 and the like are part of the published rule

Average = Literal["11 points", "area"]


def match_picture(
    boxes: Float64[np.ndarray, "N 4"],
    labels: Int64[np.ndarray, " N"],
    objects: Float64[np.ndarray, "M 4"],
    classes: Int64[np.ndarray, " M"],
    difficult: np.ndarray,
    *,
    min_iou: float = IOU,
    pixel: float = 1.0,
) -> Int64[np.ndarray, " N"]:
    """Judge the detections of one image.

    Args:
        boxes: of the detections, best first; xyxy, pixels.
        labels: of them.
        objects: the annotated boxes; xyxy, pixels.
        classes: of them.
        difficult: which of them are, (M,) bool.
        min_iou: IoU from which on an object is found.
        pixel: added to the width and height of every box: 1 where corners are pixels (VOC), 0 where they are edges.

    Returns:
        RIGHT, WRONG or IGNORED for each detection.
    """
    judged = np.full(len(boxes), WRONG, dtype=np.int64)
    if not len(boxes) or not len(objects):
        return judged
    order = np.argsort(difficult, kind="stable")  # of objects that are overlapped alike the first is meant
    objects, classes, difficult = objects[order], classes[order], difficult[order]
    grow = np.array([0, 0, pixel, pixel])
    overlap = box_iou(torch.from_numpy(boxes + grow), torch.from_numpy(objects + grow)).numpy()  # (N, M)
    overlap = np.where(labels[:, None] == classes[None], overlap, -1.0)
    nearest = overlap.argmax(axis=1)  # (N,)
    hit = np.flatnonzero(overlap.max(axis=1) >= min_iou)
    _, first = np.unique(nearest[hit], return_index=True)  # the best detection of each object
    judged[hit[first]] = RIGHT
    judged[hit[difficult[nearest[hit]]]] = IGNORED
    return judged


def average_precision(
    scores: Float64[np.ndarray, " N"],
    judged: Int64[np.ndarray, " N"],
    *,
    objects: int,
    average: Average = "11 points",
) -> float | None:
    """Average the precision over recall, each the best that is reached at that recall or beyond.

    Args:
        scores: of one class in all images.
        judged: of `match_picture`.
        objects: how many there are, difficult ones excluded.
        average: "11 points": the mean at the recalls 0, .1 ... 1 (VOC2007); "area": under the curve (VOC2012).

    Returns:
        In [0, 1]; None without an object.
    """
    if not objects:
        return None
    right = judged[np.argsort(-scores, kind="stable")]
    right = right[right != IGNORED] == RIGHT
    if not len(right):
        return 0.0
    found = right.cumsum()
    precision = found / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    if average == "area":
        return float(precision[right].sum() / objects)  # each object found is a step of 1 / objects in recall
    place = np.searchsorted(found / objects, RECALLS, side="left")
    return float(np.append(precision, 0.0)[place].mean())
