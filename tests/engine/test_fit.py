"""The loop, with an objective small enough to compute by hand."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from foveate.data.loader import BatchSampler, ImageSource, make_loader
from foveate.data.sources import open_data
from foveate.engine.checkpoint import collect, list_complete, load_latest, restore
from foveate.engine.distributed import Processes, choose_device, joined
from foveate.engine.fit import Outcome, Saving, Update, fit
from foveate.engine.log import Log
from foveate.engine.optim import build_optimizer, take_step
from foveate.errors import ExhaustedError, InputError
from foveate.types import BadSample, Batch, Sample

ALONE = Processes(rank=0, size=1, device=torch.device("cpu"))


class Line(nn.Module):
    """The mean over all boxes of (w . box - 1)^2; a second weight that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5, -0.25, 0.1, 0.0]]))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, batch: Batch) -> torch.Tensor:
        boxes = [sample.boxes for sample in batch.samples if len(sample.boxes)]
        if not boxes:
            return self.weight.sum() * 0
        return (torch.cat(boxes) @ self.weight.T - self.frozen).square().mean()


class Noisy(Line):
    """Draws inside the objective."""

    def forward(self, batch: Batch) -> torch.Tensor:
        return super().forward(batch) * torch.rand(())


class Normed(Line):
    """Boxes through a BatchNorm, whose statistics change in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, batch: Batch) -> torch.Tensor:
        boxes = self.norm(torch.cat([sample.boxes for sample in batch.samples]))
        return (boxes @ self.weight.T - self.frozen).square().mean()


class Cliff(Line):
    """A finite loss whose gradient is not: sqrt at 0."""

    def forward(self, batch: Batch) -> torch.Tensor:
        return (self.weight * 0).sum().sqrt()


def batch_of(step: int, *, boxes: int = 3, bad: bool = False) -> Batch:
    values = torch.rand(boxes, 4, generator=torch.Generator().manual_seed(step))
    sample = Sample(f"image {step}", torch.zeros(3, 2, 2, dtype=torch.uint8), values)
    return Batch([sample], [BadSample(f"bad {step}", "cut short")] if bad else [])


def count(batch: Batch) -> int:
    return sum(len(sample.boxes) for sample in batch.samples)


def train(
    folder: Path,
    batches: Any,  # a list of batches, or a loader
    *,
    steps: int = 6,
    module: Line | None = None,
    save_every: int = 100,
    keep: int = 10,
    clip: float | None = None,
    accumulate: int = 1,
) -> tuple:
    """Train from wherever the folder's checkpoints say; the module, its optimizer and the outcome."""
    folder.mkdir(exist_ok=True)
    module = module or Line()
    optimizer = build_optimizer(module, weight_decay=0.1)
    saved = load_latest(folder, report=str)
    start, begin = 0, None
    if saved is not None:
        restore(module, optimizer, saved.tensors)
        start, begin = saved.step, Outcome.resumed(saved)
    with Log(folder / "metrics.jsonl", steps=steps, start_step=start, every=1) as log:
        outcome = fit(
            module,
            batches[start * accumulate :] if start else batches,
            optimizer,
            count=count,
            update=Update(lambda step: 0.01 / (step + 1), clip=clip, accumulate=accumulate),
            steps=steps,
            saving=Saving(folder, save_every, keep),
            processes=ALONE,
            log=log,
            begin=begin,
        )
    return module, optimizer, outcome


def test_the_loop_is_forward_backward_step(tmp_path):
    batches = [batch_of(step) for step in range(6)]
    module, _, outcome = train(tmp_path, batches)
    plain = Line()
    optimizer = torch.optim.AdamW([plain.weight], weight_decay=0.1, fused=True)
    losses = []
    for step, batch in enumerate(batches):
        loss = plain(batch)
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert torch.equal(module.weight, plain.weight)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == losses and lines[0]["items"] == 3
    assert outcome == Outcome(step=6, position=6, good=6)


def test_a_clipped_step_equals_torch(tmp_path):
    batches = [batch_of(step) for step in range(3)]
    module, _, _ = train(tmp_path, batches, steps=3, clip=0.01)
    plain = Line()
    optimizer = torch.optim.AdamW([plain.weight], weight_decay=0.1, fused=True)
    for step, batch in enumerate(batches):
        plain(batch).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.01)
        optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(module.weight, plain.weight, rtol=1e-4, atol=1e-7)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(line["gradient_norm"] > 0.01 for line in lines)  # what is logged is the norm before


