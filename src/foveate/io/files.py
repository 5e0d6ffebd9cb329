"""Result files: written under a temporary name and renamed, in folders that are checked before the work."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from foveate.errors import InputError

MAX_LISTED = 10  # unreadable images printed


def check_target(path: Path, *, flag: str) -> None:
    """Refuse a path where a file cannot be written, before the work for its content.

    Args:
        path: of the file; missing folders are allowed.
        flag: for the message.

    Raises:
        InputError: the path is a folder, is below a file, or is in a folder without permission to write.
    """
    if path.is_dir():
        raise InputError(f"{flag}: need the name of a file; got the folder {path}. Add a name.")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{flag}: need a file in a folder; {path} would be below {parent}, which is a file.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{flag}: need a folder that may be written; {parent}, for {path}, may not. Choose another.")


def check_writable(out: Path) -> None:
    """Create a folder if needed, and check that a file can be written to it.

    Raises:
        InputError: it cannot.
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
    """Yield a temporary path beside `path`, renamed to it at the end, or removed after an error.

    Args:
        path: of the file; its folder is created.
        sync: flush the content to the disk before renaming.
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
    """Write a file under a temporary name and rename it; see `written_whole`."""
    with written_whole(path, sync=sync, shared=shared) as partial:
        partial.write_bytes(content)


def sync_to_disk(path: Path) -> None:
    """Flush the content of a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def folder_written_whole(out: Path) -> Iterator[Path]:
    """Yield a temporary folder, whose files are moved to `out` at the end; it is removed after an error.

    Args:
        out: a new folder, or one whose files may be replaced; also a link or a mounted folder.

    Raises:
        InputError: the folder cannot be created.
    """
    target = out.resolve()
    parent = target if target.is_dir() else target.parent  # a mount point cannot be replaced, so its files are moved
    partial = parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out}: need a folder that can be written; {error}. Choose another.") from error
    try:
        yield partial
        if parent != target:
            partial.replace(target)
        else:
            for path in sorted(partial.iterdir(), reverse=True):  # X.json and X.data before X
                path.replace(target / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def default_cache() -> Path | None:
    """The folder for caches: $FOVEATE_CACHE, else ~/.cache/foveate; None: $FOVEATE_CACHE is "", or there is no home."""
    folder = os.environ.get("FOVEATE_CACHE")
    if folder is not None:
        return Path(folder) if folder else None
    try:
        return Path.home() / ".cache" / "foveate"
    except RuntimeError:
        return None


def versions() -> dict[str, str]:
    """The versions of the packages that compute a result."""
    return {name: version(name) for name in ("foveate", "torch", "open_clip_torch")}


def bad_lines(bad: list[dict[str, str]], *, listed: str) -> list[str]:
    """The number of unreadable images and the first ten with their reasons; the file `listed` has them all."""
    if not bad:
        return []
    more = [f"  and {len(bad) - MAX_LISTED} more; {listed} lists all"] if len(bad) > MAX_LISTED else []
    shown = [f"  {entry['id']}: {entry['reason']}" for entry in bad[:MAX_LISTED]]
    return [f"images that could not be used: {len(bad)}", *shown, *more]
