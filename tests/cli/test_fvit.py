"""`foveate train-fvit`, `detect` and `evaluate detection` as users type them, on a world of a few images."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from foveate.cli.main import main
from foveate.clip.io.weights import save_clip
from foveate.clip.load import load
from foveate.clip.tower import Windows
from foveate.data.records import Dataset
from foveate.data.splits import BaseNovel, read_split
from foveate.data.world.write import WorldSize, write_world
from foveate.engine.checkpoint import load_latest
from foveate.engine.measure import Cost
from foveate.errors import InputError
from foveate.evaluate.commands.detection import _table
from foveate.evaluate.flags import Detection
from foveate.heads.fvit.heads import RoiSampler
from foveate.heads.fvit.product import load_detector, read_about
from foveate.io.outputs import has_mark
from foveate.predict.detect import candidates_identity
from foveate.train import fvit
from foveate.train.flags import TrainFViT
from foveate.types import Category

TINY = ["--size", "64", "--channels", "8", "--batch", "2", "--steps", "4",
        "--templates", "none", "--warmup", "1", "--workers", "0", "--save-every", "2", "--log-every", "1",
        "--device", "cpu"]  # fmt: skip
LVIS_GROUPS = ("base", "novel", "rare", "common", "frequent")
ASK = ["--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    write_world(folder, WorldSize(train=4, val=3, test=0, pairs=0, seed=0), processes=1)
    return folder


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "f"
    main(["train-fvit", "--data", str(world), "--out", str(out), *TINY])
    return out


def fails(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as done:
        main([*words])
    assert done.value.code == 2
    return capsys.readouterr().err


def test_a_run_says_what_it_takes_and_its_product_what_it_is(world, trained):
    about = read_about(trained / "model")
    split = read_split(world / "annotations/splits.json", None)
    assert (about.base, about.novel) == (split.base, split.novel) and about.network.size == 64
    assert about.benchmark == "ov-coco" and about.model == "foveate-small"
    network = about.network  # the published detector's of OV-COCO
    assert (network.statistics, network.resize, network.relu_embedding, network.norm) == (
        "imagenet", "bilinear", True, False)  # fmt: skip
    state = load_file(trained / "model/detector.safetensors")
    assert not any(name.startswith("tower.") for name in state)  # the frozen tower is not copied
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert lines[-1]["parts"].keys() == {"objectness", "anchor_box", "class", "box"}


def test_a_stopped_run_ends_with_the_same_bits(world, trained, tmp_path, capsys):
    again = tmp_path / "f"
    shutil.copytree(trained, again)
    shutil.rmtree(again / "checkpoints/step_00000004")
    shutil.rmtree(again / "model")
    main(["train-fvit", "--data", str(world), "--out", str(again), *TINY])
    assert "resuming from step 2 of 4" in capsys.readouterr().err
    one, other = (load_latest(folder / "checkpoints") for folder in (trained, again))
    assert one is not None and other is not None and one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    files = [(folder / "model/detector.safetensors").read_bytes() for folder in (trained, again)]
    assert files[0] == files[1]


def test_settings_of_the_network_are_in_its_product_and_in_what_candidates_are_of(
    world, trained, tmp_path, monkeypatch
):
    samplers = []

    class Spied(RoiSampler):
        def __init__(self, **numbers):
            samplers.append(numbers)
            super().__init__(**numbers)

    monkeypatch.setattr("foveate.heads.fvit.detector.RoiSampler", Spied)
    out, other = tmp_path / "f", ["--lvis-heads", "--no-relu-embedding", "--statistics", "clip", "--resize", "bicubic"]
    cached = ["--cache", "--no-augment"]
    main(["train-fvit", "--data", str(world), "--out", str(out), *TINY, "--steps", "2", *other, *cached])
    assert samplers == [{"samples": 64, "match_low_quality": True}]
    index = json.loads((out / "maps/manifest.json").read_text())
    assert index["resize"] == "bicubic" and index["statistics"][0] == load("foveate-small").mean[0]
    detector, about = load_detector(out / "model")
    network = about.network
    assert (network.statistics, network.resize, network.relu_embedding, network.norm) == (
        "clip", "bicubic", False, True)  # fmt: skip
    assert (detector.mean, detector.resize) == (load("foveate-small").mean, "bicubic")
    assert not detector.box_head.relu_embedding and "rpn.network.head.conv.0.1.weight" in detector.state_dict()
    detector, about = load_detector(trained / "model")  # no weight shows these, but what is found differs
    changed = [{"statistics": "clip"}, {"resize": "bicubic"}, {"relu_embedding": False}]
    kinds = [
        candidates_identity(detector, replace(about, network=replace(about.network, **one))) for one in ({}, *changed)
    ]
    assert len({json.dumps(one) for one in kinds}) == 4


def test_the_background_weight_is_lvis_for_data_with_frequencies(world, monkeypatch):
    """Published: 0.9 for OV-LVIS, 0.6 for OV-COCO."""
    monkeypatch.setattr(fvit, "FViT", lambda *_, **settings: settings)
    monkeypatch.setattr(fvit, "synchronise", lambda detector: detector)
    categories = tuple(Category(number, name, True) for number, name in enumerate(("dog", "cat", "crowd")))
    data = Dataset("made", categories, (), {})
    config = TrainFViT(data=world, out=world / "never", templates="none")
    built = [
        fvit._build(config, None, load("foveate-small"), data, BaseNovel(("dog",), ("cat",), (), ""), is_lvis=is_lvis)
        for is_lvis in (False, True)
    ]
    assert [settings["background_weight"] for settings in built] == [0.6, 0.9]


def test_a_detector_of_an_earlier_form_is_refused_with_its_reason(world, trained, tmp_path, capsys):
    old = tmp_path / "old"
    shutil.copytree(trained / "model", old)
    content = json.loads((old / "detector.json").read_text())
    (old / "detector.json").write_text(json.dumps({**content, "format": 1}))
    told = fails(capsys, "detect", str(world / "val2017"), "--model", str(old), "--out", str(tmp_path / "o"))
    assert "need a detector of format 2; got 1" in told and "Train it again" in told


def test_cached_maps_train_as_fresh_ones_do_but_for_their_rounding(world, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "foveate.train.fvit.SMALL_PROPOSALS", 20
    )  # so few that all are trained on, whatever their order
    plain = [*TINY, "--no-augment"]
    losses = []
    for name, more in (("fresh", []), ("kept", ["--cache"])):
        main(["train-fvit", "--data", str(world), "--out", str(tmp_path / name), *plain, *more])
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=0.02, atol=0)
    assert len([*(tmp_path / "kept/maps").rglob("*.safetensors")]) == 4


def test_detect_draws_and_writes_cocos_form(world, trained, tmp_path, capsys):
    out = tmp_path / "found"
    words = ["detect", str(world / "val2017"), "--model", str(trained / "model"), "--vocab", "ringed box, cat"]
    main([*words, "--out", str(out), "--min-score", "0", "--max-boxes", "5", "--draw", "0", *ASK])
    told = capsys.readouterr()
    assert "2 classes: " in told.err and "3 images, 15 boxes, 15 drawn" in told.out
    assert all(has_mark(path, "foveate detect") for path in out.iterdir())
    content = json.loads((out / "detections.json").read_text())
    assert [one["name"] for one in content["categories"]] == ["ringed box", "cat"]
    assert len(content["images"]) == 3 and len(content["annotations"]) == 15
    one = content["annotations"][0]
    assert one.keys() == {"id", "image_id", "category_id", "bbox", "score", "area", "iscrowd"}
    drawn = sorted(path.name for path in out.glob("*.jpg"))
    assert drawn == sorted(one["file_name"] for one in content["images"])
    colours = np.asarray(Image.open(out / drawn[0])).reshape(-1, 3).astype(int)
    assert (abs(colours - np.array([215, 38, 56])).sum(axis=1) < 40).any()  # "cat" is novel: red


def test_a_image_smaller_than_a_patch_and_one_that_is_none_do_not_stop_the_others(trained, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (3, 2), "red").save(folder / "small.png")
    (folder / "broken.jpg").write_bytes(b"not an image")
    main(["detect", str(folder), "--model", str(trained / "model"), "--out", str(tmp_path / "o"), *ASK])
    told = capsys.readouterr()
    assert "1 images" in told.out and "broken.jpg" in told.err
    content = json.loads((tmp_path / "o/detections.json").read_text())
    assert [one["id"] for one in content["info"]["bad"]] == ["broken.jpg"]
    assert all(one["bbox"][2] <= 3 and one["bbox"][3] <= 2 for one in content["annotations"])


def test_evaluation_sweeps_what_the_network_left_once(world, trained, tmp_path, monkeypatch):
    words = ["evaluate", "detection", "--data", str(world), "--model", str(trained / "model"), *ASK]
    kept = tmp_path / "kept"
    more = ["--fusion", "0.1,0.5", "0.1,0.8", "--min-score", "0", "--candidates", str(kept)]
    main([*words, *more, "--out", str(tmp_path / "one.json"), "--results", str(tmp_path / "results.json")])
    one = json.loads((tmp_path / "one.json").read_text())
    assert [found["fusion"]["novel"] for found in one["fusions"]] == [0.5, 0.8]
    groups = one["fusions"][0]["boxes"]["groups"]
    assert {"base", "novel", "all"} <= groups.keys() and groups["base"]["classes"] > 0
    assert one["recall"].keys() == {"all", "base", "novel"}
    assert len(json.loads((tmp_path / "results.json").read_text())) == one["fusions"][0]["detections"]

    def refuse(*_):
        raise AssertionError("the network was asked again")

    monkeypatch.setattr("foveate.heads.fvit.detector.FViT.candidates", refuse)
    main([*words, *more, "--out", str(tmp_path / "two.json")])
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["fusions"] == one["fusions"]


def test_the_wrong_tower_and_damaged_detectors_are_refused(world, trained, tmp_path, capsys):
    clip = load("foveate-small")
    with torch.no_grad():
        next(clip.visual.parameters()).add_(0.01)
    save_clip(clip, tmp_path / "other")
    with pytest.raises(InputError, match="the image tower of this CLIP has other weights or windows"):
        load_detector(trained / "model", clip=tmp_path / "other")
    looking = load("foveate-small")
    looking.windows = Windows(2, (0,))
    save_clip(looking, tmp_path / "windows")
    with pytest.raises(InputError, match="other weights or windows"):
        load_detector(trained / "model", clip=tmp_path / "windows")
    save_clip(load("foveate-small"), tmp_path / "moved")  # the same one, elsewhere
    moved, about = load_detector(trained / "model", clip=tmp_path / "moved")
    here, _ = load_detector(trained / "model")
    assert candidates_identity(moved, about) == candidates_identity(here, about)
    assert "need a folder with a detector" in fails(
        capsys, "detect", str(world / "val2017"), "--model", str(tmp_path), "--out", str(tmp_path / "o")
    )
    damaged = tmp_path / "damaged"
    shutil.copytree(trained / "model", damaged)
    weights = (damaged / "detector.safetensors").read_bytes()
    (damaged / "detector.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="need a detector's weights"):
        load_detector(damaged)
    content = json.loads((damaged / "detector.json").read_text())
    content["network"]["channels"] = 16
    (damaged / "detector.json").write_text(json.dumps(content))
    (damaged / "detector.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="instead of"):
        load_detector(damaged)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--vocab", "cat, Cat"], "cat"),
        (["--vocab", ""], "name"),
        (["--vocab", "cat, background"], "background"),
        (["--min-score", "2"], "min_score"),
        (["--draw", "-1"], "--draw"),
        (["--fusion", "0.1,1.5"], "--fusion: must be two numbers in [0, 1]"),
    ],
)
def test_bad_questions_are_refused(world, trained, tmp_path, capsys, more, says):
    words = ["detect", str(world / "val2017"), "--model", str(trained / "model"), "--out", str(tmp_path / "o"), *ASK]
    assert says in fails(capsys, *words, *more)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--size", "72"], "--size"),
        (["--cache"], "--cache"),
        (["--jitter", "2", "1"], "--jitter"),
        (["--steps", "0"], "--steps"),
        (["--layers", "7"], "layers"),
        (["--masks", "--annotations", "gone.json"], "gone.json"),
    ],
)
def test_bad_runs_are_refused_before_anything_is_written(world, tmp_path, capsys, more, says):
    out = tmp_path / "f"
    assert says in fails(capsys, "train-fvit", "--data", str(world), "--out", str(out), *TINY, *more)
    assert not out.exists()


def test_images_without_boxes_are_not_learned_from(world, tmp_path, capsys):
    told = fails(capsys, "train-fvit", "--data", str(world / "val2017"), "--out", str(tmp_path / "f"), *TINY)
    assert "need annotated boxes with their categories" in told and not (tmp_path / "f").exists()


def test_two_categories_of_one_name_are_not_learned_from(world, tmp_path, capsys):
    shutil.copytree(world, tmp_path / "w")
    notes = tmp_path / "w/annotations/instances_train2017.json"
    content = json.loads(notes.read_text())
    content["categories"][1]["name"] = content["categories"][0]["name"]
    notes.write_text(json.dumps(content))
    told = fails(capsys, "train-fvit", "--data", str(tmp_path / "w"), "--out", str(tmp_path / "f"), *TINY)
    assert "'banded ball' twice" in told and not (tmp_path / "f").exists()


def test_masks_are_learned_found_and_measured(world, tmp_path, capsys):
    out = tmp_path / "f"
    main(["train-fvit", "--data", str(world), "--out", str(out), *TINY, "--steps", "2", "--masks"])
    words = ["evaluate", "detection", "--data", str(world), "--model", str(out / "model"), "--masks", *ASK]
    main([*words, "--min-score", "0", "--out", str(tmp_path / "m.json")])
    found = json.loads((tmp_path / "m.json").read_text())["fusions"][0]
    assert found["masks"]["groups"]["all"]["AP50"] is not None
    shutil.copytree(world, tmp_path / "w")
    notes = tmp_path / "w/annotations/instances_val2017.json"
    content = json.loads(notes.read_text())
    for one in content["annotations"]:
        del one["segmentation"]  # as in Objects365
    notes.write_text(json.dumps(content))
    words[words.index(str(world))] = str(tmp_path / "w")
    assert "need annotated objects with masks in the 3 images" in fails(capsys, *words)


def test_the_tower_may_learn_too_and_its_blocks_are_in_the_product(world, tmp_path):
    out = tmp_path / "f"
    main(["train-fvit", "--data", str(world), "--out", str(out), *TINY, "--steps", "2", "--layers", "1"])
    state = load_file(out / "model/detector.safetensors")
    assert any(name.startswith("tower.") for name in state)
    detector, _ = load_detector(out / "model")
    frozen = load("foveate-small")
    ours, before = detector.tower.clip.visual.state_dict(), frozen.visual.state_dict()
    assert any(not torch.equal(ours[name], before[name]) for name in before)


def test_transfer_measures_all_categories_and_knows_no_split(world, trained, tmp_path):
    words = ["evaluate", "detection", "--data", str(world), "--model", str(trained / "model"), *ASK]
    found = {}
    for benchmark in ("ov-coco", "transfer-coco"):
        main([*words, "--benchmark", benchmark, "--out", str(tmp_path / "t.json")])
        found[benchmark] = json.loads((tmp_path / "t.json").read_text())
    assert found["ov-coco"]["fusions"][0]["boxes"]["groups"].keys() == {"all", "base", "novel"}
    assert found["transfer-coco"]["fusions"][0]["boxes"]["groups"].keys() == {"all"}
    assert found["transfer-coco"]["recall"].keys() == {"all"}
    temperatures = [one["fusions"][0]["fusion"]["detector_temperature"] for one in found.values()]
    assert temperatures == [None, 50.0]  # the learned one, and the published one


def test_the_detectors_temperature_can_be_told(world, trained, tmp_path):
    words = ["evaluate", "detection", "--data", str(world), "--model", str(trained / "model"), *ASK]
    main([*words, "--detector-temperature", "20", "--out", str(tmp_path / "t.json")])
    assert json.loads((tmp_path / "t.json").read_text())["fusions"][0]["fusion"]["detector_temperature"] == 20.0


def test_what_a_detector_was_trained_on_is_base_where_the_data_has_no_split(world, trained, tmp_path):
    # world's 24 base classes are base in the fusion, also where all 32 are measured alike: then the base's weight
    # changes the result, which it could not if every class were novel
    words = ["evaluate", "detection", "--data", str(world), "--model", str(trained / "model"), *ASK]
    more = ["--benchmark", "transfer-coco", "--fusion", "0,1", "1,1", "--min-score", "0"]
    written = []
    for place in ("0", "1"):
        path = tmp_path / f"{place}.json"
        main([*words, *more[:3], f"{place},1", *more[5:], "--results", str(path), "--out", str(tmp_path / "o.json")])
        written.append(path.read_text())
    assert written[0] != written[1]


def test_what_cannot_be_measured_is_told_before_the_network_looks(world, trained, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("foveate.heads.fvit.detector.FViT.candidates", refuse)
    words = ["evaluate", "detection", "--data", str(world), "--model", str(trained / "model"), *ASK]
    assert "need at least one of its 32 categories" in fails(capsys, *words, "--vocab", "cat, unicorn")
    assert "neg_category_ids" in fails(capsys, *words, "--style", "lvis")
    more = ["--vocab", "banded ball, unicorn", "--results", str(tmp_path / "r.json")]
    assert "1 of 2 are none, such as 'unicorn'" in fails(capsys, *words, *more)
    assert not (tmp_path / "r.json").exists()
    assert "--limit: need at least 1" in fails(capsys, *words, "--limit", "-1")
    shutil.copytree(world, tmp_path / "w")
    notes = tmp_path / "w/annotations/instances_val2017.json"
    notes.write_text(json.dumps({**json.loads(notes.read_text()), "annotations": []}))
    empty = [str(tmp_path / "w") if word == str(world) else word for word in words]
    assert "need annotated boxes in split val" in fails(capsys, *empty)
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    assert "pip install" in fails(capsys, *words)


def test_the_table_of_lvis_has_ap_of_rare_classes_and_fits_a_terminal(capsys):
    groups = {name: {"AP": 1.25 + place, "AP50": 50.0} for place, name in enumerate(("all", *LVIS_GROUPS))}
    kind = {"AP": 1.2, "AP50": 50.0, "groups": groups}
    one = {"fusion": {"base": 0.1, "novel": 0.6}, "style": "lvis", "boxes": kind, "masks": kind}
    config = Detection(data=Path("d"), model=Path("m"))
    Console(width=80).print(_table({"fusions": [one], "images": 2}, config))
    told = capsys.readouterr().out
    assert all(name in told for name in LVIS_GROUPS) and "…" not in told
    rows = [line for line in told.splitlines() if "masks" in line]
    # AP, AP50, then AP of base, novel, rare ..: 1.25 + their places 1 to 5, to one digit
    assert [cell.strip() for cell in rows[0].split("│")[3:-1]] == ["1.2", "50.0", "2.2", "3.2", "4.2", "5.2", "6.2"]


def test_without_a_usable_image_there_is_no_detector(world, tmp_path, capsys):
    broken = tmp_path / "w"
    shutil.copytree(world, broken)
    for path in (broken / "train2017").iterdir():
        path.write_bytes(b"no image")
    told = fails(capsys, "train-fvit", "--data", str(broken), "--out", str(tmp_path / "f"), *TINY)
    assert "no product is written" in told and not (tmp_path / "f/model").exists()


def test_what_a_pass_takes_is_measured_in_the_arithmetic_of_the_run(world, tmp_path, monkeypatch):
    seen = []

    def measured(objective, batch, **settings):
        seen.append(torch.is_autocast_enabled("cpu"))
        return Cost(1, 0.1)

    monkeypatch.setattr("foveate.train.run.measure_pass", measured)
    for precision in ("float32", "bfloat16"):
        words = ["train-fvit", "--data", str(world), "--out", str(tmp_path / precision), *TINY, "--dry-run"]
        main([*words, "--precision", precision])
    assert seen == [False, True]
