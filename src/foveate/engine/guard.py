"""Nothing that is not finite reaches the parameters, and the host does not wait for the device to know.

Whether loss and gradient are finite is found on the device, which then moves nothing by itself (`nonfinite` of
`take_step`). The host reads the numbers of a step when the next step's work is queued, from a copy that was made on the
way: only then is the step logged, or refused. Deliberately absent: gradient clipping, loss scaling.
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
from foveate.types import Batch


@dataclass(frozen=True)
class Step:
    """A step whose work the device was given; what came of it is not known yet."""

    number: int  # from 1
    batches: list[list[str]]  # ids of the images of each of its batches, in this process
    lr: float
    images: int  # good ones, over all processes
    items: int  # of all processes
    nonfinite: Float[Tensor, ""]  # 1 where the step must move nothing, else 0; on the device
    numbers: Float[Tensor, " K+2"]  # on the host once `ready`: each batch's own loss, the mean over all items, the norm
    ready: torch.cuda.Event | None  # None: at once

    def read(self) -> list[float]:
        """Wait for this step's numbers, not for what the device was given since."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.numbers.tolist()


def judge(
    losses: Sequence[Float[Tensor, ""]], shares: Sequence[float], *, norm: Float[Tensor, ""], processes: Processes
) -> tuple[Float[Tensor, ""], Float[Tensor, " K+2"], torch.cuda.Event | None]:
    """Whether a step is finite on all processes, found on the device.

    Args:
        losses: of each batch of this process.
        shares: of each batch, in the items of all processes.
        norm: of the gradient, the same on all processes.
        processes: of the run.

    Returns:
        `nonfinite`, `numbers` and `ready` of a `Step`.
    """
    own = torch.stack([loss.detach().double() for loss in losses])  # (K,)
    mean = processes.add_up(sum((loss * share for loss, share in zip(own, shares, strict=True)), own.new_zeros(())))
    nonfinite = (~(mean.isfinite() & norm.isfinite())).float()
    numbers = torch.cat([own, torch.stack([mean, norm.double()])]).to("cpu", non_blocking=True)  # pinned, from a GPU
    ready = None
    if own.is_cuda:
        ready = torch.cuda.Event()
        ready.record()
    return nonfinite, numbers, ready


class Guard:
    """Hears what came of each step: has it logged, skipped or refused, on all processes alike."""

    def __init__(
        self,
        log: Log,
        processes: Processes,
        *,
        skip: int = 0,
        record: Path | None = None,
    ) -> None:
        """Remember what to do.

        Args:
            log: hears the finite steps, and of the others as events.
            processes: of the run.
            skip: steps in a row that are skipped where they are not finite; the next such step raises.
            record: file that receives one JSON line for each step that is not finite.
        """
        self._log, self._processes, self._record = log, processes, record
        self._skip, self._in_a_row = skip, 0

    def settle(self, step: Step) -> bool:
        """Log a step; whether it was finite.

        Raises:
            InputError: it was not, and such steps stop the run, or there were too many in a row.
        """
        *own, mean, norm = step.read()
        if math.isfinite(mean) and math.isfinite(norm):
            self._in_a_row = 0
            loss = mean if step.items else None
            self._log.step(step.number, loss=loss, lr=step.lr, gradient_norm=norm, images=step.images, items=step.items)
            return True
        self._in_a_row += 1
        ids = self._guilty(step, own)
        self._write(step.number, mean=mean, norm=norm, ids=ids)
        if self._in_a_row > self._skip:
            raise InputError(self._message(step.number, mean=mean, norm=norm, ids=ids))
        return False

    def _guilty(self, step: Step, own: list[float]) -> list[str]:
        """The images of the batches whose own loss went wrong, on any process; of all where only the gradient did."""
        bad = [ids for loss, ids in zip(own, step.batches, strict=True) if not math.isfinite(loss)]
        everyone = self._processes.gather((bad, step.batches))
        found = [part for parts, _ in everyone for part in parts] or [part for _, parts in everyone for part in parts]
        return [name for part in found for name in part]

    def _write(self, number: int, *, mean: float, norm: float, ids: list[str]) -> None:
        """Put the images where they can be looked up after the run: JSON has no word for NaN, so a string has it."""
        if not self._processes.is_first:
            return
        facts = {"step": number, "value": str(mean), "gradient_norm": str(norm), "images": ids}
        self._log.event("nonfinite", facts)
        if self._record is not None:
            with self._record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(facts) + "\n")

    def _message(self, number: int, *, mean: float, norm: float, ids: list[str]) -> str:
        names = ", ".join(repr(name) for name in ids)
        where = "" if self._record is None else f" (also in {self._record})"
        message = (
            f"step {number}: the loss and its gradient must be finite; got loss {mean}, gradient norm {norm}, from the "
            f"images {names}{where}. Stopped before the optimizer moved anything: the last checkpoint, if there "
            "is one, is good. "
        )
        if not self._skip:
            advice = "start again with a lower --lr, or skip such steps with --skip-nonfinite 20"
            return f"{message}Look at these images and their boxes, {advice}."
        return f"{message}It was the last of {self._in_a_row} such steps in a row; start again with a lower --lr."


def ids_of(batches: Sequence[Batch]) -> list[list[str]]:
    """The good images of each batch, by name."""
    return [[sample.id for sample in batch.samples] for batch in batches]
