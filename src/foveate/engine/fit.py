"""The training loop: any objective with `loss = objective(batch)`, any loader that starts at a given image.

One step: take batches, agree on their number of items, forward, backward (averaged over all items of all batches and
processes), check, step, save. The host never waits for the device inside a step: it reads the result of a step when the
next one is queued. A run that is stopped (SIGTERM, Ctrl-C, kill -9, power) and started again by the same command ends
with the same bits: order and draws come from (seed, step), and the checkpoint holds the trained tensors and the
optimizer's. Deliberately absent: epochs (the sampler has them), schedulers with state.
"""

import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from traceback import clear_frames
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from foveate.engine.checkpoint import (
    Checkpoint,
    collect,
    newest_step,
    one_at_a_time,
    running_statistics,
    save_checkpoint,
)
from foveate.engine.distributed import Processes, loss_noticed
from foveate.engine.guard import Guard, Step, check_finite, ids_of
from foveate.engine.log import Log
from foveate.engine.optim import PartlyTrained, gradient_norm, take_step
from foveate.engine.stop import is_exhausted, signals_caught
from foveate.errors import ExhaustedError, InputError
from foveate.types import Batch

RANDOM_RULE = (
    "No random state is saved: order of the images from (seed, epoch), regions from (seed, epoch, image), draws "
    "inside the objective from (seed, step, process)."
)


