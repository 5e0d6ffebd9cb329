"""The one exception for mistakes made outside; not in `types.py`, so that it can be raised without importing torch."""

from collections.abc import Sequence


class InputError(ValueError):
    """Something handed in from outside is wrong; the message says what it must be, what it is, and what to do."""


def listed(names: Sequence[object], most: int = 5) -> str:
    """The first few of some names, for a message, and how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
