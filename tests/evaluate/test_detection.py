"""AP against pycocotools, lvis-api and by hand; the rules of OV-COCO and VOC; refused arguments."""

import contextlib
import io
import json
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from foveate.data.datasets.coco import read_instances
from foveate.data.records import Dataset, Record
from foveate.data.splits import BaseNovel
from foveate.errors import InputError
from foveate.evaluate import detection as module
from foveate.evaluate.detection import evaluate_detection
from foveate.evaluate.ground_truth import open_ground_truth
from foveate.ops.paste import decode_masks, encode_masks
from foveate.types import Category, Detections

SIDE = 300  # of every image of the random data
CLASSES = 9


def measure(found: Iterable[tuple[str, Detections]], dataset: Dataset, **settings: Any) -> dict[str, Any]:
    return evaluate_detection(found, open_ground_truth(dataset, **settings))


def random_masks(count: int, generator: torch.Generator) -> torch.Tensor:
    """Ellipses of all three sizes."""
    centre = torch.rand(count, 2, 1, 1, generator=generator) * SIDE
    radius = torch.tensor([6.0, 25.0, 80.0])[torch.randint(0, 3, (count,), generator=generator)][:, None, None, None]
    radius = radius * (0.7 + torch.rand(count, 2, 1, 1, generator=generator))
    grid = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"))[None]
    return (((grid - centre) / radius) ** 2).sum(dim=1) < 1


def boxes_of(masks: torch.Tensor) -> list[list[float]]:
    found = []
    for mask in masks:
        rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
        x, y = float(columns[0]), float(rows[0])
        found.append([x, y, float(columns[-1]) + 1 - x, float(rows[-1]) + 1 - y])
    return found


def random_data(seed: int, *, count: int, lvis: bool) -> tuple[dict, list[tuple[str, Detections]], list[dict]]:
    """An annotation file, detections near its objects and elsewhere, and the same as a list of results."""
    generator = torch.Generator().manual_seed(seed)
    draw = np.random.default_rng(seed)
    annotations, found, results = [], [], []
    images = [{"id": 11 + 2 * number, "height": SIDE, "width": SIDE} for number in range(count)]
    for image in images:
        masks = random_masks(6, generator)
        labels = draw.integers(0, CLASSES - 1, 6)  # the last class has no object
        for mask, label, rle, box in zip(masks, labels, encode_masks(masks), boxes_of(masks), strict=True):
            annotations.append({"id": len(annotations) + 1, "image_id": image["id"], "category_id": int(label) * 3 + 1,
                                "bbox": box, "area": int(mask.sum()), "segmentation": rle,
                                **({} if lvis else {"iscrowd": int(draw.random() < 0.15)})})  # fmt: skip
        near = torch.stack([masks.roll((int(a), int(b)), (1, 2)) for a, b in draw.integers(-6, 7, (4, 2))])
        near = torch.cat([*near, random_masks(8, generator)])
        there = np.concatenate([np.where(draw.random(24) < 0.8, np.tile(labels, 4), draw.integers(0, CLASSES, 24)),
                                draw.integers(0, CLASSES, 8)])  # fmt: skip
        scores = torch.from_numpy(draw.random(32).round(2)).float()  # some are equal
        order = scores.argsort(descending=True, stable=True)
        near, there, scores = near[order], there[order.numpy()], scores[order]
        boxes = torch.tensor(boxes_of(near))
        rles = tuple(encode_masks(near))
        found.append((str(image["id"]), Detections(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
                                                   scores, torch.from_numpy(there), rles)))  # fmt: skip
        results += [
            {"image_id": image["id"], "category_id": int(label) * 3 + 1, "bbox": box, "score": score,
             "segmentation": rle}
            for label, box, score, rle in zip(there, boxes.tolist(), scores.tolist(), rles, strict=True)
        ]  # fmt: skip
    categories = [{"id": label * 3 + 1, "name": f"c{label}", "frequency": "rcf"[label % 3]} for label in range(CLASSES)]
    if lvis:
        for image in images:
            there = {one["category_id"] for one in annotations if one["image_id"] == image["id"]}
            others = [one["id"] for one in categories if one["id"] not in there]
            image["neg_category_ids"] = draw.permutation(others)[:2].tolist()
            image["not_exhaustive_category_ids"] = draw.permutation(sorted(there))[:1].tolist()
    return {"images": images, "annotations": annotations, "categories": categories}, found, results


