"""`foveate train-catseg`, `evaluate semantic` and `segment` as users type them, on a world of a few images."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from foveate.cli.main import main
from foveate.clip.load import load
from foveate.data.label_maps import open_semantic
from foveate.data.semantic import read_label_map
from foveate.data.splits import read_split
from foveate.data.world.write import WorldSize, write_world
from foveate.engine.log import Log
from foveate.evaluate.semantic import Confusion
from foveate.heads.catseg.product import load_catseg, read_about
from foveate.io.outputs import has_mark
from foveate.train.catseg import _network
from foveate.train.flags import TrainCatSeg
from foveate.types import Sample

TINY = ["--size", "64", "--channels", "8", "--depth", "1", "--batch", "2", "--steps", "4", "--workers", "0",
        "--save-every", "2", "--log-every", "1", "--device", "cpu"]  # fmt: skip
ASK = ["--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    write_world(folder, WorldSize(train=4, val=3, test=0, pairs=0, seed=0), processes=1)
    return folder


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "c"
    main(["train-catseg", "--data", str(world), "--out", str(out), *TINY])
    return out


def fails(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as done:
        main([*words])
    assert done.value.code == 2
    return capsys.readouterr().err


def test_a_run_learns_from_base_classes_and_says_so(world, trained):
    about = read_about(trained / "model")
    split = read_split(world / "annotations/splits.json", None)
    names = [words[0] for words in about.classes]
    assert not {*names} & {*split.novel} and {*split.base} < {*names} and "grass" in names  # stuff is base
    assert about.novel == split.novel and about.model == "foveate-small" and about.network.size == 64
    losses = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = [one["loss"] for one in losses if "loss" in one]
    assert len(steps) == 4 and steps[-1] < steps[0]


def test_sizes_are_cat_seg_s_in_proportion():
    config = TrainCatSeg(data=Path("d"), out=Path("o"))
    small = _network(config, load("foveate-small"))
    assert (small.size, small.clip_size, small.test_size, small.stride, small.window) == (96, 96, 160, 64, 12)

    class Large:
        native_size, patch_size = 224, 16

    class Larger:
        native_size, patch_size = 336, 14

    # 384 and 336 are both 24 patches; windows of 384 every 256 end at 640; widths are those of the published sizes
    for clip, side in ((Large, 384), (Larger, 336)):
        found = _network(config, clip)  # pyright: ignore[reportArgumentType]
        assert (found.size, found.clip_size, found.test_size, found.stride, found.window) == (384, side, 640, 256, 12)
        assert (found.hidden, found.guidance, found.decoder, found.decoder_guidance) == (128, 128, (64, 32), (32, 16))
        assert found.tower_guidance == (256, 128) and found.most == 256 and found.longest == 2560


@pytest.mark.parametrize(
    ("flags", "residual"),
    [({}, "cls"), ({"version": "2023"}, "token"), ({"residual": "token"}, "token"),
     ({"version": "2023", "residual": "cls"}, "cls")],
)  # fmt: skip
def test_the_residual_is_the_version_s_unless_said(flags, residual):
    config = TrainCatSeg(data=Path("d"), out=Path("o"), **flags)
    assert _network(config, load("foveate-small")).residual == residual


def test_a_stopped_run_ends_with_the_same_bits(world, trained, tmp_path, monkeypatch):
    words = ["train-catseg", "--data", str(world), "--out", str(tmp_path / "c"), *TINY]
    step = Log.step

    def stop_after_two(self, number, *rest, **more):
        step(self, number, *rest, **more)
        if number == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Log, "step", stop_after_two)
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 143 and not (tmp_path / "c/model").exists()
    monkeypatch.setattr(Log, "step", step)
    main(words)
    whole, parted = (load_file(one / "model/catseg.safetensors") for one in (trained, tmp_path / "c"))
    assert whole.keys() == parted.keys() and all(torch.equal(whole[name], parted[name]) for name in whole)


def test_miou_is_that_of_the_maps_by_hand(world, trained, tmp_path):
    main(["evaluate", "semantic", "--data", str(world), "--model", str(trained / "model"), *ASK,
          "--out", str(tmp_path / "r.json")])  # fmt: skip
    found = json.loads((tmp_path / "r.json").read_text())
    data = open_semantic(world, split="val")
    catseg, about = load_catseg(trained / "model")
    text, confusion = catseg.embed_classes(data.names), Confusion(42)
    for record in data.dataset.records:
        image = torch.from_numpy(np.array(Image.open(record.path))).permute(2, 0, 1)
        (one,) = catseg.label_maps([Sample(str(record.id), image, torch.zeros(0, 4))], text)
        confusion.add(read_label_map(record, data), one, key=str(record.id))
    seen = [name not in about.novel for name in data.names]
    assert found["mIoU"] == pytest.approx(confusion.measure(data.names, seen=seen)["mIoU"])
    assert found["groups"]["unseen"] == confusion.measure(data.names, seen=seen)["groups"]["unseen"]
    assert found["kind"] == "catseg" and found["images"] == 3 and "without ground truth" in found["rule"]


def test_any_clip_is_asked_by_its_cosines(world, tmp_path):
    main(["evaluate", "semantic", "--data", str(world), "--model", "foveate-small", "--size", "64", *ASK,
          "--out", str(tmp_path / "r.json")])  # fmt: skip
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["kind"] == "cosines" and found["mIoU"] > 0
    data = open_semantic(world, split="val")
    sizes = [read_label_map(record, data).labels for record in data.dataset.records]
    assert found["images"] == 3 and found["pixels"] == sum(int((one >= 0).sum()) for one in sizes)
    main(["evaluate", "semantic", "--data", str(world), "--model", "foveate-small", "--size", "64", *ASK, "--limit",
          "2", "--out", str(tmp_path / "r.json")])  # fmt: skip
    part = json.loads((tmp_path / "r.json").read_text())
    assert part["images"] == 2 and part["pixels"] == sum(int((one >= 0).sum()) for one in sizes[:2])
    assert part["images_without_result"]["count"] == 0  # those beyond the limit are not missed
    novel = read_split(world / "annotations/splits.json", None).novel
    assert {one["name"] for one in found["per_class"] if not one["seen"]} == {*novel}


def test_every_word_speaks_for_its_class(world, tmp_path):
    """A class that goes by a second word is found by either, and cannot be found by neither."""
    names = open_semantic(world, split="val").dataset.categories
    plain, more = tmp_path / "plain.txt", tmp_path / "more.txt"
    plain.write_text("".join(f"{one.id}:{one.name}\n" for one in names))
    more.write_text("".join(f"{one.id}:{'zebra crossing' if one.name == 'grass' else one.name}"
                            f"{',grass' if one.name == 'grass' else ''}\n" for one in names))  # fmt: skip
    found = {}
    for labels, words in ((plain, []), (more, ["--all-synonyms"])):
        main(["evaluate", "semantic", "--data", str(world), "--model", "foveate-small", "--size", "64", "--labels",
              str(labels), *words, *ASK, "--out", str(tmp_path / "r.json")])  # fmt: skip
        found[labels.stem] = json.loads((tmp_path / "r.json").read_text())
    calls = {name: {one["name"]: one["called"] for one in result["per_class"]} for name, result in found.items()}
    assert calls["more"]["zebra crossing"] >= calls["plain"]["grass"]


def test_images_are_segmented_drawn_and_recorded(world, trained, tmp_path):
    out = tmp_path / "s"
    main(["segment", str(world / "val2017"), "--model", str(trained / "model"), "--vocab", "grass, sand, disc",
          "--out", str(out), *ASK])  # fmt: skip
    assert all(has_mark(path, "foveate segment") for path in out.iterdir())
    record = json.loads((out / "segments.json").read_text())
    assert (
        record["classes"] == [["grass"], ["sand"], ["disc"]]
        and len(record["images"]) == 3
        and not record["info"]["bad"]
    )
    for one in record["images"]:
        labels = Image.open(out / one["file_name"])
        labels.load()  # closes the file
        assert labels.mode == "P" and labels.size == (one["width"], one["height"])
        values = torch.tensor(list(labels.getdata()))
        counted = {name: int((values == place).sum()) for place, name in enumerate(("grass", "sand", "disc"))}
        assert {entry["name"]: entry["pixels"] for entry in one["classes"]} == {
            name: pixels for name, pixels in counted.items() if pixels
        }
        drawn = Image.open(out / Path(one["file_name"]).with_suffix(".jpg"))
        drawn.load()
        assert drawn.mode == "RGB" and drawn.width >= one["width"]


def test_without_words_the_training_s_classes_are_asked_for(world, trained, tmp_path):
    main(["segment", str(next((world / "val2017").iterdir())), "--model", str(trained / "model"), "--out",
          str(tmp_path / "s"), *ASK])  # fmt: skip
    assert len(json.loads((tmp_path / "s/segments.json").read_text())["classes"]) == 42


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--version", "2023"], "--backbone: is for --version 2023, which needs one"),
        (["--backbone", "resnet18"], "--backbone: is for --version 2023"),
        (["--channels", "12"], "--channels: must be a multiple of 8"),
        (["--size", "60"], "--size, in proportion for the CLIP"),
        (["--kind", "ade150"], "need the list of its classes; found none of"),
        (["--novel", "NOVEL"], "all 42 are novel"),
    ],
)
def test_what_cannot_be_is_refused_before_a_folder_is_made(world, tmp_path, capsys, words, told):
    if "NOVEL" in words:
        names = open_semantic(world, split="val").names
        (tmp_path / "novel.json").write_text(json.dumps({"base": ["x"], "novel": names}))
        words, told = ["--novel", str(tmp_path / "novel.json")], "novel.json"
    err = fails(capsys, "train-catseg", "--data", str(world), "--out", str(tmp_path / "c"), *TINY, *words)
    assert told in err and not (tmp_path / "c").exists()


def test_broken_maps_are_counted_and_named(world, tmp_path, capsys):
    broken = tmp_path / "w"
    shutil.copytree(world, broken)
    maps = sorted((broken / "annotations/panoptic_train2017").iterdir())
    maps[0].unlink()
    Image.new("RGB", (3, 3)).save(maps[1])
    main(["train-catseg", "--data", str(broken), "--out", str(tmp_path / "c"), *TINY])
    told = capsys.readouterr().err
    assert maps[0].name in told and maps[1].name in told
    for path in maps[2:]:
        path.unlink()
    err = fails(capsys, "train-catseg", "--data", str(broken), "--out", str(tmp_path / "d"), *TINY)
    assert "no product is written" in err


def test_asking_needs_words_and_a_model_that_is_one(world, trained, tmp_path, capsys):
    image = str(next((world / "val2017").iterdir()))
    err = fails(capsys, "segment", image, "--model", "foveate-small", "--out", str(tmp_path / "s"), *ASK)
    assert "--vocab: need class names" in err
    err = fails(capsys, "segment", image, "--model", str(trained / "model"), "--panoptic", "--out",
                str(tmp_path / "s"), *ASK)  # fmt: skip
    assert "--panoptic: need --model OUT/model of `foveate train-panoptic`" in err
    err = fails(capsys, "segment", image, "--model", str(trained / "model"), "--vocab", "cat, dog, Cat", "--out",
                str(tmp_path / "s"), *ASK)  # fmt: skip
    assert "cat" in err.lower() and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("model", "words", "told"),
    [
        ("foveate-small", ["--limit", "0"], "--limit: need at least 1 image; got 0"),
        ("foveate-small", ["--limit", "-1"], "--limit: need at least 1 image; got -1"),
        ("foveate-small", ["--clip", "x"], "is a CLIP, which ignores it; got x"),
        ("foveate-small", ["--classifier", "x"], "--classifier: --model foveate-small is a CLIP"),
        ("TRAINED", ["--size", "64"], "is a CAT-Seg, which ignores it; got 64"),
        ("TRAINED", ["--classifier", "x"], "--classifier: --model"),
        ("TRAINED", ["--pretrained", "x"], "--pretrained: --model"),
    ],
)
def test_flags_that_say_nothing_to_a_model_are_refused(world, trained, tmp_path, capsys, model, words, told):
    model = str(trained / "model") if model == "TRAINED" else model
    assert told in fails(capsys, "evaluate", "semantic", "--data", str(world), "--model", model, *ASK, *words)
    if words[0] != "--limit":
        err = fails(capsys, "segment", str(world / "val2017"), "--model", model, "--vocab", "a", *ASK, *words, "--out",
                    str(tmp_path / "s"))  # fmt: skip
        assert told in err and not (tmp_path / "s").exists()


def test_stuff_is_a_matter_of_panoptic_segmentation(world, tmp_path, capsys):
    err = fails(capsys, "segment", str(world / "val2017"), "--model", "foveate-small", "--vocab", "a, b", "--stuff",
                "b", *ASK, "--out", str(tmp_path / "s"))  # fmt: skip
    assert "--stuff: needs --panoptic" in err


def test_images_that_are_turned_or_broken_are_measured_by_their_maps(tmp_path, capsys):
    """ADE20K's maps have the size of the image as it is stored; an image that cannot be read is missed whole."""
    images, maps = (tmp_path / one / "validation" for one in ("images", "annotations"))
    images.mkdir(parents=True), maps.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    for name in "ab":
        Image.new("RGB", (12, 8)).save(images / f"{name}.jpg", exif=exif)
        Image.new("L", (12, 8), 1 if name == "a" else 2).save(maps / f"{name}.png")
    (images / "b.jpg").write_bytes(b"broken")
    rows = [f"{one}\t0\tc{one}" for one in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(["Idx\tStuff\tName", *rows]))
    main(["evaluate", "semantic", "--data", str(tmp_path), "--model", "foveate-small", "--size", "64", *ASK, "--out",
          str(tmp_path / "r.json")])  # fmt: skip
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["images"] == 2 and found["pixels"] == 2 * 96 and found["pixels_without_prediction"] == 96
    assert found["images_without_result"] == {"count": 1, "first": ["b"]} and [b["id"] for b in found["bad"]] == ["b"]
    said = capsys.readouterr()
    assert "1 of them could not be read, and all" in " ".join(said.out.split()) and "b.jpg" in said.err


