"""AP of detections on OV-COCO, LVIS, VOC, and what else has boxes (Sec. 4.3).

    coco    COCO's twelve numbers; with a split, AP50 of base and of novel classes, as OV-COCO
    lvis    federated AP of rare, common and frequent classes, at most 300 detections per image
    voc07   AP50 and AP75 by mmdet's rule for VOC2007: 11 points, corners are pixels, difficult objects ignored
    voc12   the same, but the area under the curve, as for VOC2010 and later

AP of a group is the mean over its classes that have an object, in percent. The matching is hotcoco's, which is fast and
equals pycocotools' and lvis-api's (tests compare them); VOC's is in `voc.py`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from foveate.errors import InputError
from foveate.evaluate.detection_results import left_top_sides
from foveate.evaluate.ground_truth import FREQUENCIES, GroundTruth, import_hotcoco
from foveate.evaluate.score import list_missing, mean_percent, percent
from foveate.evaluate.voc import VOC_RULES, measure_voc
from foveate.types import Detections

MASK_SIZES = (
    "small, medium and large masks are defined by the area of the mask, as in pycocotools and lvis-api for results "
    "without boxes; public F-ViT keeps the boxes and uses their area (AP of the three sizes differs, AP does not)"
)
# maximum detections per class and image
CAPS = {"coco": (1, 10, 100), "ov-coco": (1, 10, 100, 1000), "lvis": (300,)}
LVIS_CAP = 300  # maximum detections per image, of all classes together
AREAS = ("all", "small", "medium", "large")


def evaluate_detection(predictions: Iterable[tuple[str, Detections]], truth: GroundTruth) -> dict[str, Any]:
    """Measure detections against annotated objects.

    Args:
        predictions: (id of an image, its detections), each image at most once, in any order; labels index the
            vocabulary that the ground truth was opened with.

    Returns:
        {"style", "rules": what was ignored and why, "images", "images_without_result", "objects", "crowds",
        "detections", "not_measured": detections of other classes or images, "beyond_cap": those beyond the maximum
        number that the style takes, "classes": {"measured", "with_objects"}, "boxes": R, "masks": R or None}.
        R = {"AP", "AP50", ..., "AR@100": percent or None, "groups": {name: {"classes", "AP", "AP50", "AP75"}},
        "per_class": [{"name", "objects", "detections", "AP", "AP50"}]}; VOC has only AP50 and AP75.

    Raises:
        InputError: an unknown image or one twice, labels beyond the vocabulary, values that are not finite, or
            detections without masks where masks are measured.
    """
    table = _Table(truth)
    for key, detections in predictions:
        table.add(key, detections)
    rows = np.concatenate([np.zeros((0, 7)), *table.rows])
    style, objects = truth.style, truth.counts()
    caps = CAPS.get("ov-coco" if style == "coco" and "novel" in truth.groups else style, ())
    missing = [key for key in truth.images if key not in table.seen]
    result: dict[str, Any] = {
        "style": style,
        "rules": _rules(truth),
        "images": len(truth.images),
        "images_without_result": list_missing(missing),  # their objects are missed
        "objects": int(objects.sum()),
        "crowds": sum(annotated.crowd for annotated in truth.objects),
        "detections": len(rows),
        "not_measured": table.not_measured,
        "beyond_cap": _beyond(rows, caps[-1]) if style == "coco" else table.beyond_cap,
        "classes": {"measured": len(truth.names), "with_objects": int((objects > 0).sum())},
    }
    if style in VOC_RULES:
        return {**result, "boxes": _summarise_voc(truth, rows), "masks": None}
    boxes = _measure(truth, rows, None, caps=caps)
    masks = _measure(truth, rows, table.masks, caps=caps) if truth.masks else None
    return {**result, "boxes": boxes, "masks": masks}


class _Table:
    """The detections of all images in rows: image, left, top, width, height, score, label; image and label from 1."""

    def __init__(self, truth: GroundTruth) -> None:
        self.truth = truth
        self.labels = np.array(truth.labels, dtype=np.int64)
        self.rows: list[np.ndarray] = []
        self.masks: list[dict] = []
        self.seen: set[str] = set()
        self.not_measured = 0  # detections of other classes or images
        self.beyond_cap = 0  # detections beyond LVIS's cap per image

    def add(self, key: str, detections: Detections) -> None:
        """Append the detections of an image, best first."""
        truth, is_lvis = self.truth, self.truth.style == "lvis"
        labels, boxes, scores = self._checked(key, detections)
        self.seen.add(key)
        order = np.argsort(-scores, kind="stable")
        counts = (self.labels[labels[order]] >= 0) & (key in truth.images)
        self.not_measured += int((~counts).sum())
        self.beyond_cap += max(0, int(counts.sum()) - LVIS_CAP) if is_lvis else 0
        chosen = order[counts][: LVIS_CAP if is_lvis else None]
        rows = np.empty((len(chosen), 7))
        rows[:, 0] = truth.images.get(key, -1) + 1
        rows[:, 1:5] = boxes[chosen]
        rows[:, 5] = scores[chosen]
        rows[:, 6] = self.labels[labels[chosen]] + 1
        self.rows.append(rows)
        if truth.masks and detections.masks is not None:
            self.masks += [detections.masks[index] for index in chosen]

    def _checked(self, key: str, detections: Detections) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, boxes and scores; or an InputError that names the image."""
        if key in self.seen or (key not in self.truth.images and key not in self.truth.ignored):
            problem = "came twice" if key in self.seen else "is not in the data set"
            raise InputError(f"image {key}: need detections of each image of the data set once; it {problem}.")
        if self.truth.masks and detections.masks is None:
            raise InputError(f"image {key}: need detections with masks; got none. Measure only the boxes.")
        labels, scores = detections.labels.cpu().numpy(), detections.scores.cpu().double().numpy()
        boxes = left_top_sides(detections).cpu().numpy()
        if len(labels) and (labels.min() < 0 or labels.max() >= len(self.labels)):
            raise InputError(f"image {key}: need labels below {len(self.labels)}, the vocabulary's classes; "
                             f"got {labels.min()} .. {labels.max()}.")  # fmt: skip
        if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
            raise InputError(f"image {key}: need finite boxes and scores; some are NaN or infinite.")
        return labels, boxes, scores