@dataclass
class Outcome:
    """How far a run came."""

    step: int  # steps done
    stopped_by: signal.Signals | None = None  # the signal that ended it early
    position: int = 0  # images of the stream that those steps took, over all processes
    good: int = 0  # images that were trained on, each time they were used, over all processes
    skipped: int = 0  # steps that changed nothing, because their loss or gradient was not finite
    bad: dict[str, str] = field(default_factory=dict)  # images that could not be used: id -> reason

    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds of it; the inverse of `resumed`."""
        return {"position": self.position, "good": self.good, "skipped": self.skipped, "bad": self.bad}

    @classmethod
    def resumed(cls, saved: Checkpoint) -> "Outcome":
        """How far the run had come when it was saved."""
        return cls(saved.step, **{name: saved.facts[name] for name in ("position", "good", "skipped", "bad")})


@dataclass(frozen=True)
class Update:
    """How a step is computed and how it changes the parameters."""

    learning_rate: Callable[[int], float]  # of a step, from 0
    accumulate: int = 1  # batches per process; the gradient is that of the mean over all their items
    weight_decay: float = 0.0  # of the trained rows of `partly`
    partly: Sequence[PartlyTrained] = ()  # matrices trained in some rows only, see `take_step`
    clip: float | None = None  # maximum Euclidean norm of the gradient
    seed: int = 0  # draws inside the objective come from (seed, step, process)


@dataclass(frozen=True)
class Saving:
    """When and where a run is saved."""

    folder: Path  # of the checkpoints
    every: int  # steps between them; the last step and a signal save too
    keep: int = 2  # newest checkpoints kept
    validate: Callable[[], float | None] | None = None  # held-out loss, at every save; the lowest one is kept too


def fit(  # noqa: C901  # one loop, to be read from top to bottom
    objective: nn.Module,
    loader: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    count: Callable[[Batch], int],
    update: Update,
    steps: int,
    saving: Saving,
    processes: Processes,
    log: Log,
    begin: Outcome | None = None,
    guard: Guard | None = None,
    facts: dict[str, Any] | None = None,
) -> Outcome:
    """Train from `begin` to `steps`, saving on the way.

    Args:
        objective: a scalar loss, the mean over the items of a batch; parameters with `requires_grad` are trained.
        loader: this process's batches, starting with that of the first step to do.
        optimizer: over the trained parameters; restored already when resuming.
        count: items of a batch (regions, for CLIPSelf), so that the loss is averaged over those of ALL processes.
        log: gets every step, one step later or before a save.
        begin: where an earlier part of the run ended; None: the start.
        guard: what happens where the loss or its gradient is not finite; None: the run stops.
        facts: small JSON that the checkpoints hold as well.

    Returns:
        The steps done, the signal that stopped the run if one did, and the images that could and could not be used.

    Raises:
        InputError: the loss or its gradient is not finite; parameters and optimizer are still those of the step before,
            which is saved. Or the loader refused its images, in this process or another; the steps before are saved.
        ExhaustedError: a process that decodes died, here or beside another process; the steps before are saved. Where
            memory runs out in this process, they are saved too, and the error of Python or torch is raised.
        LostProcessError: another process is gone or silent.
    """
    outcome = Outcome(step=0) if begin is None else replace(begin, bad=dict(begin.bad))
    guard, facts, last_saved = guard or Guard(log, processes), facts or {}, outcome.step
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    running = [*running_statistics(objective).values()]
    running_before = list[Tensor]()  # as the step under way found them
    wrapped = objective
    if processes.size > 1 and not isinstance(objective, FSDPModule):  # which averages gradients by itself
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.15 has another name for it, 2.10 has not
            wrapped = DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)
    stream, refusal, is_refused = iter(loader), None, 0
    queued: Step | None = None  # the step that the device works on
    outcome_before = outcome  # without that step
    phase: Literal["between steps", "gradient", "moving"] = "between steps"

    def save(
        state: Outcome, *, processes: Processes = processes, held_out: dict[str, float | None] | None = None
    ) -> None:
        """Write a checkpoint by the first process, the others waiting; all then know the same unusable images."""
        for images in processes.gather(state.bad):
            state.bad.update(images)
        tensors = collect(objective, optimizer, hold=processes.is_first)
        with processes.together():
            if processes.is_first:
                saved = {**state.facts(), "random_rule": RANDOM_RULE, **facts, **(held_out or {})}
                save_checkpoint(saving.folder, step=state.step, tensors=tensors, facts=saved, keep=saving.keep)

    def finish(step: Step | None) -> None:
        """Log a queued step and count its images or its skipping; where it ends the run, save the steps before it."""
        if step is None:
            return
        try:
            is_finite = guard.finish(step)
        except InputError:
            for buffer, value in zip(running, running_before, strict=False):
                buffer.copy_(value)
            if last_saved < outcome_before.step:
                save(outcome_before)
            raise
        if is_finite:
            outcome.good += step.images
        else:
            outcome.skipped += 1

    @contextmanager
    def rescuing() -> Iterator[None]:
        """Save the steps done where memory runs out, without what the step under way has computed.

        Any of several processes does so alone: their weights are equal, and the others may wait for its gradient. Then
        the unusable images of the others since the last save are not listed. Sharded weights are not saved.
        """
        try:
            yield
        except Exception as error:
            if not is_exhausted(error):
                raise
            clear_frames(error.__traceback__)  # they hold the activations
            optimizer.zero_grad(set_to_none=True)
            if phase == "gradient":
                for buffer, value in zip(running, running_before, strict=True):
                    buffer.copy_(value)
            if phase == "moving" or isinstance(objective, FSDPModule):  # weights and moments are those of no step
                raise
            finish(queued)
            with one_at_a_time(saving.folder):
                others_saved = newest_step(saving.folder) if processes.size > 1 else 0
                if max(last_saved, others_saved) < outcome.step:
                    save(outcome, processes=replace(processes, rank=0, size=1))
            raise

    with signals_caught() as caught, rescuing(), loss_noticed(lambda: f"step {outcome.step + 1}"):
        while outcome.step < steps:
            # --- take this step's batches; agree with the other processes on what they hold, and whether to continue
            batches, refusal = _take(stream, update.accumulate)
            counts, bad = [count(batch) for batch in batches], sum(len(batch.bad) for batch in batches)
            local = [sum(counts), sum(len(batch.samples) for batch in batches), bad, refusal is not None, len(caught)]
            items, good, bad, is_refused, signals = (int(number) for number in processes.total(local))
            if is_refused:
                break
            if signals:
                outcome.stopped_by = next(number for numbers in processes.gather(caught) for number in numbers)
                break
            assert len(batches) == update.accumulate, f"the loader ended after step {outcome.step} of {steps}"

            # --- forward and backward: the gradient of the mean over the items of all batches and processes
            torch.manual_seed(_step_seed(update.seed, outcome.step, processes.rank))
            running_before, phase = [buffer.clone() for buffer in running], "gradient"
            losses, shares = [], [number / max(items, 1) for number in counts]
            for index, batch in enumerate(batches):
                with _communicating(wrapped, index == update.accumulate - 1):
                    loss = wrapped(batch)
                    # gradients are averaged over the processes, so their number cancels
                    (loss * (shares[index] * processes.size)).backward()
                losses.append(loss.detach())

            # --- nothing that is not finite reaches the parameters, on any process; computed on the device
            norm = gradient_norm(trained)
            nonfinite, numbers, ready = check_finite(losses, shares, norm=norm, processes=processes)
            for buffer, value in zip(running, running_before, strict=True):
                buffer.copy_(torch.where(nonfinite > 0, value, buffer))
            if update.clip is not None:
                torch.nn.utils.clip_grads_with_norm_(trained, update.clip, norm)  # on the device

            # --- meanwhile: the result of the step before
            finish(queued)
            queued = None
            lr = update.learning_rate(outcome.step)
            queued = Step(outcome.step + 1, ids_of(batches), lr, good, items, nonfinite, numbers, ready)

            # --- step; where no process had an item there is nothing to learn from
            phase = "moving"
            if items:
                decay, partly = update.weight_decay, update.partly
                take_step(optimizer, lr=lr, weight_decay=decay, partly=partly, nonfinite=nonfinite)
            optimizer.zero_grad(set_to_none=True)
            outcome_before = replace(outcome)
            outcome.step, outcome.position = outcome.step + 1, outcome.position + good + bad
            outcome.bad.update({sample.id: sample.reason for batch in batches for sample in batch.bad})
            phase = "between steps"

            # --- save
            if outcome.step == steps or outcome.step % saving.every == 0:
                finish(queued)
                queued, held_out = None, {}
                if saving.validate is not None:
                    held_out = {"held_out_loss": saving.validate()}
                    log.event("validation", {"step": outcome.step, **held_out})
                    if held_out["held_out_loss"] is not None:
                        log.print(f"step {outcome.step}  held-out loss {held_out['held_out_loss']:.4f}")
                save(outcome, held_out=held_out)
                last_saved = outcome.step

        finish(queued)
        queued = None
        if last_saved < outcome.step:
            save(outcome)
            last_saved = outcome.step
        if is_refused:
            with processes.together():
                if refusal is not None:
                    raise refusal
    return outcome


def _take(stream: Iterator[Batch], accumulate: int) -> tuple[list[Batch], InputError | ExhaustedError | None]:
    """The next batches, fewer where the stream ends; or the loader's refusal, or what ended its workers."""
    try:
        return list(islice(stream, accumulate)), None
    except (InputError, ExhaustedError) as error:
        return [], error


def _communicating(wrapped: nn.Module, last: bool) -> Any:
    """Processes average their gradients once per step, in the backward of its last batch."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(last)
    return nullcontext() if last or not isinstance(wrapped, DistributedDataParallel) else wrapped.no_sync()


def _step_seed(seed: int, step: int, rank: int) -> int:
    """One 63-bit seed per (seed, step, process), far apart for neighbours (splitmix64's constants)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**64
    return (mixed ^ (mixed >> 31)) % 2**63
