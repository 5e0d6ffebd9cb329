"""The training loop: any objective with `loss = objective(batch)`, any loader that starts at a given step.

One step: agree on the number of items, forward, backward (averaged over all processes), check, step, log, save. A run
that is stopped (SIGTERM, Ctrl-C, kill -9, power) and started again by the same command ends with the same bits: order
and draws come from (seed, step), and the checkpoint holds the trained tensors and the optimizer's. Deliberately absent:
epochs (the sampler's matter), validation, gradient accumulation and clipping, schedulers with state.
"""

import math
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from saccade.engine.checkpoint import collect, save_checkpoint
from saccade.engine.distributed import Processes
from saccade.engine.log import Log
from saccade.engine.optim import PartlyTrained, take_step
from saccade.types import Batch, InputError


@dataclass
class Outcome:
    """How far a run came and what it met on the way."""

    step: int  # steps done
    stopped_by: signal.Signals | None = None  # the signal that ended it early
    good: int = 0  # pictures that were trained on, each time they came, over all processes
    bad: dict[str, str] = field(default_factory=dict)  # pictures that could not be used: id -> reason


def fit(
    objective: nn.Module,
    loader: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    count: Callable[[Batch], int],
    learning_rate: Callable[[int], float],
    steps: int,
    start_step: int = 0,
    weight_decay: float = 0.0,
    partly: Sequence[PartlyTrained] = (),
    bfloat16: bool = False,
    seed: int = 0,
    processes: Processes,
    log: Log,
    checkpoints: Path,
    save_every: int,
    keep: int = 2,
    good: int = 0,
    bad: dict[str, str] | None = None,
) -> Outcome:
    """Train from `start_step` to `steps`, saving on the way.

    Args:
        objective: a scalar loss, the mean over the items of a batch; parameters with `requires_grad` are trained.
        loader: this process's batches, the first one belonging to `start_step`.
        optimizer: over the trained parameters; restored already when resuming.
        count: items of a batch (regions, for CLIPSelf), so that the loss is averaged over those of ALL processes.
        learning_rate: of a step, from 0.
        steps: where to end.
        start_step: steps already done.
        weight_decay: of the trained rows of `partly`.
        partly: matrices trained in some rows only; see `take_step`.
        bfloat16: run the objective under autocast.
        seed: draws inside the objective, if it makes any, come from (seed, step, process).
        processes: of the run.
        log: hears every step.
        checkpoints: folder of the checkpoints.
        save_every: steps between checkpoints; the last step and a signal save too.
        keep: checkpoints kept.
        good: pictures trained on before `start_step`.
        bad: pictures found unusable before `start_step`.

    Returns:
        The steps done, the signal that stopped the run if one did, and the pictures that could and could not be used.

    Raises:
        InputError: the loss or its gradient is not finite; parameters and optimizer are still those of the step before.
    """
    outcome = Outcome(step=start_step, good=good, bad=dict(bad or {}))
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    wrapped = DistributedDataParallel(objective, broadcast_buffers=False) if processes.size > 1 else objective

    with signals_caught() as caught:
        for batch in loader:
            step = outcome.step

            # --- agree with the other processes on what this step holds
            items, pictures = processes.total([count(batch), len(batch.samples)])
            outcome.good += int(pictures)
            outcome.bad.update({sample.id: sample.reason for sample in batch.bad})

            # --- forward and backward: the gradient of the mean over the items of all processes
            torch.manual_seed(_step_seed(seed, step, processes.rank))
            with torch.autocast(processes.device.type, dtype=torch.bfloat16, enabled=bfloat16):
                loss = wrapped(batch)
            share = count(batch) / max(items, 1)
            (loss * (share * processes.size)).backward()  # DistributedDataParallel averages, so the size cancels

            # --- nothing that is not finite reaches the parameters, on any process
            norm = _gradient_norm(trained)
            own = loss.item()
            (total,) = processes.total([own * share])
            if not (math.isfinite(total) and math.isfinite(norm)):
                raise _not_finite(step, own=own, norm=norm, batch=batch, processes=processes)

            # --- step; where no process had an item there is nothing to learn from
            lr = learning_rate(step)
            if items:
                take_step(optimizer, lr=lr, weight_decay=weight_decay, partly=partly)
            optimizer.zero_grad(set_to_none=True)
            outcome.step = step + 1
            mean = total if items else None
            log.step(outcome.step, loss=mean, lr=lr, gradient_norm=norm, pictures=int(pictures), items=int(items))

            # --- save when it is time; leave when done or asked to
            leave = outcome.step == steps or processes.total([len(caught)]) != [0]
            if leave or outcome.step % save_every == 0:
                _save(checkpoints, objective, optimizer, outcome=outcome, keep=keep, processes=processes)
            if leave:
                break

    if outcome.step < steps:
        outcome.stopped_by = _first_signal(caught, outcome=outcome, steps=steps, processes=processes)
    return outcome


@contextmanager
def signals_caught() -> Iterator[list[signal.Signals]]:
    """Note SIGTERM and SIGINT in a list instead of dying; a second one acts as ever. Nothing else happens inside the
    handler: the loop looks at the list when a step is whole."""
    caught: list[signal.Signals] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(signal.Signals(number))
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_signal(
    caught: list[signal.Signals], *, outcome: Outcome, steps: int, processes: Processes
) -> signal.Signals:
    numbers = [number for part in processes.gather(caught) for number in part]
    assert numbers, f"the loader ended after step {outcome.step} of {steps}"
    return numbers[0]


def _save(
    folder: Path,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    outcome: Outcome,
    keep: int,
    processes: Processes,
) -> None:
    """Write a checkpoint by the first process, the others waiting; all of them then know the same bad pictures."""
    for others in processes.gather(outcome.bad):
        outcome.bad.update(others)
    facts = {"good": outcome.good, "bad": outcome.bad}
    with processes.together():
        if processes.is_first:
            save_checkpoint(folder, step=outcome.step, tensors=collect(objective, optimizer), facts=facts, keep=keep)


def _step_seed(seed: int, step: int, rank: int) -> int:
    """One 63-bit seed a (seed, step, process), far apart for neighbours (splitmix64's constants)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**64
    return (mixed ^ (mixed >> 31)) % 2**63


def _gradient_norm(trained: list[nn.Parameter]) -> float:
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).item()


def _not_finite(step: int, *, own: float, norm: float, batch: Batch, processes: Processes) -> InputError:
    """The error all processes raise together; it names the pictures of the processes whose own loss went wrong."""
    ids = [sample.id for sample in batch.samples]
    everyone = processes.gather((own, ids))
    guilty = [part for loss, part in everyone if not math.isfinite(loss)] or [part for _, part in everyone]
    names = ", ".join(repr(name) for part in guilty for name in part)
    return InputError(
        f"step {step + 1}: the loss and its gradient must be finite; got loss {own}, gradient norm {norm}, from the "
        f"pictures {names}. Stopped before the optimizer moved anything; the last checkpoint is good. Look at these "
        "pictures and their boxes, or start again with a lower --lr."
    )
