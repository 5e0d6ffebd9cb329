"""`foveate evaluate regions` and `agreement` as commands: table, JSON, messages."""

import json
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.table import Table

from foveate.cli.main import main
from foveate.clip.io.weights import save_clip
from foveate.clip.model import Clip
from foveate.data.records import Dataset, IgnoredEntries
from foveate.errors import InputError
from foveate.evaluate.commands.clip import run_reference, run_regions
from foveate.evaluate.flags import Agreement, Regions
from foveate.evaluate.report import finish


@pytest.fixture(scope="module")
def model(clip, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_clip(clip, folder)
    return str(folder)


def test_the_regions_command(model, coco, tmp_path, capsys):
    config = Regions(data=coco, model=model, out=tmp_path / "new/r.json", workers=0)
    result = run_regions(config)
    assert list(result["dense"]) == [32, 64, 128]  # native, twice, four times
    table = " ".join(capsys.readouterr().out.split())  # a long title is broken into lines
    assert "dense, 128 px" in table and "crops" in table and "5 images, 6 classes, head value" in table
    written = json.loads((tmp_path / "new/r.json").read_text())
    assert written["dense"]["64"] == result["dense"][64] and written["crop"] == result["crop"]
    assert written["config"]["model"] == model and "torch" in written["versions"] and written["seconds"] > 0
    assert run_regions(replace(config, size=(32,), crops=False, out=None))["crop"] is None


def test_templates_and_cached_text_embeddings(model, clip, coco, tmp_path, monkeypatch):
    """The command writes one cache file per template set, reads it again, and scores as without it."""
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "kept"))
    config = Regions(data=coco, model=model, size=(32,), workers=0, templates="clip")
    first = run_regions(config)
    assert first["templates"] == "clip" and len([*(tmp_path / "kept").glob("text-*")]) == 1
    assert run_regions(replace(config, templates="none"))["templates"] == "none"
    assert len([*(tmp_path / "kept").glob("text-*")]) == 2
    monkeypatch.setattr(Clip, "encode_text", None)  # nothing is embedded any more
    assert run_regions(config)["dense"] == first["dense"]
    monkeypatch.setenv("FOVEATE_CACHE", "")
    with pytest.raises(TypeError):
        run_regions(config)


@pytest.mark.parametrize("flag", ["limit", "batch"])
def test_wrong_values_are_refused_with_their_flag(model, coco, flag, capsys):
    with pytest.raises(SystemExit):
        main(f"evaluate regions --data {coco} --model {model} --size 32 --workers 0 --{flag} 0".split())
    assert f"foveate: --{flag}: need at least 1 " in capsys.readouterr().err


def test_help_documents_what_the_head_does_not_change(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "regions", "--help"])
    said = " ".join(word for word in capsys.readouterr().out.split() if word not in "│╭╮╰╯─")
    assert "does not affect the rows of --masked or the crops" in said


def test_unreadable_images_are_reported(model, coco, tmp_path, capsys):
    shutil.copytree(coco, tmp_path, dirs_exist_ok=True)
    (tmp_path / "val2017/3.png").write_bytes(b"")
    config = Regions(data=tmp_path, model=model, size=(32,), workers=0)
    assert run_regions(config)["images"] == 4
    told = capsys.readouterr().err.splitlines()
    place = told.index("images that could not be used: 1")
    assert told[place + 1].startswith("  3: ") and "0 bytes" in told[place + 1] and len(told) == place + 2
    with pytest.raises(InputError, match="image 3"):
        run_regions(replace(config, strict=True))


def test_the_agreement_command(model, coco, tmp_path, capsys):
    """A folder of images is sufficient; a reference with the same weights changes nothing."""
    config = Agreement(data=coco / "val2017", model=model, size=64, out=tmp_path / "a.json", workers=0)
    result = run_reference(config)
    assert "64 px, head value" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["cosine"] == result["cosine"]
    assert run_reference(replace(config, reference=model))["recall"] == result["recall"]
    assert run_reference(replace(config, data=coco))["cosine"] == result["cosine"]  # the same images, the same ids
    assert run_reference(replace(config, size=None, limit=1, out=None))["size"] == 128  # four times 32


def test_ignored_files_and_odd_images_are_reported_and_written(model, coco, tmp_path, capsys):
    shutil.copytree(coco / "val2017", tmp_path / "images")
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "images/blue.png")
    (tmp_path / "images/a.heic").touch()
    config = Agreement(data=tmp_path / "images", model=model, size=32, out=tmp_path / "a.json", workers=0)
    run_reference(config)
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "1 ignored: image in a format that is not read (1 .heic): convert it; the first: a.heic",
        "1 used: image of one colour; the first: blue.png",
    ]
    assert json.loads((tmp_path / "a.json").read_text())["remarks"] == {"blue.png": "image of one colour"}


def test_agreement_ignores_the_annotations_of_a_coco_root(model, coco, tmp_path):
    shutil.copytree(coco / "val2017", tmp_path / "val2017")
    config = Agreement(data=tmp_path, model=model, size=32, workers=0)
    assert run_reference(config)["images"] == 5
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text("{")
    assert run_reference(config)["images"] == 5


def test_ignored_boxes_are_reported_and_written(model, coco, tmp_path, capsys):
    """A box outside its image is reported with file, image and segment."""
    shutil.copytree(coco, tmp_path / "coco")
    notes = tmp_path / "coco/annotations/panoptic_val2017.json"
    content = json.loads(notes.read_text())
    content["annotations"][1]["segments_info"][2]["bbox"] = [500, 0, 9, 9]
    notes.write_text(json.dumps(content))
    out = tmp_path / "r.json"
    words = f"evaluate regions --data {tmp_path}/coco --model {model} --size 32 --no-crops --workers 0 --out {out}"
    main(words.split())
    reason, first = "box is outside the image", f"{notes}: annotation of image 2: segment 300"
    assert f"1 ignored: {reason}; the first: {first}" in capsys.readouterr().err
    assert json.loads(out.read_text())["dropped"] == {reason: {"count": 1, "first": first}}


def test_wrong_flags_are_refused(model, coco, tmp_path):
    with pytest.raises(InputError, match="name of a file; got the folder"):
        run_regions(Regions(data=coco, model=model, out=tmp_path))
    with pytest.raises(InputError, match="panoptic"):
        run_regions(Regions(data=Path(coco / "val2017"), model=model))


def test_ignored_boxes_of_several_data_sets_are_summed(coco, capsys):
    one, two = (
        Dataset(name, (), (), {"box is small": IgnoredEntries(count, name)}) for name, count in (("a", 2), ("b", 3))
    )
    result = finish({"bad": []}, Table(), Regions(data=coco, model="m"), datasets=[one, two], started=0.0)
    assert result["dropped"] == {"box is small": {"count": 5, "first": "a"}}
    assert "3 ignored: box is small; the first: b" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status", "name"), [(15, 143, "SIGTERM"), (2, 130, "Ctrl-C")])
def test_a_stopped_evaluation_says_that_it_starts_again(model, coco, monkeypatch, capsys, number, status, name):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the shell set
    monkeypatch.setattr(Clip, "encode_dense", lambda *_, **__: signal.raise_signal(number))
    monkeypatch.setattr(sys, "argv", ["foveate", "evaluate", "regions"])
    with pytest.raises(SystemExit) as done:
        main(f"evaluate regions --data {coco} --model {model} --size 32 --workers 1".split())
    signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err
    assert done.value.code == status and "Traceback" not in said
    assert f"foveate: stopped by {name}; nothing is kept. To start again, run:\n  foveate " in said