def dataset_of(content: dict) -> Dataset:
    categories = tuple(Category(one["id"], one["name"], True, (), one["frequency"]) for one in content["categories"])
    labels = {one.id: place for place, one in enumerate(categories)}
    records = []
    for image in content["images"]:
        mine = [one for one in content["annotations"] if one["image_id"] == image["id"]]
        boxes = tuple((x, y, x + w, y + h) for x, y, w, h in (one["bbox"] for one in mine))
        records.append(Record(image["id"], Path("none.jpg"), image["height"], image["width"], boxes,
                              tuple(labels[one["category_id"]] for one in mine),
                              tuple(bool(one.get("iscrowd")) for one in mine)))  # fmt: skip
    return Dataset("toy", categories, tuple(records), {})


VOCABULARY = [f"c{label}" for label in reversed(range(CLASSES))]  # another order than the data set's


def in_vocabulary(found: list[tuple[str, Detections]]) -> list[tuple[str, Detections]]:
    return [(key, Detections(one.boxes, one.scores, CLASSES - 1 - one.labels, one.masks)) for key, one in found]


def plain(result: dict) -> list[float]:
    """COCO's twelve numbers, in its order."""
    keys = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR@1", "AR@10", "AR@100")
    return [result[key] for key in (*keys, "AR_small", "AR_medium", "AR_large")]


@pytest.fixture
def written(tmp_path: Path):
    def write(content: dict) -> Path:
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        return path

    return write


def uncompressed(mask: torch.Tensor) -> dict:
    """Run lengths as COCO writes those of crowds."""
    flat = np.concatenate([[0], mask.numpy().T.flatten(), [2]])
    ends = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], ends])).tolist()}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_twelve_numbers_equal_pycocotools(written, seed: int):
    content, found, results = random_data(seed, count=12, lvis=False)
    for one in content["annotations"]:
        (mask,) = decode_masks((one["segmentation"],), height=SIDE, width=SIDE)
        x, y, w, h = one["bbox"]
        polygon = [x, y + h / 2, x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h]  # a diamond in the ellipse's place
        one["segmentation"] = uncompressed(mask) if one["iscrowd"] else [polygon]
    path = written(content)
    result = measure(
        reversed(in_vocabulary(found)), dataset_of(content), vocabulary=VOCABULARY, split=None, style="coco",
        masks=True, annotations=path,
    )  # fmt: skip
    for kind, mine in (("bbox", result["boxes"]), ("segm", result["masks"])):
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(path))
            kept = [{k: v for k, v in one.items() if kind == "bbox" or k != "bbox"} for one in results]
            run = COCOeval(truth, truth.loadRes(kept), kind)
            run.evaluate()
            run.accumulate()
            run.summarize()
        assert np.abs(np.array(plain(mine)) / 100 - run.stats).max() < 1e-6
        assert 0.05 < run.stats[0] < 0.95  # the random data are neither trivial nor hopeless
        precision = run.eval["precision"][:, :, :, 0, -1]  # (10, 101, K)
        for label, row in enumerate(mine["per_class"]):
            assert row["name"] == f"c{label}"
            if label == CLASSES - 1:
                assert row["AP"] is None and row["objects"] == 0 and row["detections"] > 0
            else:
                assert row["AP"] / 100 == pytest.approx(precision[:, :, label].mean(), abs=1e-6)
                assert row["AP50"] / 100 == pytest.approx(precision[0, :, label].mean(), abs=1e-6)
    assert result["classes"] == {"measured": CLASSES, "with_objects": CLASSES - 1}
    assert result["objects"] + result["crowds"] == 72 and result["detections"] == 12 * 32


