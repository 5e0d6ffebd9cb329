"""Sinks of a run's numbers beside metrics.jsonl: TensorBoard's event files, and W&B or trackio if requested.

None of their packages is imported before a run starts. A resumed run continues the same curves, each step once.
"""

import importlib
import json
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from foveate.engine.log import Sink
from foveate.errors import InputError
from foveate.io.files import write_whole

PROJECT = "foveate"
CLOSE_SECONDS = 30.0  # that a tracker may take to send what it still holds


class TensorBoard:
    """Event files in a folder: `tensorboard --logdir FOLDER`."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        """Nothing is imported or written before `open`."""
        self._folder = folder

    def open(self, start_step: int) -> None:
        """Start an event file, which hides the earlier points past `start_step`."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=start_step + 1)

    def record(self, step: int, numbers: dict[str, float]) -> None:
        """One point of each curve, on disk when this returns: a checkpoint of this step may outlive a kill."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def close(self) -> None:
        """End the event file."""
        self._writer.close()


class Tracker:
    """One run of W&B or trackio, named like the output folder; OUT/track.json has its id and the last step sent."""

    def __init__(self, name: Literal["wandb", "trackio"], out: Path, *, config: dict[str, Any]) -> None:
        """Nothing is imported or written before `open`; the tracker shows `config` as the run's configuration."""
        self.name: Literal["wandb", "trackio"] = name
        self._out, self._config = out, config

    def open(self, start_step: int) -> None:
        """Start the tracker's run, or resume the one of track.json, whatever `start_step` is.

        Raises:
            ValueError: track.json is damaged.
            Exception: any error of the tracker.
        """
        self._id, self._sent = self._read()
        self._write(self._sent)  # before the run exists: a failed start is resumed
        start, title = import_tracker(self.name), self._out.resolve().name
        common = {"project": PROJECT, "resume": "allow", "config": self._config}
        match self.name:
            case "wandb":
                common |= {"name": title, "id": self._id, "dir": str(self._out), "allow_val_change": True}
            case "trackio":  # identifies runs by their names only
                common |= {"name": f"{title}-{self._id}"}
        self._run = start(**common)

    def record(self, step: int, numbers: dict[str, float]) -> None:
        """Send the numbers of a step, unless an earlier part of this run did: trackers do not replace points."""
        if step > self._sent:
            self._run.log(numbers, step=step)
            self._write(step)

    def close(self) -> None:
        """Let the tracker send what it still holds, for at most `CLOSE_SECONDS`: other processes wait.

        Raises:
            TimeoutError: it has not finished.
            Exception: any error of the tracker.
        """
        errors: list[Exception] = []

        def finish() -> None:
            try:
                self._run.finish()
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=finish, daemon=True)
        thread.start()
        thread.join(CLOSE_SECONDS)
        if thread.is_alive():
            raise TimeoutError(f"it has not sent everything after {CLOSE_SECONDS:g} s")
        if errors:
            raise errors[0]

    def _read(self) -> tuple[str, int]:
        """Id of the tracker's run and the last step sent; a new id and 0 where no run exists."""
        path = self._out / "track.json"
        if not path.exists():
            return uuid.uuid4().hex[:8], 0
        try:
            record = json.loads(path.read_text())
            tracker, identity, step = str(record["tracker"]), str(record["id"]), int(record["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: must have tracker, id and step; remove it to start a new run there") from error
        return (identity, step) if tracker == self.name else (uuid.uuid4().hex[:8], 0)

    def _write(self, step: int) -> None:
        record = {"tracker": self.name, "id": self._id, "step": step}
        write_whole(self._out / "track.json", (json.dumps(record) + "\n").encode())


def import_tracker(name: Literal["wandb", "trackio"]) -> Callable[..., Any]:
    """The function that starts a run of a tracker.

    Raises:
        InputError: the package is not installed (a folder named `wandb`, as it leaves behind, has no `init`).
    """
    try:
        return importlib.import_module(name).init
    except (ImportError, AttributeError) as error:
        raise InputError(f"--track {name}: needs the package {name} ({error}): pip install {name}.") from error


def choose_sinks(
    out: Path, *, track: Literal["tensorboard", "wandb", "trackio", "none"], config: dict[str, Any]
) -> list[Sink]:
    """The sinks of a run's `Log`, not yet opened."""
    if track == "tensorboard":
        return [TensorBoard(out / "tensorboard")]
    return [] if track == "none" else [Tracker(track, out, config=config)]
