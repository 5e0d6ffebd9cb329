"""The training loop: any objective with `loss = objective(batch)`, any loader that starts at a given place.

One step: take batches, agree on what they hold, forward, backward (averaged over all items of all batches and
processes), check, step, save. The host never waits for the device inside a step: it reads what came of a step when the
next one is queued. A run that is stopped (SIGTERM, Ctrl-C, kill -9, power) and started again by the same command ends
with the same bits: order and draws come from (seed, step), and the checkpoint holds the trained tensors and the
optimizer's. Deliberately absent: epochs (the sampler's matter), schedulers with state.
"""

import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from foveate.engine.checkpoint import Checkpoint, collect, running_statistics, save_checkpoint
from foveate.engine.distributed import Processes, loss_noticed
from foveate.engine.guard import Guard, Step, ids_of, judge
from foveate.engine.log import Log
from foveate.engine.optim import PartlyTrained, gradient_norm, take_step
from foveate.engine.stop import signals_caught
from foveate.errors import InputError
from foveate.types import Batch

RANDOM_RULE = (
    "No random state is saved: order of the images from (seed, epoch), regions from (seed, epoch, image), draws "
    "inside the objective from (seed, step, process)."
)


@dataclass
class Outcome:
    """How far a run came and what it met on the way."""

    step: int  # steps done
    stopped_by: signal.Signals | None = None  # the signal that ended it early
    position: int = 0  # images of the stream that those steps took, over all processes
    good: int = 0  # images that were trained on, each time they came, over all processes
    skipped: int = 0  # steps that moved nothing, because their loss or gradient was not finite
    bad: dict[str, str] = field(default_factory=dict)  # images that could not be used: id -> reason

    def facts(self) -> dict[str, Any]:
        """What a checkpoint must hold of it; the inverse of `resumed`."""
        return {"position": self.position, "good": self.good, "skipped": self.skipped, "bad": self.bad}

    @classmethod
    def resumed(cls, saved: Checkpoint) -> "Outcome":
        """How far the run had come when it was saved."""
        facts = saved.facts
        return cls(
            saved.step, position=facts["position"], good=facts["good"], skipped=facts["skipped"], bad=facts["bad"]
        )


def fit(
    objective: nn.Module,
    loader: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    count: Callable[[Batch], int],
    learning_rate: Callable[[int], float],
    steps: int,
    begin: Outcome | None = None,
    accumulate: int = 1,
    weight_decay: float = 0.0,
    clip: float | None = None,
    partly: Sequence[PartlyTrained] = (),
    seed: int = 0,
    processes: Processes,
    log: Log,
    guard: Guard | None = None,
    checkpoints: Path,
    save_every: int,
    keep: int = 2,
    validate: Callable[[], float | None] | None = None,
    facts: dict[str, Any] | None = None,
) -> Outcome:
    """Train from where `begin` came to, up to `steps`, saving on the way.

    Args:
        objective: a scalar loss, the mean over the items of a batch; parameters with `requires_grad` are trained.
        loader: this process's batches, the first one that of the first step to do.
        optimizer: over the trained parameters; restored already when resuming.
        count: items of a batch (regions, for CLIPSelf), so that the loss is averaged over those of ALL processes.
        learning_rate: of a step, from 0.
        steps: where to end.
        begin: where an earlier part of the run came to; the start when None.
        accumulate: batches a process and step; the gradient is that of the mean over all their items.
        weight_decay: of the trained rows of `partly`.
        clip: longest gradient, in its Euclidean norm; None: as it comes.
        partly: matrices trained in some rows only; see `take_step`.
        seed: draws inside the objective, if it makes any, come from (seed, step, process).
        processes: of the run.
        log: hears every step, one step later or before a save.
        guard: what happens where the loss or its gradient is not finite; when None, it stops the run.
        checkpoints: folder of the checkpoints.
        save_every: steps between checkpoints; the last step and a signal save too.
        keep: newest checkpoints kept.
        validate: the held-out loss, asked at every save that is due; the checkpoint with the lowest is kept as well.
        facts: more that the checkpoints are to hold; small JSON.

    Returns:
        The steps done, the signal that stopped the run if one did, and the images that could and could not be used.

    Raises:
        InputError: the loss or its gradient is not finite; parameters and optimizer are still those of the step before,
            which is saved. Or the loader refused its images, in this process or another; the steps before are saved.
        LostProcessError: another process is gone or silent.
    """
    outcome = Outcome(step=0) if begin is None else replace(begin, bad=dict(begin.bad))
    saved, guard = outcome.step, guard or Guard(log, processes)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    running, unmoved = [*running_statistics(objective).values()], list[Tensor]()  # these as the step found them
    wrapped = objective
    if processes.size > 1 and not isinstance(objective, FSDPModule):  # which averages gradients by itself
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.15 has another name for it, 2.10 has not
            wrapped = DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)
    stream, refusal, refused = iter(loader), None, 0
    given, before = None, outcome  # the step that the device works on; how far the run had come before it

    def rescue() -> None:
        """Keep the steps before one that is not finite: nothing was moved since but by the step that is under way."""
        for buffer, value in zip(running, unmoved, strict=False):
            buffer.copy_(value)
        if saved < before.step:
            _save(checkpoints, objective, optimizer, before, facts or {}, keep, processes)

    with signals_caught() as caught, loss_noticed(lambda: f"step {outcome.step + 1}"):
        while outcome.step < steps:
            # --- take this step's batches; agree with the other processes on what they hold, and whether to go on
            batches, refusal = _take(stream, accumulate)
            counts, bad = [count(batch) for batch in batches], sum(len(batch.bad) for batch in batches)
            mine = [sum(counts), sum(len(batch.samples) for batch in batches), bad, refusal is not None, len(caught)]
            items, good, bad, refused, asked = (int(number) for number in processes.total(mine))
            if refused:
                break
            if asked:
                outcome.stopped_by = _first_signal(caught, processes)
                break
            assert len(batches) == accumulate, f"the loader ended after step {outcome.step} of {steps}"

            # --- forward and backward: the gradient of the mean over the items of all batches and processes
            torch.manual_seed(_step_seed(seed, outcome.step, processes.rank))
            unmoved = [buffer.clone() for buffer in running]
            losses, shares = [], [number / max(items, 1) for number in counts]
            for index, batch in enumerate(batches):
                with _communicating(wrapped, index == accumulate - 1):
                    loss = wrapped(batch)
                    # gradients are averaged over the processes, so their number cancels
                    (loss * (shares[index] * processes.size)).backward()
                losses.append(loss.detach())

            # --- nothing that is not finite reaches the parameters, on any process; the device finds out by itself
            norm = gradient_norm(trained)
            nonfinite, numbers, ready = judge(losses, shares, norm=norm, processes=processes)
            for buffer, value in zip(running, unmoved, strict=True):
                buffer.copy_(torch.where(nonfinite > 0, value, buffer))
            if clip is not None:
                torch.nn.utils.clip_grads_with_norm_(trained, clip, norm)  # on the device

            # --- meanwhile: what came of the step before
            _settle(given, guard, outcome, rescue)
            lr = learning_rate(outcome.step)
            given = Step(outcome.step + 1, ids_of(batches), lr, good, items, nonfinite, numbers, ready)

            # --- step; where no process had an item there is nothing to learn from
            if items:
                take_step(optimizer, lr=lr, weight_decay=weight_decay, partly=partly, nonfinite=nonfinite)
            optimizer.zero_grad(set_to_none=True)
            before = replace(outcome)  # the images found bad since may be known early
            outcome.step, outcome.position = outcome.step + 1, outcome.position + good + bad
            outcome.bad.update({sample.id: sample.reason for batch in batches for sample in batch.bad})

            # --- save when it is time
            if outcome.step == steps or outcome.step % save_every == 0:
                _settle(given, guard, outcome, rescue)
                given, held_out = None, _validate(validate, outcome.step, log)
                _save(checkpoints, objective, optimizer, outcome, {**(facts or {}), **held_out}, keep, processes)
                saved = outcome.step

        _settle(given, guard, outcome, rescue)
        if saved < outcome.step:
            _save(checkpoints, objective, optimizer, outcome, facts or {}, keep, processes)
        if refused:
            with processes.together():
                if refusal is not None:
                    raise refusal
    return outcome


