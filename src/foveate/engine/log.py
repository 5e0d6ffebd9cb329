"""The log of a run: OUT/metrics.jsonl, and a progress bar on a terminal or plain lines elsewhere.

One JSON object per logged step, written at once, with `step` counted from 1. After a resume the lines past the resumed
step are removed, so that the file is the record of one run. The same numbers go to every `Sink` (see trackers.py).
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from foveate.io.files import full_disk_named, write_whole


class Sink(Protocol):
    """Another destination of the numbers of a run. Whatever it raises, the run continues without it."""

    @property
    def name(self) -> str:
        """Printed when it fails."""
        ...

    def open(self, start_step: int) -> None:
        """Start, or resume after `start_step`."""
        ...

    def record(self, step: int, numbers: dict[str, float]) -> None:
        """Take the numbers of one step, counted from 1; a step may come twice, with different numbers."""
        ...

    def close(self) -> None:
        """End; called once, if `open` and every `record` succeeded."""
        ...


class Log:
    """The metrics file and the progress of a run; only the first process writes and prints."""

    def __init__(
        self,
        path: Path,
        *,
        steps: int,
        start_step: int = 0,
        every: int = 10,
        verbose: bool = True,
        sinks: Sequence[Sink] = (),
    ) -> None:
        """Set up the log of a run of `steps` steps, a line for every few of them.

        Args:
            path: the metrics file; lines of steps after `start_step` are removed.
            verbose: whether this process writes and prints anything.
            sinks: get the same numbers; opened and closed with the log.
        """
        self._path, self._steps, self._start, self._every, self._verbose = path, steps, start_step, every, verbose
        self._sinks = list(sinks) if verbose else []
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._images, self._began, self._printed = 0, time.monotonic(), float("-inf")
        self._mean: float | None = None

    def __enter__(self) -> "Log":
        if not self._verbose:
            return self
        _remove_lines_after(self._path, self._start)
        self._file = self._path.open("a", encoding="utf-8")
        self._each_sink(lambda sink: sink.open(self._start))
        if self._console.is_terminal:
            columns = (BarColumn(), TextColumn("{task.completed}/{task.total}  {task.description}"))
            self._bar = Progress(*columns, console=self._console, refresh_per_second=2)
            self._task = self._bar.add_task("starting", total=self._steps, completed=self._start)
            self._bar.start()
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._verbose:
            self._file.close()
        self._each_sink(lambda sink: sink.close())

    def print(self, message: str) -> None:
        """Print one message, above the progress bar if it is shown."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)
        elif self._verbose:
            print(message, file=sys.stderr, flush=True)

    def step(self, done: int, *, loss: float | None, lr: float, gradient_norm: float, images: int, items: int) -> None:
        """Record one finished step.

        Args:
            done: steps finished, this one included.
            loss: mean over the items of this step; None where it had no item.
            lr: the learning rate that was used.
            gradient_norm: Euclidean norm of the gradient.
            images: usable ones, over all processes.
            items: what the loss is the mean over (regions, for CLIPSelf), over all processes.
        """
        self._images += images
        if loss is not None:
            self._mean = loss if self._mean is None else 0.95 * self._mean + 0.05 * loss
        if not self._verbose:
            return
        due = done % self._every == 0 or done == self._steps
        if due:
            rate = self._images / max(time.monotonic() - self._began, 1e-9)
            numbers = {} if loss is None else {"loss": loss}
            numbers = {**numbers, "lr": lr, "gradient_norm": gradient_norm, "items": items}
            numbers["images_per_second"] = round(rate, 3)
            self._write({"step": done, **numbers})
            self._each_sink(lambda sink: sink.record(done, numbers))
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=self._status(done))
        elif due and (time.monotonic() - self._printed > 1 or done == self._steps):
            self._printed = time.monotonic()
            self.print(f"step {done}/{self._steps}  {self._status(done)}")

    def event(self, name: str, facts: dict[str, Any]) -> None:
        """Write one line that is not a step; "end" is the last line of a finished run. Sinks get a held-out loss."""
        if not self._verbose:
            return
        self._write({"event": name, **facts})
        if facts.get("held_out_loss") is not None:
            self._each_sink(lambda sink: sink.record(facts["step"], {"held_out_loss": facts["held_out_loss"]}))

    def _write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line) + "\n"
        with full_disk_named(self._path, need=len(text)):
            self._file.write(text)
            self._file.flush()

    def _each_sink(self, call: Callable[[Sink], None]) -> None:
        """Call every sink; one that fails (a full disk, the network, its own errors) is not used again."""
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                self._sinks.remove(sink)
                reason = f"{type(error).__name__}: {error}"
                self.print(f"{sink.name} failed ({reason}) and is disabled; {self._path.name} has all numbers")

    def _status(self, done: int) -> str:
        elapsed = time.monotonic() - self._began
        left = elapsed / max(done - self._start, 1) * (self._steps - done)
        rate = self._images / max(elapsed, 1e-9)
        loss = "-" if self._mean is None else f"{self._mean:.4f}"
        return f"loss {loss}  {rate:.1f} images/s  {clock(left)} left"


def clock(seconds: float) -> str:
    """A duration for people: 0:07, 12:30, 1:02:03, 3 days 4:05:06."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 72:
        days, hour = divmod(hours, 24)
        return f"{days} days {hour}:{minute:02d}:{second:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _remove_lines_after(path: Path, step: int) -> None:
    """Keep the lines up to `step`, but no "end"; a line cut short by a crash is removed with everything after it."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not line.endswith("\n") or not isinstance(entry, dict) or entry.get("step", 0) > step:
            break
        if entry.get("event") != "end":
            kept.append(line)
    write_whole(path, "".join(kept).encode())
