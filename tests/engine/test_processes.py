"""Runs of several processes: equal to one process, refusing together, and not waiting for a lost one."""

import json
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from foveate.data.loader import epoch_order
from foveate.engine.checkpoint import list_complete, load_checkpoint
from foveate.engine.distributed import Processes
from foveate.engine.stop import resume_command
from foveate.train.batches import training_batches
from foveate.train.distill import open_images
from foveate.train.flags import DistillConfig
from foveate.train.report import Sharing, sharing_lines


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(out) if "loss" in line}


def facts(out: Path) -> dict:
    return load_checkpoint(list_complete(out / "checkpoints")[-1]).facts


def test_two_processes_train_as_one_does(distill, two, tmp_path):
    """Two processes with 2 images each see what one process with 4 sees, and average over the union's regions."""
    assert distill("--batch", 4, out="one")[0] == 0
    statuses, output = two(port=29517)
    assert statuses == [0, 0], output[0]
    ours, theirs = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(theirs) == [1, 2, 3, 4]
    assert max(abs(ours[step] - theirs[step]) for step in ours) < 1e-5
    assert output[1].count("step") == 0  # only the first process speaks


def test_two_stopped_processes_print_how_to_resume_both(two):
    statuses, output = two(port=29518, kill=[signal.SIGTERM, 2])
    assert statuses == [143, 143], output[0]
    assert "\n  torchrun --nproc-per-node 2 -m foveate.cli.main distill --data" in output[0]
    assert "torchrun" not in output[1]


def test_a_refusal_of_the_first_process_ends_all(two, tmp_path):
    (tmp_path / "two" / "model").mkdir(parents=True)
    began = time.monotonic()
    statuses, output = two(port=29519, timeout=60)
    assert statuses == [2, 2], output
    assert all("holds model but no config.json" in words and "Traceback" not in words for words in output)
    assert time.monotonic() - began < 30  # nobody waited for an answer


def test_a_refusal_of_any_process_ends_all(two, tmp_path, image_folder):
    data = tmp_path / "data"
    shutil.copytree(image_folder, data)
    (data / "cut.png").write_bytes((image_folder / "3.png").read_bytes()[:200])
    statuses, output = two("--strict", port=29520, timeout=60, data=data)
    assert statuses == [2, 2], output
    assert all("image cut.png: " in words and "Traceback" not in words for words in output)


@pytest.mark.parametrize(
    ("number", "reason", "port"),
    [(signal.SIGKILL, "", 29521), (signal.SIGSTOP, "Timed out", 29522), (0, "", 29523)],
    ids=["killed", "stopped", "left with status 0"],
)
def test_a_lost_process_ends_the_others_with_the_reason_and_how_to_resume(two, tmp_path, number, reason, port):
    statuses, output = two(port=port, timeout=3, second={"kill": [number, 3]})
    assert statuses == [1, 0 if number == 0 else -signal.SIGKILL], output[0]
    assert "step 4: another process of this run died or stopped responding (" in output[0] or "step 3: " in output[0], (
        output
    )
    assert reason in output[0] and "the last checkpoint is of step 2" in output[0] and "Traceback" not in output[0], (
        output[0]
    )
    assert "To resume, run:\n  torchrun --nproc-per-node 2 -m foveate.cli.main distill" in output[0]
    if number == signal.SIGKILL:
        assert two(port=port + 10)[0] == [0, 0]
        assert list(losses(tmp_path / "two")) == [1, 2, 3, 4]


@pytest.mark.slow
def test_the_process_whose_memory_runs_out_saves_the_steps_done(two, tmp_path):
    statuses, output = two(port=29526, timeout=20, second={"starve": 4})
    assert statuses == [1, 1], output
    assert "foveate: memory ran out (OutOfMemoryError: CUDA out of memory)" in output[1], output[1]
    assert "the last checkpoint is of step 3" in output[1] and "Traceback" not in output[1], output[1]
    assert "step 4: another process of this run died" in output[0] and "Traceback" not in output[0], output[0]
    statuses, output = two(port=29536)
    assert statuses == [0, 0] and "resuming from step 3 of 4" in output[0], output[0]
    # the first process, which logs, was lost before it had the numbers of step 3
    assert list(losses(tmp_path / "two")) == [1, 2, 4]


