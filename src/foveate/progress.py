"""The progress bar of commands that go through images, and lines for what takes long without one."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

BEAT = 5.0  # seconds between the lines


class Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        """Show images per second."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s")


def image_bar(*, show: bool) -> Progress:
    """A bar on stderr with images done, rate and time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not show)


@contextmanager
def heartbeat(report: Callable[[str], object], what: str) -> Iterator[None]:
    """Report every few seconds for how long something has been under way; nothing of what is quick."""
    done, start = Event(), time.perf_counter()

    def beat() -> None:
        while not done.wait(BEAT):
            report(f"{what}: {time.perf_counter() - start:.0f} s so far")

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