def _take(stream: Iterator[Batch], accumulate: int) -> tuple[list[Batch], InputError | None]:
    """The next batches, fewer where the stream ends; or why the loader gives no more."""
    batches = []
    try:
        batches.extend(islice(stream, accumulate))
    except InputError as error:
        return [], error
    return batches, None


def _communicating(wrapped: nn.Module, last: bool) -> Any:
    """Processes average their gradients once a step, in the backward of its last batch."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(last)
    return nullcontext() if last or not isinstance(wrapped, DistributedDataParallel) else wrapped.no_sync()


def _settle(given: Step | None, guard: Guard, outcome: Outcome, rescue: Callable[[], None]) -> None:
    """Hear what came of a step, and count its images where it moved something; where it ends the run, save first."""
    if given is None:
        return
    try:
        is_finite = guard.settle(given)
    except InputError:
        rescue()
        raise
    if is_finite:
        outcome.good += given.images
    else:
        outcome.skipped += 1


def _first_signal(caught: list[signal.Signals], processes: Processes) -> signal.Signals:
    return next(number for part in processes.gather(caught) for number in part)


def _validate(validate: Callable[[], float | None] | None, step: int, log: Log) -> dict[str, float | None]:
    if validate is None:
        return {}
    found = {"held_out_loss": validate()}
    log.event("validation", {"step": step, **found})
    if found["held_out_loss"] is not None:
        log.say(f"step {step}  held-out loss {found['held_out_loss']:.4f}")
    return found


def _save(
    folder: Path,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    outcome: Outcome,
    facts: dict[str, Any],
    keep: int,
    processes: Processes,
) -> None:
    """Write a checkpoint by the first process, the others waiting; all of them then know the same bad images."""
    for others in processes.gather(outcome.bad):
        outcome.bad.update(others)
    facts = {**outcome.facts(), "random_rule": RANDOM_RULE, **facts}
    tensors = collect(objective, optimizer, hold=processes.is_first)
    with processes.together():
        if processes.is_first:
            save_checkpoint(folder, step=outcome.step, tensors=tensors, facts=facts, keep=keep)


def _step_seed(seed: int, step: int, rank: int) -> int:
    """One 63-bit seed a (seed, step, process), far apart for neighbours (splitmix64's constants)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**64
    return (mixed ^ (mixed >> 31)) % 2**63