def test_weights_of_the_backbone_come_from_a_file(world, tmp_path, capsys, monkeypatch):
    words = ["train-catseg", "--data", str(world), *TINY, "--steps", "1", "--version", "2023", "--backbone",
             "test_resnet"]  # fmt: skip
    weights = tmp_path / "w.safetensors"
    network = timm.create_model("test_resnet")
    save_file(network.state_dict(), weights)
    main([*words, "--backbone-weights", str(weights), "--out", str(tmp_path / "c")])
    weights.unlink()  # OUT/model holds them
    catseg, about = load_catseg(tmp_path / "c/model")
    # 64 pixels are 4 places of 16; of the small CLIP's patches of 8, 32 pixels
    assert about.network.backbone == "test_resnet" and about.network.clip_size == 32 and catseg.backbone is not None
    held = catseg.backbone.network.state_dict()
    assert torch.equal(held["bn1.running_var"], network.state_dict()["bn1.running_var"])
    moved = (held["conv1.0.weight"] - network.state_dict()["conv1.0.weight"]).abs().max()
    assert 0 <= moved < 1e-4  # one step at a hundredth of 1e-3
    main([*words, "--backbone-weights", "none", "--out", str(tmp_path / "d")])

    out = ["--out", str(tmp_path / "e")]
    save_file({"conv1.weight": torch.zeros(1)}, weights)
    assert "need the weights of timm's test_resnet; " in fails(capsys, *words, "--backbone-weights", str(weights), *out)
    save_file({name: torch.zeros(3, 3) for name in network.state_dict()}, weights)
    assert "need the weights of timm's test_resnet; " in fails(capsys, *words, "--backbone-weights", str(weights), *out)
    err = fails(capsys, *words, "--size", "72", "--backbone-weights", "none", *out)
    assert "--size: need a multiple of 16 pixels" in err
    create = timm.create_model

    def offline(*names, pretrained=False, **settings):
        if pretrained:
            raise OSError("Name or service not known")
        return create(*names, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    err = fails(capsys, *words, *out)
    assert "HF_HOME" in err and "Name or service not known" in err and "--backbone-weights" in err
    assert not (tmp_path / "e").exists()
    err = fails(capsys, "train-catseg", "--data", str(world), *TINY, "--backbone-weights", "none", *out)
    assert "--backbone-weights: needs --backbone" in err
