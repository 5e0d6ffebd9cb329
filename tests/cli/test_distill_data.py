"""The data flags of `foveate distill`: which images and which regions they give together."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from foveate.cli.main import main
from foveate.data.loader import ImageSource
from foveate.data.records import Dataset
from foveate.data.world.write import WorldSize, write_world
from foveate.errors import InputError
from foveate.train.checks import check_distill
from foveate.train.defaults import regions_of
from foveate.train.distill import contents_of, open_images
from foveate.train.flags import DistillConfig
from foveate.train.objective import choose_nouns
from foveate.train.run import run_record
from foveate.types import Sample


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    write_world(folder, WorldSize(train=3, val=1, test=0, pairs=2, seed=0), processes=1)
    return folder


def source(data: Path | str, **flags) -> ImageSource:
    config = DistillConfig(data=str(data), out=Path("out"), **flags)
    check_distill(config)
    return open_images(config, progress=False)


def drawn(source: ImageSource, index: int) -> list[tuple[float, ...]]:
    sample = source[(0, index)]
    assert isinstance(sample, Sample)
    return sorted(tuple(box) for box in sample.boxes.tolist())


def test_boxes_of_the_annotations_and_the_same_ones_named_as_proposals_train_the_same(world):
    notes = world / "annotations/instances_train2017.json"
    annotated, named = source(world, regions="annotations"), source(world, regions=str(notes))
    assert regions_of(DistillConfig(data="d", out=Path("o"), regions=str(notes))) == "boxes"
    for index in range(3):
        assert drawn(annotated, index) == drawn(named, index) != drawn(source(world), index)


def test_results_of_a_detector_go_by_cocos_numbers(world, tmp_path):
    results = [{"image_id": 2, "bbox": [10, 20, 30, 40], "score": 0.5}]
    (tmp_path / "r.json").write_text(json.dumps(results))
    found = source(world, regions=str(tmp_path / "r.json"))
    assert drawn(found, 1) == [(10, 20, 40, 60)]
    saw, boxless = found.dataset.ignored_lines()
    assert "has no provenance" in saw and boxless.startswith("WARNING   2 of 3 images have no box")


def test_boxes_in_parts_of_the_sides_and_those_of_other_images_are_refused(world, tmp_path):
    (tmp_path / "parts.json").write_text(json.dumps({"000000000001.jpg": [[0.1, 0.2, 0.5, 0.6]]}))
    with pytest.raises(InputError, match=r"--regions .*parts\.json: .*got none\. Boxes are in pixels"):
        source(world, regions=str(tmp_path / "parts.json"))
    (tmp_path / "others.json").write_text(json.dumps([{"image_id": "2", "bbox": [10, 20, 30, 40]}]))
    with pytest.raises(InputError, match=r"none of its 1 \(such as '2'\) is among the 3 \(such as '000000000001\.jpg'"):
        source(world, regions=str(tmp_path / "others.json"))


def test_shards_with_boxes_of_ones_own(tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (40, 30)).save(content, "PNG")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, part in (("k.png", content.getvalue()), ("k.txt", b"a dog\n")):
            info = tarfile.TarInfo(name)
            info.size = len(part)
            tar.addfile(info, io.BytesIO(part))
    (tmp_path / "b.json").write_text(json.dumps({"k.png": [[1, 2, 30, 99]]}))
    assert drawn(source(tmp_path, regions=str(tmp_path / "b.json")), 0) == [(1, 2, 30, 30)]
    named = source(tmp_path, regions=str(tmp_path / "b.json"), objective="region-text")
    assert list(named.dataset.captions) == [("a dog",)] and drawn(named, 0) == [(1, 2, 30, 30)]
    with pytest.raises(InputError, match='regions "boxes" need annotated boxes'):
        source(tmp_path, regions="annotations")


def test_a_folder_is_one_folder_with_and_without_its_slash():
    records = [run_record(DistillConfig(data=data, out=Path("o")), {}) for data in ("a/b", "a/b/", "http://h/a.tar")]
    assert records[0] == records[1] and records[2]["data"] == "http://h/a.tar"


def test_a_finished_run_notices_that_its_boxes_or_captions_changed(world, tmp_path, capsys):
    flags = ["--steps", "1", "--batch", "1", "--size", "64", "--workers", "0", "--track", "none"]
    boxes, out = tmp_path / "b.json", tmp_path / "run"
    command = ["distill", "--data", str(world), "--regions", str(boxes), "--out", str(out), "--device", "cpu", *flags]
    boxes.write_text('{"000000000001.jpg": [[10, 20, 40, 60]]}')
    main(command)
    main(command)
    assert "already finished" in capsys.readouterr().err
    boxes.write_text('{"000000000001.jpg": [[10, 20, 40, 61]]}')
    with pytest.raises(SystemExit) as done:
        main(command)
    said = capsys.readouterr().err
    assert done.value.code == 2 and "holds another run" in said and "  boxes_sha256: stored " in said
    # of the empty file, as `sha256sum` prints it
    boxes.write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert contents_of(DistillConfig(data="d", out=out, captions=boxes)) == {"captions_sha256": empty}
    assert contents_of(DistillConfig(data="d", out=out)) == {}
    # captions in the standard place count where they are learned from
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/captions_train2017.json").write_bytes(b"")
    for objective, found in (("image-text", {"captions_sha256": empty}), ("clipself", {})):
        assert contents_of(DistillConfig(data=str(tmp_path), out=out, objective=objective)) == found
    (tmp_path / "n.txt").write_text(" , ")
    with pytest.raises(InputError, match=r"--captions .*n\.txt"):
        choose_nouns(
            DistillConfig(data="d", out=out, objective="region-text", captions=tmp_path / "n.txt"),
            Dataset("d", (), (), {}),
        )


def test_annotated_boxes_of_novel_categories_are_told_and_not_refused(world, tmp_path):
    novel = json.loads((world / "annotations/splits.json").read_text())["novel"]
    (told,) = source(world, regions="annotations").dataset.ignored_lines()
    assert told.startswith("WARNING   --regions annotations") and f"all categories, {len(novel)} novel ones too" in told
    assert not any("novel ones too" in line for line in source(world).dataset.ignored_lines())
    plain = tmp_path / "w"
    shutil.copytree(world, plain)
    (plain / "annotations/splits.json").unlink()
    assert source(plain, regions="annotations").dataset.ignored_lines() == []  # nobody says what is novel


def test_ignored_files_odd_images_and_training_images_that_are_held_out_are_reported(world, tmp_path, capsys):
    data, held_out, out = tmp_path / "data", tmp_path / "held", tmp_path / "run"
    shutil.copytree(world / "train2017", data)
    shutil.copytree(world / "val2017", held_out)
    shutil.copy(data / "000000000002.jpg", held_out / "copy.jpg")
    Image.new("RGB", (40, 30), "blue").save(data / "blue.png")
    (data / "a.gif").touch()
    (held_out / "b.gif").touch()
    flags = ["--steps", "2", "--batch", "2", "--size", "64", "--workers", "0", "--track", "none", "--device", "cpu"]
    main(["distill", "--data", str(data), "--validate", str(held_out), "--out", str(out), *flags])
    text = capsys.readouterr().err
    for line in (
        "1 ignored: image in a format that is not read (1 .gif): convert it; the first: a.gif",
        "--validate: 1 ignored: image in a format that is not read (1 .gif): convert it; the first: b.gif",
        "WARNING   --validate: 1 of the 2 held-out images are training images: their loss says nothing about other "
        "images; the first: copy.jpg is 000000000002.jpg of --data",
        "1 used: image of one colour; the first: blue.png",
    ):
        assert text.splitlines().count(line) == 1, text
    end = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert end["remarks"] == {"blue.png": "image of one colour"}
