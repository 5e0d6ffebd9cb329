"""The loss of a run over its steps, read from the run's metrics.jsonl.

Deliberately absent: drawing (`report.py` does it) and curves of several runs in one image.
"""

import json
from pathlib import Path

from foveate.errors import InputError


def read_losses(metrics: Path) -> list[tuple[int, float]]:
    """Read (step, loss) from a run's metrics.jsonl; a last line cut short by a crash is left out.

    Args:
        metrics: one JSON object a line; those without a loss (events) are passed over.

    Returns:
        By rising step.

    Raises:
        InputError: the file is missing, holds a line that is not JSON, or no loss at all.
    """
    if not metrics.is_file():
        raise InputError(f"{metrics}: need the metrics.jsonl of a run; there is no such file. Name the run's folder.")
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    losses: dict[int, float] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise InputError(f"{metrics}, line {number}: need one JSON object a line; got {line[:60]!r}.") from None
        if "loss" in entry:
            losses[int(entry["step"])] = float(entry["loss"])
    if not losses:
        raise InputError(f"{metrics}: need lines with `step` and `loss`; got none. Has the run made a step yet?")
    return sorted(losses.items())


def smooth(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Average each loss with its neighbours: a fifteenth of the run, as many before as after, fewer at the ends."""
    losses = [loss for _, loss in points]
    half = len(points) // 30
    smoothed = []
    for index, (step, _) in enumerate(points):
        reach = min(half, index, len(points) - 1 - index)
        near = losses[index - reach : index + reach + 1]
        smoothed.append((step, sum(near) / len(near)))
    return smoothed
