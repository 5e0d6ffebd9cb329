"""Result files: written under a temporary name and renamed, in folders that are checked before the work.

Also the words for what the system refuses: a full disk when writing, a missing file or permission when reading.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from foveate.errors import InputError

MAX_LISTED = 10  # unreadable images printed
FULL_DISK = 1 << 20  # free bytes below which an error of a writer without a reason means a full disk


class DiskFullError(OSError, InputError):
    """A disk is full; the message has the file, the bytes it needs, and the bytes that are free.

    An `OSError` too, for callers that can do without the file.
    """


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
    parent = next(folder for folder in path.absolute().parents if folder.exists())
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
def full_disk_named(path: Path, *, need: int | None = None, partial: Path | None = None) -> Iterator[None]:
    """Turn the error of a full disk in the block, of any library, into a `DiskFullError`.

    Args:
        path: of the file that is written, for the message.
        need: its size [bytes]; None: known only when it is written.
        partial: what has been written of it, a file or a folder, on the same disk.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:  # torch and ONNX raise errors of their own
        if not is_disk_full(error, path):
            raise
        folder = _existing_folder(path)
        files = [partial, *partial.rglob("*")] if partial is not None else []
        written = sum(file.stat().st_size for file in files if file.is_file())
        size = f"{need:,}" if need is not None else f"more than {written:,}"
        raise DiskFullError(
            f"{path}: need {size} bytes; the disk is full (ENOSPC: No space left on device), "
            f"{shutil.disk_usage(folder).free:,} are free. Free some space, then run the same command again."
        ) from error


def is_disk_full(error: BaseException, path: Path) -> bool:
    """Whether an error in writing a file means that its disk, or the user's share of it, is full."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    is_unexplained = isinstance(error, OSError | RuntimeError) and getattr(error, "errno", None) is None
    return is_unexplained and shutil.disk_usage(_existing_folder(path)).free < FULL_DISK


def require_free(path: Path, *, need: int) -> None:
    """Refuse to begin work whose files would not fit on the disk.

    Args:
        path: of a file or folder to be written; missing folders are allowed.
        need: its size [bytes].

    Raises:
        InputError: bytes needed, bytes free.
    """
    free = shutil.disk_usage(_existing_folder(path)).free
    if free < need:
        raise InputError(
            f"{path}: need about {need:,} free bytes; the disk has {free:,}. Free some space, or choose another folder."
        )


def reason_of(error: OSError) -> str:
    """Why a file could not be read, for a message."""
    match error:
        case FileNotFoundError():
            return "not found"
        case PermissionError():
            return "permission denied: this user may not read it (the file itself may be whole)"
        case _:
            return str(error)


@contextmanager
def written_whole(path: Path, *, sync: bool = False, shared: bool = False, need: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it at the end, or removed after an error.

    Args:
        path: of the file; its folder is created.
        sync: flush the content to the disk before renaming.
        shared: other processes may write the same file at the same time.
        need: the size of the content [bytes], if known before, for the message of a full disk.

    Raises:
        DiskFullError: the earlier file is unchanged.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if shared else f"{path.name}.partial")
    try:
        with full_disk_named(path, need=need, partial=partial):
            path.parent.mkdir(parents=True, exist_ok=True)
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
    with written_whole(path, sync=sync, shared=shared, need=len(content)) as partial:
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

    Those of killed processes are removed first; a running process has locked its own.

    Args:
        out: a new folder, or one whose files may be replaced; also a link or a mounted folder.

    Raises:
        InputError: the folder cannot be created.
    """
    target = out.resolve()
    parent = target if target.is_dir() else target.parent  # a mount point cannot be replaced, so its files are moved
    _remove_abandoned(parent, re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.partial"))
    partial = parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir(parents=True)
        lock = os.open(partial, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{out}: need a folder that can be written; {error}. Choose another.") from error
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with full_disk_named(out, partial=partial):
            yield partial
            if parent != target:
                partial.replace(target)
            else:
                for path in sorted(partial.iterdir(), reverse=True):  # X.json and X.data before X
                    path.replace(target / path.name)
    finally:
        os.close(lock)
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(parent: Path, pattern: re.Pattern[str]) -> None:
    """Remove the temporary folders of these names that no process has locked."""
    for folder in parent.iterdir() if parent.is_dir() else ():
        if not pattern.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        try:
            lock = os.open(folder, os.O_RDONLY)
        except OSError:  # of another user, or removed meanwhile
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # locked by its process, or a file system without locks
            pass
        finally:
            os.close(lock)


def _existing_folder(path: Path) -> Path:
    """The nearest folder above a path that exists."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


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
