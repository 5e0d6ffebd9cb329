"""Signals that ask a run to stop: noted, never acted upon; the loop looks when a step is whole."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StoppedError(Exception):
    """A signal ended work outside of the training loop."""

    def __init__(self, where: str, number: signal.Signals) -> None:
        """Remember where, for the user, and which signal."""
        super().__init__(where)
        self.where, self.number = where, number


@contextmanager
def signals_caught() -> Iterator[list[signal.Signals]]:
    """Note SIGTERM and SIGINT in a list instead of dying; a second one acts as ever. Nothing else happens inside the
    handler."""
    caught: list[signal.Signals] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(signal.Signals(number))
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
