"""All commands that train share the driver: signals, resuming, held-out loss, dry run, lost processes."""

import json
import os
import shlex
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from foveate.cli.main import main
from foveate.data.world.write import WorldSize, write_world
from foveate.engine import fit
from foveate.engine.checkpoint import list_complete

STEPS = ["--steps", "4", "--save-every", "2", "--log-every", "1", "--device", "cpu", "--track", "none"]
HEAD = ["--batch", "2", "--workers", "0"]
COMMANDS = {
    "distill": ["--size", "64", *HEAD],
    "train-fvit": ["--size", "64", "--channels", "8", "--templates", "none",
                   "--warmup", "1", *HEAD],
    "train-catseg": ["--size", "64", "--channels", "8", "--depth", "1", *HEAD],
    "train-panoptic": ["--size", "64", "--depth", "2", "--queries", "5", "--channels", "16", *HEAD],
    "proposals": ["--model", "conv", "--size", "64", "--channels", "8", "--max-boxes", "7", *HEAD],
    "pretrain": ["--batch", "4", "--whole-steps", "1"],
}  # fmt: skip
EVERY = pytest.mark.parametrize("command", COMMANDS)
SEVERAL = pytest.mark.parametrize(
    "command",
    ["train-fvit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("train-catseg", "train-panoptic"))],
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    write_world(folder, WorldSize(train=4, val=3, test=0, pairs=12, seed=0), processes=1)
    return folder


def typed(command: str, world: Path, out: Path, *more: str) -> list[str]:
    """The words of a command line, with a held-out loss."""
    named = {"--data": world, "--validate": world}
    if command == "pretrain":
        named = {"--data": world / "pairs", "--validate": world / "pairs"}
    words = [str(word) for pair in named.items() for word in pair]
    return [command, *words, "--out", str(out), *COMMANDS[command], *STEPS, *more]


@pytest.fixture
def execute(zygote, tmp_path):
    """Run words in one process, or in two as torchrun starts them; statuses and what each printed."""

    def start(
        words: list[str], *, size: int = 1, timeout: int = 120, second: dict | None = None, **request
    ) -> tuple[list[int], list[str]]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        outputs, processes = [tmp_path / f"printed{rank}.txt" for rank in range(size)], []
        for rank, output in enumerate(outputs):
            output.unlink(missing_ok=True)
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "FOVEATE_TIMEOUT": str(timeout)}
            asked = {**request, **(second or {})} if rank else request
            processes.append(zygote.start(output, words, environment=environment if size > 1 else {}, **asked))
        statuses = [zygote.wait(processes[0])]
        if second:
            os.kill(processes[1], signal.SIGKILL)  # not reaped yet, so still this process
        statuses += [zygote.wait(process) for process in processes[1:]]
        return statuses, [output.read_text() for output in outputs]

    return start


def resume_words(printed: str, *, beginning: str) -> list[str]:
    """The command line that a stopped run prints, after the words that start Foveate."""
    line = next(line for line in printed.splitlines() if line.startswith(f"  {beginning} "))
    return shlex.split(line.removeprefix(f"  {beginning} "))


def state(out: Path) -> dict[str, torch.Tensor]:
    return load_file(list_complete(out / "checkpoints")[-1] / "state.safetensors")


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@EVERY
def test_a_stopped_run_prints_the_command_that_resumes_it_to_the_same_bits(command, world, execute, tmp_path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    statuses, printed = execute(typed(command, world, whole))
    assert statuses == [0], printed
    statuses, printed = execute(typed(command, world, parted), kill=[signal.SIGTERM, 3])
    assert statuses == [143] and "Stopped after step 3 of 4; saved. To resume" in printed[0], printed
    statuses, printed = execute(resume_words(printed[0], beginning="foveate"))
    assert statuses == [0] and "resuming from step 3 of 4 steps" in printed[0], printed
    ours, theirs = state(whole), state(parted)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    steps = [[line for line in lines(out) if "loss" in line] for out in (whole, parted)]
    assert [line["step"] for line in steps[0]] == [1, 2, 3, 4]
    assert [line["loss"] for line in steps[0]] == [line["loss"] for line in steps[1]]
    # the held-out loss is of the same images and draws, whatever happened in between
    held_out = [[line["held_out_loss"] for line in lines(out) if line.get("event") == "validation"]
                for out in (whole, parted)]  # fmt: skip
    assert held_out[0] == held_out[1] and len(held_out[0]) == 2 and all(loss > 0 for loss in held_out[0])
    assert {*json.loads((parted / "config.json").read_text())["listings"]} == {"data", "validate"}
    assert (parted / "data_images.txt.gz").exists() and (parted / "validate_images.txt.gz").exists()
    assert lines(parted)[-1]["event"] == "end" and lines(parted)[-1]["skipped_steps"] == 0


@EVERY
def test_a_dry_run_measures_and_writes_nothing(command, world, tmp_path, capsys):
    main(typed(command, world, tmp_path / "run", "--dry-run"))
    text = capsys.readouterr().err
    assert "forward and backward pass took" in text and "memory    about" in text
    assert str(tmp_path / "run" / "metrics.jsonl") in text and "nothing was written" in text
    # the pairs are held out from themselves, the images of the other commands are not
    shared = [line for line in text.splitlines() if "held-out images are training images" in line]
    expected = ["WARNING   --validate: 12 of the 12 held-out images are training images"]
    assert shared == (expected if command == "pretrain" else [])
    assert list(tmp_path.iterdir()) == []


@EVERY
def test_steps_that_are_not_finite_are_skipped_and_the_best_product_kept(command, world, tmp_path, capsys, monkeypatch):
    """The third and fourth of four steps are not finite: they move nothing, and the product is that of a good step."""
    from foveate.engine import fit as loop

    check_finite, calls = loop.check_finite, []

    def explode(losses, shares, *, norm, processes):
        calls.append(norm)
        bad = norm * float("nan") if len(calls) > 2 else norm
        return check_finite(losses, shares, norm=bad, processes=processes)

    monkeypatch.setattr(loop, "check_finite", explode)
    out = tmp_path / "run"
    main(typed(command, world, out, "--skip-nonfinite", "20", "--product", "best"))
    text = capsys.readouterr().err
    assert "2 of 4 steps were skipped" in text and len((out / "nonfinite.jsonl").read_text().splitlines()) == 2
    before, after = (load_file(path / "state.safetensors") for path in list_complete(out / "checkpoints"))
    trained = [name for name in after if name.startswith("parameter/")]
    assert trained and all(torch.equal(before[name], after[name]) for name in trained)
    assert "the product has the weights of step 2" in text


@pytest.mark.parametrize("command", ["train-fvit", "train-catseg", "train-panoptic", "proposals"])
def test_strict_stops_at_the_first_bad_image(command, world, tmp_path, capsys):
    broken = tmp_path / "w"
    broken.mkdir()
    for path in world.iterdir():
        if path.name != "train2017":
            (broken / path.name).symlink_to(path)
    (broken / "train2017").mkdir()
    for path in (world / "train2017").iterdir():
        (broken / "train2017" / path.name).write_bytes(b"not an image")
    with pytest.raises(SystemExit) as done:
        main(typed(command, broken, tmp_path / "run", "--strict"))
    assert done.value.code == 2 and "strict: the first unreadable" in capsys.readouterr().err


@SEVERAL
def test_two_processes_that_are_stopped_print_torchrun_and_resume(command, world, execute, tmp_path):
    out = tmp_path / "two"
    statuses, printed = execute(typed(command, world, out), size=2, kill=[signal.SIGTERM, 2])
    assert statuses == [143, 143], printed
    words = resume_words(printed[0], beginning="torchrun --nproc-per-node 2 -m foveate.cli.main")
    statuses, printed = execute(words, size=2)
    assert statuses == [0, 0] and "resuming from step" in printed[0], printed
    assert [line["step"] for line in lines(out) if "loss" in line] == [1, 2, 3, 4]
    assert printed[1].count("step") == 0  # only the first process prints


@SEVERAL
def test_a_lost_process_ends_the_others_with_the_reason(command, world, execute, tmp_path):
    words = typed(command, world, tmp_path / "two")
    statuses, printed = execute(words, size=2, timeout=5, second={"kill": [signal.SIGKILL, 3]})
    assert statuses == [1, -signal.SIGKILL], printed
    assert "another process of this run died or stopped responding" in printed[0] and "Traceback" not in printed[0]
    assert "the last checkpoint is of step 2" in printed[0]
    assert "torchrun --nproc-per-node 2 -m foveate.cli.main" in printed[0]


@pytest.mark.parametrize("command", ["proposals", "pretrain"])
def test_commands_of_one_process_refuse_two(command, world, execute, tmp_path):
    statuses, printed = execute(typed(command, world, tmp_path / "two"), size=2)
    assert statuses == [2, 2] and f"{command}: need one process; got 2" in printed[0]
    assert not (tmp_path / "two").exists()


def test_memory_that_runs_out_saves_the_steps_done_and_names_what_to_lower(world, tmp_path, monkeypatch, capsys):
    words, measure, calls = typed("distill", world, tmp_path / "run"), fit.gradient_norm, list[int]()

    def starved(trained):
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return measure(trained)

    monkeypatch.setattr(sys, "argv", ["foveate", *words])
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as done:
        patch.setattr(fit, "gradient_norm", starved)
        main(words)
    printed = capsys.readouterr().err
    assert done.value.code == 1 and "Traceback" not in printed
    line, again = printed.splitlines()[-2:]
    assert "foveate: memory ran out (OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB). Lower " in line
    kept = "the last checkpoint is of step 3 (in this --out only --workers, --batch, --accumulate"
    assert (
        ". Lower --batch (2) or " in line
        and f"; {kept}" in line
        and line.endswith("need a new --out). To resume, run:")
    )
    assert again == f"  foveate {shlex.join(words)}"
    main(words)
    assert "resuming from step 3 of 4" in capsys.readouterr().err
