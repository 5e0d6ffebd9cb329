"""The objective's loss over held-out pictures: always the same pictures and regions, so that it compares."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from saccade.engine.distributed import Processes
from saccade.types import Batch, InputError


@torch.no_grad()
def held_out_loss(
    objective: nn.Module,
    batches: Iterable[Batch],
    *,
    count: Callable[[Batch], int],
    bfloat16: bool = False,
    processes: Processes,
) -> float | None:
    """The mean of the loss over all items of all held-out batches of all processes; nothing is trained.

    Args:
        objective: as given to `fit`.
        batches: this process's share of the held-out pictures.
        count: as given to `fit`.
        bfloat16: run the objective under autocast.
        processes: of the run.

    Returns:
        The loss; None where it is not finite.

    Raises:
        InputError: no held-out picture could be used.
    """
    total, items = torch.zeros((), dtype=torch.float64, device=processes.device), 0
    with processes.together():
        for batch in batches:
            number = count(batch)
            if number == 0:
                continue
            with torch.autocast(processes.device.type, dtype=torch.bfloat16, enabled=bfloat16):
                total += objective(batch).double() * number
            items += number
    total, items = processes.total([total.item(), items])
    if items == 0:
        raise InputError("--validate: needs held-out pictures that can be used; none of them could be read.")
    return total / items if math.isfinite(total) else None
