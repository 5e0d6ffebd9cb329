"""Where a run's numbers go beside metrics.jsonl: TensorBoard's event files, and W&B or trackio where one is asked for.

Each is a `Sink` of `Log`, which goes on without one that fails. None of their packages is imported before a run starts.
A resumed run goes on in the same curves, each step once. Deliberately absent: images, histograms, system statistics
of our own, other trackers.
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
PATIENCE = 30.0  # seconds that a tracker may take to send what it still holds


class TensorBoard:
    """Event files in a folder: `tensorboard --logdir FOLDER`."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        """Nothing is imported or written before `open`."""
        self._folder = folder

    def open(self, start_step: int) -> None:
        """Begin an event file, before which the steps past `start_step` do not count."""
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
    """One run of W&B or trackio, named like the output folder; OUT/track.json says which, and how far it has come."""

    def __init__(self, name: Literal["wandb", "trackio"], out: Path, *, config: dict[str, Any]) -> None:
        """Nothing is imported or written before `open`.

        Args:
            name: of the package.
            out: folder of the run.
            config: what the tracker shows as the run's settings.
        """
        self.name: Literal["wandb", "trackio"] = name
        self._out, self._config = out, config

    def open(self, start_step: int) -> None:
        """Start the tracker's run, or go on with the one of track.json, whatever `start_step` is.

        Raises:
            ValueError: track.json is damaged.
            Exception: any other of the tracker's own.
        """
        self._id, self._sent = self._read()
        self._write(self._sent)  # before the run exists: a start that fails half-way is found again
        start, title = import_tracker(self.name), self._out.resolve().name
        common = {"project": PROJECT, "resume": "allow", "config": self._config}
        match self.name:
            case "wandb":
                common |= {"name": title, "id": self._id, "dir": str(self._out), "allow_val_change": True}
            case "trackio":  # tells runs apart by their names only
                common |= {"name": f"{title}-{self._id}"}
        self._run = start(**common)

    def record(self, step: int, numbers: dict[str, float]) -> None:
        """Send the numbers of a step, if an earlier part of this run has not: trackers do not take points back."""
        if step > self._sent:
            self._run.log(numbers, step=step)
            self._write(step)

    def close(self) -> None:
        """Let the tracker send what it still holds, but not for longer than `PATIENCE`: other processes wait.

        Raises:
            TimeoutError: it has not come to an end.
            Exception: any other of the tracker's own.
        """
        errors: list[Exception] = []

        def finish() -> None:
            try:
                self._run.finish()
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=finish, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        if thread.is_alive():
            raise TimeoutError(f"it has not sent everything after {PATIENCE:g} s")
        if errors:
            raise errors[0]

    def _read(self) -> tuple[str, int]:
        """Id of the tracker's run and the last step sent to it; of a new one where there is none yet."""
        path = self._out / "track.json"
        if not path.exists():
            return uuid.uuid4().hex[:8], 0
        try:
            found = json.loads(path.read_text())
            tracker, identity, step = str(found["tracker"]), str(found["id"]), int(found["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: must have tracker, id and step; remove it to begin a new run there") from error
        return (identity, step) if tracker == self.name else (uuid.uuid4().hex[:8], 0)

    def _write(self, step: int) -> None:
        record = {"tracker": self.name, "id": self._id, "step": step}
        write_whole(self._out / "track.json", (json.dumps(record) + "\n").encode())


def import_tracker(name: Literal["wandb", "trackio"]) -> Callable[..., Any]:
    """What starts a run of a tracker: its `init`.

    Raises:
        InputError: the package is not there (a folder of that name, as wandb leaves behind, is not it).
    """
    try:
        return importlib.import_module(name).init
    except (ImportError, AttributeError) as error:
        raise InputError(f"--track {name}: needs the package {name} ({error}): pip install {name}.") from error


def choose_sinks(
    out: Path, *, track: Literal["tensorboard", "wandb", "trackio", "none"], config: dict[str, Any]
) -> list[Sink]:
    """What a run's `Log` is to tell its numbers, not yet opened.

    Args:
        out: folder of the run.
        track: tensorboard writes OUT/tensorboard; or a tracker.
        config: the run's record, shown by the tracker.
    """
    if track == "tensorboard":
        return [TensorBoard(out / "tensorboard")]
    return [] if track == "none" else [Tracker(track, out, config=config)]
