"""Names of images that do not exist as written, and the files that they mean.

Tools write names with back-slashes, quoted as in URLs, in another Unicode form or case, with another suffix, or
relative to another folder. A name is only matched with one of the given files, so no name leads out of their folder.
"""

import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from foveate.data.images import SUFFIXES

MAX_FILES = 2_000_000  # of a folder that are compared with names
MAX_DEPTH = 4  # last parts of a name that are compared
OTHER_SUFFIX = "another suffix"
MIN_FRACTION = 0.5  # of the names that a reading must find


def _without_suffix(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    return stem if f".{suffix}" in SUFFIXES else name


SPELLINGS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("", lambda name: PurePosixPath(name).as_posix()),
    ("\\ as the separator of folders", lambda name: name.replace("\\", "/")),
    ("%20 and the like as in a URL", unquote),
    ("another Unicode form", lambda name: unicodedata.normalize("NFC", name)),
    ("another case", str.casefold),
    (OTHER_SUFFIX, _without_suffix),
)
"""What a name may be written with; each is tried together with those before."""


@dataclass(frozen=True)
class Reading:
    """How names can be read so that they are names of files."""

    files: dict[str, str]  # name -> file; no two names are one file
    how: str  # "with another suffix"
    count: int  # names in all
    doubt: str = ""  # why it cannot be taken for what is meant

    def line(self) -> str:
        """What was read, for people."""
        name, file = next(iter(self.files.items()), ("", ""))
        return (
            f"none of its {self.count} names of images exists as written; {len(self.files)} were found {self.how}, "
            f"such as {name!r}: {file}"
        )


def read_names(names: Sequence[str], files: Sequence[str]) -> Reading | None:
    """Find the files that names mean where none of them exists as written.

    Args:
        names: of images.
        files: that there are, with / between folders.

    Returns:
        The reading that finds the most names, at least half, each another file; else one with a `doubt`, if some name
        was found at all.
    """
    best: Reading | None = None
    doubtful: Reading | None = None
    spelled: list[tuple[str, list[str], list[str]]] = []
    ours, theirs = list(names), list(files)
    for label, spell in SPELLINGS:
        ours, theirs = [spell(name) for name in ours], [spell(file) for file in theirs]
        spelled.append((label, ours, theirs))
    deepest = min(MAX_DEPTH, max((name.count("/") + 1 for name in spelled[-1][1]), default=1))
    for depth in (None, *range(deepest, 0, -1)):
        for label, ours, theirs in spelled:
            index: dict[str, list[str]] = {}
            for file, key in zip(files, theirs, strict=True):
                index.setdefault(_tail(key, depth), []).append(file)
            found = {name: index.get(_tail(key, depth), []) for name, key in zip(names, ours, strict=True)}
            reading = _judge(found, "with " + (label or "the files in other folders"))
            # the label map of an image often has its name: with another suffix all must be there, in the same folder
            is_whole = depth is None and reading is not None and len(reading.files) == len(names)
            if reading is not None and label == OTHER_SUFFIX and not (reading.doubt or is_whole):
                reading = replace(reading, doubt="these may be other files, such as label maps")
            if reading is None or reading.doubt:
                doubtful = doubtful or reading
            elif best is None or len(reading.files) > len(best.files):
                best = reading
        if best is not None and len(best.files) == best.count:
            break
    return best or doubtful


def _tail(name: str, depth: int | None) -> str:
    """The last parts of a name; None: all of it."""
    return name if depth is None else "/".join(name.rsplit("/", depth)[-depth:])


def _judge(found: dict[str, list[str]], how: str) -> Reading | None:
    """The reading that finds these files for each name; None: it finds none."""
    several = next(((name, files) for name, files in found.items() if len(files) > 1), None)
    files = {name: files[0] for name, files in found.items() if files}
    doubt = ""
    if several is not None:
        doubt = f"{several[0]!r} may be {several[1][0]} or {several[1][1]}"
    elif len(set(files.values())) < len(files):
        doubt = "several names would be one file"
    elif len(files) < MIN_FRACTION * len(found):
        doubt = f"only {len(files)} of {len(found)} names are found so"
    return Reading(files, how, len(found), doubt) if files else None


def files_below(folder: Path) -> list[str]:
    """The files with an image's suffix below a folder, relative to it; linked folders are not entered."""
    files: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        above = Path(parent).relative_to(folder)
        files += [(above / name).as_posix() for name in sorted(names) if name.lower().endswith(SUFFIXES)]
        if len(files) > MAX_FILES:
            break
    return files


def relative_name(name: str, folder: Path) -> str:
    """A name relative to a folder, if it is an absolute one in it; else the name."""
    if name.startswith("/"):
        for base in (folder.absolute(), folder.resolve()):
            if PurePosixPath(name).is_relative_to(base):
                return PurePosixPath(name).relative_to(base).as_posix()
    return name


def existing_tail(name: str, folder: Path, *, is_safe: Callable[[str], bool]) -> str | None:
    """The last parts of a name that leads out of a folder, if they are a file in it."""
    parts = name.replace("\\", "/").split("/")
    tails: Iterable[str] = ("/".join(parts[-depth:]) for depth in range(min(MAX_DEPTH, len(parts) - 1), 0, -1))
    return next((tail for tail in tails if tail and is_safe(tail) and (folder / tail).is_file()), None)