def _rules(truth: GroundTruth) -> list[str]:
    rules = [*truth.rules, "the mean over classes excludes those without an object"]
    if truth.style == "lvis":
        rules.append(f"at most {LVIS_CAP} detections per image; a class counts where it was searched for (federated)")
    if truth.style in VOC_RULES:
        rules.append(VOC_RULES[truth.style])
    return [*rules, MASK_SIZES] if truth.masks else rules


def _beyond(rows: np.ndarray, cap: int) -> int:
    """How many detections are beyond the cap per image and class."""
    _, counts = np.unique(rows[:, [0, 6]], axis=0, return_counts=True)
    return int((counts - cap).clip(min=0).sum())


def _measure(
    truth: GroundTruth, rows: np.ndarray, masks: list[dict] | None, *, caps: tuple[int, ...]
) -> dict[str, Any]:
    """COCO's or LVIS's numbers of boxes, or of `masks`."""
    hotcoco, is_lvis = import_hotcoco(), truth.style == "lvis"
    expected = _expected(hotcoco, truth, masks=masks is not None)
    predicted = expected.load_res(rows, segmentation=masks)
    if masks:  # areas are those of the masks, as in the official evaluations
        predicted.update_anns(ids=np.arange(1, len(masks) + 1), area=hotcoco.mask.area(masks).astype(np.float64))
    run = hotcoco.COCOeval(expected, predicted, "bbox" if masks is None else "segm", lvis_style=is_lvis)
    run.params.max_dets = list(caps)
    run.evaluate()
    run.accumulate()
    # the evaluator's -1 (no object of that class and size) becomes NaN
    precision = np.asarray(run.eval["precision"])[..., -1]  # (10 IoUs, 101 recalls, K, 4 areas), of most detections
    ap = np.where(precision < 0, np.nan, precision).mean(axis=1)  # (10, K, 4)
    recall = np.asarray(run.eval["recall"])  # (10, K, 4, caps)
    ar = np.where(recall < 0, np.nan, recall).mean(axis=0)  # (K, 4, caps)
    # recall by size is of 100 detections in COCO, else of the largest cap
    by_size = caps.index(100) if 100 in caps else len(caps) - 1
    result: dict[str, Any] = {
        **_three(ap[:, :, 0]),
        **{f"AP_{name}": mean_percent(ap[:, :, area]) for area, name in enumerate(AREAS) if area},
        **{f"AR@{cap}": mean_percent(ar[:, 0, index]) for index, cap in enumerate(caps)},
        **{f"AR_{name}": mean_percent(ar[:, area, by_size]) for area, name in enumerate(AREAS) if area},
    }
    if is_lvis:
        frequencies = {name: truth.groups.get(name, []) for name in FREQUENCIES}
        result |= {f"AP{FREQUENCIES[name]}": mean_percent(ap[:, labels, 0]) for name, labels in frequencies.items()}
    groups = {"all": list(range(len(truth.names))), **truth.groups}
    result["groups"] = {
        group: {"classes": int((~np.isnan(ap[0, labels, 0])).sum()), **_three(ap[:, labels, 0])}
        for group, labels in groups.items()
    }
    result["per_class"] = _per_class(truth, rows, {"AP": ap[:, :, 0].mean(axis=0), "AP50": ap[0, :, 0]})
    return result


