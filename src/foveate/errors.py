"""The exception for a user's mistakes; not in `types.py`, so that it can be raised without importing torch."""

from collections.abc import Sequence


class InputError(ValueError):
    """An input is wrong; the message says what is needed, what was given and what to do."""


def listed(names: Sequence[object], limit: int = 5) -> str:
    """The first few names for a message, and how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more