def test_a_resumed_run_repeats_the_draws_inside_the_objective(tmp_path):
    batches = [batch_of(step) for step in range(4)]
    whole, whole_optimizer, _ = train(tmp_path / "whole", batches, steps=4, module=Noisy())
    with pytest.raises(ConnectionError):
        train(tmp_path / "parts", batches, steps=4, module=Interrupted(after=3), save_every=2)
    torch.rand(17)  # whatever another process would have drawn
    parts, parts_optimizer, _ = train(tmp_path / "parts", batches, steps=4, module=Noisy())
    ours, theirs = collect(whole, whole_optimizer), collect(parts, parts_optimizer)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours) and len(ours) == 4
    losses = [(tmp_path / part / "metrics.jsonl").read_text().split('"images_per')[0] for part in ("whole", "parts")]
    assert losses[0] == losses[1]


class Interrupted(Noisy):
    """Fails after some calls."""

    def __init__(self, *, after: int) -> None:
        super().__init__()
        self.left = after

    def forward(self, batch: Batch) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError
        return super().forward(batch)


def test_checkpoints_are_saved_regularly_and_at_the_end(tmp_path):
    train(tmp_path, [batch_of(step) for step in range(7)], steps=7, save_every=3, keep=2)
    assert [path.name for path in list_complete(tmp_path)] == ["step_00000006", "step_00000007"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_waiting_for_a_batch_stops_before_training_on_it(tmp_path, number):
    class Loader(list):
        def __iter__(self):
            for step, batch in enumerate(list.__iter__(self)):
                if step == 2:
                    os.kill(os.getpid(), number)
                yield batch

    before = signal.getsignal(number)
    _, _, outcome = train(tmp_path, Loader(batch_of(step) for step in range(9)), steps=9)
    assert outcome.step == outcome.position == 2 and outcome.stopped_by == number
    assert [path.name for path in list_complete(tmp_path)] == ["step_00000002"]
    assert signal.getsignal(number) == before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_decoding_processes_ignore_the_signals_that_stop_a_run(image_folder):
    source = ImageSource(open_data(image_folder, split="train"))
    batches = iter(make_loader(source, BatchSampler(10, batch=1, seed=0, batches=50), workers=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    ignored = int(next(line for line in lines if line.startswith("SigIgn:")).split()[1], 16)
    assert all(ignored >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGINT))


@pytest.mark.parametrize("module", [Line(), Cliff()])
def test_a_step_that_is_not_finite_stops_before_the_parameters_change(tmp_path, module):
    batches = [batch_of(step) for step in range(4)]
    if not isinstance(module, Cliff):
        batches[2].samples[0].boxes[1, 1] = float("nan")
    good = Line()
    optimizer = build_optimizer(good, weight_decay=0.1)
    for step in range(0 if isinstance(module, Cliff) else 2):
        good(batches[step]).backward()
        take_step(optimizer, lr=0.01 / (step + 1), weight_decay=0.1)
        optimizer.zero_grad()
    at = 1 if isinstance(module, Cliff) else 3
    with pytest.raises(InputError, match=rf"step {at}: .*must be finite.*'image {at - 1}'") as caught:
        train(tmp_path, batches, module=module, save_every=1)
    assert f"'image {at}'" not in str(caught.value)
    assert torch.equal(module.weight, good.weight)
    assert len(list_complete(tmp_path)) == at - 1


def test_a_step_without_items_changes_nothing(tmp_path):
    nothing = batch_of(0, boxes=0)
    module, _, outcome = train(tmp_path, [nothing, Batch([], [])], steps=2)
    assert torch.equal(module.weight, Line().weight) and outcome == Outcome(step=2, position=1, good=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["items"]) for line in lines] == [(1, 0), (2, 0)]
    assert not any("loss" in line for line in lines)  # a loss of 0 would be a lie, and a dent in the curve
    one, *_ = train(tmp_path / "a", [batch_of(0), nothing, batch_of(1)], steps=3)
    assert torch.isfinite(one.weight).all()


def test_unusable_images_are_listed_once_and_survive_a_stop(tmp_path):
    batches = [batch_of(step % 2, bad=step != 3) for step in range(6)]
    with pytest.raises(ConnectionError):
        train(tmp_path, batches, module=Interrupted(after=2), save_every=2)
    saved = Outcome.resumed(load_latest(tmp_path))
    # two steps of a good and a bad image each
    assert saved == Outcome(2, position=4, good=2, bad={"bad 0": "cut short", "bad 1": "cut short"})
    _, _, outcome = train(tmp_path, batches)
    assert outcome.bad == {"bad 0": "cut short", "bad 1": "cut short"} and outcome.good == 6


def test_a_loader_that_ends_too_early_is_detected(tmp_path):
    with pytest.raises(AssertionError, match="the loader ended after step 2 of 6"):
        train(tmp_path, [batch_of(0), batch_of(1)])


@pytest.mark.parametrize("name", ["tpu", "mps", "cuda:99"])
def test_a_missing_device_is_refused(name):
    with pytest.raises(InputError, match="--device"):
        choose_device(name, local_rank=None)


def test_incomplete_process_variables_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(InputError, match="RANK, LOCAL_RANK is not set"), joined("cpu", timeout=5):
        pass


@pytest.mark.parametrize("bad_step", [4, 6])
def test_the_steps_before_one_that_is_not_finite_are_saved(tmp_path, bad_step):
    """Steps 1 to 3 (or 5) are finite and no save is due: they are saved, with the position in the stream."""
    batches = [batch_of(step) for step in range(6)]
    batches[bad_step - 1].samples[0].boxes[1, 1] = float("nan")
    with pytest.raises(InputError, match=f"step {bad_step}: "):
        train(tmp_path / "stopped", batches)
    saved = load_latest(tmp_path / "stopped")
    assert saved is not None and saved.step == bad_step - 1
    assert (saved.facts["position"], saved.facts["good"]) == (bad_step - 1, bad_step - 1)
    whole, optimizer, _ = train(tmp_path / "whole", batches[: bad_step - 1], steps=bad_step - 1)
    assert all(torch.equal(saved.tensors[name], tensor) for name, tensor in collect(whole, optimizer).items())


@pytest.mark.parametrize("bad_step", [3, 6])
def test_a_step_that_is_not_finite_changes_no_running_statistics(tmp_path, bad_step):
    """Neither by the images of that step nor by those of the step that was queued when it was detected."""
    batches = [batch_of(step) for step in range(6)]
    batches[bad_step - 1].samples[0].boxes[1, 1] = float("nan")
    with pytest.raises(InputError, match=f"step {bad_step}: "):
        train(tmp_path / "stopped", batches, module=Normed())
    saved = load_latest(tmp_path / "stopped")
    assert saved is not None and saved.step == bad_step - 1
    whole, optimizer, _ = train(tmp_path / "whole", batches[: bad_step - 1], steps=bad_step - 1, module=Normed())
    expected = collect(whole, optimizer)
    assert "buffer/norm.running_mean" in expected
    assert all(torch.equal(saved.tensors[name], tensor) for name, tensor in expected.items())


# ------------------------------------------------------------------------------------------------ memory that runs out


class Starved(Normed):
    """Finds no memory at one of its calls."""

    def __init__(self, error: Exception, *, at: int) -> None:
        super().__init__()
        self.error, self.left = error, at

    def forward(self, batch: Batch) -> torch.Tensor:
        loss = super().forward(batch)  # which changes the running statistics
        self.left -= 1
        if self.left == 0:
            raise self.error
        return loss


def assert_saved(folder: Path, *, step: int, batches: list[Batch], kind: type[Line], accumulate: int = 1) -> None:
    """The checkpoint is that of a run that ended after `step` steps."""
    saved = load_latest(folder)
    assert saved is not None and saved.step == step and saved.facts["position"] == step * accumulate
    whole, optimizer, _ = train(folder / "whole", batches, steps=step, module=kind(), accumulate=accumulate)
    expected = collect(whole, optimizer)
    assert ("buffer/norm.running_mean" in expected) == (kind == Normed) and expected.keys() == saved.tensors.keys()
    assert all(torch.equal(saved.tensors[name], tensor) for name, tensor in expected.items())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, step + 1)]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_the_steps_before_memory_runs_out_are_saved(tmp_path, error):
    """In the second of the two batches of step 3: what the first one added to the gradient is discarded."""
    batches = [batch_of(step) for step in range(8)]
    with pytest.raises(type(error)):
        train(tmp_path, batches, steps=4, module=Starved(error, at=6), accumulate=2)
    assert_saved(tmp_path, step=2, batches=batches, kind=Normed, accumulate=2)
    # and it resumes to the end
    parts, parts_optimizer, _ = train(tmp_path, batches, steps=4, module=Normed(), accumulate=2)
    whole, whole_optimizer, _ = train(tmp_path / "other", batches, steps=4, module=Normed(), accumulate=2)
    ours, theirs = collect(parts, parts_optimizer), collect(whole, whole_optimizer)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_step_half_taken_when_memory_runs_out_is_not_saved(tmp_path, monkeypatch):
    def half_taken(optimizer, **settings):
        take_step(optimizer, **settings)
        if int(optimizer.state[optimizer.param_groups[0]["params"][0]]["step"]) == 4:
            raise MemoryError

    monkeypatch.setattr("foveate.engine.fit.take_step", half_taken)
    with pytest.raises(MemoryError):
        train(tmp_path, [batch_of(step) for step in range(6)], save_every=2)
    assert [path.name for path in list_complete(tmp_path)] == ["step_00000002"]


