"""A folder of images -> records: CLIPSelf needs no annotations, so any folder is a data set (Sec. 3.2)."""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from foveate.data.annotations import (
    Arrays,
    Stored,
    open_arrays,
    packed,
    reopen_arrays,
    save_arrays,
    text_at,
)
from foveate.data.images import SUFFIXES, list_images
from foveate.data.records import Dataset, IgnoredEntries, LazySequence, Record
from foveate.io.files import default_cache

MIN_CACHED = 50_000  # images; the list of a smaller folder is not cached
LISTING_VERSION = 1  # a list of another version is not used
CLOCK = 2_000_000_000  # nanoseconds, of the coarsest file system

SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")


def read_folder(folder: Path | str) -> Dataset:
    """List the images of a folder and of those below it, without annotations or categories.

    The list of a large folder is cached, until a file is added to a folder, removed from it or renamed.

    Returns:
        Records sorted by path; a record's id is its path within the folder.

    Raises:
        InputError: as `list_images`.
    """
    folder, started = Path(folder), time.time_ns()
    stored = _stored(folder)
    found = None if stored is None else open_arrays(stored)
    if found is not None and _is_unchanged(folder, found[1]["folders"]):
        return _dataset(folder, FolderRecords(folder, found[0], stored), found[1])
    listing = list_images(folder)
    names = [path.relative_to(folder).as_posix() for path in listing.images]
    facts = {"ignored": listing.ignored, "parents": sorted({name.rpartition("/")[0] for name in names})}
    if len(names) < MIN_CACHED:
        return _dataset(folder, tuple(map(Record, names, listing.images)), facts)
    arrays = packed("names", names)
    facts["folders"] = {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in listing.folders}
    # a file that is added within the resolution of the clock leaves no trace
    is_settled = all(changed < started - CLOCK for changed in facts["folders"].values())
    if stored is None or not is_settled or any(path.is_symlink() for path in listing.images):
        return _dataset(folder, FolderRecords(folder, arrays, None), facts)
    save_arrays(stored, arrays, facts)
    found = open_arrays(stored)
    records = FolderRecords(folder, arrays, None) if found is None else FolderRecords(folder, found[0], stored)
    return _dataset(folder, records, facts)


class FolderRecords(LazySequence[Record]):
    """The images of a large folder by their packed names; records are created on demand."""

    def __init__(self, folder: Path, arrays: Arrays, stored: Stored | None) -> None:
        """Store the names, and where they are cached if they are."""
        self._folder, self._arrays, self._stored = folder, arrays, stored

    def __reduce__(self) -> tuple:
        """What a worker that is not forked receives: where the names are cached."""
        return _reopened, (self._folder, self._arrays if self._stored is None else self._stored)

    def __len__(self) -> int:
        return len(self._arrays["names_ends"]) - 1

    def item(self, index: int) -> Record:
        """Make the record of one image."""
        name = text_at(self._arrays, "names", index)
        return Record(name, self._folder / name)


def _reopened(folder: Path, arrays: Arrays | Stored) -> FolderRecords:
    if isinstance(arrays, Stored):
        return FolderRecords(folder, reopen_arrays(arrays), arrays)
    return FolderRecords(folder, arrays, None)


def _dataset(folder: Path, records: Sequence[Record], facts: dict[str, Any]) -> Dataset:
    ignored = {reason: IgnoredEntries(*entries) for reason, entries in facts["ignored"].items()}
    return Dataset(folder.resolve().name, (), records, ignored, split_notes(folder, facts["parents"]))


def _stored(folder: Path) -> Stored | None:
    """Where the list of a folder is cached; None: nothing is cached."""
    cache, resolved = default_cache(), str(folder.resolve())
    name = hashlib.sha256(resolved.encode(errors="surrogateescape")).hexdigest()[:32]
    identity = json.dumps([LISTING_VERSION, version("foveate"), SUFFIXES, resolved])
    return None if cache is None else Stored(cache / "folders" / f"{name}.safetensors", identity)


def _is_unchanged(folder: Path, times: dict[str, int]) -> bool:
    """Whether the folders have the times at which files were last added, removed or renamed."""
    try:
        return all((folder / name).stat().st_mtime_ns == changed for name, changed in times.items())
    except OSError:
        return False


def split_notes(folder: Path, parents: Iterable[str]) -> tuple[str, ...]:
    """A note where images of several splits are used together, by the folders that they are in.

    Args:
        folder: that was opened.
        parents: folders of the images, relative to it.
    """
    splits: dict[PurePosixPath, set[str]] = {}  # folder -> folders in it that are called as splits are
    for parent in parents:
        path = PurePosixPath(parent)
        for above in (path, *path.parents):
            if above.name.lower() in SPLIT_NAMES:
                splits.setdefault(above.parent, set()).add(above.name)
    return tuple(
        f"{folder / above}: holds {', '.join(f'{name}/' for name in sorted(found))}: all are used. "
        "To use one split alone, give its folder."
        for above, found in sorted(splits.items())
        if len(found) > 1
    )
