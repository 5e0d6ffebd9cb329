"""A large file of tensors made in parts, so that a stopped command goes on where it was and the memory stays small.

    F.safetensors.parts/manifest.json                         whose they are, and what they are made with
    F.safetensors.parts/000000000-000000064.safetensors       the tensors of pictures 0 to 63, and a note about each

Parts are safetensors files, each written whole. Joining them copies bytes: the format is eight bytes of length, a JSON
header with each tensor's type, shape and place, and the numbers. The library's own writer would need all tensors in
memory. The joined file does not depend on how the work was cut into parts. A folder without this manifest, or with a
file of another name, is somebody else's: nothing in it is written or deleted.
Deliberately absent: two processes that share the work.
"""

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from foveate.errors import InputError
from foveate.files import write_whole

MAX_HEADER = 100_000_000  # bytes; safetensors' own bound
NOTES = "notes"  # the key of a part's metadata that holds its notes
BLOCK = 16_000_000  # bytes copied at once
_OWNER = {"made_by": "foveate embed"}  # how a manifest of parts is told from any other manifest.json
_OURS = re.compile(r"(manifest\.json|\d{9,}-\d{9,}\.safetensors)(\.partial)?")


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies."""

    name: str
    dtype: str  # safetensors' word for it, such as F32
    shape: list[int]
    file: Path
    begin: int  # [bytes from the file's start]
    end: int


@dataclass(frozen=True)
class Part:
    """The finished work on pictures start .. stop - 1."""

    start: int
    stop: int
    notes: dict[str, Any]
    tensors: list[Stored]


def read_header(path: Path) -> tuple[dict[str, str], list[Stored]]:
    """Read what a safetensors file says about itself, and hold it to the file's length.

    Returns:
        Its metadata, and its tensors in the order in which they lie.

    Raises:
        ValueError: no whole safetensors file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError("no safetensors header")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("no safetensors header")
    metadata, start = header.pop("__metadata__", {}), 8 + length
    try:
        stored = [
            Stored(name, one["dtype"], one["shape"], path, *(start + place for place in one["data_offsets"]))
            for name, one in header.items()
        ]
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError("no safetensors header") from error
    stored.sort(key=lambda one: (one.begin, one.end))
    end = stored[-1].end if stored else start
    if path.stat().st_size != end:
        raise ValueError(f"has {path.stat().st_size:,} bytes instead of {end:,}")
    return metadata, stored


