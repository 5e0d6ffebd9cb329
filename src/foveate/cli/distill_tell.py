"""What `foveate distill` tells about a run: how its steps are shared, what was left out, and how to go on.

Deliberately absent: the plan (`foveate.engine.plan`) and the numbers of the steps (`foveate.engine.log`).
"""

import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from foveate.engine.config import DistillConfig, Sharing, told_sharing

if TYPE_CHECKING:  # torch and open_clip cost seconds: --help must not pay them
    from foveate.engine.distributed import Processes
    from foveate.engine.fit import Outcome


def teller(processes: "Processes") -> Callable[[str], object]:
    """Say something on the error stream, in the first process only."""
    return partial(print, file=sys.stderr, flush=True) if processes.is_first else str


def tell_other_batch(recipe: str, pictures: int, *, tell: Callable[[str], object]) -> None:
    """Warn where batch, accumulation and processes together are not what the recipe means."""
    from foveate.recipes import find_recipe

    fields = find_recipe(recipe).fields
    meant = fields.get("batch", DistillConfig.batch) * fields.get("accumulate", DistillConfig.accumulate)
    if pictures != meant:
        tell(f"WARNING   {recipe} means {meant} pictures a step; these flags and processes take {pictures}")


def tell_sharing(
    config: DistillConfig,
    processes: "Processes",
    before: dict[str, Any],
    *,
    steps: int,
    tell: Callable[[str], object],
) -> None:
    """Say what stays equal where the saved part of the run had other processes or batches."""
    saved = Sharing(before["processes"], before["batch"], before["accumulate"])
    told = told_sharing(saved, Sharing(processes.size, config.batch, config.accumulate), steps=steps)
    if told is not None:
        tell(told)


def bad_pictures(bad: dict[str, str]) -> str:
    """How many pictures could not be used, and the first ten with their reasons."""
    if not bad:
        return "every picture could be used"
    lines = [f"  {name}: {reason}" for name, reason in sorted(bad.items())[:10]]
    more = [f"  and {len(bad) - 10} more, all in metrics.jsonl"] if len(bad) > 10 else []
    return "\n".join([f"{len(bad)} pictures could not be used:", *lines, *more])


def skipped_steps(outcome: "Outcome", out: Path) -> list[str]:
    """A line on the steps that were left out, where some were."""
    if not outcome.skipped:
        return []
    said = f"{outcome.skipped} of {outcome.step} steps were left out: their loss or gradient was not finite"
    return [f"WARNING   {said}; their pictures are in {out / 'nonfinite.jsonl'}"]


def again() -> str:
    """How to go on: the command line that started this run, as torchrun's variables tell it."""
    size, nodes = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    local = os.environ.get("LOCAL_WORLD_SIZE", str(size))
    many = ["--nnodes", str(nodes)] if nodes > 1 else []
    start = ["torchrun", *many, "--nproc-per-node", local, "-m", "foveate.cli.main"] if size > 1 else ["foveate"]
    where = f" on each of the {nodes} nodes (with the same --rdzv options as before)" if nodes > 1 else ""
    return f"To go on, run{where}:\n  {shlex.join([*start, *sys.argv[1:]])}"


def leave_the_lost(config: DistillConfig, error: Exception) -> NoReturn:
    """Say that another process is gone and how to go on, and leave at once with status 1: what the GPUs of this process
    still wait for will never come."""
    from foveate.engine.checkpoint import list_complete

    saved = [int(path.name.removeprefix("step_")) for path in list_complete(config.out / "checkpoints")]
    last = f"the last checkpoint is of step {saved[-1]}" if saved else "there is no checkpoint yet"
    print(f"foveate: {error} This process ends too; {last}. {again()}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)
