"""Whole runs of `python -m foveate.cli.main distill`: stopped, killed, damaged, resumed by the same command."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from foveate.data.loader import epoch_order
from foveate.engine.fit import Outcome
from foveate.errors import InputError
from foveate.train.report import require_usable_images


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory) -> Path:
    """The run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert command(out=out)[0] == 0
    return out


def state(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"step_{step:08d}" / "state.safetensors")


def losses(out: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def assert_same_bits(one: Path, other: Path, *, step: int = 4) -> None:
    ours, theirs = state(one, step), state(other, step)
    assert ours.keys() == theirs.keys() and any(name.startswith("optimizer/exp_avg_sq/") for name in ours)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert losses(one) == losses(other) and list(losses(one)) == [1, 2, 3, 4]
    product, other_product = (load_file(out / "model" / "open_clip_model.safetensors") for out in (one, other))
    assert all(torch.equal(tensor, other_product[name]) for name, tensor in product.items())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_after_kill_9_has_the_same_bits(whole, distill, tmp_path, workers):
    # killed in the middle of step 4: step 3 is done but only step 2 is saved
    status, output = distill("--workers", workers, kill=[signal.SIGKILL, 4])
    assert status == -signal.SIGKILL
    assert list(losses(tmp_path / "run")) == [1, 2, 3] and not (tmp_path / "run" / "model").exists()
    status, output = distill("--workers", workers)
    assert status == 0 and "resuming from step 2 of 4" in output
    assert_same_bits(whole, tmp_path / "run")


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_finishes_the_step_saves_and_prints_how_to_resume(whole, distill, tmp_path, number, expected, workers):
    status, output = distill("--workers", workers, kill=[number, 3])  # to the whole group, as Ctrl-C and torchrun do
    assert status == expected
    assert (tmp_path / "run" / "checkpoints" / "step_00000003" / "COMPLETE").exists()
    assert "Stopped after step 3 of 4; saved." in output and "foveate distill --data" in output
    assert distill()[0] == 0
    assert_same_bits(whole, tmp_path / "run")


def test_decoding_processes_ignore_a_signal_to_the_whole_group(distill):
    status, output = distill("--steps", 60, "--workers", 2, kill=[signal.SIGTERM, 3])  # they have images left to decode
    assert status == 143 and "Stopped after step 3 of 60" in output, output


def events(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("event", "plan") != "plan"]


def test_a_finished_run_only_writes_a_missing_product_again(whole, distill, tmp_path):
    run = tmp_path / "run"
    assert distill()[0] == 0
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in run.rglob("*")}  # the lock comes and goes
    status, output = distill()
    assert status == 0 and "already finished, after step 4" in output
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in run.rglob("*")} == before
    shutil.rmtree(run / "model")
    assert distill()[0] == 0
    assert_same_bits(whole, run)
    assert [event["event"] for event in events(run)] == ["end"]


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(whole, distill, tmp_path):
    assert distill()[0] == 0
    file = tmp_path / "run" / "checkpoints" / "step_00000004" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    status, output = distill()
    assert status == 0 and f"{file}: damaged" in output and "resuming from step 2 of 4" in output
    assert_same_bits(whole, tmp_path / "run")


def test_another_runs_folder_is_refused(distill, tmp_path):
    assert distill()[0] == 0
    status, output = distill("--lr", 2e-3)
    assert status == 2 and "holds another run" in output and "lr: stored 0.001, now 0.002" in output
    assert "Traceback" not in output


def test_other_weights_behind_the_same_flags_are_refused(distill, tmp_path, tiny_model):
    assert distill("--steps", 1)[0] == 0
    record = tmp_path / "run" / "config.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "weights": "0" * 64}))
    status, output = distill("--steps", 1)
    assert status == 2 and "weights: stored 000" in output


