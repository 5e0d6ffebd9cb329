"""What ends a command early; not in `types.py`, so that it can be raised without importing torch."""

import errno
import signal
from collections.abc import Sequence

OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "alloc_failed",
    "not enough memory",
)
"""In the messages of the errors that libraries raise for it, such as torch's allocators, CUDA and cuBLAS."""


class InputError(ValueError):
    """An input is wrong; the message says what is needed, what was given and what to do."""


class StoppedError(KeyboardInterrupt):
    """A signal ends the command; like KeyboardInterrupt it is no `Exception`, so no library takes it for an error."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


class ExhaustedError(RuntimeError):
    """A process that helps died or ran out of memory; the message says which, and what is known of the reason."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the machine or of a GPU.

    torch's own class is told by its name, so that torch is not imported.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)


def listed(names: Sequence[object], limit: int = 5) -> str:
    """The first few names for a message, and how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more
