"""The two verbs as they are typed: table, JSON, messages."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from saccade.cli.evaluate import Agreement, Regions, run_agreement, run_regions
from saccade.clip.weights import save_clip
from saccade.types import InputError


@pytest.fixture(scope="module")
def model(clip, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_clip(clip, folder)
    return str(folder)


def test_regions(model, coco, tmp_path, capsys):
    config = Regions(data=coco, model=model, out=tmp_path / "new/r.json", workers=0)
    result = run_regions(config)
    assert list(result["dense"]) == [32, 64, 128]  # native, twice, four times
    table = " ".join(capsys.readouterr().out.split())  # a long title is broken into lines
    assert "dense, 128 px" in table and "crops" in table and "5 pictures, 6 classes, head value" in table
    written = json.loads((tmp_path / "new/r.json").read_text())
    assert written["dense"]["64"] == result["dense"][64] and written["crop"] == result["crop"]
    assert written["config"]["model"] == model and "torch" in written["versions"] and written["seconds"] > 0
    assert run_regions(replace(config, sizes=(32,), crops=False, out=None))["crop"] is None


def test_bad_pictures_are_told(model, coco, tmp_path, capsys):
    for part in ("annotations", "val2017"):
        (tmp_path / part).mkdir()
        for path in (coco / part).rglob("*.*"):
            target = tmp_path / part / path.relative_to(coco / part)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    (tmp_path / "val2017/3.png").write_bytes(b"")
    config = Regions(data=tmp_path, model=model, sizes=(32,), workers=0)
    assert run_regions(config)["pictures"] == 4
    assert "1 bad pictures left out; the first, 3:" in capsys.readouterr().err
    with pytest.raises(InputError, match="picture 3"):
        run_regions(replace(config, strict=True))


def test_agreement(model, coco, tmp_path, capsys):
    """A folder of pictures alone is enough; a reference of the same weights changes nothing."""
    config = Agreement(data=coco / "val2017", model=model, size=64, out=tmp_path / "a.json", workers=0)
    result = run_agreement(config)
    assert "64 px, head value" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["cosine"] == result["cosine"]
    assert run_agreement(replace(config, reference=model))["recall"] == result["recall"]
    # ids differ between a folder and a COCO root, so other grids are drawn; the size defaults to four times 32
    assert run_agreement(Agreement(data=coco, model=model, workers=0))["size"] == 128


def test_refuses(model, coco, tmp_path):
    with pytest.raises(InputError, match="name of a JSON file"):
        run_regions(Regions(data=coco, model=model, out=tmp_path))
    with pytest.raises(InputError, match="panoptic"):
        run_regions(Regions(data=Path(coco / "val2017"), model=model))