def _summarise_voc(truth: GroundTruth, rows: np.ndarray) -> dict[str, Any]:
    """AP50 and AP75 by VOC's matching."""
    measures = measure_voc(truth, rows)  # (K,) each; NaN: no object
    has_objects = ~np.isnan(measures["AP50"])
    groups = {"all": list(range(len(truth.names))), **truth.groups}
    return {
        **{name: mean_percent(values) for name, values in measures.items()},
        "groups": {
            group: {
                "classes": int(has_objects[labels].sum()),
                **{name: mean_percent(values[labels]) for name, values in measures.items()},
            }
            for group, labels in groups.items()
        },
        "per_class": _per_class(truth, rows, measures),
    }


def _three(ap: np.ndarray) -> dict[str, float | None]:
    """AP, AP50 and AP75 of precisions (10 IoUs, K)."""
    return {"AP": mean_percent(ap), "AP50": mean_percent(ap[0]), "AP75": mean_percent(ap[5])}


def _expected(hotcoco: Any, truth: GroundTruth, *, masks: bool) -> Any:
    """The objects in the evaluator's form; images, classes and objects are numbered from 1."""
    images: list[dict[str, Any]] = [
        {"id": number, "height": height, "width": width} for number, (height, width) in enumerate(truth.sizes, start=1)
    ]
    if truth.federated is not None:
        for image, (absent, partly) in zip(images, truth.federated, strict=True):
            image["neg_category_ids"] = [label + 1 for label in absent]
            image["not_exhaustive_category_ids"] = [label + 1 for label in partly]
    letters = {label: FREQUENCIES[key] for key in FREQUENCIES for label in truth.groups.get(key, [])}
    categories = [
        {"id": label + 1, "name": name, "frequency": letters.get(label, "f")} for label, name in enumerate(truth.names)
    ]
    objects = truth.objects
    return hotcoco.COCO.from_arrays(
        images,
        categories,
        np.array([item.image + 1 for item in objects], dtype=np.int64),
        np.array([item.label + 1 for item in objects], dtype=np.int64),
        np.array([item.box for item in objects], dtype=np.float64).reshape(-1, 4),
        ids=np.arange(1, len(objects) + 1),
        area=np.array([item.area for item in objects], dtype=np.float64),
        iscrowd=np.array([item.crowd for item in objects], dtype=np.int64),
        segmentation=[item.segmentation for item in objects] if masks else None,
    )


def _per_class(truth: GroundTruth, rows: np.ndarray, measures: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    group = {label: key for key, labels in truth.groups.items() for label in labels}
    objects = truth.counts().tolist()
    detections = np.bincount(rows[:, 6].astype(np.int64) - 1, minlength=len(truth.names)).tolist()
    return [
        {
            "name": name,
            "group": group.get(label),
            "objects": objects[label],
            "detections": detections[label],
            **{key: percent(values[label]) for key, values in measures.items()},
        }
        for label, name in enumerate(truth.names)
    ]
