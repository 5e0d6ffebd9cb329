"""What a run says while it works: OUT/metrics.jsonl, and a progress bar on a terminal or plain lines elsewhere.

One JSON object a logged step, written at once, with `step` counted from 1. After a resume the lines past the resumed
step are dropped, so that the file is one record of one run. The same numbers go to every `Sink` (see trackers.py).
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

from foveate.io.files import write_whole


class Sink(Protocol):
    """Another place for the numbers of a run. Whatever it raises, the run goes on without it."""

    @property
    def name(self) -> str:
        """Said when it fails."""
        ...

    def open(self, start_step: int) -> None:
        """Begin, or go on after `start_step`."""
        ...

    def record(self, step: int, numbers: dict[str, float]) -> None:
        """Take the numbers of one step, counted from 1; a step may come twice, with other numbers."""
        ...

    def close(self) -> None:
        """End; called once, if `open` and every `record` went well."""
        ...


class Log:
    """The run's metrics file and its progress; the processes that are not the first stay silent."""

    def __init__(
        self,
        path: Path,
        *,
        steps: int,
        start_step: int = 0,
        every: int = 10,
        speak: bool = True,
        sinks: Sequence[Sink] = (),
    ) -> None:
        """Open the log of a run.

        Args:
            path: the metrics file; lines of steps after `start_step` are dropped.
            steps: of the whole run.
            start_step: steps already done.
            every: steps between lines.
            speak: whether this process writes and shows anything.
            sinks: also told what the metrics file is told; opened and closed with it.
        """
        self._path, self._steps, self._start, self._every, self._speak = path, steps, start_step, every, speak
        self._sinks = list(sinks) if speak else []
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._images, self._began, self._spoke = 0, time.monotonic(), float("-inf")
        self._mean: float | None = None

    def __enter__(self) -> "Log":
        if not self._speak:
            return self
        _drop_lines_after(self._path, self._start)
        self._file = self._path.open("a", encoding="utf-8")
        self._tell_sinks(lambda sink: sink.open(self._start))
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
        if self._speak:
            self._file.close()
        self._tell_sinks(lambda sink: sink.close())

    def say(self, message: str) -> None:
        """Show one message, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)
        elif self._speak:
            print(message, file=sys.stderr, flush=True)

    def step(self, done: int, *, loss: float | None, lr: float, gradient_norm: float, images: int, items: int) -> None:
        """Record one finished step, summed over all processes.

        Args:
            done: steps finished, this one included.
            loss: mean over the items of this step; None where it had none: its line then has no loss.
            lr: the learning rate that was used.
            gradient_norm: Euclidean norm of the gradient.
            images: good images of this step.
            items: what the loss is the mean over (regions, for CLIPSelf).
        """
        self._images += images
        if loss is not None:
            self._mean = loss if self._mean is None else 0.95 * self._mean + 0.05 * loss
        if not self._speak:
            return
        due = done % self._every == 0 or done == self._steps
        if due:
            rate = self._images / max(time.monotonic() - self._began, 1e-9)
            numbers = {} if loss is None else {"loss": loss}
            numbers = {**numbers, "lr": lr, "gradient_norm": gradient_norm, "items": items}
            numbers["images_per_second"] = round(rate, 3)
            self._write({"step": done, **numbers})
            self._tell_sinks(lambda sink: sink.record(done, numbers))
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=self._status(done))
        elif due and (time.monotonic() - self._spoke > 1 or done == self._steps):
            self._spoke = time.monotonic()
            self.say(f"step {done}/{self._steps}  {self._status(done)}")

    def event(self, name: str, facts: dict[str, Any]) -> None:
        """Write one line that is not a step; "end" is the last line of a whole run. A held-out loss is a number for the
        sinks too."""
        if not self._speak:
            return
        self._write({"event": name, **facts})
        if facts.get("held_out_loss") is not None:
            self._tell_sinks(lambda sink: sink.record(facts["step"], {"held_out_loss": facts["held_out_loss"]}))

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _tell_sinks(self, tell: Callable[[Sink], None]) -> None:
        """Tell every sink something; leave out from now on what fails, be it a full disk, the network or its own."""
        for sink in list(self._sinks):
            try:
                tell(sink)
            except Exception as error:
                self._sinks.remove(sink)
                reason = f"{type(error).__name__}: {error}"
                self.say(f"{sink.name} failed ({reason}); going on without it, {self._path.name} has all numbers")

    def _status(self, done: int) -> str:
        elapsed = time.monotonic() - self._began
        left = elapsed / max(done - self._start, 1) * (self._steps - done)
        rate = self._images / max(elapsed, 1e-9)
        loss = "-" if self._mean is None else f"{self._mean:.4f}"
        return f"loss {loss}  {rate:.1f} images/s  {clock(left)} left"


def clock(seconds: float) -> str:
    """A duration as people read it: 0:07, 12:30, 1:02:03, 3 days 4:05:06."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 72:
        days, hour = divmod(hours, 24)
        return f"{days} days {hour}:{minute:02d}:{second:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _drop_lines_after(path: Path, step: int) -> None:
    """Keep the lines up to `step`, but no "end": the run goes on. A line cut short by a crash, and everything after
    it, goes."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not line.endswith("\n") or not isinstance(entry, dict):
            break
        if entry.get("step", 0) > step:
            break
        if entry.get("event") != "end":
            kept.append(line)
    write_whole(path, "".join(kept).encode())
