"""Whole runs of `foveate distill` with the two objectives that learn from text."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from foveate.errors import InputError
from foveate.train.checks import check_distill
from foveate.train.flags import DistillConfig


@pytest.fixture
def coco(tmp_path, image_folder) -> Path:
    """The ten images as a COCO root; a caption for each but the last. "dog" occurs 9 times, "cat" 6, "tree" 3."""
    root, others = tmp_path / "coco", ["a dog and a cat", "a dog and two cats", "a dog, a tree"]
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"{split}2017").symlink_to(image_folder)
        images = [{"id": i, "file_name": f"{i}.png", "height": 1, "width": 1} for i in range(9)]
        notes = [{"id": i, "image_id": i, "caption": others[i % 3]} for i in range(9)]
        content = {"images": images, "annotations": notes}
        (root / "annotations" / f"captions_{split}2017.json").write_text(json.dumps(content))
    return root


def state(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / "step_00000004" / "state.safetensors")


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_region_text_resumed_after_kill_9_has_the_same_bits(distill, tmp_path):
    names = tmp_path / "nouns.txt"
    names.write_text("\n".join(f"{a}{b}{c}" for a in "bcdfg" for b in "aeiou" for c in "lmnprs"))  # 150: 100 are drawn
    flags = ["--objective", "region-text", "--captions", names]
    assert distill(*flags, out="whole")[0] == 0
    assert distill(*flags, kill=[signal.SIGKILL, 4])[0] == -signal.SIGKILL
    status, output = distill(*flags)
    assert status == 0 and "resuming from step 2 of 4" in output
    assert losses(tmp_path / "run") == losses(tmp_path / "whole") and len(losses(tmp_path / "run")) == 4
    ours, theirs = state(tmp_path / "run"), state(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not (tmp_path / "run" / "nouns.json").exists()


def test_region_text_writes_the_nouns_of_the_captions_and_measures_held_out_images(distill, tmp_path, coco):
    status, output = distill("--objective", "region-text", "--steps", 2, "--validate", coco, data=coco)
    assert status == 0 and "nouns     2 in the captions: dog, cat" in output and "held-out loss" in output, output
    assert json.loads((tmp_path / "run" / "nouns.json").read_text()) == [["dog", 9], ["cat", 6]]
    assert "vocabulary" in json.loads((tmp_path / "run" / "config.json").read_text())


def test_image_text_trains_the_last_queries_and_ignores_images_without_caption(distill, tmp_path, coco, tiny_model):
    status, output = distill("--objective", "image-text", "--steps", 2, "--validate", coco, data=coco)
    assert status == 0 and "1 ignored: image has no caption; the first: 9.png" in output, output
    assert "held-out loss" in output
    before, after = (load_file(one / "open_clip_model.safetensors") for one in (tiny_model, tmp_path / "run" / "model"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith("visual.transformer.resblocks.") for name in moved)
    fused = "visual.transformer.resblocks.1.attn.in_proj_weight"  # 32 rows of queries, of keys, of values
    for old, new in zip(before[fused].split(32), after[fused].split(32), strict=True):
        assert not torch.equal(old, new)


def test_the_plan_of_pairs_is_measured_and_nothing_is_written(distill, tmp_path, coco):
    status, output = distill("--objective", "image-text", "--dry-run", data=coco)
    assert (
        status == 0 and "memory    about" in output and "one forward and" in output and "nothing was trained" in output
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"captions": Path("c.json")}, r"--captions c\.json: has no effect with --objective clipself"),
        ({"objective": "image-text", "regions": "annotations"}, "--regions annotations: has no effect"),
        ({"objective": "image-text", "captions": Path("n.json")}, "must hold captions .*; got a list of nouns"),
        ({"regions": "gone.json"}, "--regions: must be grid, annotations, or a file of boxes that exists; got gone"),
        ({"objective": "image-text", "tokens": "valid"}, "--tokens valid: has no effect"),
        ({"objective": "image-text", "fsdp": True}, "--fsdp: has no effect"),
        ({"objective": "image-text", "batch": 1}, "--batch: must be at least 2"),
        ({"keep": 20.0}, r"--keep: must be 0 to 10, a weight .*--max-regions.*; got 20\.0"),
    ],
)
def test_flags_without_effect_are_refused(fields, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("n.json").write_text('["dog"]')
    with pytest.raises(InputError, match=message):
        check_distill(DistillConfig(data="d", out=Path("o"), **fields))
