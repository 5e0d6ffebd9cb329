"""Measures equal the official tools': pycocotools on cocoapi's own file, mmdet's rule for VOC, detectron2's mIoU."""

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from published import TOLERANCE, gap, golden, uniform
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from foveate.cli.main import main
from foveate.data.datasets.coco import read_instances
from foveate.evaluate.detection import evaluate_detection
from foveate.evaluate.detection_results import read_results
from foveate.evaluate.ground_truth import open_ground_truth
from foveate.evaluate.semantic import Confusion
from foveate.evaluate.voc import average_precision, match_image
from foveate.types import LabelMap

TWELVE = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR@1", "AR@10", "AR@100")
TWELVE = (*TWELVE, "AR_small", "AR_medium", "AR_large")


# ----------------------------------------------------------------------------------------------------------------- COCO


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations and results of cocoapi's fakebbox100, written from the golden arrays; no image is there."""
    arrays, folder = golden("metrics"), tmp_path_factory.mktemp("coco")
    images = [
        {"id": int(i), "height": int(h), "width": int(w), "file_name": f"{i:012d}.jpg"}
        for i, h, w in arrays["coco_images"]
    ]
    annotations = [
        {"id": number, "image_id": int(row[0]), "category_id": int(row[1]), "bbox": row[2:6].tolist(),
         "area": float(row[4] * row[5]), "iscrowd": 0, "segmentation": []}
        for number, row in enumerate(arrays["coco_truth"], start=1)
    ]  # fmt: skip
    categories = [{"id": int(one), "name": f"c{one}"} for one in arrays["coco_cats"]]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    results = [
        {"image_id": int(row[0]), "category_id": int(row[1]), "bbox": row[2:6].tolist(), "score": float(row[6])}
        for row in arrays["coco_res"]
    ]
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_ap_of_the_public_result_file(coco):
    for image in json.loads((coco / "truth.json").read_text())["images"]:
        (coco / image["file_name"]).touch()
    dataset = read_instances(coco / "truth.json", coco)
    vocabulary = [one.name for one in dataset.categories]
    found = read_results(coco / "results.json", dataset, vocabulary=vocabulary)
    truth = open_ground_truth(dataset, vocabulary=vocabulary, split=None, style="coco")
    boxes = evaluate_detection(found, truth)["boxes"]
    assert gap([boxes[name] / 100 for name in TWELVE], golden("metrics")["coco_stats"]) < 1e-12
    # what made the difference: of float32 boxes, an IoU of exactly .60 falls below the threshold
    rounded = [(key, replace(one, boxes=one.boxes.float(), xywh=None)) for key, one in found]
    assert evaluate_detection(rounded, truth)["boxes"]["AP"] == pytest.approx(50.5545, abs=1e-4)


