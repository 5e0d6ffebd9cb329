"""The one exception for mistakes made outside; not in `types.py`, so that it can be raised without importing torch."""


class InputError(ValueError):
    """Something handed in from outside is wrong; the message says what it must be, what it is, and what to do."""
