"""One matrix of whole numbers out of a MATLAB file (level 5, as PASCAL Context's annotations are).

    128 bytes: text, version, byte order    then elements: type, length, content; compressed ones hold one element more

Sizes are judged before anything of that size is made, and nothing but the one array is looked at: no objects, no cells.
Deliberately absent: level 7.3 (HDF5), writing, everything else that such files may hold.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from foveate.data.validation import fail

MAX_BYTES = 50_000_000  # of the elements of a file, uncompressed
MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}  # type of an element -> numpy's
NEED = "a MATLAB file of level 5"


def read_matrix(path: Path, name: str) -> Int64[Tensor, "H W"]:
    """Read a matrix of whole numbers of at least 0.

    Args:
        path: of the `.mat` file.
        name: of the matrix in it.

    Raises:
        InputError: no such file or matrix, another level, damaged, or other numbers; says what.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        fail(str(path), NEED, str(error))
    if len(content) < 128 or content[126:128] not in (b"IM", b"MI") or b"MATLAB 5.0" not in content[:116]:
        fail(str(path), NEED, "another file", "Files of level 7.3 must be saved again with -v7.")
    order = "<" if content[126:128] == b"IM" else ">"
    try:
        for kind, body in _elements(content[128:], order):
            if kind == COMPRESSED:
                unpacker = zlib.decompressobj()
                kind, body = next(_elements(unpacker.decompress(body, MAX_BYTES), order))
            if kind == MATRIX:
                found = _matrix(body, order, name)
                if found is not None:
                    return torch.from_numpy(found)
    except (ValueError, struct.error, zlib.error, StopIteration) as error:
        fail(str(path), f"a whole matrix `{name}` of whole numbers", f"{type(error).__name__} {error}")
    fail(str(path), f"a matrix `{name}`", "none", "Is this the annotation of another data set?")


def _elements(content: bytes, order: str):
    """(type, content) of each element; up to 4 bytes stand within the tag itself."""
    place = 0
    while place + 8 <= len(content):
        kind, size = struct.unpack_from(order + "II", content, place)
        start = place + 8
        if kind >> 16:
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
        if start + size > len(content):
            raise ValueError(f"an element of {size} bytes where {len(content) - start} are left")
        yield kind, content[start : start + size]
        place = start + size
        if kind != COMPRESSED:
            place += -place % 8


def _matrix(content: bytes, order: str, name: str) -> np.ndarray | None:
    """The numbers of a matrix, or None if it is called otherwise."""
    parts = _elements(content, order)
    next(parts)  # flags: what class it has, which the element of the numbers says too
    sizes = np.frombuffer(next(parts)[1], dtype=order + "i4").tolist()
    if next(parts)[1] != name.encode():
        return None
    kind, body = next(parts)
    if len(sizes) != 2 or min(sizes) < 1 or kind not in NUMBERS:
        raise ValueError(f"sizes {sizes}, numbers of the type {kind}")
    values = np.frombuffer(body, dtype=order + NUMBERS[kind])
    if len(values) != sizes[0] * sizes[1]:
        raise ValueError(f"{len(values)} numbers for {sizes[0]} x {sizes[1]}")
    whole = values.astype(np.int64)
    if (whole != values).any() or (whole < 0).any():
        raise ValueError("numbers that are not whole, or less than 0")
    return np.ascontiguousarray(whole.reshape(sizes, order="F"))  # columns first
