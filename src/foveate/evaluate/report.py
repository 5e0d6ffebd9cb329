"""Shared by the commands of `foveate evaluate`: load a model, print a table, write the result as JSON."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.clip.names import Pad
from foveate.data.batches import Loading
from foveate.data.records import Dataset, IgnoredEntries
from foveate.engine.distributed import choose_device
from foveate.errors import InputError
from foveate.evaluate.flags import ImageFlags
from foveate.io.files import bad_lines, versions, write_whole
from foveate.io.outputs import MARK, check_command

Cell = str | int | float | None
MAX_NAME = 24  # characters of a name that is not wrapped in a narrow terminal


def start(config: ImageFlags) -> float:
    """Check --out and --limit before any work is done, and return the start time [seconds]."""
    check_command(config)  # again, for callers in Python
    if config.limit is not None and config.limit < 1:
        raise InputError(f"--limit: need at least 1 image; got {config.limit}.")
    return time.perf_counter()


def loading_of(config: ImageFlags) -> Loading:
    """How images are read and batched."""
    return Loading(batch=config.batch, limit=config.limit, workers=config.workers, strict=config.strict, progress=True)


def first_images(dataset: Dataset, limit: int | None) -> Dataset:
    """The first images of --limit."""
    return dataset if limit is None else replace(dataset, records=tuple(dataset.records[:limit]))


def load_model(name: str, pretrained: str | None, device: str, *, pad: Pad | None = None) -> Clip:
    """Load a model to the device of --device; `pad` replaces its own padding."""
    clip = load(name, pretrained=pretrained, device=choose_device(device, local_rank=None))
    if pad is not None:
        clip.pad = pad
    return clip


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, digits: int = 1, names: int = 1
) -> Table:
    """A table for the terminal: names at the left, then numbers.

    Args:
        rows: cells; floats are rounded to `digits`, None becomes "-".
        names: how many columns at the left hold names; long names in the first are wrapped.
    """
    rows = list(rows)
    is_short = all(len(str(row[0])) <= MAX_NAME for row in rows)
    result = Table(title=title, title_justify="left", min_width=min(len(title), 79))
    result.add_column(columns[0], overflow="fold", no_wrap=is_short)
    for index, heading in enumerate(columns[1:], start=1):
        result.add_column(heading, justify="left" if index < names else "right")
    for row in rows:
        cells = (f"{cell:.{digits}f}" if isinstance(cell, float) else cell for cell in row)
        result.add_row(*("-" if cell is None else str(cell) for cell in cells))
    return result


def finish(
    result: dict[str, Any], table: Table, config: ImageFlags, *, datasets: Sequence[Dataset], started: float
) -> dict[str, Any]:
    """Print the table and what was ignored, and write the result with its configuration."""
    dropped: dict[str, IgnoredEntries] = {}
    for reason, entry in (item for dataset in datasets for item in dataset.ignored.items()):
        dropped[reason] = dropped[reason] + entry if reason in dropped else entry
    result["dropped"] = {reason: asdict(entry) for reason, entry in dropped.items()}
    remarks = {key: remark for dataset in datasets for key, remark in dataset.remarks.items()}
    if remarks:
        result["remarks"] = remarks
    result["contradictory"] = {
        kind: asdict(entry) for dataset in datasets for kind, entry in dataset.consistency.kinds.items()
    }
    result["seconds"] = round(time.perf_counter() - started, 1)
    Console().print(table)
    lines = dict.fromkeys(line for dataset in datasets for line in dataset.ignored_lines())
    log("\n".join([*lines, *bad_lines(result["bad"], listed="--out FILE")]))
    if config.out is not None:
        flags = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}
        content = {MARK: config.made_by, **result, "config": flags, "versions": versions()}
        write_whole(config.out, (json.dumps(content, indent=2) + "\n").encode())
    return result


def log(message: str) -> None:
    """Print a message, unless it is empty, to stderr."""
    if message:
        print(message, file=sys.stderr, flush=True)
