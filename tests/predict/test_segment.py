"""`foveate segment --panoptic` as a command: COCO's panoptic form, and which classes are things."""

import json
from pathlib import Path

import pytest
from PIL import Image

from foveate.cli.main import main
from foveate.data.datasets.coco import read_panoptic
from foveate.data.panoptic import read_panoptic_map
from foveate.data.world.write import WorldSize, write_world

TINY = ["--size", "64", "--queries", "5", "--depth", "1", "--steps", "2", "--batch", "2", "--workers", "0",
        "--device", "cpu"]  # fmt: skip
ASK = ["--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    write_world(folder, WorldSize(train=3, val=2, test=0, pairs=0, seed=0), processes=1)
    return folder


@pytest.fixture(scope="module")
def masks(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "g"
    main(["train-panoptic", "--data", str(world), "--out", str(out), *TINY])
    return out / "model"


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) of an image file."""
    with Image.open(path) as image:
        return image.size


def test_panoptic_maps_are_written_in_cocos_form_and_read_back(world, masks, tmp_path):
    out = tmp_path / "s"
    words = ["segment", str(world / "val2017"), "--model", str(masks), "--panoptic", "--out", str(out), *ASK]
    main(words)
    main(words)  # replaces its own files
    content = json.loads((out / "panoptic.json").read_text())
    assert len(content["categories"]) == 42 and len(content["images"]) == len(content["annotations"]) == 2
    stuff = {one["name"] for one in content["categories"] if not one["isthing"]}
    assert len(stuff) == 10 and "grass" in stuff  # as it was learned
    dataset = read_panoptic(out / "panoptic.json", world / "val2017", out)
    for record, entry in zip(dataset.records, content["annotations"], strict=True):
        found = read_panoptic_map(record, dataset.categories)
        assert {one.id for one in found.segments} == {one["id"] for one in entry["segments_info"]}
        areas = [int((found.ids == one["id"]).sum()) for one in entry["segments_info"]]
        assert areas == [one["area"] for one in entry["segments_info"]]
        assert size_of(out / entry["file_name"]) == tuple(reversed(found.ids.shape))
        assert (out / entry["file_name"]).with_suffix(".jpg").is_file()


def test_stuff_can_be_named(world, masks, tmp_path, capsys):
    image = str(next((world / "val2017").iterdir()))
    words = ["segment", image, "--model", str(masks), "--panoptic", "--vocab", "grass, cat, rug", *ASK]
    main([*words, "--stuff", "Rug", "--out", str(tmp_path / "s")])
    content = json.loads((tmp_path / "s/panoptic.json").read_text())
    things = {one["name"]: one["isthing"] for one in content["categories"]}
    assert things == {"grass": 0, "cat": 1, "rug": 0}  # grass was learned as stuff
    with pytest.raises(SystemExit) as done:
        main([*words, "--stuff", "dog", "--out", str(tmp_path / "t")])
    assert done.value.code == 2 and "--stuff: need names in the vocabulary; 'dog' is not" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main([*[word for word in words if word != "--panoptic"], "--stuff", "rug", "--out", str(tmp_path / "t")])
    assert done.value.code == 2 and "--stuff: needs --panoptic" in capsys.readouterr().err


@pytest.mark.parametrize("words", [True, False])
def test_images_smaller_than_a_patch_and_unreadable_ones(world, masks, tmp_path, capsys, words):
    if not words:
        masks = tmp_path / "g/model"
        main(["train-panoptic", "--data", str(world), "--out", str(tmp_path / "g"), *TINY, "--no-class-names"])
    sizes = {"a": (1, 1), "b": (3, 5), "c": (40, 2), "d": (1, 19)}  # (width, height)
    (tmp_path / "p").mkdir()
    for name, size in sizes.items():
        Image.new("RGB", size, (90, 160, 60)).save(tmp_path / f"p/{name}.png")
    (tmp_path / "p/e.png").write_bytes(b"no image")
    (tmp_path / "p/f.gif").touch()
    main(["segment", str(tmp_path / "p"), "--model", str(masks), "--panoptic", "--out", str(tmp_path / "s"), *ASK])
    content = json.loads((tmp_path / "s/panoptic.json").read_text())
    assert {Path(one["file_name"]).stem: (one["width"], one["height"]) for one in content["images"]} == sizes
    printed = capsys.readouterr().err
    assert [one["id"] for one in content["info"]["bad"]] == ["e.png"] and "e.png" in printed
    ignored, remark = content["info"]["ignored"]
    assert "(1 .gif)" in ignored and remark == "4 used: image of one colour; the first: a.png"
    assert ignored in printed.splitlines() and remark in printed.splitlines()
    assert all(size_of(tmp_path / f"s/{name}.png") == size for name, size in sizes.items())


def test_label_maps_of_a_mask_generator(world, masks, tmp_path):
    main(["segment", str(world / "val2017"), "--model", str(masks), "--vocab", "grass, sand", "--out",
          str(tmp_path / "s"), *ASK])  # fmt: skip
    record = json.loads((tmp_path / "s/segments.json").read_text())
    assert all(sum(one["share"] for one in image["classes"]) == pytest.approx(1, abs=1e-3)
               for image in record["images"])  # fmt: skip
    main(["evaluate", "semantic", "--data", str(world), "--model", str(masks), *ASK, "--out", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text())["kind"] == "masks"


def test_fusion_weights_can_be_given(world, masks, tmp_path, capsys):
    image = str(next((world / "val2017").iterdir()))
    words = ["segment", image, "--model", str(masks), "--panoptic", *ASK]
    found = {}
    for shares in ("generator", "clip", "0.0,0.0"):
        main([*words, "--fusion", shares, "--out", str(tmp_path / shares)])
        found[shares] = json.loads((tmp_path / shares / "panoptic.json").read_text())["annotations"]
    assert found["0.0,0.0"] == found["generator"] != found["clip"]
    main([*words, "--mask-pooling", "masked", "--fusion", "clip", "--out", str(tmp_path / "m")])
    assert json.loads((tmp_path / "m/panoptic.json").read_text())["annotations"] != found["clip"]
    with pytest.raises(SystemExit) as done:
        main([*words, "--fusion", "odise", "--out", str(tmp_path / "x")])
    assert done.value.code == 2 and "--fusion: must be odise-label" in capsys.readouterr().err
