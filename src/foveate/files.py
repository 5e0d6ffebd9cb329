"""Result files: written whole or not at all, into a place that was judged before the work; what made them, and what
they had to leave out.

Deliberately absent: flushing to the disk and checksums, which checkpoints need and have (`foveate.engine.checkpoint`).
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from foveate.errors import InputError

TOLD = 10  # bad pictures named on the screen


def check_target(path: Path, *, flag: str) -> None:
    """Refuse a name under which no file can be written, before hours are spent on what it is to hold.

    Args:
        path: of the file to come; folders that are missing will be made.
        flag: how the message calls it.

    Raises:
        InputError: it is a folder, or lies below a file or in a folder that may not be written.
    """
    if path.is_dir():
        raise InputError(f"{flag}: need the name of a file; got the folder {path}.")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{flag}: need a file in a folder; {path} would lie below {parent}, which is a file.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{flag}: need a folder that may be written; {parent}, for {path}, may not.")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that no reader meets half of it; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def default_cache() -> Path | None:
    """The folder for what is worth keeping between runs: $FOVEATE_CACHE, else ~/.cache/foveate; None where it is ""."""
    named = os.environ.get("FOVEATE_CACHE")
    if named is not None:
        return Path(named) if named else None
    try:
        return Path.home() / ".cache" / "foveate"
    except RuntimeError:  # a user without a home
        return None


def versions() -> dict[str, str]:
    """The versions of what computes a result."""
    return {name: version(name) for name in ("foveate", "torch", "open_clip_torch")}


def bad_lines(bad: list[dict[str, str]], *, listed: str) -> list[str]:
    """How many pictures could not be used, the first ten with their reasons, and what lists the others."""
    if not bad:
        return []
    more = [f"  and {len(bad) - TOLD} more; {listed} lists all"] if len(bad) > TOLD else []
    told = [f"  {one['id']}: {one['reason']}" for one in bad[:TOLD]]
    return [f"pictures that could not be used: {len(bad)}", *told, *more]


@contextmanager
def folder_written_whole(out: Path) -> Iterator[Path]:
    """Give a temporary folder, whose files become those of `out` when all went well; it is removed otherwise.

    Args:
        out: new or empty; a link or a mounted folder may be empty too.

    Raises:
        InputError: no folder can be made there.
    """
    place = out.resolve()
    home = place if place.is_dir() else place.parent  # what is mounted cannot be replaced, so its files are moved
    partial = home / f".{place.name}.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out}: need a folder that can be written; {error}. Choose another.") from error
    try:
        yield partial
        if home != place:
            partial.replace(place)
        else:
            for part in sorted(partial.iterdir()):
                part.replace(place / part.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