def test_only_the_product_is_mixed_and_training_resumes_from_the_student(whole, distill, tmp_path, tiny_model):
    assert distill("--alpha", 0.25, kill=[signal.SIGKILL, 3])[0] == -signal.SIGKILL
    assert distill("--alpha", 0.25)[0] == 0
    raw, plain = state(tmp_path / "run", 4), state(whole, 4)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in raw.items())  # mixing never touched the training
    product = load_file(tmp_path / "run" / "model" / "open_clip_model.safetensors")
    teacher = load_file(tiny_model / "open_clip_model.safetensors")
    for name, tensor in product.items():
        student = raw.get(f"parameter/student.model.{name}", teacher[name])
        torch.testing.assert_close(tensor, 0.25 * student + 0.75 * teacher[name], rtol=0, atol=1e-6)
    moved = [name for name in product if not torch.equal(product[name], teacher[name])]
    assert moved and all("resblocks" in name for name in moved)


def test_unusable_images_are_counted_and_strict_stops_at_the_first(distill, tmp_path, image_folder):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for image in image_folder.iterdir():
        (mixed / image.name).write_bytes(image.read_bytes())
    (mixed / "cut.png").write_bytes((image_folder / "3.png").read_bytes()[:200])
    (mixed / "empty.png").touch()
    # 12 images in 4 steps of 3: one epoch, each image once; stopped and continued on the way
    distill(data=mixed, kill=[signal.SIGTERM, 2])
    status, output = distill(data=mixed)
    assert status == 0 and "images that could not be used: 2" in output
    assert "  cut.png: " in output and "  empty.png: " in output
    end = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert end["event"] == "end" and sorted(end["bad_images"]) == ["cut.png", "empty.png"]
    status, output = distill("--strict", out="strict", data=mixed)
    assert status == 2 and "Traceback" not in output and ("cut.png" in output or "empty.png" in output)


def test_a_run_resumes_over_changed_images_only_if_told_to(distill, tmp_path, image_folder):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(image_folder, data)
    assert distill(data=data, kill=[signal.SIGTERM, 2])[0] == 143
    (data / "3.png").unlink()
    (data / "5.png").rename(data / "x.png")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    status, output = distill(data=data)
    assert status == 2 and "(10, now 9 in --data)" in output and "Traceback" not in output
    assert "2 gone or renamed (3.png, 5.png), 1 new (x.png)" in output and "--allow-changed-data" in output
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    status, output = distill("--allow-changed-data", data=data, kill=[signal.SIGTERM, 1])
    assert status == 143 and "2 gone or renamed (3.png, 5.png)" in output and "seen twice" in output
    # these are now the images of the run
    status, output = distill(data=data)
    assert status == 0 and "renamed" not in output and "resuming from step 3" in output
    (data / "9.png").unlink()
    status, output = distill(data=data)
    assert status == 0 and "1 gone or renamed (9.png) since the run began; no step is left" in output


def test_the_steps_before_a_strict_stop_are_kept(whole, distill, tmp_path, image_folder):
    data = tmp_path / "data"
    shutil.copytree(image_folder, data)
    last = data / f"{epoch_order(10, seed=0, epoch=0)[9]}.png"  # of step 4, where steps 2 and 4 are saved
    kept = last.read_bytes()
    last.write_bytes(b"bad")
    status, output = distill("--strict", data=data)
    assert status == 2 and "strict: the first unreadable image ends the run" in output, output
    assert list(losses(tmp_path / "run")) == [1, 2, 3]
    last.write_bytes(kept)
    status, output = distill(data=data)
    assert status == 0 and "resuming from step 3 of 4" in output, output
    assert_same_bits(whole, tmp_path / "run")


def test_a_run_without_a_usable_image_has_no_product(distill, tmp_path):
    (tmp_path / "broken").mkdir()
    for number in range(3):
        (tmp_path / "broken" / f"{number}.png").write_bytes(b"not an image")
    for _ in range(2):  # the same command again must not find a finished run either
        status, output = distill(data=tmp_path / "broken")
        assert status == 2 and "none of the 3 of this run could be" in output and "0.png: " in output, output
        assert "Traceback" not in output and not (tmp_path / "run" / "model").exists()
    assert losses(tmp_path / "run") == {}


