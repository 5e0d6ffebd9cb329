"""`foveate evaluate detection` on LVIS, VOC, Objects365 and COCO files made of the world, against the official tools.

The network is put aside: what it would find are the objects themselves, moved a little, sometimes taken for another.
"""

import contextlib
import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from foveate.cli.main import main
from foveate.clip.load import load
from foveate.clip.text import embed_vocabulary
from foveate.data.datasets.voc import NAMES
from foveate.data.sources import open_data
from foveate.data.world.write import WorldSize, write_world
from foveate.heads.fvit.candidates import Candidates

TWELVE = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR@1", "AR@10", "AR@100")
TWELVE = (*TWELVE, "AR_small", "AR_medium", "AR_large")
OF_LVIS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "AP_small", "APm": "AP_medium", "APl": "AP_large",
           "APr": "APr", "APc": "APc", "APf": "APf", "AR@300": "AR@300"}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    write_world(folder, WorldSize(train=2, val=4, test=0, pairs=0, seed=0), processes=1)
    return folder


@pytest.fixture(scope="module")
def model(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "f"
    small = "--size 64 --channels 8 --batch 2 --steps 1 --templates none --workers 0"
    main(["train-fvit", "--data", str(world), "--out", str(out), *small.split()])
    return out / "model"


def read(world: Path) -> dict[str, Any]:
    return json.loads((world / "annotations/instances_val2017.json").read_text())


def put(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def as_coco(world: Path, root: Path) -> Path:
    content = read(world)
    content["annotations"][3]["iscrowd"] = 1
    large = next(one for one in content["annotations"] if 1100 < one["bbox"][2] * one["bbox"][3] < 9000)
    large["area"] = 500  # in a box of more than 32^2 pixels: small all the same
    shutil.copytree(world / "val2017", root / "val2017")
    return put(root / "annotations/instances_val2017.json", content)


def as_lvis(world: Path, root: Path) -> Path:
    content = read(world)
    for one in content["categories"]:
        one |= {"synonyms": [one["name"]], "frequency": "rcf"[one["id"] % 3]}
    ids = [one["id"] for one in content["categories"]]
    for image in content["images"]:
        image["coco_url"] = f"http://host/val2017/{image.pop('file_name')}"
        there = {one["category_id"] for one in content["annotations"] if one["image_id"] == image["id"]}
        image["neg_category_ids"] = [one for one in ids if one not in there][:9]
        image["not_exhaustive_category_ids"] = sorted(there)[:1]
    shutil.copytree(world / "val2017", root / "val2017")
    return put(root / "annotations/lvis_v1_val.json", content)


def as_objects365(world: Path, root: Path) -> Path:
    content = read(world)
    for image in content["images"]:
        name = f"images/v1/patch0/objects365_v1_{image['file_name']}"
        (root / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world / "val2017" / image["file_name"], root / "val" / name)
        image["file_name"] = name
    for one in content["annotations"]:
        del one["segmentation"]
        one["isfake"] = 0
    return put(root / "zhiyuan_objv2_val.json", content)


def as_voc(world: Path, root: Path) -> None:
    content, year = read(world), root / "VOCdevkit/VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (year / name).mkdir(parents=True)
    for image in content["images"]:
        name = Path(image["file_name"]).stem
        shutil.copy(world / "val2017" / image["file_name"], year / "JPEGImages")
        lines = [f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"]
        for one in content["annotations"]:
            if one["image_id"] == image["id"]:
                x, y, w, h = one["bbox"]
                sides = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + w, y + h), strict=True)
                box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
                what = f"<name>{NAMES[one['category_id'] % 20]}</name><difficult>{one['id'] % 2}</difficult>"
                lines.append(f"<object>{what}<bndbox>{box}</bndbox></object>")
        (year / f"Annotations/{name}.xml").write_text(f"<annotation>{''.join(lines)}</annotation>")
    names = [Path(image["file_name"]).stem for image in content["images"]]
    (year / "ImageSets/Main/test.txt").write_text("\n".join(names))


def evaluate(monkeypatch, root: Path, model: Path, *more: str, moved: float, split: str = "val") -> dict[str, Any]:
    """What the command writes of candidates that lie near the data's objects; its results are in ROOT/results.json."""
    data, clip = open_data(root, split=split), load("foveate-small")
    names = [one.name for one in data.categories]
    text = embed_vocabulary(clip, names, templates="none", background="background", cache=None)
    draw, found = np.random.default_rng(0), {}
    for record in data.records:
        repeats = 3 if moved else 1
        boxes = np.repeat(np.array(record.boxes), repeats, axis=0)
        wrong = draw.random(len(boxes)) < (0.3 if moved else 0)
        labels = np.where(wrong, draw.choice(record.labels, len(boxes)), np.repeat(record.labels, repeats))
        shift = draw.normal(0, moved, (len(boxes), 1, 2)).repeat(2, axis=1).reshape(-1, 4)
        boxes = torch.from_numpy(boxes + shift).float()
        noise = torch.from_numpy(draw.normal(0, 0.02, (len(boxes), text.shape[1]))).float()
        words = torch.nn.functional.normalize(text[labels] + noise)
        assert record.size is not None
        found[str(record.id)] = Candidates(str(record.id), *record.size, boxes, torch.ones(len(boxes)), boxes,
                                           words.half(), words.half())  # fmt: skip
    monkeypatch.setattr(
        "foveate.heads.fvit.detector.FViT.candidates", lambda _, samples, **__: [found[one.id] for one in samples]
    )
    words = ["evaluate", "detection", "--data", str(root), "--model", str(model), "--workers", "0", "--device", "cpu"]
    files = ["--results", str(root / "results.json"), "--out", str(root / "out.json"), "--split", split]
    main([*words, *files, *more])
    return json.loads((root / "out.json").read_text())


def scored(root: Path, *more: str, split: str = "val") -> dict[str, Any]:
    """The same of the file that `evaluate` wrote, without images: `--from-results`."""
    for path in [*root.rglob("*.png"), *root.rglob("*.jpg")]:
        path.unlink()
    words = ["evaluate", "detection", "--from-results", str(root / "results.json"), "--data", str(root)]
    main([*words, "--split", split, *more, "--out", str(root / "scored.json")])
    return json.loads((root / "scored.json").read_text())


@pytest.mark.parametrize("kind", ["coco", "objects365"])
def test_twelve_numbers_of_the_command_are_those_of_pycocotools(monkeypatch, tmp_path, world, model, kind):
    file = {"coco": as_coco, "objects365": as_objects365}[kind](world, tmp_path)
    more = ["--benchmark", f"transfer-{kind}", "--min-score", "0.05", "--max-boxes", "100"]
    result = evaluate(monkeypatch, tmp_path, model, *more, moved=4.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        run = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    mine = result["fusions"][0]["boxes"]
    ours = [-1 if mine[name] is None else mine[name] / 100 for name in TWELVE]
    assert np.abs(np.array(ours) - run.stats).max() < 1e-6
    assert 0.1 < run.stats[0] < 0.9 and 0 < run.stats[3] != run.stats[4] > 0  # neither trivial nor hopeless
    assert scored(tmp_path, "--benchmark", f"transfer-{kind}")["boxes"] == mine
    assert mine["groups"].keys() == {"all"} and result["recall"]["all"].keys() == {"all", "small", "medium", "large"}


def test_federated_numbers_of_the_command_are_those_of_lvis_api(monkeypatch, tmp_path, world, model):
    lvis = pytest.importorskip("lvis")
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis-api 0.5.3 is older than numpy 1.24
    logging.getLogger("lvis").setLevel(logging.ERROR)
    file = as_lvis(world, tmp_path)
    result = evaluate(monkeypatch, tmp_path, model, "--benchmark", "ov-lvis-b", "--min-score", "0.01", moved=4.0)
    (one,) = result["fusions"]
    assert one["style"] == "lvis"
    truth = lvis.LVIS(str(file))
    run = lvis.LVISEval(truth, lvis.LVISResults(truth, str(tmp_path / "results.json"), max_dets=300), "bbox")
    run.run()
    theirs = run.get_results()
    for name, mine in OF_LVIS.items():
        ours = one["boxes"][mine]
        assert (-1 if ours is None else ours / 100) == pytest.approx(theirs[name], abs=1e-6), name
    assert 0.1 < theirs["AP"] < 0.9 and theirs["APr"] != theirs["APc"]
    assert one["boxes"]["groups"].keys() == {"all", "base", "novel", "rare", "common", "frequent"}
    assert one["boxes"]["groups"]["novel"] == one["boxes"]["groups"]["rare"]
    assert scored(tmp_path)["boxes"] == one["boxes"]


def test_voc_is_measured_by_its_rule(monkeypatch, tmp_path, world, model):
    # every object is found where it is, so each class with an object that is not difficult has AP50 100; half of the
    # objects are difficult
    as_voc(world, tmp_path)
    more = ["--benchmark", "transfer-voc", "--min-score", "0.3"]
    result = evaluate(monkeypatch, tmp_path, model, *more, moved=0.0, split="test")
    (one,) = result["fusions"]
    notes = read(world)["annotations"]
    assert (one["style"], one["images"]) == ("voc07", 4)
    assert one["crowds"] == sum(note["id"] % 2 for note in notes) and one["objects"] + one["crowds"] == len(notes)
    assert one["boxes"]["AP50"] == pytest.approx(100)
    assert set(one["boxes"]) == {"AP50", "AP75", "groups", "per_class"}
    assert scored(tmp_path, split="test")["boxes"] == one["boxes"]
