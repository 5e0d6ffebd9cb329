"""Folders that one command claims: by a record of what its files depend on, and by a lock while it is at work.

The same command recognises its own folder and resumes; another is refused, by the fields that differ, and nothing is
changed. A folder of parts holds a long list of results of which a kill loses the last few alone:

    FOLDER/manifest.json                         what the parts depend on
           000000000-000000064.safetensors       the tensors of items 0 to 63, and notes on them in its metadata

A file of another name, or a manifest of another format, is somebody else's: it is neither written nor deleted.
Deliberately absent: two processes that share the work, and checkpoints (`foveate.engine.checkpoint`).
"""

import fcntl
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from foveate.errors import InputError
from foveate.io.files import check_writable, write_whole
from foveate.io.tensors import Stored, read_header

HARMLESS = ("out", "recipe", "workers", "log_every", "save_every", "strict", "track", "dry_run")
"""Fields that may change between the parts of one run: the weights come out the same."""
MANIFEST = "manifest.json"
NOTES = "notes"  # the key of a part's metadata that holds its notes
_OWNER = "made_by"  # the key of a manifest that tells it from somebody else's
_NAMES = re.compile(r"(manifest\.json|\d{9,}-\d{9,}\.safetensors)((\.\d+)?\.partial)?")


# ---------------------------------------------------------------------------------------------------- folders of runs


def claim_folder(out: Path, record: dict[str, Any], *, may_change: Sequence[str] = HARMLESS) -> bool:
    """Take the output folder for this run, or recognise it as this run's own.

    Args:
        out: the run's folder; made if it does not exist.
        record: from `run_record`.
        may_change: fields that do not make it another run.

    Returns:
        Whether the folder already held this run (there may be something to resume); then nothing was written.

    Raises:
        InputError: the folder cannot be written, or holds another run (the differing fields are listed).
    """
    path = out / "config.json"
    if path.is_file():
        refuse_another(f"--out {out}", _read_record(path), record, holds="another run", may_change=may_change)
        return True
    check_writable(out)
    taken = [name for name in ("model", "checkpoints", "metrics.jsonl") if (out / name).exists()]
    if taken:
        raise InputError(
            f"--out {out}: must be new or this run's own; it holds {', '.join(taken)} but no config.json. "
            "Choose another folder."
        )
    write_whole(path, (json.dumps(record, indent=2) + "\n").encode())
    return False


