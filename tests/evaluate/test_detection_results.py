"""Files of results: they are read back, and each kind of wrong entry is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foveate.data.records import Dataset, Record
from foveate.errors import InputError
from foveate.evaluate.detection import evaluate_detection
from foveate.evaluate.detection_results import left_top_sides, read_results, write_results
from foveate.evaluate.ground_truth import open_ground_truth
from foveate.ops.paste import encode_masks
from foveate.types import Category, Detections

DATA = Dataset(
    "toy",
    (Category(3, "dog", True), Category(8, "cup", True)),
    tuple(Record(key, Path("x.jpg"), 20, 30) for key in (7, "8", 9)),
    {},
)
WORDS = ["cup", "dog"]  # cup is label 0


def detections(*, masks: bool) -> Detections:
    drawn = torch.zeros(2, 20, 30, dtype=torch.bool)
    drawn[0, 2:9, 3:11] = True
    return Detections(
        torch.tensor([[3.3, 2.1, 11.7, 9.2], [0.0, 0.0, 5.0, 5.0]]), torch.tensor([0.9, 0.1]), torch.tensor([1, 0]),
        tuple(encode_masks(drawn)) if masks else None,
    )  # fmt: skip


@pytest.mark.parametrize("masks", [True, False])
def test_results_are_read_back(tmp_path: Path, masks: bool):
    one = detections(masks=masks)
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), () if masks else None)
    path = tmp_path / "new" / "results.json"
    assert write_results(path, [("7", one), ("9", empty), ("8", one)], DATA, vocabulary=WORDS) == 4
    entries = json.loads(path.read_text())
    assert [(entry["image_id"], entry["category_id"]) for entry in entries] == [(7, 3), (7, 8), ("8", 3), ("8", 8)]
    assert entries[0]["bbox"] == pytest.approx([3.3, 2.1, 8.4, 7.1], abs=1e-6)
    back = read_results(path, DATA, vocabulary=WORDS)
    assert [key for key, _ in back] == ["7", "8", "9"]  # the data set's order, the empty one too
    for _, other in back[:2]:
        assert torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores)
        assert torch.equal(one.labels, other.labels) and one.masks == other.masks
    assert back[2][1].boxes.shape == (0, 4)
    assert not list(path.parent.glob("*.partial"))


def test_values_of_the_file_are_measured_unrounded(tmp_path: Path):
    # 258.15 + 243.78 - 258.15 is not 243.78 in float64; and float32 takes the two scores for one, then image 7 is first
    path, box = tmp_path / "results.json", [258.15, 41.29, 243.78, 348.26]
    assert box[0] + box[2] - box[0] != box[2]
    entries = [
        {"image_id": 7, "category_id": 3, "bbox": [20.0, 1.0, 5.0, 5.0], "score": 0.5},
        {"image_id": "8", "category_id": 3, "bbox": box, "score": 0.500000001},
    ]
    path.write_text(json.dumps(entries))
    found = read_results(path, DATA, vocabulary=WORDS)
    assert left_top_sides(found[1][1]).tolist() == [box]
    truth = replace(DATA.records[1], height=600, width=700, boxes=((258.15, 41.29, 501.93, 389.55),), labels=(0,),
                    crowd=(False,))  # fmt: skip
    data = replace(DATA, records=(DATA.records[0], truth, DATA.records[2]))
    measured = evaluate_detection(found, open_ground_truth(data, vocabulary=WORDS, split=None, style="coco"))
    assert measured["boxes"]["AP50"] == pytest.approx(100)
    assert write_results(tmp_path / "again.json", found, DATA, vocabulary=WORDS) == 2
    assert json.loads((tmp_path / "again.json").read_text()) == entries


def test_results_without_detections(tmp_path: Path):
    path = tmp_path / "results.json"
    assert write_results(path, [], DATA, vocabulary=WORDS) == 0
    assert [len(one.scores) for _, one in read_results(path, DATA, vocabulary=WORDS)] == [0, 0, 0]


GOOD = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": float("nan")}, "`score`, a finite number; got nan"),
        ({"score": None}, "`score`, a finite number; got None"),
        ({"bbox": [1, 2, float("inf"), 4]}, "of finite numbers"),
        ({"bbox": [1, 2, 3]}, "of finite numbers"),
        ({"bbox": [1, 2, 10**400, 4]}, "of finite numbers"),
        ({"bbox": [1, 2, -3, 4]}, r"of at least 0; got \[1, 2, -3, 4\]. Is it \[x1, y1, x2, y2\]\?"),
        ({"image_id": 1}, "`image_id`, one of the 3 ids of the images of toy"),
        ({"image_id": True}, "`image_id`, one of the 3 ids of the images of toy"),
        ({"category_id": 4}, "`category_id`, one of the 2 ids of the categories of the vocabulary"),
        ({"segmentation": {"size": [20, 30], "counts": "0"}}, "in every entry or in none"),
    ],
)
def test_wrong_entries_are_refused(tmp_path: Path, change: dict, message: str):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([GOOD, {**GOOD, **change}]))
    with pytest.raises(InputError, match=rf"results.json: entry 1: need .*{message}"):
        read_results(path, DATA, vocabulary=WORDS)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"size": [30, 20], "counts": "0"}, r"size \[30, 20\], which is \[width, height\]"),
        ({"size": [20, 30], "counts": "52"}, "cover 7 pixels instead of 600"),
        ({"size": [20, 30], "counts": "hhhhhhhhhhhh1"}, "whole numbers"),
        ({"size": [20, 30], "counts": "~"}, "whole numbers"),
        ({"size": [20, 30], "counts": ""}, "whole numbers"),
        ({"size": [20, 30], "counts": [300, 300]}, "a list of counts"),
        ("text", "run lengths"),
    ],
)
def test_wrong_masks_are_refused(tmp_path: Path, mask: object, message: str):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{**GOOD, "segmentation": mask}]))
    with pytest.raises(InputError, match=rf"results.json: entry 0: need .*{message}"):
        read_results(path, DATA, vocabulary=WORDS)


def test_wrong_files_and_detections_are_refused(tmp_path: Path):
    path = tmp_path / "results.json"
    with pytest.raises(InputError, match="not found"):
        read_results(path, DATA, vocabulary=WORDS)
    for text, message in (
        ("{}", "a list of results; got a dict"),
        ("[1]", "entry 0: need an object"),
        ("[", "in JSON"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_results(path, DATA, vocabulary=WORDS)
    path.unlink()
    one = detections(masks=False)
    with pytest.raises(InputError, match="1 of 3 are none, such as 'unicorn'"):
        write_results(path, [], DATA, vocabulary=[*WORDS, "unicorn"])
    with pytest.raises(InputError, match="image 5: need detections of the images of toy"):
        write_results(path, [("5", one)], DATA, vocabulary=WORDS)
    for label in (-1, 2):
        other = Detections(one.boxes, one.scores, torch.tensor([0, label]))
        with pytest.raises(InputError, match=f"image 7: need labels below 2.* got {label}"):
            write_results(path, [("7", other)], DATA, vocabulary=WORDS)
    broken = Detections(one.boxes * float("nan"), one.scores, one.labels)
    with pytest.raises(InputError, match="image 7: need finite boxes and scores"):
        write_results(path, [("7", broken)], DATA, vocabulary=WORDS)
    assert not path.exists()
