"""Published files of heads: tensor names are translated by tables, sizes are read from shapes.

A row of a table is a prefix of the file's names, up to a dot, beside the prefix that replaces it; `*` matches one part
of a name (a number, say), which stays. The longest row that matches counts. The rest of a name stays, so that unknown
tensors are found when weights and network are compared.
"""

from collections.abc import Sequence

from torch import Tensor

from foveate.errors import InputError, listed

Table = tuple[tuple[str, str], ...]


def rename(name: str, table: Table) -> str | None:
    """Translate a name; None: no row matches.

    >>> rename("neck.convs.2.conv.weight", (("neck.convs.*.conv", "top_down.*.0"),))
    'top_down.2.0.weight'
    """
    parts = name.split(".")
    matches = [row for row in table if _matches(row[0].split("."), parts)]
    if not matches:
        return None
    theirs, ours = max(matches, key=lambda row: row[0].count("."))
    pattern = theirs.split(".")
    numbers = iter([part for part, expected in zip(parts, pattern, strict=False) if expected == "*"])
    return ".".join([*(next(numbers) if part == "*" else part for part in ours.split(".")), *parts[len(pattern) :]])


def _matches(pattern: list[str], parts: list[str]) -> bool:
    is_long_enough = len(parts) >= len(pattern)
    return is_long_enough and all(expected in ("*", part) for expected, part in zip(pattern, parts, strict=False))


def flipped(table: Table) -> Table:
    """The table in the other direction."""
    return tuple((ours, theirs) for theirs, ours in table)


def refuse_unknown(unknown: Sequence[str], *, source: str, what: str) -> None:
    """Refuse a file with tensors that no table has.

    Args:
        unknown: their names.
        source: the file, for the message.
        what: what is needed, for the message.
    """
    if unknown:
        raise InputError(
            f"{source}: need {what}; {len(unknown)} of its tensors are unknown: {listed(unknown)}. A changed network "
            "cannot be converted."
        )


def shape_of(
    state: dict[str, Tensor], name: str, *, dims: int, source: str, what: str, prefix: str = ""
) -> tuple[int, ...]:
    """The shape of a tensor.

    Args:
        dims: number of dimensions that it must have.
        source: the file, for messages.
        what: what is needed, for messages.
        prefix: of the names in the file, for messages.

    Raises:
        InputError: the tensor is missing or has another number of dimensions.
    """
    if name not in state or state[name].ndim != dims:
        got = f"has the shape {tuple(state[name].shape)}" if name in state else "is missing"
        raise InputError(
            f"{source}: need {what}; {prefix}{name} {got}. Sizes are read from it: download the file again."
        )
    return tuple(state[name].shape)


def count_blocks(state: dict[str, Tensor], prefix: str) -> int:
    """The number of numbered blocks below a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})