def hold_folder(out: Path) -> TextIO:
    """Keep other runs out of a claimed folder until the file is closed; the system does so even after kill -9.

    Returns:
        The open lock file.

    Raises:
        InputError: another process is writing there.
    """
    file = (out / ".lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(f"--out {out}: another process is writing there. Wait for it, or choose another.") from error
    except OSError:  # a file system without locks
        pass
    return file


def refuse_another(
    where: object,
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    *,
    holds: str = "the work of another command",
    may_change: Sequence[str] = (),
) -> None:
    """Refuse to touch what another command has made.

    Args:
        where: the folder or file, as the message calls it.
        there: what it depends on.
        here: what the work of this command depends on.
        holds: what it holds, where they differ.
        may_change: fields that make no difference.

    Raises:
        InputError: lists the fields that differ.
    """
    absent = "(absent)"
    fields = sorted({*there, *here} - {*may_change})
    differing = [name for name in fields if there.get(name, absent) != here.get(name, absent)]
    if differing:
        lines = [f"  {name}: there {there.get(name, absent)}, here {here.get(name, absent)}" for name in differing]
        raise InputError(
            f"{where}: holds {holds}. Differing:\n"
            + "\n".join(lines)
            + "\nGive the same command to resume it, choose another folder or file, or delete it."
        )


def _read_record(path: Path) -> dict[str, Any]:
    """The JSON record of a run."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: must be the JSON record of a run; it cannot be read ({error}). Choose another --out."
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: must be the JSON record of a run; got {found!r:.60}. Choose another --out.")
    return found


# --------------------------------------------------------------------------------------- folders of results, and parts


@dataclass(frozen=True)
class Part:
    """The finished work on items start .. stop - 1."""

    path: Path
    start: int
    stop: int
    notes: Any
    tensors: list[Stored]


def claim_cache(folder: Path, identity: Mapping[str, Any], *, owner: str) -> None:
    """Take a folder for files that are looked up by name, or recognise it.

    Args:
        folder: made where it does not exist.
        identity: what the files depend on.
        owner: whose they are; distinguishes the manifest from any other manifest.json.

    Raises:
        InputError: the files depend on something else (lists the differences), or the folder is no such cache.
    """
    if folder.is_dir() and any(path.suffix != ".partial" for path in folder.iterdir()):
        refuse_another(folder, _read_manifest(folder, owner=owner), identity)
    else:
        _write_manifest(folder, identity, owner=owner)


def claim_parts(folder: Path, identity: Mapping[str, Any], *, owner: str) -> list[Part]:
    """Take a folder for the parts of one command, or find what the same command left there.

    What a killed process half wrote, a damaged part and whatever comes after it are removed.

    Args:
        folder: made where it does not exist.
        identity: what the parts depend on.
        owner: whose they are; distinguishes the manifest from any other manifest.json.

    Returns:
        The finished parts from item 0 on, without a gap.

    Raises:
        InputError: the parts are another command's (lists the differences), or the folder is not one of parts.
    """
    there = find_manifest(folder, owner=owner)
    paths = sorted(folder.glob("*.safetensors*"))
    if there is not None and any(path.suffix == ".safetensors" for path in paths):  # a manifest alone protects nothing
        refuse_another(folder, there, identity)
    else:
        _write_manifest(folder, identity, owner=owner)
    parts = find_parts(folder)
    for path in {*paths} - {part.path for part in parts}:
        path.unlink()
    return parts


def find_parts(folder: Path) -> list[Part]:
    """The whole parts from item 0 on, without a gap; nothing is changed."""
    parts: list[Part] = []
    for path in sorted(folder.glob("*.safetensors")):
        part = _read_part(path)
        if part is not None and part.start == (parts[-1].stop if parts else 0):
            parts.append(part)
    return parts


def find_manifest(folder: Path, *, owner: str) -> dict[str, Any] | None:
    """What the parts in a folder depend on; None where there is neither a manifest nor a part.

    Raises:
        InputError: it is no folder, holds a file that is no part, or parts without a manifest of parts.
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
    """Write a finished part: the bytes of a safetensors file whose metadata holds its notes under `NOTES`, as JSON."""
    path = folder / f"{start:09d}-{stop:09d}.safetensors"
    write_whole(path, content)
    part = _read_part(path)
    assert part is not None, f"{path} was written and cannot be read"
    return part


def remove_parts(folder: Path, identity: Mapping[str, Any], *, owner: str) -> None:
    """Delete the parts of a command once they are joined, and their folder; a missing folder is no mistake.

    Raises:
        InputError: nothing was deleted, because the folder is not this command's, or holds a file that is no part.
    """
    there = find_manifest(folder, owner=owner)
    if there is None:
        return
    refuse_another(folder, there, identity)
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
        path.unlink()  # the manifest last: what a kill leaves is still known as ours
    with suppress(OSError):  # a link to a folder elsewhere, or a file came in
        folder.rmdir()


def _read_part(path: Path) -> Part | None:
    """Read a part's header and notes; None where it is not whole."""
    start, _, stop = path.stem.partition("-")
    try:
        metadata, tensors = read_header(path)
        return Part(path, int(start), int(stop), json.loads(metadata[NOTES]), tensors)
    except (OSError, ValueError, KeyError):
        return None


def _read_manifest(folder: Path, *, owner: str) -> dict[str, Any]:
    try:
        there = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        there = None
    if not isinstance(there, dict) or there.pop(_OWNER, None) != owner:
        raise InputError(
            f"{folder / MANIFEST}: need the manifest of files by {owner}; it is missing, damaged, of another version "
            f"or of something else. Choose another folder, or move {folder} away."
        )
    return there


def _write_manifest(folder: Path, identity: Mapping[str, Any], *, owner: str) -> None:
    content = (json.dumps({_OWNER: owner, **identity}, indent=1) + "\n").encode()
    write_whole(folder / MANIFEST, content, shared=True)