def test_records_without_a_file_differ_only_in_areas(written):
    content, found, _ = random_data(2, count=6, lvis=False)
    for one in content["annotations"]:
        one["area"] = one["bbox"][2] * one["bbox"][3]
    wanted = {"vocabulary": VOCABULARY, "split": None, "style": "coco"}
    data = dataset_of(content)
    ours = measure(in_vocabulary(found), data, **wanted)
    official = measure(in_vocabulary(found), data, annotations=written(content), **wanted)
    assert ours["boxes"] == official["boxes"]
    assert "areas are those of the boxes" in ours["rules"]


def test_sizes_use_the_areas_of_the_annotation_file(tmp_path: Path):
    # a thin thing in a box of 100 x 100 = 10,000 > 96^2: its segment has 500 < 32^2 pixels, so it is small; a box of
    # 40 x 40 without an area is medium. Both are found; a file that is not named is not forgotten
    (tmp_path / "p.jpg").touch()
    content = {
        "images": [{"id": 1, "file_name": "p.jpg", "height": 200, "width": 200}],
        "categories": [{"id": 5, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 5, "bbox": [0, 0, 100, 100], "area": 500},
            {"id": 2, "image_id": 1, "category_id": 5, "bbox": [120, 0, 40, 40]},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    data = read_instances(tmp_path / "instances.json", tmp_path)
    found = [("1", found_boxes(((0.0, 0.0, 100.0, 100.0), 0.9), ((120.0, 0.0, 160.0, 40.0), 0.8)))]
    result = measure(found, data, vocabulary=["cat"], split=None, style="coco")
    sizes = ("AP_small", "AP_medium", "AP_large")
    assert [result["boxes"][key] for key in sizes] == [pytest.approx(100), pytest.approx(100), None]
    assert any("of the boxes where the file has none (1 objects)" in rule for rule in result["rules"])
    records = measure(found, replace(data, file=None), vocabulary=["cat"], split=None, style="coco")
    assert [records["boxes"][key] for key in sizes] == [None, pytest.approx(100), pytest.approx(100)]


def test_areas_that_are_none_and_missing_boxes_are_replaced_and_told(tmp_path: Path):
    (tmp_path / "p.jpg").touch()
    polygon = [[10, 10, 30, 10, 30, 50, 10, 50]]
    common = {"image_id": 1, "category_id": 5, "segmentation": polygon, "iscrowd": None}
    areas = [None, 0, -3, 5000, 350]  # of boxes of 20 x 40
    entries = [{"id": i, **common, "bbox": [10, 10, 20, 40], "area": area} for i, area in enumerate(areas)]
    entries += [{"id": 7, **common, "area": 700}, {"id": 8, **common, "bbox": [], "segmentation": [[1, 1, 2, 2]]}]
    content = {
        "images": [{"id": 1, "file_name": "p.jpg", "height": 200.0, "width": 200.0}],
        "categories": [{"id": 5.0, "name": "cat"}],
        "annotations": entries,
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    data = read_instances(tmp_path / "instances.json", tmp_path)
    truth = open_ground_truth(data, vocabulary=["cat"], split=None, style="coco")
    assert [item.area for item in truth.objects] == [800, 800, 800, 800, 350, 700]
    assert {item.box for item in truth.objects} == {(10, 10, 20, 40)}
    rules = "; ".join(truth.rules)
    assert "where the file has none (1 objects)" in rules and "far from the box's (3 objects)" in rules
    assert "1 objects without a finite box" in rules
    assert {*truth.notable} < {*truth.rules} and any("(3 objects)" in line for line in truth.notable)


@pytest.mark.parametrize("seed", [0, 1])
def test_federated_ap_equals_lvis_api(written, monkeypatch: pytest.MonkeyPatch, seed: int):
    lvis = pytest.importorskip("lvis")
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis-api 0.5.3 is older than numpy 1.24
    logging.getLogger("lvis").setLevel(logging.ERROR)
    content, found, results = random_data(10 + seed, count=14, lvis=True)
    monkeypatch.setattr(module, "LVIS_CAP", 28)  # so that it matters: there are 32 an image
    path = written(content)
    result = measure(
        in_vocabulary(found), dataset_of(content), vocabulary=VOCABULARY, split=None, style="lvis", masks=True,
        annotations=path,
    )  # fmt: skip
    for kind, mine in (("bbox", result["boxes"]), ("segm", result["masks"])):
        truth = lvis.LVIS(str(path))
        kept = [{k: v for k, v in one.items() if kind == "bbox" or k != "bbox"} for one in results]
        run = lvis.LVISEval(truth, lvis.LVISResults(truth, kept, max_dets=28), kind)
        run.run()
        theirs = run.get_results()
        names = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "AP_small", "APm": "AP_medium", "APl": "AP_large",
                 "APr": "APr", "APc": "APc", "APf": "APf", "AR@300": "AR@300", "ARs@300": "AR_small",
                 "ARm@300": "AR_medium", "ARl@300": "AR_large"}  # fmt: skip
        assert set(theirs) == set(names)
        for name, ours in names.items():
            assert mine[ours] / 100 == pytest.approx(theirs[name], abs=1e-6), name
        assert mine["groups"]["rare"]["AP"] == mine["APr"]


# -------------------------------------------------------------------------------------------------------------- by hand


def one_class(*boxes: tuple[float, float, float, float], crowd: tuple[bool, ...] | None = None) -> Dataset:
    crowd = crowd or (False,) * len(boxes)
    record = Record("p", Path("p.jpg"), 100, 100, boxes, (0,) * len(boxes), crowd)
    return Dataset("toy", (Category(5, "cat", True),), (record,), {})


def found_boxes(*rows: tuple[tuple[float, float, float, float], float]) -> Detections:
    boxes = torch.tensor([box for box, _ in rows]).reshape(-1, 4)
    scores = torch.tensor([score for _, score in rows])
    return Detections(boxes, scores, torch.zeros(len(rows), dtype=torch.int64))


A, B, C = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (40.0, 0.0, 50.0, 10.0)
ELSEWHERE = (70.0, 70.0, 80.0, 80.0)


@pytest.mark.parametrize("style", ["coco", "voc12", "voc07"])
def test_ap_by_hand(style):
    # right (recall 1/2, precision 1), wrong (1/2), right (recall 1, precision 2/3): the recalls 0 ... 0.50, 51 of them,
    # have precision 1, the other 50 have 2/3: AP50 = (51 + 50 * 2 / 3) / 101 = .834983
    found = found_boxes((A, 0.9), (ELSEWHERE, 0.8), ((20.0, 0.0, 30.0, 8.0), 0.7))
    # of VOC2007's 11 recalls 0 ... .5 have precision 1 and five have 2/3; the area is 1/2 + 1/2 * 2/3
    result = measure([("p", found)], one_class(A, B), vocabulary=["cat"], split=None, style=style)["boxes"]
    by_hand = {"coco": (51 + 100 / 3) / 101, "voc07": (6 + 5 * 2 / 3) / 11, "voc12": 5 / 6}
    assert result["AP50"] == pytest.approx(100 * by_hand[style])
    row = {"name": "cat", "group": None, "objects": 2, "detections": 3, "AP": 0, "AP75": 0}
    assert result["per_class"][0] | {"AP": 0, "AP75": 0} == row | {"AP50": result["AP50"]}
    if style == "coco":  # B is met at IoU 0.8: to 0.8, 7 of the 10, as above; else one of two: 51 / 101
        assert result["AP"] == pytest.approx((7 * result["AP50"] + 3 * 100 * 51 / 101) / 10)
    # VOC: B has 10 x 10 pixels, its detection, whose corners are pixels too, 11 x 9: 90 of 109 in common, .83
    assert result["AP75"] == result["AP50"]


def test_all_detections_of_difficult_objects_are_ignored():
    # B is difficult. Both detections on it are ignored, so A at 0.6 is right at precision 1: AP 1. As plain objects:
    # B right, B again wrong, A right: recalls to 1/2 have 1, the others 2/3
    found = found_boxes((B, 0.9), ((20.0, 0.0, 30.0, 9.0), 0.8), (A, 0.6))
    wanted = {"vocabulary": ["cat"], "split": None, "style": "voc07"}
    result = measure([("p", found)], one_class(A, B, crowd=(False, True)), **wanted)
    assert result["boxes"]["AP50"] == 100
    assert (result["objects"], result["crowds"], result["masks"]) == (1, 1, None)
    missed = measure([("p", found_boxes((B, 0.9)))], one_class(A, B, crowd=(False, True)), **wanted)
    assert missed["boxes"]["AP50"] == 0  # what is ignored is not right either
    easy = measure([("p", found)], one_class(A, B), **wanted)
    assert easy["boxes"]["AP50"] == pytest.approx(100 * (6 + 5 * 2 / 3) / 11)
    # a quarter of a difficult object is not it (a crowd it would be): wrong, at precision 1/2 for A
    part = found_boxes(((20.0, 0.0, 25.0, 5.0), 0.9), (A, 0.6))
    result = measure([("p", part)], one_class(A, B, crowd=(False, True)), **wanted)
    assert result["boxes"]["AP50"] == pytest.approx(50)
    crowd = measure([("p", part)], one_class(A, B, crowd=(False, True)), **{**wanted, "style": "coco"})
    assert crowd["boxes"]["AP50"] == pytest.approx(100)


def test_no_detections_and_no_objects():
    for style in ("coco", "voc07", "voc12"):
        result = measure([], one_class(A), vocabulary=["cat"], split=None, style=style)
        assert result["boxes"]["AP50"] == 0
        assert result["images_without_result"] == {"count": 1, "first": ["p"]}
        result = measure([("p", found_boxes((A, 0.5)))], one_class(), vocabulary=["cat"], split=None,
                                    style=style)  # fmt: skip
        assert result["boxes"]["AP50"] is None
        assert result["boxes"]["groups"] == {
            "all": dict.fromkeys(result["boxes"]["groups"]["all"], None) | {"classes": 0}
        }
        json.dumps(result, allow_nan=False)


# ------------------------------------------------------------------------------------------------------------- OV-COCO


def ov_data() -> tuple[Dataset, BaseNovel]:
    categories = tuple(
        Category(number, name, True) for number, name in ((1, "dog"), (4, "cup"), (9, "car"), (12, "owl"))
    )
    size = (100, 100)
    records = (
        Record(1, Path("1.jpg"), *size, (A, B, C), (0, 2, 3), (False,) * 3),  # dog (novel), car (left out), owl
        Record(2, Path("2.jpg"), *size, (A,), (2,), (False,)),  # a left-out object alone
        Record(3, Path("3.jpg"), *size),  # none
        Record(4, Path("4.jpg"), *size, (A,), (1,), (True,)),  # a crowd of cups
        Record(5, Path("5.jpg"), *size, (A, C), (3, 0), (False, False)),
    )
    split = BaseNovel(base=("owl", "cup"), novel=("dog",), excluded=("car",), rule="toy")
    return Dataset("ov", categories, records, {}), split


def test_ov_coco_ignores_excluded_categories_and_images_with_no_others():
    data, split = ov_data()
    vocabulary = ["owl", "dog", "unicorn", "cup", "car"]
    found = [
        ("1", Detections(torch.tensor([A, B, C]), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 4, 0]))),  # car: out
        ("2", Detections(torch.tensor([A]), torch.tensor([0.99]), torch.tensor([1]))),  # of an image that is left out
        (
            "5",
            Detections(torch.tensor([A, B]), torch.tensor([0.6, 0.5]), torch.tensor([2, 1])),
        ),  # unicorn; no dog there
    ]
    result = measure(found, data, vocabulary=vocabulary, split=split, style="coco")
    # images 1, 4 and 5 are left. dog: right at .9, wrong at .5, one of two: 51 / 101. owl: one of two. cup: only a
    # crowd, no object
    assert (result["images"], result["objects"], result["crowds"]) == (3, 4, 1)
    assert result["images_without_result"] == {"count": 1, "first": ["4"]}
    assert (result["detections"], result["not_measured"]) == (3, 3)
    groups = result["boxes"]["groups"]
    assert groups["novel"] == {"classes": 1, **dict.fromkeys(("AP", "AP50", "AP75"), pytest.approx(100 * 51 / 101))}
    assert groups["base"]["classes"] == 1 and groups["base"]["AP50"] == pytest.approx(100 * 51 / 101)
    assert groups["all"]["classes"] == 2
    assert any("2 of 5 images" in rule for rule in result["rules"])
    assert [one["name"] for one in result["boxes"]["per_class"]] == ["dog", "cup", "owl"]
    assert [one["group"] for one in result["boxes"]["per_class"]] == ["novel", "base", "base"]
    assert result["boxes"]["AR@1"] is not None and "AR@1000" in result["boxes"]


