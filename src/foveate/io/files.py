"""Result files: written whole or not at all, in a folder that was checked before the work; what made them, and what
they skip.

Deliberately absent: checksums, which checkpoints need and have (`foveate.engine.checkpoint`).
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from foveate.errors import InputError

MAX_LISTED = 10  # bad images named on the screen


def check_target(path: Path, *, flag: str) -> None:
    """Refuse a name under which no file can be written, before hours are spent on its content.

    Args:
        path: of the file to come; missing folders will be made.
        flag: how the message calls it.

    Raises:
        InputError: it is a folder, or is located below a file or in a folder that may not be written.
    """
    if path.is_dir():
        raise InputError(f"{flag}: need the name of a file; got the folder {path}.")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{flag}: need a file in a folder; {path} would be below {parent}, which is a file.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{flag}: need a folder that may be written; {parent}, for {path}, may not.")


def check_writable(out: Path) -> None:
    """Make a folder if it does not exist, and put a file into it for a moment.

    Raises:
        InputError: one of them cannot be done.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write_probe"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise InputError(f"--out {out}: must be a folder that can be written; {error}. Choose another.") from error


@contextmanager
def written_whole(path: Path, *, sync: bool = False, shared: bool = False) -> Iterator[Path]:
    """Give a temporary name beside `path`, whose file becomes `path` when all went well; it is removed otherwise.

    Args:
        path: of the file; its folder is made.
        sync: have the disk hold the content before the file gets its name.
        shared: other processes may write the same file at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if shared else f"{path.name}.partial")
    try:
        yield partial
        if sync:
            sync_to_disk(partial)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_whole(path: Path, content: bytes, *, sync: bool = False, shared: bool = False) -> None:
    """Write a file under a temporary name and rename it, so that no reader meets half of it; see `written_whole`."""
    with written_whole(path, sync=sync, shared=shared) as partial:
        partial.write_bytes(content)


def sync_to_disk(path: Path) -> None:
    """Have the disk hold the content of a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def folder_written_whole(out: Path) -> Iterator[Path]:
    """Give a temporary folder, whose files become those of `out` when all went well; it is removed otherwise.

    Args:
        out: a folder that is new, or holds no files but those that may be replaced; a link or a mounted folder too.

    Raises:
        InputError: no folder can be made there.
    """
    target = out.resolve()
    home = target if target.is_dir() else target.parent  # a mount point cannot be replaced, so its files are moved
    partial = home / f".{target.name}.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out}: need a folder that can be written; {error}. Choose another.") from error
    try:
        yield partial
        if home != target:
            partial.replace(target)
        else:
            for path in sorted(partial.iterdir(), reverse=True):  # X.json and X.data before X
                path.replace(target / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def default_cache() -> Path | None:
    """The folder for what is worth caching between runs: $FOVEATE_CACHE, else ~/.cache/foveate; None where it is ""."""
    named = os.environ.get("FOVEATE_CACHE")
    if named is not None:
        return Path(named) if named else None
    try:
        return Path.home() / ".cache" / "foveate"
    except RuntimeError:  # a user without a home
        return None


def versions() -> dict[str, str]:
    """The versions of the packages that compute a result."""
    return {name: version(name) for name in ("foveate", "torch", "open_clip_torch")}


def bad_lines(bad: list[dict[str, str]], *, listed: str) -> list[str]:
    """How many images could not be used, the first ten with their reasons, and what lists the others."""
    if not bad:
        return []
    more = [f"  and {len(bad) - MAX_LISTED} more; {listed} lists all"] if len(bad) > MAX_LISTED else []
    shown = [f"  {entry['id']}: {entry['reason']}" for entry in bad[:MAX_LISTED]]
    return [f"images that could not be used: {len(bad)}", *shown, *more]
