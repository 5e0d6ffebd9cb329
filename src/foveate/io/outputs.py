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
                if os.path.exists(text[start:]):  # noqa: PTH110  # false for a text that is too long for a path
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
    # no file twice
    for target in targets:
        check_target(target.path, flag=target.flag)
    flags = {_resolved(target.path)[0]: target.flag for target in reversed(targets)}
    for target in targets:
        if (other := flags[_resolved(target.path)[0]]) != target.flag:
            raise InputError(f"{target.flag}: need another file than {other}; got {target.path} for both. Rename one.")
    given = [(flag, path, _place(path)) for flag, path in inputs]
    folders = [(flag, path) for flag, path, _ in given if path.is_dir()]
    # no inputs, which --overwrite does not change; no drawings in folders of images; no file of something else
    files: dict[object, tuple[str, Path]] = {place: (flag, path) for flag, path, place in given if place is not None}
    foreign: list[Target] = []
    for target in (target for target in targets if os.path.lexists(target.path)):
        source = files.get(_place(target.path))
        if source is None and not _is_own(target):
            source = next((entry for entry in folders if _is_inside(target.path, entry[1])), None)
            foreign.append(target)
        if source is not None:
            raise InputError(
                f"{target.flag}: need a file that is not an input; {target.path} is {'in ' * source[1].is_dir()}"
                f"{source[0]} {source[1]}. Choose another name."
            )
    _check_drawings(targets, [(flag, path) for flag, path in folders if flag in IMAGE_FLAGS])
    if foreign and not config.overwrite:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise InputError(
            f"{foreign[0].flag}: need a new file or one of `{config.made_by}`; {foreign[0].path}{more} exists "
            "without the mark of this command (an earlier version or something else wrote it). Choose another name, or "
            "add --overwrite to replace it."
        )


def _check_drawings(targets: Sequence[Target], folders: Sequence[tuple[str, Path]]) -> None:
    """Refuse drawings among the images that a command reads, which the next command would read too."""
    drawn = {target.path.parent: target for target in targets if target.path.suffix.lower() in DRAWINGS}
    for target in drawn.values():
        for flag, folder in folders:
            if _is_inside(target.path, folder) and not (folder / "annotations").is_dir():
                raise InputError(
                    f"{target.flag}: need a folder outside {flag} {folder}, whose images are all read; {target.path} "
                    "would be one of them. Choose another folder."
                )


def _is_own(target: Target) -> bool:
    """Whether an existing path may be replaced: it is a file of the command, or an empty one."""
    return target.path.is_file() and (not target.path.stat().st_size or target.is_own(target.path))


def _place(path: Path) -> tuple[int, int] | None:
    """Device and number of an existing file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path, or what it leads to, is in a folder or one below it."""
    return any(place.is_relative_to(folder.resolve()) for place in _resolved(path))


def _resolved(path: Path) -> tuple[Path, Path]:
    """The path itself in its resolved folder, and what it leads to."""
    return path.parent.resolve() / path.name, path.resolve()
