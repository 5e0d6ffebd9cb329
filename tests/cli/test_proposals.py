"""`foveate proposals` as users type it, and what `foveate distill --regions` makes of its file."""

import json
import os
import shutil
import signal
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foveate.cli.main import main
from foveate.data.boxes import parse_boxes
from foveate.data.proposals import file_name_of, write_proposals
from foveate.data.provenance import read_provenance
from foveate.data.records import Member, Record, read_record
from foveate.data.regions import with_boxes
from foveate.data.sources import open_data
from foveate.data.world.write import WorldSize, base_and_novel, write_world
from foveate.engine.checkpoint import load_latest
from foveate.errors import InputError
from foveate.heads.proposals.rpn import Proposer
from foveate.train.distill import open_images
from foveate.train.flags import DistillConfig
from foveate.types import Sample

TINY = ["--model", "conv", "--size", "64", "--channels", "8", "--batch", "2", "--steps", "4", "--max-boxes", "7",
        "--workers", "0", "--save-every", "2", "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    write_world(folder, WorldSize(train=4, val=2, test=0, pairs=2, seed=0), processes=1)
    return folder


@pytest.fixture(scope="module")
def made(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "p"
    main(["proposals", "--data", str(world), "--out", str(out), *TINY])
    return out


def test_the_file_is_cocos_and_says_what_it_was_learned_from(world, made):
    path = made / "proposals_train.json"
    text = path.read_text()
    content = json.loads(text)
    assert str(world.parent) not in text and str(made.parent) not in text  # nothing of this machine
    assert content["categories"] == [{"id": 1, "name": "object"}]
    assert [one["file_name"] for one in content["images"]] == [f"{i:012d}.jpg" for i in range(1, 5)]
    sizes = {record.id: record.size for record in open_data(world, split="train").records}
    assert {one["id"]: (one["height"], one["width"]) for one in content["images"]} == sizes
    assert len(content["annotations"]) == 4 * 7
    first = content["annotations"][0]
    assert first.keys() == {"id", "image_id", "bbox", "score", "area", "iscrowd", "category_id"}
    found = read_provenance(path)
    world_split = base_and_novel()
    assert found is not None and list(found.training_categories) == world_split["base"]
    assert list(found.novel_categories) == world_split["novel"]
    assert content["info"]["provenance"] | {"version": ""} == {
        "training_categories": world_split["base"],
        "novel_categories": world_split["novel"],
        "rule": "as in splits.json",
        "annotations": "instances_train2017",
        "model": "conv",
        "steps": 4,
        "seed": 0,
        "version": "",
    }
    recall = json.loads((made / "recall.json").read_text())
    assert recall["split"] == "instances_val2017" and recall["images"] == 2
    assert recall["base"].keys() == {"objects", "recall50", "AR@7"} and recall["base"]["objects"] > 0


def test_the_file_is_read_as_boxes_of_the_images(world, made):
    path = made / "proposals_train.json"
    assert all(len(boxed.boxes) == 7 and boxed.height for boxed in parse_boxes(path).values())
    dataset = with_boxes(open_data(world, split="train", annotations="none"), path)
    assert [len(record.boxes) for record in dataset.records] == [7] * 4 and dataset.ignored == {}


def test_a_folder_without_boxes_is_refused(world, tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        main(["proposals", "--data", str(world / "train2017"), "--out", str(tmp_path / "p"), *TINY])
    assert done.value.code == 2 and "need images with annotated boxes" in (said := capsys.readouterr().err)
    assert "COCO, LVIS, Pascal VOC or Objects365" in said and "--annotations" in said
    assert not (tmp_path / "p").exists()


def test_the_same_command_makes_the_same_and_a_stopped_run_ends_with_the_same_bits(world, made, tmp_path, capsys):
    before = (made / "proposals_train.json").read_bytes()
    main(["proposals", "--data", str(world), "--out", str(made), *TINY])
    assert (made / "proposals_train.json").read_bytes() == before
    # 2 + 2 == 4: a run that lost what came after its checkpoint of step 2
    again = tmp_path / "p"
    shutil.copytree(made, again)
    shutil.rmtree(again / "checkpoints/step_00000004")
    (again / "proposals_train.json").unlink()
    main(["proposals", "--data", str(world), "--out", str(again), *TINY])
    assert "resuming from step 2 of 4" in capsys.readouterr().err
    assert (again / "proposals_train.json").read_bytes() == before
    one, other = (load_latest(folder / "checkpoints") for folder in (made, again))
    assert one is not None and other is not None and one.tensors.keys() == other.tensors.keys()
    assert all((one.tensors[name] == other.tensors[name]).all() for name in one.tensors)


def test_a_signal_while_boxes_are_made_is_told_and_the_files_stay_whole(world, made, monkeypatch, capsys):
    before, propose = (made / "proposals_train.json").read_bytes(), Proposer.propose

    def interrupted(self, samples, **numbers):
        os.kill(os.getpid(), signal.SIGTERM)
        return propose(self, samples, **numbers)

    command = ["proposals", "--data", str(world), "--out", str(made), *TINY]
    monkeypatch.setattr(sys, "argv", ["foveate", *command])
    with monkeypatch.context() as patch:
        patch.setattr(Proposer, "propose", interrupted)
        with pytest.raises(SystemExit) as done:
            main(command)
    said = capsys.readouterr().err
    assert done.value.code == 143 and "foveate: stopped by SIGTERM; the trained network is saved" in said
    assert (
        ". To resume, run:\n  foveate proposals --data" in said and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    assert (made / "proposals_train.json").read_bytes() == before


def test_another_run_in_the_same_folder_is_refused_but_other_numbers_of_boxes_are_not(world, made, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["proposals", "--data", str(world), "--out", str(made), *TINY, "--seed", "1"])
    assert "seed: stored 0, now 1" in capsys.readouterr().err
    images = world / "val2017"
    main(["proposals", "--data", str(world), "--out", str(made), *TINY, "--max-boxes", "3", "--images", str(images)])
    content = json.loads((made / "proposals_train.json").read_text())
    assert len(content["images"]) == 2 and len(content["annotations"]) == 6
    main(["proposals", "--data", str(world), "--out", str(made), *TINY])  # as it was, for the other tests


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--size", "70"], "--size: need a positive multiple of 16 pixels; got 70. Try 64"),
        (["--nms", "0"], "--nms: must be above 0 and at most 1; got 0.0"),
        (["--novel", "none.json"], "none.json: need a base and novel names file; not found"),
    ],
)
def test_mistakes_end_with_a_message(world, tmp_path, capsys, flags, reason):
    with pytest.raises(SystemExit) as done:
        main(["proposals", "--data", str(world), "--out", str(tmp_path / "p"), *TINY, *flags])
    assert done.value.code == 2 and reason in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def sample_of(record: Record) -> Sample:
    return Sample(str(record.id), read_record(record), torch.zeros(0, 4))


def test_images_in_shards_are_found_again_although_their_keys_repeat(world, tmp_path):
    for number, name in enumerate(("a.tar", "b.tar"), start=1):
        with tarfile.open(tmp_path / name, "w") as tar:
            for key in ("0.x/1", "0.x/2"):
                tar.add(world / f"train2017/{number:012d}.jpg", arcname=f"{key}.jpg")
    records = open_data(tmp_path, split="train").records
    found = [(one, sample_of(one), [[1.0, 2.0, 30.0, 40.0 + place]], [0.5]) for place, one in enumerate(records)]
    write_proposals(tmp_path / "p.json", found, [tmp_path], facts={})
    boxed = with_boxes(open_data(tmp_path, split="train"), tmp_path / "p.json")
    assert [one.boxes for one in boxed.records] == [((1, 2, 30, 40 + place),) for place in range(4)]
    assert boxed.ignored == {} and str(tmp_path) not in (tmp_path / "p.json").read_text()


def test_names_of_this_machine_are_never_written(world, tmp_path):
    record = open_data(world, split="train", annotations="none").records[0]
    assert file_name_of(record, [world / "train2017", world]) == "000000000001.jpg"
    assert file_name_of(record, [tmp_path, world]) == "train2017/000000000001.jpg"
    for one in (record, replace(record, id="/x/a.tar:1", member=Member("1", 0, 1))):
        with pytest.raises(InputError, match="--images, --data: need images below"):
            file_name_of(one, [tmp_path])


# ------------------------------------------------------------------------------------------------------------- distill


def distilled(world: Path, boxes: Path, out: Path, *flags: str) -> None:
    numbers = ["--steps", "1", "--batch", "1", "--max-regions", "2", "--size", "64", "--workers", "0"]
    named = ["--data", str(world), "--regions", str(boxes), "--out", str(out)]
    main(["distill", *named, *numbers, "--track", "none", "--device", "cpu", *flags])


def test_distill_refuses_what_saw_a_novel_class_unless_told_otherwise(world, made, tmp_path, capsys):
    content = json.loads((made / "proposals_train.json").read_text())
    names = content["info"]["provenance"]
    names["training_categories"] = [*names["training_categories"], "banded ball"]
    leak = tmp_path / "leak.json"
    leak.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as done:
        distilled(world, leak, tmp_path / "refused")
    said = capsys.readouterr().err
    assert done.value.code == 2 and "leak.json" in said and "1 novel classes: banded ball" in said
    assert not (tmp_path / "refused").exists()
    assert "remove the entry info.provenance from the file" in said
    # in a plain folder the file's own list of novel classes counts
    with pytest.raises(SystemExit):
        distilled(world / "train2017", leak, tmp_path / "plain")
    assert "1 novel classes: banded ball" in capsys.readouterr().err
    # as the message says, without the entry the file is taken, with a note
    leak.write_text(json.dumps({**content, "info": {}}))
    distilled(world, leak, tmp_path / "run")
    assert "has no provenance" in capsys.readouterr().err


def test_distill_warns_of_proposals_of_other_classes(world, made, tmp_path):
    content = json.loads((made / "proposals_train.json").read_text())
    content["info"]["provenance"]["training_categories"] = ["walrus"]
    (tmp_path / "p.json").write_text(json.dumps(content))
    source = open_images(
        DistillConfig(data=str(world), out=Path("o"), regions=str(tmp_path / "p.json")), progress=False
    )
    assert [line for line in source.dataset.ignored_lines() if line.startswith("WARNING") and "'walrus'" in line]


def test_distill_says_where_a_file_does_not_say_what_it_saw(world, made):
    notes = {}
    own, annotated = made / "proposals_train.json", world / "annotations/instances_train2017.json"
    for name, path in (("own", own), ("annotated", annotated)):
        source = open_images(DistillConfig(data=str(world), out=Path("o"), regions=str(path)), progress=False)
        notes[name] = [line for line in source.dataset.ignored_lines() if "has no provenance" in line]
    assert not notes["own"] and len(notes["annotated"]) == 1
