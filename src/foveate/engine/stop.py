"""Signals that stop a run: recorded by the handler, and read by the loop after each step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StoppedError(Exception):
    """A signal ended work outside of the training loop."""

    def __init__(self, where: str, number: signal.Signals) -> None:
        """`where`: for the user's message."""
        super().__init__(where)
        self.where, self.number = where, number


@contextmanager
def signals_caught() -> Iterator[list[signal.Signals]]:
    """Record SIGTERM and SIGINT in a list instead of ending the process; a second one has its usual effect."""
    caught: list[signal.Signals] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def record(number: int, frame: FrameType | None) -> None:
        caught.append(signal.Signals(number))
        signal.signal(number, handlers[signal.Signals(number)])

    for number in handlers:
        signal.signal(number, record)
    try:
        yield caught
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
