"""Steps that are not finite never reach the parameters, and the host does not wait for the device to find out.

Whether loss and gradient are finite is computed on the device, which then moves nothing (`nonfinite` of `take_step`).
The host reads the numbers of a step when the next step's work is queued, from a copy that was made on the way: only
then is the step logged, or refused. Deliberately absent: gradient clipping, loss scaling.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.engine.distributed import Processes
from foveate.engine.log import Log
from foveate.errors import InputError
from foveate.io.files import full_disk_named
from foveate.types import Batch


@dataclass(frozen=True)
class Step:
    """A step that was queued on the device and whose result is not known yet."""

    number: int  # from 1
    batches: list[list[str]]  # ids of the images of each of its batches, in this process
    lr: float
    images: int  # usable ones, over all processes
    items: int  # of all processes
    nonfinite: Float[Tensor, ""]  # 1 where the step must move nothing, else 0; on the device
    numbers: Float[Tensor, " K+2"]  # on the host once `ready`: loss of each batch, mean over all items, norm
    ready: torch.cuda.Event | None  # None: at once

    def read(self) -> list[float]:
        """The numbers, waiting for this step but not for what was queued since."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.numbers.tolist()


def check_finite(
    losses: Sequence[Float[Tensor, ""]], shares: Sequence[float], *, norm: Float[Tensor, ""], processes: Processes
) -> tuple[Float[Tensor, ""], Float[Tensor, " K+2"], torch.cuda.Event | None]:
    """Whether a step is finite on all processes, computed on the device.

    Args:
        losses: of each batch of this process.
        shares: of each batch, in the items of all processes.
        norm: of the gradient, the same on all processes.

    Returns:
        `nonfinite`, `numbers` and `ready` of a `Step`.
    """
    values = torch.stack([loss.detach().double() for loss in losses])  # (K,)
    weighted = (value * share for value, share in zip(values, shares, strict=True))
    mean = processes.add_up(sum(weighted, values.new_zeros(())))
    nonfinite = (~(mean.isfinite() & norm.isfinite())).float()
    numbers = torch.cat([values, torch.stack([mean, norm.double()])]).to("cpu", non_blocking=True)  # pinned memory
    ready = None
    if values.is_cuda:
        ready = torch.cuda.Event()
        ready.record()
    return nonfinite, numbers, ready


class Guard:
    """Logs, skips or refuses each step, in all processes alike."""

    def __init__(
        self,
        log: Log,
        processes: Processes,
        *,
        skip: int = 0,
        record: Path | None = None,
    ) -> None:
        """Set the rule for steps that are not finite.

        Args:
            log: gets the finite steps, and the others as events.
            skip: steps in a row that are skipped where they are not finite; the next such step raises.
            record: file that receives one JSON line for each step that is not finite.
        """
        self._log, self._processes, self._record = log, processes, record
        self._skip, self._in_a_row = skip, 0

    def finish(self, step: Step) -> bool:
        """Log a step; whether it was finite.

        Raises:
            InputError: it was not, and `skip` such steps came before it in a row.
        """
        *losses, mean, norm = step.read()
        if math.isfinite(mean) and math.isfinite(norm):
            self._in_a_row = 0
            loss = mean if step.items else None
            self._log.step(step.number, loss=loss, lr=step.lr, gradient_norm=norm, images=step.images, items=step.items)
            return True
        self._in_a_row += 1
        ids = self._suspects(step, losses)
        if self._processes.is_first:  # JSON has no NaN, so the numbers are strings
            facts = {"step": step.number, "value": str(mean), "gradient_norm": str(norm), "images": ids}
            self._log.event("nonfinite", facts)
            if self._record is not None:
                text = json.dumps(facts) + "\n"
                with full_disk_named(self._record, need=len(text)), self._record.open("a", encoding="utf-8") as file:
                    file.write(text)
        if self._in_a_row > self._skip:
            raise InputError(self._message(step.number, mean=mean, norm=norm, ids=ids))
        return False

    def _suspects(self, step: Step, losses: list[float]) -> list[str]:
        """The images of the batches whose loss is not finite, on any process; of all where only the gradient is not."""
        bad = [ids for loss, ids in zip(losses, step.batches, strict=True) if not math.isfinite(loss)]
        gathered = self._processes.gather((bad, step.batches))
        batches = [ids for bad, _ in gathered for ids in bad] or [ids for _, batches in gathered for ids in batches]
        return [name for ids in batches for name in ids]

    def _message(self, number: int, *, mean: float, norm: float, ids: list[str]) -> str:
        names = ", ".join(repr(name) for name in ids)
        where = "" if self._record is None else f" (also in {self._record})"
        message = (
            f"step {number}: the loss and its gradient must be finite; got loss {mean}, gradient norm {norm}, from the "
            f"images {names}{where}. Stopped before the optimizer moved anything: the last checkpoint, if one exists, "
            "is good. "
        )
        if not self._skip:
            advice = "start again with a lower --lr, or skip such steps with --skip-nonfinite 20"
            return f"{message}Look at these images and their boxes, {advice}."
        return (
            f"{message}It was the last of {self._in_a_row} such steps in a row, more than --skip-nonfinite allows. "
            "Start again with a lower --lr."
        )


def ids_of(batches: Sequence[Batch]) -> list[list[str]]:
    """The ids of the usable images of each batch."""
    return [[sample.id for sample in batch.samples] for batch in batches]
