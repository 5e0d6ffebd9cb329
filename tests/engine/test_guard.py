"""A step that is not finite changes nothing and is reported with its images; the host never waits for the device."""

import json
import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from foveate.engine.checkpoint import collect, list_complete
from foveate.engine.distributed import Processes
from foveate.engine.fit import Outcome, Saving, Update, fit
from foveate.engine.guard import Guard, check_finite
from foveate.engine.log import Log
from foveate.engine.optim import build_optimizer, gradient_norm, take_step
from foveate.errors import InputError
from foveate.types import Batch, Sample

ALONE = Processes(rank=0, size=1, device=torch.device("cpu"))


class Line(nn.Module):
    """The mean over all boxes of (w . box - 1)^2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5, -0.25, 0.1, 0.0]]))

    def forward(self, batch: Batch) -> torch.Tensor:
        return (torch.cat([sample.boxes for sample in batch.samples]) @ self.weight.T - 1).square().mean()


def batches(count: int, *, broken: tuple[int, ...] = ()) -> list[Batch]:
    made = []
    for step in range(count):
        boxes = torch.rand(3, 4, generator=torch.Generator().manual_seed(step))
        if step in broken:
            boxes[1, 1] = float("nan")
        made.append(Batch([Sample(f"image {step}", torch.zeros(3, 2, 2, dtype=torch.uint8), boxes)], []))
    return made


def count(batch: Batch) -> int:
    return sum(len(sample.boxes) for sample in batch.samples)


def train(folder, module, optimizer, given, *, accumulate=1, save_every=100, **rules) -> Outcome:
    steps = len(given) // accumulate
    with Log(folder / "metrics.jsonl", steps=steps, every=1) as log:
        return fit(
            module,
            given,
            optimizer,
            count=count,
            update=Update(lambda step: 0.01 / (step + 1), accumulate=accumulate),
            steps=steps,
            saving=Saving(folder / "checkpoints", save_every),
            processes=ALONE,
            log=log,
            guard=Guard(log, ALONE, record=folder / "nonfinite.jsonl", **rules),
        )


def by_hand(given: list[Batch], *, leave_out: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    module = Line()
    optimizer = build_optimizer(module, weight_decay=0.1)
    for step, batch in enumerate(given):
        if step not in leave_out:
            module(batch).backward()
            take_step(optimizer, lr=0.01 / (step + 1), weight_decay=0.1)
            optimizer.zero_grad()
    return collect(module, optimizer)


def assert_same_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys() and len(ours) == 4  # the weight, two moments, a counter
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("at", [2, 5])  # with a step after it whose work was begun already, and at the end
def test_stop_keeps_the_state_of_the_step_before(tmp_path, at):
    given, module = batches(6, broken=(at,)), Line()
    optimizer = build_optimizer(module, weight_decay=0.1)
    with pytest.raises(InputError, match=rf"step {at + 1}: .*'image {at}'.*nonfinite.jsonl.*--skip-nonfinite 20"):
        train(tmp_path, module, optimizer, given, save_every=2)
    assert_same_bits(collect(module, optimizer), by_hand(given[:at]))
    kept = [path.name for path in list_complete(tmp_path / "checkpoints")]  # the newest two, the step before with them
    assert kept == [f"step_{n:08d}" for n in ((2,) if at == 2 else (4, 5))]
    (line,) = lines(tmp_path / "nonfinite.jsonl")
    assert line["step"] == at + 1 and line["images"] == [f"image {at}"] and line["value"] == "nan"
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl") if "loss" in line] == list(range(1, at + 1))


def test_skip_counts_the_step_and_continues(tmp_path):
    given, module = batches(6, broken=(2, 5)), Line()
    optimizer = build_optimizer(module, weight_decay=0.1)
    outcome = train(tmp_path, module, optimizer, given, skip=20)
    assert_same_bits(collect(module, optimizer), by_hand(given, leave_out=(2, 5)))
    assert outcome == Outcome(step=6, position=6, good=4, skipped=2)
    entries = lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in entries if "loss" in line] == [1, 2, 4, 5]
    assert [line["images"] for line in entries if line.get("event") == "nonfinite"] == [["image 2"], ["image 5"]]
    assert [line["step"] for line in lines(tmp_path / "nonfinite.jsonl")] == [3, 6]


def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path):
    module = Line()
    optimizer = build_optimizer(module, weight_decay=0.1)
    outcome = train(tmp_path, module, optimizer, batches(6, broken=(0, 1, 3, 4)), skip=2)
    assert outcome.skipped == 4  # never three in a row
    with pytest.raises(InputError, match=r"step 4: .*the last of 3 such steps in a row"):
        train(tmp_path, module, optimizer, batches(6, broken=(1, 2, 3)), skip=2)


def test_only_the_images_of_the_broken_batch_are_listed(tmp_path):
    module = Line()
    with pytest.raises(InputError, match=r"step 2: .*'image 3'") as caught:
        train(tmp_path, module, build_optimizer(module, weight_decay=0.1), batches(6, broken=(3,)), accumulate=2)
    assert "image 2" not in str(caught.value)


def test_accumulated_batches_are_weighted_by_their_items(tmp_path):
    given = batches(2)
    sample = given[1].samples[0]
    given[1].samples[0] = Sample("one box", sample.image, sample.boxes[:1])  # 3 boxes and 1: shares of 3/4 and 1/4
    module, other = Line(), Line()
    optimizer = build_optimizer(module, weight_decay=0.1)
    train(tmp_path, module, optimizer, given, accumulate=2)
    union = other(Batch([sample for batch in given for sample in batch.samples], []))
    union.backward()
    assert other.weight.grad is not None
    # Adam's first moment after one step is a tenth of the gradient
    moment = collect(module, optimizer)["optimizer/exp_avg/weight"]
    torch.testing.assert_close(moment, other.weight.grad / 10, rtol=1e-6, atol=1e-7)
    (line,) = [line for line in lines(tmp_path / "metrics.jsonl") if "loss" in line]
    assert line["items"] == 4 and line["loss"] == pytest.approx(union.item())


def test_a_step_is_logged_when_the_next_one_is_queued(tmp_path):
    seen = []

    class Reader(Line):
        def forward(self, batch: Batch) -> torch.Tensor:
            seen.append(len(lines(tmp_path / "metrics.jsonl")))
            return super().forward(batch)

    module = Reader()
    train(tmp_path, module, build_optimizer(module, weight_decay=0.1), batches(6), save_every=4)
    # the line of step s comes after the forward of step s + 1; those up to a save before it (step 4)
    assert seen == [0, 0, 1, 2, 4, 4] and len(lines(tmp_path / "metrics.jsonl")) == 6


def test_the_host_does_not_wait_for_the_device_within_a_step():
    """Fake tensors have no values: whatever the host would have to wait for is an error here."""
    with FakeTensorMode():
        layer = nn.Linear(4, 6)
        partly = [(layer.weight, slice(4, None))]
        optimizer = build_optimizer(layer, weight_decay=0.1, partly=partly)
        loss = layer(torch.ones(2, 4)).mean()
        loss.backward()
        nonfinite, numbers, _ = check_finite(
            [loss, loss], [0.5, 0.5], norm=gradient_norm([*layer.parameters()]), processes=ALONE
        )
        take_step(optimizer, lr=0.1, weight_decay=0.1, partly=partly, nonfinite=nonfinite)
        assert numbers.shape == (4,)
        with pytest.raises(DataDependentOutputException):
            numbers.tolist()


def test_losses_and_gradients_that_are_not_finite_are_recognised():
    fine, bad = torch.tensor(2.0), torch.tensor(math.inf)
    for losses, norm, expected in (([fine, fine], fine, 0.0), ([fine, bad], fine, 1.0), ([fine, fine], bad, 1.0)):
        nonfinite, numbers, ready = check_finite(losses, [0.25, 0.75], norm=norm, processes=ALONE)
        assert nonfinite.item() == expected and ready is None
    assert numbers.tolist() == [2.0, 2.0, 2.0, math.inf]
