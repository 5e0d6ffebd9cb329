"""AP of detections on OV-COCO, LVIS, VOC, and what else has boxes (Sec. 4.3).

    coco    COCO's twelve numbers. With a split: those of OV-COCO, AP50 of base and novel classes apart
    lvis    federated AP, of rare, common and frequent classes apart, at most 300 detections a picture
    voc07   AP50 and AP75 by mmdet's rule for VOC2007: 11 points, corners are pixels, difficult objects ignored
    voc12   the same, but the area under the curve, as for VOC2010 and later

AP of a group is the mean over its classes that have an object. The matching is hotcoco's, which equals pycocotools' and
lvis-api's (tests hold it to that) and is fast; VOC's is in `voc.py`. Everything is in percent. Deliberately absent: a
model; `sweep.py` measures stored candidates, fused in many ways, without one.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foveate.data.records import Dataset
from foveate.data.splits import BaseNovel
from foveate.errors import InputError
from foveate.evaluate.truth import FREQUENCIES, Truth, make_truth
from foveate.evaluate.voc import Average, average_precision, match_picture
from foveate.types import Detections

Style = Literal["coco", "lvis", "voc07", "voc12"]

VOC: dict[str, Average] = {"voc07": "11 points", "voc12": "area"}
VOC_IOUS = {"AP50": 0.5, "AP75": 0.75}
VOC_RULES = {
    style: "as mmdet for VOC: a detection is compared with the object that it overlaps most; difficult objects are "
    f"ignored; corners are pixels, a side is x2 - x1 + 1; AP is {text}"
    for style, text in (
        ("voc07", "the mean precision at 11 recalls (VOC2007)"),
        ("voc12", "the area under precision over recall (VOC2010 and later)"),
    )
}
PIXEL = 1.0  # VOC's corners are pixels, both within the box
MASK_SIZES = (
    "small, medium and large masks go by the area of the mask, as in pycocotools and lvis-api for results without "
    "boxes; public F-ViT leaves the boxes in and goes by their area (AP of the three sizes differs, AP does not)"
)
# detections of a class and image
CAPS = {"coco": (1, 10, 100), "ov-coco": (1, 10, 100, 1000), "lvis": (300,), "voc07": (), "voc12": ()}
LVIS_CAP = 300  # detections of a picture, of all classes together
AREAS = ("all", "small", "medium", "large")
TOLD = 5


def evaluate_detection(
    found: Iterable[tuple[str, Detections]],
    dataset: Dataset,
    *,
    vocabulary: Sequence[str],
    split: BaseNovel | None,
    style: Style,
    masks: bool = False,
    annotations: Path | None = None,
    only_present: bool = False,
) -> dict[str, Any]:
    """Measure detections against annotated objects.

    Args:
        found: (id of a picture, what was found in it), each picture at most once, in any order.
        dataset: with annotated boxes.
        vocabulary: names of the classes that were asked for; a detection's label is a place in it.
        split: base and novel categories; None: the data set has none.
        style: whose rule.
        masks: also measure the masks.
        annotations: the data set's annotation file: needed for masks and for LVIS, and for COCO's official areas, by
            which small, medium and large objects are told apart. None: the file that the data set was read from; if
            there is none, areas are those of the boxes.
        only_present: measure the categories that the vocabulary has; otherwise it must have all that count.

    Returns:
        {"style", "rules": what was left out and why, "pictures", "pictures_without_result", "objects", "crowds",
        "detections", "not_measured": detections of other classes or pictures, "beyond_cap": those that exceed the most
        detections that the style takes, "classes": {"measured", "with_objects"}, "boxes": R, "masks": R or None}.
        R = {"AP", "AP50", ..., "AR@100": percent or None, "groups": {name: {"classes", "AP", "AP50", "AP75"}},
        "per_class": [{"name", "objects", "detections", "AP", "AP50"}]}; VOC has AP50 and AP75 alone.

    Raises:
        InputError: hotcoco is missing, a category is not in the vocabulary, a picture is unknown or comes twice, or
            detections without masks where masks are asked for.
    """
    truth = open_truth(
        dataset,
        vocabulary=vocabulary,
        split=split,
        style=style,
        masks=masks,
        annotations=annotations,
        only_present=only_present,
    )
    gathered = Gathered(truth, style=style, masks=masks)
    for key, detections in found:
        gathered.add(key, detections)
    return gathered.measure(ov=split is not None)


def open_truth(
    dataset: Dataset,
    *,
    vocabulary: Sequence[str],
    split: BaseNovel | None,
    style: Style,
    masks: bool,
    annotations: Path | None,
    only_present: bool,
) -> Truth:
    """What detections are measured against, once for all measurements; see `evaluate_detection`."""
    _hotcoco()
    annotations = annotations or dataset.file
    if style in VOC and masks:
        raise InputError(f"style {style}: measures boxes alone. Leave the masks, or take the style coco.")
    if annotations is None and (masks or style == "lvis"):
        need = "masks need its segmentations" if masks else "the style lvis needs which categories were looked for"
        raise InputError(f"{dataset.name}: need an annotation file: {need}. Name it, or measure boxes by COCO's style.")
    return make_truth(
        dataset,
        vocabulary=vocabulary,
        split=split,
        annotations=annotations,
        masks=masks,
        federated=style == "lvis",
        difficult=style in VOC,
        only_present=only_present,
    )


def _hotcoco() -> Any:
    try:
        import hotcoco
    except ImportError as error:
        raise InputError(
            f"detection: needs the package hotcoco; it cannot be imported ({error}). Install it with "
            "pip install hotcoco."
        ) from error
    return hotcoco


class Gathered:
    """The detections of all pictures, in columns, beside what they are measured against."""

    def __init__(self, truth: Truth, *, style: Style, masks: bool) -> None:
        self.truth, self.style = truth, style
        self.places = np.array(truth.places, dtype=np.int64)
        self.seen: set[str] = set()
        self.elsewhere = 0  # detections of other classes or images
        self.beyond = 0  # detections that exceed the cap of an image
        self.rows: list[np.ndarray] = []  # picture, left, top, width, height, score, label; both numbers from 1
        self.masks: list[dict] | None = [] if masks else None

    def add(self, key: str, detections: Detections) -> None:
        """Take what was found in a picture."""
        if key in self.seen or (key not in self.truth.pictures and key not in self.truth.passed_over):
            problem = "came twice" if key in self.seen else "is none of the data set's"
            raise InputError(f"picture {key}: need the detections of each picture of the data set once; it {problem}.")
        self.seen.add(key)
        if self.masks is not None and detections.masks is None:
            raise InputError(f"picture {key}: need detections with masks; these have none. Measure the boxes alone.")
        labels, scores = detections.labels.cpu().numpy(), detections.scores.cpu().double().numpy()
        boxes = left_top_sides(detections)
        if len(labels) and (labels.min() < 0 or labels.max() >= len(self.places)):
            raise InputError(f"picture {key}: need labels below {len(self.places)}, the vocabulary's classes; "
                             f"got {labels.min()} .. {labels.max()}.")  # fmt: skip
        if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
            raise InputError(f"picture {key}: need finite boxes and scores; some are NaN or infinite.")
        order = np.argsort(-scores, kind="stable")
        classes = self.places[labels[order]]
        counts = (classes >= 0) & (key in self.truth.pictures)
        self.elsewhere += int((~counts).sum())
        self.beyond += max(0, int(counts.sum()) - LVIS_CAP) if self.style == "lvis" else 0
        chosen = order[counts][: LVIS_CAP if self.style == "lvis" else None]
        columns = np.empty((len(chosen), 7))
        columns[:, 0] = self.truth.pictures.get(key, -1) + 1
        columns[:, 1:5] = boxes[chosen]
        columns[:, 5] = scores[chosen]
        columns[:, 6] = self.places[labels[chosen]] + 1
        self.rows.append(columns)
        if self.masks is not None and detections.masks is not None:
            self.masks += [detections.masks[one] for one in chosen]

    def measure(self, *, ov: bool) -> dict[str, Any]:
        """Match and sum up; `ov`: of base and novel classes."""
        truth, table = self.truth, np.concatenate([np.zeros((0, 7)), *self.rows])
        self.rows = []
        crowds = sum(one.crowd for one in truth.objects)
        objects = truth.counts()
        without = [key for key in truth.pictures if key not in self.seen]
        rules = [*truth.rules, "the mean over classes leaves out those without an object"]
        if self.style == "lvis":
            rules.append(f"at most {LVIS_CAP} detections a picture; a class counts where it was looked for")
        if self.style in VOC:
            rules.append(VOC_RULES[self.style])
        if self.masks is not None:
            rules.append(MASK_SIZES)
        caps = CAPS["ov-coco" if ov and self.style == "coco" else self.style]
        if self.style == "coco":
            self.beyond = _beyond(table, caps[-1])
        result: dict[str, Any] = {
            "style": self.style,
            "rules": rules,
            "pictures": len(truth.pictures),
            "pictures_without_result": {"count": len(without), "first": without[:TOLD]},  # their objects are missed
            "objects": int(objects.sum()),
            "crowds": crowds,
            "detections": len(table),
            "not_measured": self.elsewhere,
            "beyond_cap": self.beyond,
            "classes": {"measured": len(truth.names), "with_objects": int((objects > 0).sum())},
        }
        if self.style in VOC:
            return {**result, "boxes": _measure_voc(truth, table, average=VOC[self.style]), "masks": None}
        boxes = _measure(truth, table, None, lvis=self.style == "lvis", caps=caps)
        masks = None
        if self.masks is not None:
            masks = _measure(truth, table, self.masks, lvis=self.style == "lvis", caps=caps)
        return {**result, "boxes": boxes, "masks": masks}


def left_top_sides(detections: Detections) -> np.ndarray:
    """Left, top, width and height, (N, 4) float64: a file's own numbers where they come from one."""
    if detections.xywh is not None:
        return detections.xywh.cpu().numpy()
    boxes = detections.boxes.cpu().double().numpy()
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _beyond(table: np.ndarray, cap: int) -> int:
    """How many detections exceed the most of an image and class."""
    _, counts = np.unique(table[:, [0, 6]], axis=0, return_counts=True)
    return int((counts - cap).clip(min=0).sum())


