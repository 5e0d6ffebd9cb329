"""Folders claimed by one command: by the identity of its files, and by a lock while it runs.

The same command resumes in its folder; another command is refused with the fields that differ, and nothing is changed.
A folder of parts stores a long list of results, of which a killed process loses only the last few:

    FOLDER/manifest.json                         the identity of the parts
           images.txt.gz                         the images, see `listing.py`
           000000000-000000064.safetensors       the tensors of items 0 to 63, with notes in the metadata

A file of another name, or a manifest of another format, is neither written nor deleted.
"""

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from foveate.errors import InputError
from foveate.io.files import check_writable, write_whole
from foveate.io.listing import LISTED, Listing, changes_since, keep_listing
from foveate.io.tensors import Stored, read_header

MANIFEST = "manifest.json"
LOCK = ".lock"  # in a folder while a process writes to it
# what a run writes in its folder, beside its product
RUN_NAMES = (
    "model",
    "checkpoints",
    "metrics.jsonl",
    "nonfinite.jsonl",
    "track.json",
    "nouns.json",
    "recall.json",
    "tensorboard",
)
NOTES = "notes"  # key of the notes in the metadata of a part
_OWNER = "made_by"  # key of the owner in a manifest
_NAMES = re.compile(r"(manifest\.json|images\.txt\.gz|\d{9,}-\d{9,}\.safetensors)((\.\d+)?\.partial)?")


# ---------------------------------------------------------------------------------------------------- folders of runs


def claim_folder(
    out: Path, record: dict[str, Any], *, may_change: Sequence[str] = (), writes: Sequence[str] = ()
) -> bool:
    """Claim the output folder for a run; it is created if needed.

    Args:
        record: of `run_record`.
        may_change: fields that may differ in the same run.
        writes: names of files and folders in `out` that the run writes, beside those of every run.

    Returns:
        Whether the folder already belongs to this run; then nothing is written.

    Raises:
        InputError: the folder cannot be written, or belongs to another run (lists the differing fields).
    """
    path = out / "config.json"
    if path.is_file():
        refuse_another(f"--out {out}", read_run(path), record, holds="another run", may_change=may_change)
        return True
    check_writable(out)
    taken = [name for name in dict.fromkeys((*RUN_NAMES, *writes)) if os.path.lexists(out / name)]
    if taken:
        raise InputError(
            f"--out {out}: must be new or the folder of this run; it holds {', '.join(taken)} but no config.json. "
            "Choose another folder."
        )
    write_whole(path, (json.dumps(record, indent=2) + "\n").encode())
    return False


@contextmanager
def hold_folder(out: Path) -> Iterator[None]:
    """Lock a folder while files are written to it; it is created if needed, and removed if it stays empty.

    Raises:
        InputError: another process has the lock.
    """
    with _locked(out / LOCK, out):
        yield


@contextmanager
def hold_target(path: Path) -> Iterator[None]:
    """Lock a file or folder that is written elsewhere and renamed to `path`; as `hold_folder`, but beside it."""
    with _locked(path.with_name(f".{path.name}{LOCK}"), path):
        yield


