"""What `foveate export` refuses, before any model is loaded; what it writes stands in tests/export."""

import sys
from pathlib import Path

import pytest

from foveate.cli.main import main
from foveate.export.flags import Export

NOWHERE = "no-such-model"  # refused as soon as it is looked for


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model", NOWHERE, "--out", "{tmp}/file/x.onnx"], "which is a file"),
        (["--model", NOWHERE, "--out", "{tmp}/file"], "which is a file"),
        (["--model", NOWHERE, "--out", "{tmp}/x.pt2"], "ends in .onnx"),
        (["--model", NOWHERE, "--out", "{tmp}/x.onnx", "--format", "torch"], "ends in .pt2"),
        (["--model", NOWHERE, "--out", "{tmp}/taken"], "need the name of a file; got the folder"),
        (["--model", NOWHERE, "--out", "{tmp}", "--opset", "17"], "--opset: need 18 to"),
        (["--model", NOWHERE, "--out", "{tmp}", "--opset", "999"], "--opset: need 18 to"),
        (["--model", NOWHERE, "--out", "{tmp}"], NOWHERE),
        (
            ["--model", "foveate-small", "--out", "{tmp}", "--size", "60"],
            "--size: need a positive multiple of the patch size 8",
        ),
        (["--model", "foveate-small", "--out", "{tmp}", "--size", "0"], "--size"),
        (["--model", "foveate-small", "--out", "{tmp}", "--what", "image", "--head", "naclip"], "--head"),
    ],
)
def test_refuses(flags, expected, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "dense.onnx").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as done:
        main(["export", *(word.replace("{tmp}", str(tmp_path)) for word in flags)])
    assert done.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("foveate: ") and expected in error and "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


def test_missing_packages_are_named_with_the_way_to_get_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    typed = ["export", "--model", NOWHERE, "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(typed)
    error = capsys.readouterr().err
    assert "onnxruntime" in error and "pip install onnxruntime" in error and NOWHERE not in error
    with pytest.raises(SystemExit):
        main([*typed, "--format", "torch"])  # needs none of them, and goes on to look for the model
    assert NOWHERE in capsys.readouterr().err


def test_a_folder_gets_a_file_named_after_what_is_in_it(tmp_path):
    assert Export(model="x", out=tmp_path / "ViT-B.16", what="regions").path == tmp_path / "ViT-B.16/regions.onnx"
    assert Export(model="x", out=tmp_path / "a.pt2", format="torch").path == tmp_path / "a.pt2"
    (tmp_path / "b.onnx").mkdir()
    assert Export(model="x", out=tmp_path / "b.onnx").path == tmp_path / "b.onnx" / "dense.onnx"
