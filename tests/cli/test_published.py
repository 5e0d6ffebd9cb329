"""A folder of transformers with its own classes, and ODISE's file, from the command line."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from original_mask2former import Odise
from tiny_models import write_diffusion, write_masks

from foveate.cli.main import main
from foveate.clip.load import load
from foveate.data.datasets.coco import read_panoptic
from foveate.data.world.write import WorldSize, write_world
from foveate.heads.panoptic.product import load_generator, read_about
from foveate.predict import segment

ASK = ["--workers", "0", "--device", "cpu"]
needs_diffusers = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="needs diffusers")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    write_world(folder, WorldSize(train=2, val=2, test=0, pairs=0, seed=0), processes=1)
    return folder


@pytest.fixture(scope="module")
def categories(world: Path) -> list[dict]:
    return json.loads((world / "annotations/panoptic_val2017.json").read_text())["categories"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, categories) -> Path:
    """All of the world's classes but the first two, in another order, and two that it does not have."""
    names = ["zebra", *(one["name"].upper() for one in categories[:1:-1]), "sea"]
    write_masks(tmp_path / "m2f", names, monkeypatch)
    return tmp_path / "m2f"


def fails(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as done:
        main([*words])
    assert done.value.code == 2
    return capsys.readouterr().err


def result(path: Path, *words: str) -> dict:
    main([*words, "--out", str(path)])
    return json.loads(path.read_text())


def test_its_own_classes_are_measured_by_name(world, folder, categories, tmp_path, capsys):
    words = ["evaluate", "panoptic", "--data", str(world), "--model", str(folder), *ASK]
    found = result(tmp_path / "r.json", *words, "--metrics", "pq", "miou", "ap")
    told = capsys.readouterr()
    assert "2 classes of the model are not requested: their masks are ignored (zebra, sea)" in told.err
    first = ", ".join(one["name"] for one in categories[:2])
    assert f"2 classes requested are not the model's: they are not found ({first})" in told.err
    assert [(one["name"], one["seen"], one["unseen"]) for one in found["shares"]] == [("generator", 0, 0)]
    assert (found["clip"], found["min_score"], found["overlap"], found["input"]) == (None, 0.8, 0.8, [64, 90])
    assert found["classes"] == {"all": 42, "seen": 40}
    low = result(tmp_path / "l.json", *words, "--min-score", "0", "--overlap", "0.01")
    assert low["shares"][0]["segments"] > found["shares"][0]["segments"]
    more = result(tmp_path / "m.json", *words, "--min-score", "0", "--overlap", "0.01", "--input-edges", "96", "128")
    assert more["input"] == [96, 128] and more["shares"][0]["per_class"] != low["shares"][0]["per_class"]


def test_a_clip_has_a_share(world, folder, tmp_path, capsys):
    words = ["evaluate", "panoptic", "--data", str(world), "--model", str(folder), "--limit", "1", *ASK]
    shares = ["--classifier", "foveate-small", "--fusion", "generator", "clip", "0.4,1", "--min-score", "0"]
    found = result(tmp_path / "r.json", *words, *shares)
    assert found["clip"] == "foveate-small" and len(found["shares"]) == 3
    assert "only CLIP can name them" in capsys.readouterr().err
    said = fails(capsys, *words, "--fusion", "clip")
    assert "where no CLIP classifies masks" in said and "--classifier" in said


def test_segments_are_written(world, folder, categories, tmp_path, capsys):
    words = ["segment", str(world / "val2017"), "--model", str(folder), *ASK]
    panoptic = ["--panoptic", "--min-score", "0.1", "--overlap", "0.01"]
    stuff = ",".join(one["name"] for one in categories if not one["isthing"])
    main([*words, *panoptic, "--stuff", stuff, "--out", str(tmp_path / "p")])
    assert "does not list which of its classes are stuff" in capsys.readouterr().err
    content = json.loads((tmp_path / "p/panoptic.json").read_text())
    assert [one["name"] for one in content["categories"]][0::41] == ["zebra", "sea"]
    assert sum(not one["isthing"] for one in content["categories"]) == 10
    assert sum(len(one["segments_info"]) for one in content["annotations"]) > 0
    read_panoptic(tmp_path / "p/panoptic.json", world / "val2017", tmp_path / "p")
    main([*words, "--vocab", "zebra, sea", "--out", str(tmp_path / "s")])
    assert json.loads((tmp_path / "s/segments.json").read_text())["classes"] == [["zebra"], ["sea"]]
    assert "--min-score: needs --panoptic; got 0.5 without it" in fails(
        capsys, *words, "--min-score", "0.5", "--out", str(tmp_path / "t")
    )


def test_flags_of_segment_reach_the_segmenter(world, folder, tmp_path, monkeypatch):
    given, open_segmenter = [], segment.open_segmenter
    monkeypatch.setattr(segment, "open_segmenter", lambda *a, **k: given.append((a[0], k)) or open_segmenter(*a, **k))
    image = str(next((world / "val2017").iterdir()))
    words = ["segment", image, "--model", str(folder), "--panoptic", *ASK]
    main([*words, "--out", str(tmp_path / "s")])
    main([*words, "--out", str(tmp_path / "t"), "--min-score", "0.3", "--overlap", "0.4", "--input-edges", "32", "48"])
    assert [(flags["min_score"], flags["overlap"], config.input_edges) for config, flags in given] == [
        (None, 0.8, None),
        (0.3, 0.4, (32, 48)),
    ]


def test_the_mean_iou_of_its_classes(world, folder, tmp_path):
    words = ["evaluate", "semantic", "--data", str(world), "--model", str(folder), *ASK]
    assert result(tmp_path / "r.json", *words)["images"] == 2


def test_classes_without_names_go_by_their_order(world, tmp_path, monkeypatch, capsys):
    write_masks(tmp_path / "m", [f"LABEL_{place}" for place in range(42)], monkeypatch)
    words = ["evaluate", "panoptic", "--data", str(world), "--model", str(tmp_path / "m"), *ASK]
    assert result(tmp_path / "r.json", *words)["classes"]["seen"] == 42
    assert "taken in the order of those requested" in capsys.readouterr().err
    write_masks(tmp_path / "few", ["LABEL_0", "LABEL_1", "LABEL_2"], monkeypatch)
    said = fails(capsys, *words[:4], "--model", str(tmp_path / "few"), *ASK)
    assert "numbers 3 without names, and 42 are requested. Write the names into id2label" in said


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--clip", "foveate-small"], "--clip: "),
        (["--encoder", "somewhere"], "--encoder: "),
        (["--input-edges", "90", "64"], "--input-edges: must be the shortest edge and then the longest"),
        (["--min-score", "1.5"], "--min-score: must be in [0, 1]; got 1.5"),
        (["--overlap", "-1"], "--overlap: must be in [0, 1]; got -1"),
    ],
)
def test_bad_questions_are_refused(world, folder, capsys, more, says):
    assert says in fails(capsys, "evaluate", "panoptic", "--data", str(world), "--model", str(folder), *ASK, *more)


