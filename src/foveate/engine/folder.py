"""The claim that a run makes on its output folder: config.json says whose it is, a lock that it is at work.

The same command finds its own folder again; another run in it is refused, by the fields that differ. Nothing here
imports torch. Deliberately absent: what is in the record, and checkpoints.
"""

import fcntl
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from foveate.errors import InputError

HARMLESS = (
    *("out", "recipe", "shard_cache", "workers", "log_every", "save_every", "keep_checkpoints", "strict", "timeout"),
    *("tensorboard", "track", "dry_run"),
)
"""Fields that may change between the parts of one run: the weights come out the same."""


def claim_folder(out: Path, record: dict[str, Any], *, may_change: Sequence[str] = HARMLESS) -> bool:
    """Take the output folder for this run, or recognise it as this run's own.

    Args:
        out: the run's folder; made if it does not exist.
        record: the run's resolved config.
        may_change: fields that do not make it another run.

    Returns:
        Whether the folder already held this run (there may be something to resume); then nothing was written.

    Raises:
        InputError: the folder cannot be written, or holds another run (the differing fields are listed).
    """
    path = out / "config.json"
    if path.is_file():
        _same_run(path, record, may_change)
        return True
    check_writable(out)
    taken = [name for name in ("model", "checkpoints", "metrics.jsonl") if (out / name).exists()]
    if taken:
        raise InputError(
            f"--out {out}: must be new or this run's own; it holds {', '.join(taken)} but no config.json. "
            "Choose another folder."
        )
    partial = path.with_name("config.json.partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(path)
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


def _same_run(path: Path, record: dict[str, Any], may_change: Sequence[str]) -> None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: must be the JSON record of a run; it cannot be read ({error}). Choose another --out."
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: must be the JSON record of a run; got {found!r:.60}. Choose another --out.")
    missing = "(absent)"
    fields = sorted({*found, *record} - set(may_change))
    differing = [name for name in fields if found.get(name, missing) != record.get(name, missing)]
    if differing:
        lines = [f"  {name}: there {found.get(name, missing)}, here {record.get(name, missing)}" for name in differing]
        raise InputError(
            f"--out {path.parent}: holds another run; to continue it, give the same command. Differing:\n"
            + "\n".join(lines)
            + "\nChoose another --out, or remove that folder."
        )