def test_ov_coco_counts_up_to_1000_detections(monkeypatch: pytest.MonkeyPatch):
    # 150 wrong ones before the only right one: beyond COCO's 100, within OV-COCO's 1000: AP 1 / 151
    rows = [(ELSEWHERE, 0.9 - 0.001 * number) for number in range(150)]
    found = found_boxes(*rows, (A, 0.1))
    data = one_class(A)
    split = BaseNovel(base=("cat",), novel=(), excluded=(), rule="toy")
    ov = measure([("p", found)], data, vocabulary=["cat"], split=split, style="coco")
    assert ov["boxes"]["groups"]["base"]["AP50"] == pytest.approx(100 / 151)
    assert ov["boxes"]["groups"]["novel"] == {"classes": 0, "AP": None, "AP50": None, "AP75": None}
    coco = measure([("p", found)], data, vocabulary=["cat"], split=None, style="coco")
    assert coco["boxes"]["AP50"] == 0


# -------------------------------------------------------------------------------------------------------- what is wrong


def test_wrong_vocabularies_are_refused():
    data, split = ov_data()
    with pytest.raises(InputError, match=r"need all its 3 categories in the vocabulary; 2 are not: 'cup', 'owl'"):
        measure([], data, vocabulary=["dog"], split=split, style="coco")
    found = [("1", Detections(torch.tensor([A]), torch.tensor([0.9]), torch.tensor([0])))]
    only = measure(found, data, vocabulary=["dog"], split=split, style="coco", only_present=True)
    assert only["classes"]["measured"] == 1
    assert "2 categories that the vocabulary lacks are not measured: 'cup', 'owl'" in only["rules"]
    # names that differ in form are the same, and what is no category is told
    same = measure(found, data, vocabulary=["_DOG ", "zebra"], split=split, style="coco", only_present=True)
    rule = "1 classes of the vocabulary are no category that counts, and are not measured: 'zebra'"
    assert same["boxes"] == only["boxes"] and rule in same["rules"]
    with pytest.raises(InputError, match=r"at least one of its 3 categories .* got \[.hound.\]"):  # even so refused
        measure([], data, vocabulary=["hound"], split=split, style="coco", only_present=True)
    for again, message in (("dog", "got 'dog' twice"), ("Dog", "got 'dog' and 'Dog', which are compared as the same")):
        with pytest.raises(InputError, match=f"vocabulary: need every name once; {message}"):
            measure([], data, vocabulary=["dog", "cup", again, "owl"], split=split, style="coco")
    renamed = (*data.categories[:-1], replace(data.categories[-1], name="CUP"))
    with pytest.raises(InputError, match="need every name once; got 'cup' and 'CUP'"):
        measure([], replace(data, categories=renamed), vocabulary=["dog", "cup", "owl"], split=None, style="coco")


