"""The bytes of safetensors files: reading a header, and joining many files into one without their tensors in memory.

The format is eight bytes of length, a JSON header with type, shape and offsets of each tensor, and the numbers.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

from foveate.io.files import written_whole

MAX_HEADER = 100_000_000  # bytes; the limit of safetensors
BLOCK_SIZE = 16_000_000  # bytes copied at once


@dataclass(frozen=True)
class Stored:
    """The location of a tensor."""

    name: str
    dtype: str  # a name of safetensors, such as F32
    shape: list[int]
    file: Path
    begin: int  # [bytes from the file's start]
    end: int


def read_header(path: Path) -> tuple[dict[str, str], list[Stored]]:
    """Read the metadata of a safetensors file, and its tensors in the order of their bytes.

    Raises:
        ValueError: it is not a complete safetensors file.
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
            Stored(name, entry["dtype"], entry["shape"], path, *(start + offset for offset in entry["data_offsets"]))
            for name, entry in header.items()
        ]
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError("no safetensors header") from error
    stored.sort(key=lambda tensor: (tensor.begin, tensor.end))
    end = stored[-1].end if stored else start
    if path.stat().st_size != end:
        raise ValueError(f"has {path.stat().st_size:,} bytes instead of {end:,}")
    return metadata, stored


def sort_metadata(file: IO[bytes]) -> None:
    """Sort the metadata of a safetensors file, which the library writes in random order.

    Args:
        file: open for reading and writing, at its start.
    """
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    assert len(text) <= length, f"a header of {length} bytes has {len(text)} when it is sorted"
    file.seek(8)
    file.write(text.ljust(length))


def join_tensors(tensors: Iterable[Stored], out: Path, *, metadata: dict[str, str], stacked: bool) -> None:
    """Write tensors of several files into one safetensors file, block by block; no partial file remains.

    Args:
        tensors: parts of one tensor (B, ...) in order if `stacked`, to be joined along B; otherwise of different names,
            in any order.
        out: path of the file.
        metadata: of the file.
    """
    tensors = [*tensors] if stacked else sorted(tensors, key=lambda tensor: tensor.name)
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for tensor in [_stack(tensors)] if stacked else tensors:
        size = tensor.end - tensor.begin
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8, as in the library
    need = 8 + len(text) + offset
    with written_whole(out, sync=True, need=need) as partial, partial.open("wb") as file:
        # synced, because the caller deletes the parts next
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            _copy(tensor, file)


def header_size(names: Iterable[str], *, shape: list[int]) -> int:
    """An upper bound of the bytes of a header for tensors of these names and this largest shape."""
    size = 8 * prod(shape)
    entry = len(json.dumps({"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}))
    return sum(len(json.dumps(name)) + entry + 2 * len(str(size * count)) for count, name in enumerate(names, start=1))


def _stack(tensors: list[Stored]) -> Stored:
    """The parts of a tensor as one; its location has no meaning."""
    first = tensors[0]
    assert all(
        (part.name, part.dtype, part.shape[1:]) == (first.name, first.dtype, first.shape[1:]) for part in tensors
    )
    shape = [sum(part.shape[0] for part in tensors), *first.shape[1:]]
    return Stored(first.name, first.dtype, shape, first.file, 0, sum(part.end - part.begin for part in tensors))


def _copy(tensor: Stored, out: Any) -> None:
    with tensor.file.open("rb") as file:
        file.seek(tensor.begin)
        for begin in range(tensor.begin, tensor.end, BLOCK_SIZE):
            block = file.read(min(BLOCK_SIZE, tensor.end - begin))
            assert block, f"{tensor.file} was truncated while it was read"
            out.write(block)
