"""Pascal VOC's rule of matching: difficult objects neither count nor are counted against a detector.

A detection belongs to the object of its class that it overlaps most. If that IoU is at least 0.5, the object's best
detection is right and its others are wrong; of a difficult object none counts at all. COCO's own rule for what is to be
ignored differs: a crowd is overlapped by any part of it. Deliberately absent: VOC 2007's 11 points (COCO's 101 are
used), and pixels counted from 1.
"""

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torchvision.ops import box_iou

IOU = 0.5
RIGHT, WRONG, IGNORED = 1, 0, -1


def match_picture(
    boxes: Float64[np.ndarray, "N 4"],
    labels: Int64[np.ndarray, " N"],
    objects: Float64[np.ndarray, "M 4"],
    classes: Int64[np.ndarray, " M"],
    difficult: np.ndarray,
) -> Int64[np.ndarray, " N"]:
    """Judge the detections of one picture.

    Args:
        boxes: of the detections, best first; xyxy.
        labels: of them.
        objects: the annotated boxes; xyxy.
        classes: of them.
        difficult: which of them are, (M,) bool.

    Returns:
        RIGHT, WRONG or IGNORED of each detection.
    """
    judged = np.full(len(boxes), WRONG, dtype=np.int64)
    if not len(boxes) or not len(objects):
        return judged
    overlap = box_iou(torch.from_numpy(boxes), torch.from_numpy(objects)).numpy()  # (N, M)
    overlap = np.where(labels[:, None] == classes[None], overlap, -1.0)
    nearest = overlap.argmax(axis=1)  # (N,)
    hit = np.flatnonzero(overlap.max(axis=1) >= IOU)
    _, first = np.unique(nearest[hit], return_index=True)  # the best detection of each object
    judged[hit[first]] = RIGHT
    judged[hit[difficult[nearest[hit]]]] = IGNORED
    return judged


def average_precision(
    scores: Float64[np.ndarray, " N"], judged: Int64[np.ndarray, " N"], *, objects: int
) -> float | None:
    """Average the precision at COCO's 101 recalls, each the best that is reached at that recall or beyond.

    Args:
        scores: of one class in all pictures.
        judged: of `match_picture`.
        objects: how many there are, difficult ones left out.

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
    place = np.searchsorted(found / objects, np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0.0)[place].mean())