def _measure(
    truth: Truth, table: np.ndarray, masks: list[dict] | None, *, lvis: bool, caps: tuple[int, ...]
) -> dict[str, Any]:
    """COCO's or LVIS's numbers of boxes, or of masks where there are any."""
    hotcoco = _hotcoco()
    expected = _expected(hotcoco, truth, masks=masks is not None)
    found = expected.load_res(table, segmentation=masks)
    if masks is not None and masks:  # small, medium and large go by the mask, as in the official evaluations
        found.update_anns(ids=np.arange(1, len(masks) + 1), area=hotcoco.mask.area(masks).astype(np.float64))
    run = hotcoco.COCOeval(expected, found, "bbox" if masks is None else "segm", lvis_style=lvis)
    run.params.max_dets = list(caps)
    run.evaluate()
    run.accumulate()
    precision = np.asarray(run.eval["precision"])[..., -1]  # (10 IoUs, 101 recalls, K, 4 areas), of most detections
    recall = np.asarray(run.eval["recall"])  # (10, K, 4, caps)
    ap = _where_any(precision).mean(axis=1)  # (10, K, 4); NaN: no object
    ar = _where_any(recall).mean(axis=0)  # (K, 4, caps)
    every = list(range(len(truth.names)))
    result: dict[str, Any] = {
        "AP": _mean(ap[:, :, 0]),
        "AP50": _mean(ap[0, :, 0]),
        "AP75": _mean(ap[5, :, 0]),
        **{f"AP_{name}": _mean(ap[:, :, area]) for area, name in enumerate(AREAS) if area},
        **{f"AR@{cap}": _mean(ar[:, 0, place]) for place, cap in enumerate(caps)},
        **{f"AR_{name}": _mean(ar[:, area, _place_of_100(caps)]) for area, name in enumerate(AREAS) if area},
    }
    if lvis:
        result |= {f"AP{FREQUENCIES[key]}": _mean(ap[:, truth.groups.get(key, []), 0]) for key in FREQUENCIES}
    result["groups"] = {
        group: {
            "classes": int((~np.isnan(ap[0, members, 0])).sum()),
            "AP": _mean(ap[:, members, 0]),
            "AP50": _mean(ap[0, members, 0]),
            "AP75": _mean(ap[5, members, 0]),
        }
        for group, members in {"all": every, **truth.groups}.items()
    }
    result["per_class"] = _per_class(truth, table, {"AP": ap[:, :, 0].mean(axis=0), "AP50": ap[0, :, 0]})
    return result