def test_wrong_detections_are_refused():
    data = one_class(A)
    fine = found_boxes((A, 0.5))
    wanted = {"vocabulary": ["cat"], "split": None, "style": "coco"}
    with pytest.raises(InputError, match=r"image p: .* it came twice"):
        measure([("p", fine), ("p", fine)], data, **wanted)
    with pytest.raises(InputError, match=r"image q: .* it is not in the data set"):
        measure([("q", fine)], data, **wanted)
    with pytest.raises(InputError, match=r"need labels below 1.* got 3 \.\. 3"):
        measure([("p", Detections(fine.boxes, fine.scores, fine.labels + 3))], data, **wanted)
    with pytest.raises(InputError, match="need finite boxes and scores"):
        measure([("p", Detections(fine.boxes, fine.scores * float("nan"), fine.labels))], data, **wanted)
    with pytest.raises(InputError, match="style voc07: measures boxes only"):
        measure([], data, **{**wanted, "style": "voc07"}, masks=True)
    with pytest.raises(InputError, match="need an annotation file: masks need its segmentations"):
        measure([], data, **wanted, masks=True)
    with pytest.raises(InputError, match="the style lvis needs its federated lists"):
        measure([], data, **{**wanted, "style": "lvis"})


def test_a_missing_hotcoco_is_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "hotcoco", None)
    with pytest.raises(InputError, match=r"needs the package hotcoco.*pip install hotcoco"):
        measure([], one_class(A), vocabulary=["cat"], split=None, style="coco")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bbox", [0, 0, "a", 1], "annotation 1: need `bbox` of four numbers"),
        ("area", "9", "annotation 1: need `area`, a number of pixels; got '9'"),
        ("segmentation", [[0, 0, "1", 1, 5, 5]], "at least three corners"),
        ("segmentation", {"size": [300, 300], "counts": [5, 5]}, "cover 10 pixels instead of 90000"),
        (
            "segmentation",
            {"size": [9, 300], "counts": [5, 5]},
            r"size \[9, 300\], where the image has .* = \[300, 300\]",
        ),
        ("segmentation", {"size": [300, 300], "counts": "\u0000"}, "whole numbers, or their compressed text"),
        ("category_id", 77, "`category_id`, one of the 9 ids"),
    ],
)
def test_damaged_annotation_files_are_refused(written, key: str, value: object, message: str):
    content, _, _ = random_data(0, count=1, lvis=False)
    data = dataset_of(content)
    content["annotations"][0][key] = value
    path = written(content)
    with pytest.raises(InputError, match=rf"annotations.json: .*{message}"):
        measure([], data, vocabulary=VOCABULARY, split=None, style="coco", masks=True, annotations=path)


