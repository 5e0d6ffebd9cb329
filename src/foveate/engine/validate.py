"""The objective's loss over held-out images: always the same images and random draws, so that it is comparable."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from foveate.engine.checkpoint import running_statistics
from foveate.engine.distributed import Processes
from foveate.errors import InputError
from foveate.types import Batch


@torch.no_grad()
def held_out_loss(
    objective: nn.Module,
    batches: Iterable[Batch],
    *,
    count: Callable[[Batch], int],
    processes: Processes,
) -> float | None:
    """The mean of the loss over all items of all held-out batches of all processes; nothing is trained.

    Args:
        objective, count: as given to `fit`; in training mode; its BatchNorms normalise by the batch, and their running
            statistics are put back.
        batches: this process's held-out batches, as many as every other process has.

    Returns:
        The loss; None where it is not finite.

    Raises:
        InputError: no held-out image could be used.
    """
    torch.manual_seed(0)  # the objective draws the same each time; a step sets its own seed
    running = [*running_statistics(objective).values()]
    before = [buffer.clone() for buffer in running]
    total, items = torch.zeros((), dtype=torch.float64, device=processes.device), 0
    stream = iter(batches)
    try:
        while True:
            batch = None
            with processes.together():  # none may start a batch that another process refused
                batch = next(stream, None)
            if batch is None:
                break
            number = count(batch)
            total += objective(batch).double() * number  # without items too: sharded weights need all processes
            items += number
    finally:  # where memory runs out, what was trained is saved
        for buffer, value in zip(running, before, strict=True):
            buffer.copy_(value)
    total, items = processes.total([total.item(), items])
    if items == 0:
        raise InputError("--validate: needs held-out images that can be used; none of them could be read.")
    return total / items if math.isfinite(total) else None
