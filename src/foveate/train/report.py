"""What a run prints beside its plan and its steps: how its steps are shared, what was skipped, how to resume it."""

import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from foveate.engine.checkpoint import newest_step
from foveate.engine.distributed import Processes
from foveate.engine.fit import Outcome
from foveate.engine.stop import resume_command
from foveate.errors import InputError, listed
from foveate.io.files import bad_lines

Report = Callable[[str], object]
"""Prints a line for the user."""


def reporter(processes: Processes) -> Report:
    """Print on the error stream, in the first process only."""
    return partial(print, file=sys.stderr, flush=True) if processes.is_first else str


def kept_line(checkpoints: Path, *, may_change: Collection[str] = ()) -> str:
    """What of a run is saved.

    Args:
        may_change: flags of a resumed run that may differ; those that lower the memory are named.
    """
    step = newest_step(checkpoints)
    kept = f"the last checkpoint is of step {step}" if step else "there is no checkpoint yet"
    flags = [f"--{name}" for name in ("workers", "batch", "accumulate", "checkpointing") if name in may_change]
    return f"{kept} (in this --out only {listed(flags)} may change; other flags need a new --out)" if flags else kept


def exit_lost(checkpoints: Path, error: Exception) -> NoReturn:
    """Print that another process is gone and how to resume, and exit with status 1.

    At once, since the GPUs of this process would wait for the other for ever.
    """
    kept = kept_line(checkpoints)
    print(f"foveate: {error} This process ends too; {kept}. {resume_command()}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def end_lines(outcome: Outcome, out: Path) -> list[str]:
    """The images that could not be used, the first ten with their reasons, and the number of skipped steps."""
    bad = [{"id": name, "reason": reason} for name, reason in sorted(outcome.bad.items())]
    lines = bad_lines(bad, listed="metrics.jsonl")
    if outcome.skipped:
        lines.append(
            f"WARNING   {outcome.skipped} of {outcome.step} steps were skipped: their loss or gradient was not finite; "
            f"their images are in {out / 'nonfinite.jsonl'}"
        )
    return lines


def require_usable_images(outcome: Outcome, out: Path) -> None:
    """Refuse to write untrained weights as the product, with an InputError."""
    if outcome.good == 0 and outcome.skipped:
        raise InputError(
            f"--skip-nonfinite: needs steps that are finite; all {outcome.skipped} were skipped, so nothing was "
            "learned and no product is written. Check the images in nonfinite.jsonl and choose another --out, or "
            f"remove {out}."
        )
    if outcome.good == 0:
        name, reason = min(outcome.bad.items(), default=("", "there was none"))
        raise InputError(
            f"--data: needs images that can be used; none of the {len(outcome.bad)} of this run could be, so nothing "
            f"was learned and no product is written. The first: {name}: {reason.rstrip('.')}. Correct them and choose "
            f"another --out, or remove {out}."
        )


@dataclass(frozen=True)
class Sharing:
    """How the images of a step are shared among processes and batches."""

    processes: int
    batch: int
    accumulate: int

    @property
    def images(self) -> int:
        """Images per step."""
        return self.processes * self.batch * self.accumulate

    def __str__(self) -> str:
        times = "" if self.accumulate == 1 else f" x {self.accumulate} batches"
        return f"{self.processes} process{'es' * (self.processes > 1)} x {self.batch} images{times}"


def sharing_lines(before: Sharing, now: Sharing, *, steps: int) -> list[str]:
    """What changes where a run resumes with other processes or batches, `steps` being left."""
    if before == now:
        return []
    change = f"resuming with {now} per step, before {before}"
    if before.images == now.images:
        return [
            f"{change}: the same {now.images} images in every step, summed in another order. "
            "Results are equal to rounding, not to the bit."
        ]
    each = before.images // now.processes
    keeps = f"--batch {now.batch} --accumulate {each // now.batch}" if each % now.batch == 0 else f"--batch {each}"
    advice = f"To keep {before.images}, use {keeps} with {now.processes} process{'es' * (now.processes > 1)}"
    if before.images % now.processes:
        advice = f"{before.images} cannot be kept with {now.processes} processes: it is not a multiple of that"
    return [
        f"{change}: from here on {now.images} images per step instead of {before.images}, so other gradients, and "
        f"{steps * now.images:,} more images instead of {steps * before.images:,}. Every epoch still has every "
        f"image exactly once. {advice}."
    ]
