"""Files that a command writes: never an input, and none that something else wrote, unless --overwrite is given.

`check_command` is called for every command before its work. A command recognises its files by a mark in their first
bytes: a field of JSON, a comment of JPEG, a text of PNG. Folders of runs are claimed by their config.json instead (see
`foveate.io.store`).
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from foveate.errors import InputError
from foveate.io.files import check_target

MARK = "made_by"
HEAD = 2048  # bytes of a file that have its mark
OUTPUT_FLAGS = {"out", "results", "plot", "candidates"}  # with a path as value; other paths are inputs
POSITIONAL = {"images": "IMAGES", "results": "RESULTS"}
IMAGE_FLAGS = {"IMAGES", "--data", "--global-data"}  # of folders, all images are read, also in folders below
DRAWINGS = {".jpg", ".png"}


@dataclass(frozen=True)
class Target:
    """A file that a command writes."""

    flag: str
    """As typed, for messages."""
    path: Path
    is_own: Callable[[Path], bool]
    """Whether an existing file was written by the command; always true for one that the command itself checks."""


@dataclass(frozen=True, kw_only=True)
class FileFlags:
    """The flag of every command that writes files outside a folder of a run."""

    made_by: ClassVar[str]
    """The command, such as "foveate segment"; the mark of its files."""
    overwrite: bool = False
    """Replace files that this command did not write; inputs are never replaced."""

    def targets(self) -> list[Target]:
        """The files that the command writes, as far as its flags name them."""
        raise NotImplementedError(type(self).__name__)

    def target(self, flag: str, path: Path) -> Target:
        """A file that has the command's mark."""
        return Target(flag, path, lambda file: has_mark(file, self.made_by))


def has_mark(path: Path, made_by: str) -> bool:
    """Whether a file has the mark of a command."""
    try:
        with path.open("rb") as file:
            return re.search(rb"%b\W{1,5}%b" % (MARK.encode(), made_by.encode()), file.read(HEAD)) is not None
    except OSError:
        return False


def check_command(config: object) -> None:
    """Refuse a command whose outputs are inputs, or files that it did not write; see `check_outputs`."""
    if isinstance(config, FileFlags):
        check_outputs(config, config.targets(), inputs=inputs_of(config))


def inputs_of(config: FileFlags) -> Iterator[tuple[str, Path]]:
    """Every existing file and folder that a flag names, with the flag: PATH, NAME=PATH or ARCHITECTURE:PATH."""
    for name in (field.name for field in fields(config)):
        value = getattr(config, name)
        if name in OUTPUT_FLAGS and isinstance(value, Path):
            continue
        entries = value if isinstance(value, tuple) else (value,)
        for text in (str(entry) for entry in entries if isinstance(entry, str | Path)):
            for start in (0, *(match.end() for match in re.finditer("[=:]", text))):
                if text[start:] and os.path.exists(text[start:]):
                    yield POSITIONAL.get(name, f"--{name.replace('_', '-')}"), Path(text[start:])


def check_outputs(config: FileFlags, targets: Sequence[Target], *, inputs: Iterable[tuple[str, Path]]) -> None:
    """Refuse targets that would replace an input, or, without --overwrite, a file of something else.

    Files are compared by their place on the disk: links, hard links and other spellings of a name are the same file.

    Args:
        config: of the command.
        targets: files that it writes.
        inputs: files and folders that it reads, each with its flag.

    Raises:
        InputError: two targets are one file; a target is an input or exists in a folder of inputs; a drawing would be
            written among images that the command reads; or a target exists, and neither has the command's mark nor
            is empty.
    """
    files: dict[tuple[int, int], str] = {}
    folders: list[tuple[str, str, Path]] = []
    for flag, path in inputs:
        if path.is_dir():
            folders.append((flag, f"{flag} {path}", path.resolve()))
        elif (key := _place(path)) is not None:
            files.setdefault(key, f"{flag} {path}")
    _check_drawings(targets, [(named, folder) for flag, named, folder in folders if flag in IMAGE_FLAGS])
    foreign: list[Target] = []
    written: dict[object, str] = {}
    for target in targets:
        check_target(target.path, flag=target.flag)
        key = _place(target.path)
        if (other := written.setdefault(key or _resolved(target.path)[1], target.flag)) != target.flag:
            raise InputError(f"{target.flag}: need another file than {other}; got {target.path} for both. Rename one.")
        if not os.path.lexists(target.path):
            continue
        if key is not None and key in files:
            raise InputError(
                f"{target.flag}: need a file that is not an input; {target.path} is {files[key]}. Choose another name."
            )
        if target.is_own(target.path) or (target.path.is_file() and not target.path.stat().st_size):
            continue
        for _, named, folder in folders:
            if any(path.is_relative_to(folder) for path in _resolved(target.path)):
                raise InputError(
                    f"{target.flag}: need a file that is not an input; {target.path} exists in {named}. Choose "
                    "another name."
                )
        foreign.append(target)
    if foreign and not config.overwrite:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise InputError(
            f"{foreign[0].flag}: need a new file or one of `{config.made_by}`; {foreign[0].path}{more} exists, and "
            "something else wrote it. Choose another name, or add --overwrite to replace it."
        )


def _check_drawings(targets: Sequence[Target], folders: Sequence[tuple[str, Path]]) -> None:
    """Refuse drawings among the images that a command reads, which the next command would read too."""
    drawn = {target.path.parent: target for target in targets if target.path.suffix.lower() in DRAWINGS}
    for target in drawn.values():
        for named, folder in folders:
            if _resolved(target.path)[1].is_relative_to(folder) and not (folder / "annotations").is_dir():
                raise InputError(
                    f"{target.flag}: need a folder outside {named}, whose images are all read; {target.path} would be "
                    "one of them. Choose another folder."
                )


def _place(path: Path) -> tuple[int, int] | None:
    """Device and number of an existing file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _resolved(path: Path) -> tuple[Path, Path]:
    """What a path leads to, and the path itself in its resolved folder."""
    return path.resolve(), path.parent.resolve() / path.name