def _place_of_100(caps: tuple[int, ...]) -> int:
    """Recall by size is of 100 detections where that is asked for, as COCO has it, else of most."""
    return caps.index(100) if 100 in caps else len(caps) - 1


def _expected(hotcoco: Any, truth: Truth, *, masks: bool) -> Any:
    """The objects as the evaluator takes them; pictures, classes and objects are numbered from 1."""
    images: list[dict[str, Any]] = [
        {"id": number + 1, "height": height, "width": width} for number, (height, width) in enumerate(truth.sizes)
    ]
    if truth.looked_for is not None:
        for image, (absent, partly) in zip(images, truth.looked_for, strict=True):
            image["neg_category_ids"] = [one + 1 for one in absent]
            image["not_exhaustive_category_ids"] = [one + 1 for one in partly]
    letters = {one: FREQUENCIES[key] for key in FREQUENCIES for one in truth.groups.get(key, [])}
    categories = [
        {"id": number + 1, "name": name, "frequency": letters.get(number, "f")}
        for number, name in enumerate(truth.names)
    ]
    objects = truth.objects
    return hotcoco.COCO.from_arrays(
        images,
        categories,
        np.array([one.picture + 1 for one in objects], dtype=np.int64),
        np.array([one.label + 1 for one in objects], dtype=np.int64),
        np.array([one.box for one in objects], dtype=np.float64).reshape(-1, 4),
        ids=np.arange(1, len(objects) + 1),
        area=np.array([one.area for one in objects], dtype=np.float64),
        iscrowd=np.array([one.crowd for one in objects], dtype=np.int64),
        segmentation=[one.segmentation for one in objects] if masks else None,
    )


