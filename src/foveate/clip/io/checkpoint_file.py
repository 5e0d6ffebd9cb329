"""Files of `torch.save` and TorchScript archives, read without running, importing or building anything in them.

What a training script saved beside the weights (an optimizer, numpy numbers, an argparse.Namespace, paths) stays a
`Placeholder`. The file is mapped, not read: a tensor takes memory when its numbers are used, and an optimizer's moments
never. A TorchScript archive, as OpenAI's own files are, holds compiled code too, which is left alone, and its pickle
describes a tree of modules. Absent: what the dictionaries mean (`foveate.clip.io.states`), quantised, sparse and
compressed tensors, and files older than PyTorch 0.1.10 (tar).
"""

import io
import math
import mmap
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.clip.io.pickle_reader import Placeholder, Storage, StoredTensor, follow_pickle
from foveate.errors import InputError

_LARGEST_PICKLE = 64 * 2**20  # bytes; that of the largest CLIP with its optimizer has about two million
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of torch.save's files before PyTorch 1.6
_MOST_NAMES, _DEEPEST = 100_000, 32  # of the modules of a TorchScript archive
_LOCAL_HEADER = 30  # bytes of a zip entry's own header, before its name


def read_checkpoint(path: str | Path) -> Any:
    """Read what `torch.save` wrote, tensors and plain data alone.

    Args:
        path: of a file of `torch.save` (its zip form, or the form before PyTorch 1.6) or of a TorchScript archive.

    Returns:
        The nested dictionaries, lists, tuples, numbers and texts of the file. A tensor in a dictionary or a list is a
        `torch.Tensor` on the CPU, a private view of the mapped file. Whatever else was saved is a `Placeholder` with
        the name of its class in `.name`, and its state in `.state`; so are an optimizer's moments, tensors in tuples,
        and sparse, quantised and complex tensors.

    Raises:
        InputError: it is no such file, damaged, or lies about its sizes.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return _read_zip(mapping, path) if mapping[:2] == b"PK" else _read_legacy(mapping)
    except Exception as error:  # a damaged file fails in more ways than can be listed
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: need a file of torch.save or TorchScript; this one is damaged or something else, and "
            f"it was not run ({first}). Copy it again, or save its state dictionary with torch.save or as safetensors."
        ) from error


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, and not one of `torch.save` nor a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return False


def read_archive(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a TorchScript archive by their dotted names.

    Args:
        path: of the archive.

    Returns:
        Tensors on the CPU, views of the mapped file.

    Raises:
        InputError: damaged, lying about its sizes, or holding anything but a tree of modules (which is not run).
    """
    root = read_checkpoint(path)
    try:
        return _walk(root)
    except ValueError as error:
        raise InputError(f"{path}: need the modules of a TorchScript archive; it was not run ({error}).") from error


def _read_zip(mapping: mmap.mmap, path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"need one data.pkl; got {len(roots)}")
    root = roots[0]
    order = entries.get(f"{root}byteorder")
    if order is not None and bytes(_bytes_of(mapping, order)) != b"little":
        raise ValueError("its numbers are not little endian")
    content = _bytes_of(mapping, entries[f"{root}data.pkl"])
    if len(content) > _LARGEST_PICKLE:
        raise ValueError(f"its data.pkl has {len(content):,} bytes")

    def numbers(storage: Storage) -> Tensor:
        name = f"{root}data/{storage.key}"
        if name not in entries:
            raise ValueError(f"{name} is missing")
        raw = _bytes_of(mapping, entries[name])
        if len(raw) != storage.count * storage.dtype.itemsize:
            raise ValueError(f"{name} has {len(raw):,} bytes, not {storage.count} numbers of {storage.dtype}")
        return _numbers(raw, storage.dtype)

    return _with_tensors(follow_pickle(io.BytesIO(content)), numbers)