def test_usable_images_before_a_stop_count(distill, tmp_path, image_folder):
    """One good image, seen in the first half of the run; the second half, started anew, meets only bad ones."""
    data = tmp_path / "data"
    shutil.copytree(image_folder, data)
    assert distill("--batch", 1, data=data, kill=[signal.SIGTERM, 3])[0] == 143
    for image in data.iterdir():
        image.write_bytes(b"gone bad")
    assert distill("--batch", 1, data=data)[0] == 0
    assert (tmp_path / "run" / "model").exists() and list(losses(tmp_path / "run")) == [1, 2, 3]
    assert [event["event"] for event in events(tmp_path / "run")] == ["stop", "end"]


def test_ignored_annotations_are_reported_at_the_end(distill, tmp_path, image_folder):
    data = tmp_path / "coco"
    shutil.copytree(image_folder, data / "train2017")
    images = [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in (1, 3, 5, 7)]
    boxes = [[0, 0, 40, 40], [100, 100, 9, 9], [200, 0, 9, 9]]  # the last two lie outside 64 x 48
    notes = [{"id": n, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0} for n, box in enumerate(boxes)]
    content = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "thing"}]}
    (data / "annotations").mkdir()
    (data / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    status, output = distill("--regions", "annotations", data=data)
    assert status == 0 and "2 ignored: box is outside the image" in output, output
    assert events(tmp_path / "run")[-1]["dropped_annotations"] == {"box is outside the image": 2}


def test_a_mistyped_folder_does_not_claim_the_output(distill, tmp_path, image_folder):
    status, output = distill("--steps", 1, data=tmp_path / "typo")
    assert status == 2 and "typo" in output and not (tmp_path / "run").exists()
    status, output = distill("--steps", 1, "--regions", "annotations")  # these images have no boxes
    assert status == 2 and not (tmp_path / "run").exists(), output
    assert distill("--steps", 1)[0] == 0


def test_mistakes_are_reported_as_messages(distill, tmp_path):
    for flags, message in (
        (["--layers", 0], "--layers: must be at least 1"),
        (["--size", 60], "Try 64"),
        (["--seed", -1], "--seed: must be 0 to"),
        (["--device", "tpu"], "--device: must be"),
        (["--validate", tmp_path / "typo"], "typo"),
    ):
        status, output = distill(*flags)
        assert status == 2 and message in output and "Traceback" not in output, output


def test_a_run_without_a_finite_step_has_no_product(tmp_path):
    with pytest.raises(InputError, match="all 3 were skipped"):
        require_usable_images(Outcome(step=3, skipped=3), tmp_path)


def test_a_full_disk_costs_only_the_checkpoint_being_written(whole, distill, tmp_path):
    assert distill(kill=[signal.SIGTERM, 2])[0] == 143
    saved = tmp_path / "run" / "checkpoints" / "step_00000002" / "state.safetensors"
    before = saved.read_bytes()
    status, output = distill(largest_file=len(before) // 2)
    assert status == 2 and "cannot write a checkpoint of" in output and "Traceback" not in output, output
    assert "then run the same command again" in output
    assert saved.read_bytes() == before and [path.name for path in saved.parent.parent.iterdir()] == ["step_00000002"]
    assert distill()[0] == 0
    assert_same_bits(whole, tmp_path / "run")


def test_a_run_that_is_not_finite_stops_with_its_images_or_skips_the_step(distill, tmp_path):
    explode = ["--lr", 1e30, "--save-every", 1]  # the second step and all after it are not finite
    status, output = distill(*explode)
    assert status == 2 and "foveate: step 2: the loss and its gradient must be finite" in output, output
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000001"]
    status, output = distill(*explode, "--skip-nonfinite", 1)
    assert status == 2 and "step 3: " in output and "the last of 2 such steps in a row" in output, output
    status, output = distill(*explode, "--skip-nonfinite", 20)
    assert status == 0 and "WARNING   3 of 4 steps were skipped" in output and "nonfinite.jsonl" in output, output
    assert list(losses(tmp_path / "run")) == [1] and events(tmp_path / "run")[-1]["skipped_steps"] == 3
    record = [json.loads(line) for line in (tmp_path / "run" / "nonfinite.jsonl").read_text().splitlines()]
    assert all(len(line["images"]) == 3 for line in record) and {line["step"] for line in record} == {2, 3, 4}