def test_a_run_of_two_processes_is_resumed_by_one_that_accumulates(distill, two, tmp_path):
    """2 processes x 2 images, stopped; then 1 x 2 images x 2 batches: the same 4 images a step."""
    assert distill("--batch", 4, out="one")[0] == 0
    assert two(port=29524, kill=[signal.SIGTERM, 2])[0] == [143, 143]
    assert facts(tmp_path / "two")["position"] == 8
    status, output = distill("--batch", 2, "--accumulate", 2, out="two")
    assert status == 0, output
    assert "resuming with 1 process x 2 images x 2 batches per step, before 2 processes x 2 images" in output
    assert "the same 4 images in every step" in output and "equal to rounding, not to the bit" in output
    ours, theirs = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(theirs) == [1, 2, 3, 4]
    assert max(abs(ours[step] - theirs[step]) for step in ours) < 1e-5
    now = facts(tmp_path / "two")
    assert now["versions"]["torch"] == torch.__version__ and "(seed, epoch, image)" in now["random_rule"]
    assert now["position"] == 16 and (now["config"]["processes"], now["config"]["accumulate"]) == (1, 2)


def test_a_change_of_images_per_step_is_reported_and_the_epoch_has_each_once(distill, two, tmp_path, image_folder):
    assert two(port=29525, kill=[signal.SIGTERM, 2])[0] == [143, 143]
    status, output = distill("--batch", 3, out="two")  # 8 images, then 2 steps of 3
    assert status == 0 and "from here on 3 images per step instead of 4" in output, output
    assert "6 more images instead of 8" in output and "To keep 4, use --batch 4 with 1 process." in output
    assert facts(tmp_path / "two")["position"] == 14
    # which images these are: 8 by two processes, then 12 by one
    config = DistillConfig(data=image_folder, out=tmp_path, batch=2, workers=0)
    source, cpu = open_images(config, progress=False), torch.device("cpu")
    parts = [training_batches(config, source, Processes(rank, 2, cpu))(0, 2) for rank in (0, 1)]
    config = DistillConfig(data=image_folder, out=tmp_path, batch=3, workers=0)
    parts.append(training_batches(config, source, Processes(0, 1, cpu))(8, 4))
    shown = Counter(sample.id for part in parts for batch in part for sample in batch.samples)
    assert len(shown) == 10 and set(shown.values()) == {2}  # 20 images are two epochs of 10


def test_what_stays_equal_is_reported():
    before = Sharing(processes=8, batch=2, accumulate=1)
    assert sharing_lines(before, before, steps=5) == []
    assert "the same 16 images" in str(sharing_lines(before, Sharing(2, 4, 2), steps=5))
    text = str(sharing_lines(before, Sharing(2, 2, 1), steps=5))
    assert "4 images per step instead of 16" in text and "20 more images instead of 80" in text
    assert "--batch 2 --accumulate 4 with 2 processes" in text  # 2 x 2 x 4 = 16
    assert "16 cannot be kept with 3 processes" in str(sharing_lines(before, Sharing(3, 2, 1), steps=5))