@contextmanager
def _locked(lock: Path, out: Path) -> Iterator[None]:
    """Lock a file that exists only while it is locked, or after its process was killed."""
    created = [folder for folder in (lock.parent, *lock.parent.parents) if not folder.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = lock.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise InputError(f"{out}: another process is writing there. Wait for it, or choose another.") from error
        except OSError:  # a file system without locks
            pass
        if lock.exists() and os.path.samestat(lock.stat(), os.fstat(file.fileno())):
            break
        file.close()  # its process removed the file after we opened it
    try:
        yield
    finally:
        with file, suppress(OSError):
            lock.unlink()
            for folder in created:  # if nothing was written
                folder.rmdir()


def refuse_another(
    where: object,
    stored: Mapping[str, Any],
    identity: Mapping[str, Any],
    *,
    holds: str = "the work of another command",
    may_change: Sequence[str] = (),
    changes: Callable[[], str] = str,
) -> None:
    """Refuse a folder or file of another command.

    Args:
        where: the folder or file, for the message.
        stored: its identity.
        identity: of this command.
        holds: its content, for the message.
        may_change: fields that may differ.
        changes: called to name the images that changed, if any field differs; "" if none did.

    Raises:
        InputError: lists the fields that differ.
    """
    absent = "(absent)"
    fields = sorted({*stored, *identity} - {*may_change})
    differing = [name for name in fields if stored.get(name, absent) != identity.get(name, absent)]
    if differing:
        lines = [f"  {name}: stored {stored.get(name, absent)}, now {identity.get(name, absent)}" for name in differing]
        named = changes()
        lines += [f"  images: {named}"] if named else []
        raise InputError(
            f"{where}: holds {holds}. Differing:\n"
            + "\n".join(lines)
            + "\nGive the same command to resume it, choose another folder or file, or delete it."
        )


def read_run(path: Path) -> dict[str, Any]:
    """The JSON record of a run.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: must be the JSON record of a run; it cannot be read ({error}). Choose another --out."
        ) from error
    if not isinstance(record, dict):
        raise InputError(f"{path}: must be the JSON record of a run; got {record!r:.60}. Choose another --out.")
    return record


# --------------------------------------------------------------------------------------- folders of results, and parts


@dataclass(frozen=True)
class Part:
    """The results of items start .. stop - 1."""

    path: Path
    start: int
    stop: int
    notes: Any
    tensors: list[Stored]


def claim_cache(folder: Path, identity: Mapping[str, Any], *, owner: str) -> None:
    """Claim a folder for files that are found by name; it is created if needed.

    Args:
        identity: what the files depend on.
        owner: distinguishes the manifest from any other manifest.json.

    Raises:
        InputError: the identity differs (lists the differences), or the folder is not such a cache.
    """
    if folder.is_dir() and any(path.suffix != ".partial" for path in folder.iterdir()):
        refuse_another(folder, _read_manifest(folder, owner=owner), identity)
    else:
        _write_manifest(folder, identity, owner=owner)


def claim_parts(folder: Path, identity: Mapping[str, Any], *, owner: str, listing: Listing) -> list[Part]:
    """Claim a folder for the parts of one command, and return its complete parts from item 0 on, without a gap.

    The folder is created if needed. Partial files, damaged parts and those after them are removed.

    Args:
        identity: what the parts depend on.
        owner: distinguishes the manifest from any other manifest.json.
        listing: of the images, whose digest is in the identity; named where they changed.

    Raises:
        InputError: the parts belong to another command (lists the differences), or the folder has other files.
    """
    stored = find_manifest(folder, owner=owner)
    paths = sorted(folder.glob("*.safetensors*"))
    if stored is not None and any(path.suffix == ".safetensors" for path in paths):  # a manifest alone may be replaced
        refuse_another(folder, stored, identity, changes=partial(changes_since, folder / LISTED, listing))
    else:
        _write_manifest(folder, identity, owner=owner)
    keep_listing(folder / LISTED, listing)
    parts = find_parts(folder)
    for path in {*paths} - {part.path for part in parts}:
        path.unlink()
    return parts


def find_parts(folder: Path) -> list[Part]:
    """The complete parts from item 0 on, without a gap; nothing is changed."""
    parts: list[Part] = []
    for path in sorted(folder.glob("*.safetensors")):
        part = _read_part(path)
        if part is not None and part.start == (parts[-1].stop if parts else 0):
            parts.append(part)
    return parts


def find_manifest(folder: Path, *, owner: str) -> dict[str, Any] | None:
    """The identity of the parts in a folder; None: it has neither a manifest nor parts.

    Raises:
        InputError: it is not a folder, has a file that is not a part, or parts without a manifest.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise InputError(f"{folder}: need a folder for unfinished parts; it is a file. Move it away.")
    paths = sorted(folder.iterdir())
    foreign = [path.name for path in paths if not (_NAMES.fullmatch(path.name) and path.is_file())]
    if foreign:
        raise InputError(f"{folder}: need a folder of nothing but parts; it holds {foreign[0]!r}. Move that away.")
    if all(path.name.startswith(MANIFEST) and path.suffix == ".partial" for path in paths):
        return None
    return _read_manifest(folder, owner=owner)


def write_part(folder: Path, content: bytes, *, start: int, stop: int) -> Part:
    """Write a part: the bytes of a safetensors file with its notes in the metadata, under `NOTES` as JSON."""
    path = folder / f"{start:09d}-{stop:09d}.safetensors"
    write_whole(path, content)
    part = _read_part(path)
    assert part is not None, f"{path} was written and cannot be read"
    return part


def remove_parts(folder: Path, identity: Mapping[str, Any], *, owner: str) -> None:
    """Delete the parts of a command and their folder, if it exists.

    Raises:
        InputError: nothing was deleted, because the folder belongs to another command or has other files.
    """
    stored = find_manifest(folder, owner=owner)
    if stored is None:
        return
    refuse_another(folder, stored, identity)
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
        path.unlink()  # the manifest last, so that an interrupted deletion can be repeated
    with suppress(OSError):  # a link, or a file was added
        folder.rmdir()


def _read_part(path: Path) -> Part | None:
    """Read the header and notes of a part; None: it is not complete."""
    start, _, stop = path.stem.partition("-")
    try:
        metadata, tensors = read_header(path)
        return Part(path, int(start), int(stop), json.loads(metadata[NOTES]), tensors)
    except (OSError, ValueError, KeyError):
        return None


def _read_manifest(folder: Path, *, owner: str) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        manifest = None
    if not isinstance(manifest, dict) or manifest.pop(_OWNER, None) != owner:
        raise InputError(
            f"{folder / MANIFEST}: need the manifest of files by {owner}; it is missing, damaged, of another version "
            f"or of something else. Choose another folder, or move {folder} away."
        )
    return manifest


def _write_manifest(folder: Path, identity: Mapping[str, Any], *, owner: str) -> None:
    content = (json.dumps({_OWNER: owner, **identity}, indent=1) + "\n").encode()
    write_whole(folder / MANIFEST, content, shared=True)
