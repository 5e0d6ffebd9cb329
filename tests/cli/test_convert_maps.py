"""Maps of numbers out of other forms, from the command line to the reader."""

import json
import os
import struct

import numpy as np
import pytest
from PIL import Image

from foveate.cli.main import main
from foveate.data.label_maps import open_semantic
from foveate.data.semantic import read_label_map


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(path)


def mat(path, values):
    """A MATLAB file by its specification, not compressed: flags, sizes, name, numbers column by column."""

    def element(number, content):
        return struct.pack("<II", number, len(content)) + content + b"\0" * (-len(content) % 8)

    numbers = np.array(values, "<u2")
    parts = element(6, struct.pack("<II", 11, 0)) + element(5, struct.pack("<ii", *numbers.shape))
    body = parts + element(1, b"LabelMap") + element(4, numbers.tobytes(order="F"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + element(14, body))


def run(*typed):
    main(["convert-maps", *map(str, typed)])


def fails(typed, words, capsys):
    with pytest.raises(SystemExit) as done:
        run(*typed)
    error = capsys.readouterr().err
    assert done.value.code == 2 and words in error and "Traceback" not in error, error


@pytest.fixture
def release(tmp_path):
    """ADE20K's full release with one image a split: objects 1, 300 in both."""
    for split, numbers in (("training", (1, 300, 9)), ("validation", (1, 300, 8))):
        where = tmp_path / "full/images/ADE" / split / "street"
        save(where / "a.jpg", np.zeros((1, 3, 3)))
        save(where / "a_seg.png", [[(0, 1, 0), (10, 44, 0), (0, 9, 0)]])  # 10 // 10 * 256 + 44 = 300
        # a name that ends in a comma, and one with a line break, which the list cannot hold as they are
        objects = [{"name_ndx": n, "name": f"thing\n{n}, x{n}, ", "parts": {"part_level": 0}} for n in numbers]
        (where / "a.json").write_text(json.dumps({"annotation": {"object": objects}}))
    return tmp_path / "full"


def test_ade20k_s_full_release_from_colours_to_classes(release, tmp_path, capsys):
    out = tmp_path / "deep/maps"
    run("ade-full", release, "--out", out)
    told = capsys.readouterr().out
    assert f"{out}: 1 maps, 1 of them written now; labels.txt has their 2 classes" in told
    assert f"--data {release} --kind ade-full --split val --maps {out}" in told
    assert (out / "labels.txt").read_text() == "1:thing 1,x1\n300:thing 300,x300\n"
    data = open_semantic(release, split="val", maps=out)
    assert data.names == ["thing 1", "thing 300"]
    assert read_label_map(data.dataset.records[0], data).labels.tolist() == [[0, 1, -1]]
    run("ade-full", release, "--out", out, "--split", "train")  # beside the others
    assert "2 maps, 1 of them" in capsys.readouterr().out


def test_a_stopped_run_goes_on_and_a_changed_map_is_made_again(release, tmp_path, capsys):
    out = tmp_path / "maps"
    run("ade-full", release, "--out", out)
    before = (out / "validation/street/a.tif").stat().st_mtime_ns
    run("ade-full", release, "--out", out)
    assert "1 maps, 0 of them written now" in capsys.readouterr().out
    assert (out / "validation/street/a.tif").stat().st_mtime_ns == before
    source = release / "images/ADE/validation/street/a_seg.png"
    save(source, [[(0, 1, 0)] * 3])
    os.utime(source, ns=(before + 1, before + 1))
    run("ade-full", release, "--out", out)
    assert "1 maps, 1 of them written now" in capsys.readouterr().out
    data = open_semantic(release, split="val", maps=out)
    assert read_label_map(data.dataset.records[0], data).labels.tolist() == [[0, 0, 0]]


def test_other_things_are_not_overwritten(release, tmp_path, capsys):
    out = tmp_path / "maps"
    out.mkdir()
    (out / "mine.txt").touch()
    fails(["ade-full", release, "--out", out], "it has other files and no labels.txt", capsys)
    (out / "mine.txt").unlink()
    run("ade-full", release, "--out", out)
    few = tmp_path / "few.txt"
    few.write_text("300:door\n")
    fails(["ade-full", release, "--out", out, "--labels", few], "its labels.txt has other classes", capsys)
    run("ade-full", release, "--out", tmp_path / "few", "--labels", few)
    data = open_semantic(release, split="val", maps=tmp_path / "few")
    assert read_label_map(data.dataset.records[0], data).labels.tolist() == [[-1, 0, -1]] and data.names == ["door"]
    fails(["ade-full", release, "--out", few], "which is a file", capsys)
    fails(["ade-full", release, "--out", release], "must differ from the folder to convert", capsys)
    fails(["ade-full", tmp_path / "gone", "--out", out], "gone: need the folder", capsys)
    fails(["ade-full", tmp_path, "--out", tmp_path / "new"], "need the JSON files", capsys)
    assert not (tmp_path / "new").exists()


def test_pascal_context(tmp_path, capsys):
    mat(tmp_path / "mats/b.mat", [[0, 1, 459], [2, 300, 300]])
    (tmp_path / "labels.txt").write_text("".join(f"{one}: name {one}\n" for one in range(1, 460)))
    few = [300, 459, *range(3, 60)]  # 59 of the 459 names
    (tmp_path / "59.txt").write_text("".join(f"{place}: name {one}\n" for place, one in enumerate(few, start=1)))
    year = tmp_path / "VOC2010"
    save(year / "JPEGImages/b.jpg", np.zeros((2, 3, 3)))
    (year / "pascalcontext_val.txt").write_text("b\n")
    common = ["context", tmp_path / "mats", "--labels", tmp_path / "labels.txt", "--out"]
    run(*common, tmp_path / "m459")
    assert "--kind context459 --maps" in capsys.readouterr().out
    run(*common, tmp_path / "m59", "--only", tmp_path / "59.txt")
    for kind, expected in (("context459", [[-1, 0, 458], [1, 299, 299]]), ("context59", [[-1, -1, 1], [-1, 0, 0]])):
        maps = tmp_path / ("m459" if kind == "context459" else "m59")
        data = open_semantic(year, split="val", kind=kind, maps=maps)  # its list lies beside the maps
        assert read_label_map(data.dataset.records[0], data).labels.tolist() == expected
    fails([*common, tmp_path / "m459", "--only", tmp_path / "59.txt"], "has other classes", capsys)
    (tmp_path / "59.txt").write_text("1: unicorn\n")
    fails([*common, tmp_path / "new", "--only", tmp_path / "59.txt"], "'unicorn' is not", capsys)
    mat(tmp_path / "mats/c.mat", [[460]])
    fails([*common, tmp_path / "m459"], "c.mat: need values of the 459 classes; got 460", capsys)
    fails(["context", tmp_path / "mats", "--out", tmp_path / "x"], "--labels", capsys)