def test_the_command_to_resume_has_all_nodes(monkeypatch):
    monkeypatch.setattr("sys.argv", ["foveate", "distill", "--data", "my images"])
    assert resume_command() == "To resume, run:\n  foveate distill --data 'my images'"
    for name, value in {"WORLD_SIZE": 8, "GROUP_WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    text = resume_command()
    assert "on each of the 2 nodes" in text
    assert "torchrun --nnodes 2 --nproc-per-node 4 -m foveate.cli.main distill --data 'my images'" in text


def test_the_held_out_loss_is_the_same_on_one_process_and_on_two_and_the_best_student_is_kept(
    distill, two, tmp_path, image_folder
):
    flags = ["--validate", image_folder, "--product", "best"]
    flags += ["--save-every", 1, "--steps", 2, "--lr", 30]  # much too fast: the second step overshoots
    status, output = distill("--batch", 4, *flags, out="one")
    assert status == 0, output
    assert two(*flags, port=29526)[0] == [0, 0]
    alone, shared = (
        {line["step"]: line["held_out_loss"] for line in lines(tmp_path / name) if line.get("event") == "validation"}
        for name in ("one", "two")
    )
    assert list(alone) == list(shared) == [1, 2]
    assert alone[1] == pytest.approx(shared[1], abs=1e-5)
    assert f"step 1  held-out loss {alone[1]:.4f}" in output
    assert alone[1] < alone[2] and "of step 1" in output
    kept = [path.name for path in list_complete(tmp_path / "one" / "checkpoints")]
    assert kept == ["step_00000001", "step_00000002"]
    raw = load_file(tmp_path / "one" / "checkpoints" / kept[0] / "state.safetensors")
    product = load_file(tmp_path / "one" / "model" / "open_clip_model.safetensors")
    trained = [name for name in product if f"parameter/student.model.{name}" in raw]
    assert trained and all(torch.equal(product[name], raw[f"parameter/student.model.{name}"]) for name in trained)


def test_sharded_weights_train_as_whole_ones_and_one_process_resumes(distill, two, tmp_path, image_folder):
    """--fsdp on two processes, stopped after 2 of 4 steps; one process with the same 4 images a step goes on."""
    flags = ["--alpha", 0.5, "--validate", image_folder]
    assert distill("--batch", 4, *flags, out="one")[0] == 0
    statuses, output = two("--fsdp", *flags, port=29571, kill=[signal.SIGTERM, 3])
    assert statuses == [143, 143], output
    assert facts(tmp_path / "two")["position"] == 12
    assert distill("--batch", 4, *flags, out="two")[0] == 0
    ours, theirs = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(theirs) == [1, 2, 3, 4]
    assert max(abs(ours[step] - theirs[step]) for step in ours) < 1e-5
    held_out = [
        [line["held_out_loss"] for line in lines(tmp_path / out) if line.get("event") == "validation"]
        for out in ("one", "two")
    ]
    assert held_out[1] == pytest.approx(held_out[0], abs=1e-5)
    one, other = (load_file(tmp_path / out / "model" / "open_clip_model.safetensors") for out in ("one", "two"))
    for name, tensor in one.items():
        tensors = other[name].clone()
        if name.endswith("in_proj_bias"):  # keys' biases (32 to 63) have no gradient but rounding, which Adam blows up
            tensors[32:64] = tensor[32:64]
        torch.testing.assert_close(tensors, tensor, rtol=0, atol=2e-5)


def test_sharded_weights_are_measured_if_one_process_starts_without_an_image(two, tmp_path, image_folder):
    data = tmp_path / "data"
    shutil.copytree(image_folder, data)
    (data / f"{epoch_order(10, seed=0, epoch=0)[1]}.png").write_bytes(b"bad")  # the second process's first
    statuses, output = two("--fsdp", "--batch", 1, "--dry-run", port=29573, timeout=5, data=data)
    assert statuses == [0, 0] and "one forward and backward pass took" in output[0], output


def test_sharded_weights_to_the_end_in_bfloat16(two, tmp_path, tiny_model):
    statuses, output = two("--fsdp", "--precision", "bfloat16", "--checkpointing", "--accumulate", 2, port=29572)
    assert statuses == [0, 0], output
    product = load_file(tmp_path / "two" / "model" / "open_clip_model.safetensors")
    before = load_file(tiny_model / "open_clip_model.safetensors")
    moved = [name for name in product if not torch.equal(product[name], before[name])]
    assert moved and all("resblocks" in name and product[name].dtype == torch.float32 for name in moved)