def test_a_checkpoint_that_finds_no_memory_leaves_the_one_before(tmp_path, monkeypatch):
    def save_file(tensors, path):
        path.write_bytes(b"half")
        raise MemoryError

    train(tmp_path, [batch_of(step) for step in range(2)], steps=2)
    monkeypatch.setattr("foveate.engine.checkpoint.save_file", save_file)
    with pytest.raises(MemoryError):
        train(tmp_path, [batch_of(step) for step in range(6)], module=Line())
    saved = load_latest(tmp_path, report=pytest.fail)
    assert saved is not None and saved.step == 2
    assert [path.name for path in list_complete(tmp_path)] == ["step_00000002"]


def die(way: str) -> None:
    """End a worker, as what ends it would."""
    if way == "MemoryError":
        raise MemoryError
    os.kill(os.getpid(), getattr(signal, way))


DEAD = {
    "SIGKILL": r"one of the 2 worker processes that decode images \(pid \d+\) was killed by SIGKILL, as the system "
    r"does where memory runs out; \d+\.\d GB of memory were available at the batch before",
    "MemoryError": r"memory ran out in one of the 2 worker processes that decode images \(pid \d+\)",
}


@pytest.mark.parametrize("way", DEAD)
def test_a_dead_worker_is_named_and_the_steps_before_are_saved(tmp_path, monkeypatch, image_folder, way):
    source = ImageSource(open_data(image_folder, split="train"))
    draw = ImageSource.__getitem__
    monkeypatch.setattr(ImageSource, "__getitem__", lambda self, key: die(way) if key == (0, 9) else draw(self, key))
    order = [[(0, index)] for index in (1, 3, 5, 7, 9, 0, 2)]  # it dies at the fifth
    before = {*multiprocessing.active_children()}
    with pytest.raises(ExhaustedError, match=DEAD[way]):
        train(tmp_path, make_loader(source, order, workers=2))
    monkeypatch.undo()
    step = len(Path(tmp_path / "metrics.jsonl").read_text().splitlines())
    assert step == 4 if way == "MemoryError" else step <= 4  # a death is known before the batches in the queue are used
    batches = [*make_loader(source, order[:step], workers=0)]
    if step:
        assert_saved(tmp_path, step=step, batches=batches, kind=Line)
    assert {*multiprocessing.active_children()} <= before


def test_memory_that_runs_out_without_workers_is_no_bad_image(monkeypatch, image_folder):
    monkeypatch.setattr("foveate.data.images._check_header", lambda *_: die("MemoryError"))
    source = ImageSource(open_data(image_folder, split="train"))
    with pytest.raises(ExhaustedError, match="memory ran out in this process, which decodes images"):
        next(iter(make_loader(source, [[(0, 0)]], workers=0)))


def test_a_worker_that_dies_while_a_step_is_taken_does_not_break_into_it(image_folder):
    source = ImageSource(open_data(image_folder, split="train"))
    batches = iter(make_loader(source, BatchSampler(10, batch=1, seed=0, batches=50), workers=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid or 0, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid or 0, os.WEXITED | os.WNOWAIT)  # its SIGCHLD has arrived
    for _ in range(1000):  # a signal's handler runs between two instructions
        pass
    with pytest.raises(ExhaustedError, match=f"pid {worker.pid}"):
        next(batches)