def claim_parts(folder: Path, identity: dict[str, str]) -> list[Part]:
    """Take a folder for the parts of one command, or find what the same command left there.

    What a killed process half wrote, a damaged part and whatever comes after it are removed.

    Args:
        folder: made where it does not exist.
        identity: whatever the tensors depend on.

    Returns:
        The finished parts from picture 0 on, without a gap.

    Raises:
        InputError: the parts are another command's (lists the differences), or the folder is not one of parts.
    """
    there = _read_manifest(folder)
    found = sorted(folder.glob("*.safetensors*"))
    if there is not None and any(path.suffix == ".safetensors" for path in found):  # a manifest alone protects nothing
        refuse_another(folder, there, identity)
    else:
        write_whole(folder / "manifest.json", (json.dumps({**_OWNER, **identity}, indent=1) + "\n").encode())
    parts: list[Part] = []
    for path in found:
        part = _read_part(path)
        if part is not None and part.start == (parts[-1].stop if parts else 0):
            parts.append(part)
        else:
            path.unlink()
    return parts


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """What the parts in a folder are made with; None where there is neither a manifest nor a part.

    Raises:
        InputError: it is no folder, holds a file that is no part, or parts without a manifest of parts.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise InputError(f"{folder}: need a folder for unfinished parts; it is a file. Move it away.")
    paths = sorted(folder.iterdir())
    foreign = [path.name for path in paths if not (_OURS.fullmatch(path.name) and path.is_file())]
    if foreign:
        raise InputError(f"{folder}: need a folder of nothing but parts; it holds {foreign[0]!r}. Move that away.")
    manifest = folder / "manifest.json"
    if all(path.name == "manifest.json.partial" for path in paths):
        return None
    try:
        there = json.loads(manifest.read_bytes())
    except (OSError, ValueError):
        there = None
    if not isinstance(there, dict) or not there.items() >= _OWNER.items():
        raise InputError(
            f"{manifest}: need the manifest of parts; it is missing, damaged or of something else. Move {folder} away."
        )
    return {name: value for name, value in there.items() if name not in _OWNER}


def refuse_another(place: Path, there: dict[str, Any], here: dict[str, str]) -> None:
    """Refuse to touch what another command has made.

    Raises:
        InputError: lists the fields that differ.
    """
    fields = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    if fields:
        lines = [f"  {name}: there {there.get(name, '(absent)')}, here {here.get(name, '(absent)')}" for name in fields]
        raise InputError(
            f"{place}: holds the work of another command. Differing:\n"
            + "\n".join(lines)
            + "\nGive the same command to go on, choose another --out, or delete it."
        )


def write_part(folder: Path, content: bytes, *, start: int, stop: int) -> Part:
    """Write a finished part: the bytes of a safetensors file whose metadata holds its notes under `NOTES`."""
    path = folder / f"{start:09d}-{stop:09d}.safetensors"
    write_whole(path, content)
    part = _read_part(path)
    assert part is not None, f"{path} was written and cannot be read"
    return part


def _read_part(path: Path) -> Part | None:
    """Read what a part says about itself; None where it is not whole."""
    start, _, stop = path.name.removesuffix(".safetensors").partition("-")
    try:
        metadata, tensors = read_header(path)
        return Part(int(start), int(stop), json.loads(metadata[NOTES]), tensors)
    except (OSError, ValueError, KeyError):  # ValueError: also numbers that are none, as in "...safetensors.partial"
        return None


def join_parts(parts: list[Part], out: Path, *, metadata: dict[str, str], stacked: bool) -> None:
    """Write the tensors of all parts into one safetensors file, whole or not at all, block by block.

    Args:
        parts: in order.
        out: the file.
        metadata: of the file.
        stacked: every part holds one tensor of the same name, (B, ...), to be joined along B. Otherwise all names
            differ.
    """
    tensors = [one for part in parts for one in part.tensors]
    if not stacked:
        tensors.sort(key=lambda one: one.name)  # the same file, however the work was cut
    header: dict[str, Any] = {"__metadata__": metadata}
    place = 0
    for one in [_stack(tensors)] if stacked else tensors:
        size = one.end - one.begin
        header[one.name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8, as the library has it
    partial = out.with_name(out.name + ".partial")
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for one in tensors:
            _copy(one, file)
        file.flush()
        os.fsync(file.fileno())  # the parts are deleted next
    partial.replace(out)


def _stack(tensors: list[Stored]) -> Stored:
    """What the parts of one tensor are together; only its name, type, shape and size mean something."""
    first = tensors[0]
    assert all((one.name, one.dtype, one.shape[1:]) == (first.name, first.dtype, first.shape[1:]) for one in tensors)
    shape = [sum(one.shape[0] for one in tensors), *first.shape[1:]]
    return Stored(first.name, first.dtype, shape, first.file, 0, sum(one.end - one.begin for one in tensors))


def _copy(one: Stored, out: Any) -> None:
    with one.file.open("rb") as file:
        file.seek(one.begin)
        for begin in range(one.begin, one.end, BLOCK):
            block = file.read(min(BLOCK, one.end - begin))
            assert block, f"{one.file} became shorter while it was read"
            out.write(block)


def header_size(names: Iterable[str], *, shape: list[int]) -> int:
    """At most so many bytes of header for tensors of these names and this largest shape."""
    place = 8 * prod(shape)
    each = len(json.dumps({"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}))
    return sum(len(json.dumps(name)) + each + 2 * len(str(place * count)) for count, name in enumerate(names, start=1))


def remove_parts(folder: Path, identity: dict[str, str]) -> None:
    """Delete the parts of a command once they are joined, and their folder; none is no mistake.

    Raises:
        InputError: nothing was deleted, because the folder is not this command's, or holds a file that is no part.
    """
    there = _read_manifest(folder)
    if there is None:
        return
    refuse_another(folder, there, identity)
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "manifest.json"):
        path.unlink()  # the manifest last: what a kill leaves is still known as ours
    with suppress(OSError):  # a link to a folder elsewhere, or a file came in
        folder.rmdir()