def _bytes_of(mapping: mmap.mmap, entry: zipfile.ZipInfo) -> memoryview:
    """The bytes of a zip entry, after making sure that they are stored as they are, whole and undamaged."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ValueError(f"{entry.filename} is compressed")
    header = mapping[entry.header_offset : entry.header_offset + _LOCAL_HEADER]
    if header[:4] != b"PK\3\4":
        raise ValueError(f"{entry.filename} is not where the file says")
    start = entry.header_offset + _LOCAL_HEADER + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    content = memoryview(mapping)[start : start + entry.file_size]
    if len(content) != entry.file_size:
        raise ValueError(f"{entry.filename} is cut short")
    if entry.CRC and zlib.crc32(content) != entry.CRC:  # 0: torch was told to write none
        raise ValueError(f"{entry.filename} does not have the checksum the file says")
    return content


def _read_legacy(mapping: mmap.mmap) -> Any:
    if follow_pickle(mapping) != _LEGACY_MAGIC:
        raise ValueError("it is not of torch.save")
    follow_pickle(mapping)  # the version of the format
    system = follow_pickle(mapping)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are not little endian")
    storages: dict[str, Storage] = {}
    content = follow_pickle(mapping, storages)
    places: dict[str, int] = {}
    keys = follow_pickle(mapping)
    place = mapping.tell()
    for key in keys:  # each as its count of numbers, in eight bytes, and the numbers
        if int.from_bytes(mapping[place : place + 8], "little") != storages[key].count:
            raise ValueError(f"storage {key!r} has another size than the file says")
        places[key] = place + 8
        place += 8 + storages[key].count * storages[key].dtype.itemsize
    if place > len(mapping):
        raise ValueError("it is cut short")

    def numbers(storage: Storage) -> Tensor:
        start = places[storage.key]
        raw = memoryview(mapping)[start : start + storage.count * storage.dtype.itemsize]
        return _numbers(raw, storage.dtype)

    return _with_tensors(content, numbers)


def _numbers(raw: memoryview, dtype: torch.dtype) -> Tensor:
    if not raw:
        return torch.empty(0, dtype=dtype)
    numbers = torch.frombuffer(raw, dtype=torch.uint8)
    return (numbers.clone() if numbers.data_ptr() % dtype.itemsize else numbers).view(dtype)


def _with_tensors(content: Any, numbers: Callable[[Storage], Tensor]) -> Any:
    """Put tensors where `StoredTensor`s are, in dictionaries and lists; those of an optimizer stay where they are."""
    blocks: dict[str, Tensor] = {}

    def shown(value: StoredTensor) -> Tensor:
        if value.storage.key not in blocks:
            blocks[value.storage.key] = numbers(value.storage)
        return _show(value, blocks[value.storage.key])

    if isinstance(content, StoredTensor):
        return shown(content)
    waiting, visited = [content], set()
    while waiting:
        one = waiting.pop()
        if id(one) in visited or not isinstance(one, dict | list | tuple | Placeholder):
            continue
        visited.add(id(one))
        if isinstance(one, Placeholder):
            waiting.append(one.state)
        elif isinstance(one, tuple):
            waiting.extend(one)
        elif not (isinstance(one, dict) and {"state", "param_groups"} <= one.keys()):  # the form of torch's optimizers
            for key, value in one.items() if isinstance(one, dict) else enumerate(one):
                if isinstance(value, StoredTensor):
                    one[key] = shown(value)
                else:
                    waiting.append(value)
    return content


def _show(tensor: StoredTensor, numbers: Tensor) -> Tensor:
    """Show the numbers of a storage as a tensor, after making sure that the last one asked for lies within it."""
    if 0 in tensor.size:
        return numbers.new_empty(tensor.size)
    last = tensor.offset + sum((length - 1) * step for length, step in zip(tensor.size, tensor.stride, strict=True))
    if last >= len(numbers):
        raise ValueError(f"a tensor that needs {last + 1:,} numbers; its storage has {len(numbers):,}")
    if math.prod(tensor.size) > len(numbers):
        raise ValueError(f"a tensor of {math.prod(tensor.size):,} numbers; its storage has {len(numbers):,}")
    return numbers.as_strided(tensor.size, tensor.stride, tensor.offset)


def _walk(root: Any) -> dict[str, Tensor]:
    """Collect the tensors of a tree of modules by their dotted names."""
    if not _is_module(root):
        raise ValueError(f"it holds {root if isinstance(root, Placeholder) else f'a {type(root).__name__}'}")
    found: dict[str, Tensor] = {}
    waiting, visited = [("", root, 0)], 0
    while waiting:
        prefix, module, depth = waiting.pop()
        if not isinstance(module.state, dict) or not all(isinstance(key, str) for key in module.state):
            raise ValueError(f"the state of {prefix or 'its root'} is not a dictionary by name")
        visited += 1 + len(module.state)
        if visited > _MOST_NAMES or depth > _DEEPEST:
            raise ValueError("its modules are not a tree, or too many")
        for key, value in module.state.items():
            if isinstance(value, Tensor):
                found[prefix + key] = value
            elif _is_module(value):
                waiting.append((f"{prefix}{key}.", value, depth + 1))
    if not found:
        raise ValueError("there is no tensor in it")
    return found


def _is_module(value: Any) -> bool:
    return isinstance(value, Placeholder) and value.name.startswith("__torch__.")
