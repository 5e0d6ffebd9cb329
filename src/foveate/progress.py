"""The progress bar of commands that go through images."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        """Show images per second."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s")


def image_bar(*, show: bool) -> Progress:
    """A bar on stderr with images done, rate and time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not show)