# ----------------------------------------------------------------------------------------------- ODISE's published file


@needs_diffusers
def test_odises_file_becomes_a_generator(world, categories, tmp_path, capsys):
    (tmp_path / "sd").mkdir()
    write_diffusion(tmp_path / "sd")
    dim = load("foveate-small").embed_dim
    torch.manual_seed(0)
    theirs = Odise([8, 12, 16, 16, 8, 8, 12, 8], channels=128, width=32, hidden=64, layers=3, queries=5, joint=16,
                   text=dim, clip=dim, caption=(5, 12), time=32)  # fmt: skip
    torch.save({"model": theirs.state_dict(), "iteration": 92188}, tmp_path / "odise.pth")
    annotations = str(world / "annotations/panoptic_val2017.json")
    base = ["convert", str(tmp_path / "odise.pth"), str(tmp_path / "g")]
    assert "--encoder: need the folder of the Stable Diffusion" in fails(capsys, *base)
    base += ["--encoder", str(tmp_path / "sd")]
    assert "--clip: need the CLIP" in fails(capsys, *base)
    base += ["--clip", "foveate-small"]
    assert "--annotations: need the panoptic annotation file" in fails(capsys, *base)
    base += ["--annotations", annotations]
    assert "--dtype: is for a CLIP" in fails(capsys, *base, "--dtype", "float16")
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{one['id']}:{one['name']},{one['name']} thing\n" for one in categories))
    main([*base, "--labels", str(labels)])
    assert "32 classes of things and 10 of stuff, with 84 names and synonyms" in capsys.readouterr().out
    about = read_about(tmp_path / "g")
    assert (about.words, about.templates, about.network.size, about.network.longest) == ("raw", "photo", 1024, 2560)
    assert len(about.base.classes) == 42 and sum(one.is_thing for one in about.classes) == 32
    generator, _, _ = load_generator(tmp_path / "g")
    assert torch.equal(generator.head.nothing.detach(), theirs.category_head.null_embed[0].detach())
    path = tmp_path / "g/generator.json"
    content = json.loads(path.read_text())
    content["network"] |= {"size": 64, "longest": 128}  # in place of 1024 and 2560, which take long
    path.write_text(json.dumps(content))
    generator, _, _ = load_generator(tmp_path / "g")
    assert (generator.size, generator.longest) == (64, 128)
    words = ["evaluate", "panoptic", "--data", str(world), "--model", str(tmp_path / "g"), "--limit", "1", *ASK]
    found = result(tmp_path / "r.json", *words)
    assert found["masks"] == 5 and found["min_score"] == 0
    torch.save({"model": {**theirs.state_dict(), "word_head.a": torch.zeros(1)}}, tmp_path / "odise.pth")
    base[2] = str(tmp_path / "h")
    assert "1 of its" in fails(capsys, *base) and not (tmp_path / "h").exists()


def test_flags_of_published_files_do_not_go_with_a_clip(tmp_path, capsys):
    for flag in ("--encoder", "--labels", "--clip", "--annotations"):
        said = fails(capsys, "convert", "foveate-small", str(tmp_path / "o"), flag, "x")
        assert f"{flag}: is for a published" in said and "foveate-small is a CLIP. Remove it." in said