def test_the_command_prints_it_without_images_or_a_model(coco, tmp_path, capsys):
    words = ["evaluate", "detection", "--from-results", str(coco / "results.json")]
    main([*words, "--annotations", str(coco / "truth.json"), "--out", str(tmp_path / "out.json")])
    out = capsys.readouterr()
    assert re.search(r"AP +│ +50\.6052", out.out) and re.search(r"AR@100 +│ +59\.7734", out.out)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["boxes"]["AP"] == pytest.approx(50.6052, abs=1e-4) and written["detections"] == 734
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(coco / "truth.json"))
        run = COCOeval(truth, truth.loadRes(str(coco / "results.json")), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    assert gap([written["boxes"][name] / 100 for name in TWELVE], run.stats) < 1e-12


# ------------------------------------------------------------------------------------------------------------------ VOC


def voc_map(*, min_iou: float) -> float:
    arrays = golden("metrics")
    objects, detections = arrays["voc_anns"].astype(np.float64), arrays["voc_dets"].astype(np.float64)
    scores, judged, counts = [[] for _ in range(20)], [[] for _ in range(20)], np.zeros(20, dtype=int)
    for image in range(int(arrays["voc_n"])):
        there, own = objects[objects[:, 0] == image], detections[detections[:, 0] == image]
        own = own[np.argsort(-own[:, 6], kind="stable")]
        counts += np.bincount(there[there[:, 6] == 0, 1].astype(int), minlength=20)
        labels, classes = own[:, 1].astype(np.int64), there[:, 1].astype(np.int64)
        verdicts = match_image(own[:, 2:6], labels, there[:, 2:6], classes, there[:, 6] > 0, min_iou=min_iou)
        for verdict, label, score in zip(verdicts, labels, own[:, 6], strict=True):
            scores[label].append(score)
            judged[label].append(verdict)
    ap = [
        average_precision(np.array(score, dtype=np.float64), np.array(one, dtype=np.int64), objects=int(count))
        for score, one, count in zip(scores, judged, counts, strict=True)
    ]
    return float(np.mean([one for one in ap if one is not None]))


@pytest.mark.parametrize(("min_iou", "name"), [(0.5, "voc_map50"), (0.75, "voc_map75")])
def test_voc07_is_mmdet_s(min_iou, name):
    assert abs(voc_map(min_iou=min_iou) - float(golden("metrics")[name])) < TOLERANCE / 100


def slow_voc(detections, objects, *, min_iou, eleven):
    """AP of one class, from the words of mmdet's rule.

    Args:
        detections: (image, score, box) rows in any order.
        objects: (image, difficult, box) rows.
    """
    marks, taken = [], set()
    for image, score, box in sorted(detections, key=lambda row: -row[1]):
        overlaps = []
        for number, (where, is_difficult, other) in enumerate(objects):
            if where == image:
                wide = max(0.0, min(box[2], other[2]) - max(box[0], other[0]) + 1)
                high = max(0.0, min(box[3], other[3]) - max(box[1], other[1]) + 1)
                areas = [(one[2] - one[0] + 1) * (one[3] - one[1] + 1) for one in (box, other)]
                overlaps.append((wide * high / (sum(areas) - wide * high), -is_difficult, -number))
        best = max(overlaps, default=(0.0, 0, 0))
        if best[0] < min_iou:
            marks.append((score, 0, 1))
        elif not best[1]:
            marks.append((score, int(-best[2] not in taken), int(-best[2] in taken)))
            taken.add(-best[2])
    total = sum(not is_difficult for _, is_difficult, _ in objects)
    points, right, wrong = [], 0, 0
    for _, good, bad in marks:
        right, wrong = right + good, wrong + bad
        points.append((right / total, right / (right + wrong)))
    if eleven:
        return sum(max((p for r, p in points if r >= level), default=0.0) for level in np.arange(0, 1.001, 0.1)) / 11
    area, reached = 0.0, 0.0
    for place, (recall, _) in enumerate(points):
        area += (recall - reached) * max(p for _, p in points[place:])
        reached = recall
    return area


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("average", "min_iou"), [("11 points", 0.5), ("area", 0.5), ("11 points", 0.75)])
def test_voc_is_a_slow_loop_over_the_words_of_the_rule(seed, average, min_iou):
    draw = np.random.default_rng(seed)
    objects, detections = [], []
    for image in range(6):
        for _ in range(4):
            left, top, wide, high = draw.integers(0, 60, 2).tolist() + draw.integers(8, 30, 2).tolist()
            box = (left, top, left + wide, top + high)
            if draw.random() < 0.3:  # a difficult object in the same place: the other one is meant
                objects.append((image, True, box))
            objects.append((image, bool(draw.random() < 0.3), box))
            for _ in range(3):
                moved = draw.integers(-3, 4, 4)
                detections.append(
                    (
                        image,
                        float(draw.random()),
                        tuple(float(a + b) for a, b in zip(objects[-1][2], moved, strict=True)),
                    )
                )
    judged, scores = [], []
    for image in range(6):
        own = sorted((row for row in detections if row[0] == image), key=lambda row: -row[1])
        there = [row for row in objects if row[0] == image]
        boxes, others = (np.array([row[2] for row in rows], dtype=np.float64) for rows in (own, there))
        zeros = [np.zeros(len(rows), dtype=np.int64) for rows in (own, there)]
        difficult = np.array([row[1] for row in there])
        judged += match_image(boxes, zeros[0], others, zeros[1], difficult, min_iou=min_iou).tolist()
        scores += [row[1] for row in own]
    count = sum(not row[1] for row in objects)
    ours = average_precision(np.array(scores), np.array(judged), objects=count, average=average)
    slow = slow_voc(detections, objects, min_iou=min_iou, eleven=average == "11 points")
    assert ours == pytest.approx(slow, abs=1e-12) and 0.02 < slow < 0.95


# ------------------------------------------------------------------------------------------------------------- semantic


@pytest.mark.parametrize("classes", [20, 59, 150, 459, 847])
def test_miou_is_detectron2_s(classes):
    present = np.flatnonzero(uniform(f"sem{classes}", classes) > 0.2)
    truth = present[(uniform(f"semg{classes}", 60, 80) * len(present)).astype(int)]
    guess = (uniform(f"semq{classes}", 60, 80) * classes).astype(int)
    found = np.where(uniform(f"semp{classes}", 60, 80) < 0.6, truth, guess)
    truth = np.where(uniform(f"semi{classes}", 60, 80) < 0.1, -1, truth)
    confusion = Confusion(classes)
    confusion.add(LabelMap(torch.from_numpy(truth)), LabelMap(torch.from_numpy(found)), key="x")
    measured = confusion.measure([str(number) for number in range(classes)])
    assert measured["mIoU"] == pytest.approx(float(golden("metrics")[f"miou{classes}"]), abs=1e-9)
