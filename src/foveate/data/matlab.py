"""Reads one integer matrix from a MATLAB file of level 5, as PASCAL Context's annotations are.

    128 bytes: text, version, byte order    then elements: type, length, content; a compressed one contains one element

Sizes are checked before memory is allocated, and only the named array is read: no objects, no cells. Level 7.3 (HDF5)
is not supported.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from foveate.data.validation import fail
from foveate.io.files import reason_of

MAX_BYTES = 50_000_000  # of the elements of a file, uncompressed
MATRIX, COMPRESSED = 14, 15  # types of elements
DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}  # type of an element -> numpy's
NEED = "a MATLAB file of level 5"


def read_matrix(path: Path, name: str) -> Int64[Tensor, "H W"]:
    """Read the matrix called `name` from a `.mat` file; its values are integers of at least 0.

    Raises:
        InputError: the file or the matrix does not exist, another level, damaged, or other values.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        fail(str(path), NEED, reason_of(error))
    if len(content) < 128 or content[126:128] not in (b"IM", b"MI") or b"MATLAB 5.0" not in content[:116]:
        fail(str(path), NEED, "another file", "Files of level 7.3 must be saved again with -v7.")
    order = "<" if content[126:128] == b"IM" else ">"
    try:
        for kind, body in _elements(content[128:], order):
            if kind == COMPRESSED:
                kind, body = next(_elements(zlib.decompressobj().decompress(body, MAX_BYTES), order))
            if kind == MATRIX:
                values = _matrix(body, order, name)
                if values is not None:
                    return torch.from_numpy(values)
    except (ValueError, struct.error, zlib.error, StopIteration) as error:
        fail(str(path), f"a whole matrix `{name}` of integers", f"{type(error).__name__} {error}")
    fail(str(path), f"a matrix `{name}`", "none", "Is this the annotation of another data set?")


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(type, content) of each element; a content of up to 4 bytes may be within the tag."""
    offset = 0
    while offset + 8 <= len(content):
        kind, size = struct.unpack_from(order + "II", content, offset)
        start = offset + 8
        if kind >> 16:  # the short form: size and type share 4 bytes
            kind, size, start = kind & 0xFFFF, kind >> 16, offset + 4
        if start + size > len(content):
            raise ValueError(f"an element of {size} bytes where {len(content) - start} are left")
        yield kind, content[start : start + size]
        offset = start + size
        if kind != COMPRESSED:
            offset += -offset % 8


def _matrix(content: bytes, order: str, name: str) -> np.ndarray | None:
    """The values of a matrix, or None if it has another name."""
    parts = _elements(content, order)
    next(parts)  # flags: the class of the matrix, which the type of its values gives too
    sizes = np.frombuffer(next(parts)[1], dtype=order + "i4").tolist()
    if next(parts)[1] != name.encode():
        return None
    kind, body = next(parts)
    if len(sizes) != 2 or min(sizes) < 1 or kind not in DTYPES:
        raise ValueError(f"sizes {sizes}, values of the type {kind}")
    values = np.frombuffer(body, dtype=order + DTYPES[kind])
    if len(values) != sizes[0] * sizes[1]:
        raise ValueError(f"{len(values)} values for {sizes[0]} x {sizes[1]}")
    integers = values.astype(np.int64)
    if (integers != values).any() or (integers < 0).any():
        raise ValueError("values that are not integers, or negative")
    return np.ascontiguousarray(integers.reshape(sizes, order="F"))  # column by column