def _measure_voc(truth: Truth, table: np.ndarray, *, average: Average) -> dict[str, Any]:
    """AP50 and AP75 by VOC's matching."""
    objects = np.array([one.box for one in truth.objects], dtype=np.float64).reshape(-1, 4)
    objects[:, 2:] += objects[:, :2] - PIXEL  # their last pixel, as mmdet has annotated boxes; detections stay
    classes = np.array([one.label for one in truth.objects], dtype=np.int64)
    difficult = np.array([one.crowd for one in truth.objects], dtype=bool)
    theirs = _by_picture(np.array([one.picture for one in truth.objects], dtype=np.int64), len(truth.pictures))
    mine = _by_picture(table[:, 0].astype(np.int64) - 1, len(truth.pictures))
    labels, boxes = table[:, 6].astype(np.int64) - 1, table[:, 1:5].copy()
    boxes[:, 2:] += boxes[:, :2]
    per_class, counts = _by_picture(labels, len(truth.names)), truth.counts().tolist()
    measures = {}
    for name, min_iou in VOC_IOUS.items():
        judged = np.zeros(len(table), dtype=np.int64)
        for own, there in zip(mine, theirs, strict=True):
            judged[own] = match_picture(
                boxes[own], labels[own], objects[there], classes[there], difficult[there], min_iou=min_iou, pixel=PIXEL
            )
        found = [
            average_precision(table[own, 5], judged[own], objects=count, average=average)
            for own, count in zip(per_class, counts, strict=True)
        ]
        measures[name] = np.array(found, dtype=np.float64)  # None becomes NaN
    there = ~np.isnan(measures["AP50"])
    groups = {"all": list(range(len(truth.names))), **truth.groups}
    return {
        **{name: _mean(values) for name, values in measures.items()},
        "groups": {
            group: {
                "classes": int(there[members].sum()),
                **{name: _mean(values[members]) for name, values in measures.items()},
            }
            for group, members in groups.items()
        },
        "per_class": _per_class(truth, table, measures),
    }


def _by_picture(numbers: np.ndarray, count: int) -> list[np.ndarray]:
    """The rows of each of `count` pictures (or classes), in order."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.searchsorted(numbers[order], np.arange(1, count)))


def _per_class(truth: Truth, table: np.ndarray, measures: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    group = {member: key for key, members in truth.groups.items() for member in members}
    objects = truth.counts().tolist()
    found = np.bincount(table[:, 6].astype(np.int64) - 1, minlength=len(truth.names)).tolist()
    return [
        {
            "name": name,
            "group": group.get(number),
            "objects": objects[number],
            "detections": found[number],
            **{
                key: None if np.isnan(values[number]) else float(100 * values[number])
                for key, values in measures.items()
            },
        }
        for number, name in enumerate(truth.names)
    ]


def _where_any(values: np.ndarray) -> np.ndarray:
    """The evaluator's -1 (no object of that class and size) as NaN."""
    return np.where(values < 0, np.nan, values)


def _mean(values: np.ndarray) -> float | None:
    """The mean in percent over what is not NaN; None where all is."""
    kept = values[~np.isnan(values)]
    return float(100 * kept.mean()) if len(kept) else None