@pytest.mark.parametrize("value", [None, [], [[0, 0, 1e9, 1, 5, 5]]])
def test_objects_without_a_valid_mask_are_ignored_and_counted(written, value: object):
    content, _, _ = random_data(0, count=1, lvis=False)
    data = dataset_of(content)
    content["annotations"][0]["segmentation"] = value
    asked = {"vocabulary": VOCABULARY, "split": None, "style": "coco", "annotations": written(content)}
    whole, some = (measure([], data, **asked, masks=masks) for masks in (False, True))
    assert some["objects"] + some["crowds"] == whole["objects"] + whole["crowds"] - 1
    assert any("1 objects without a finite box" in rule for rule in some["rules"])


def test_files_of_other_images_or_without_lvis_lists_are_refused(written):
    content, _, _ = random_data(0, count=2, lvis=False)
    data = dataset_of(content)
    path = written(content)
    with pytest.raises(InputError, match="image 11: need `neg_category_ids`"):
        measure([], data, vocabulary=VOCABULARY, split=None, style="lvis", annotations=path)
    content["images"] = content["images"][:1]
    content["annotations"] = content["annotations"][:6]
    with pytest.raises(InputError, match="1 of 2 are not listed, such as 13"):
        measure([], data, vocabulary=VOCABULARY, split=None, style="coco", annotations=written(content))
