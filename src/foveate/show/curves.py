"""The loss of a run over its steps, read from the run's metrics.jsonl."""

import json
from pathlib import Path

from foveate.errors import InputError


def read_losses(metrics: Path) -> list[tuple[int, float]]:
    """Read (step, loss), sorted by step, from a run's metrics.jsonl with one JSON object per line.

    Lines without a loss (events) and a last line cut short by a crash are ignored.

    Raises:
        InputError: the file is missing, or has a line that is not JSON, or no loss.
    """
    if not metrics.is_file():
        raise InputError(f"{metrics}: need the metrics.jsonl of a run; it does not exist. Name the run's folder.")
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    losses: dict[int, float] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise InputError(f"{metrics}, line {number}: need one JSON object per line; got {line[:60]!r}.") from None
        if "loss" in entry:
            losses[int(entry["step"])] = float(entry["loss"])
    if not losses:
        raise InputError(f"{metrics}: need lines with `step` and `loss`; got none. Has the run made a step yet?")
    return sorted(losses.items())


def smooth(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Moving average over a fifteenth of the run, symmetric, over fewer losses at the ends."""
    losses = [loss for _, loss in points]
    half = len(points) // 30
    smoothed = []
    for index, (step, _) in enumerate(points):
        reach = min(half, index, len(points) - 1 - index)
        neighbours = losses[index - reach : index + reach + 1]
        smoothed.append((step, sum(neighbours) / len(neighbours)))
    return smoothed
