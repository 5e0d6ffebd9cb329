"""Files of `torch.save` and TorchScript archives, read without running, importing or building anything in them.

Objects other than tensors and plain data (an optimizer, numpy numbers, an argparse.Namespace, paths) become a
`Placeholder`. The file is mapped: a tensor takes memory when its values are used, and the moments of an optimizer
never. The pickle of a TorchScript archive, such as OpenAI's own files, describes a tree of modules; its code is not
used. Not supported: quantised, sparse and compressed tensors, and files older than PyTorch 0.1.10 (tar).
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

_MAX_PICKLE = 64 * 2**20  # bytes; that of the largest CLIP with its optimizer has about two million
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of torch.save's files before PyTorch 1.6
_MAX_NAMES, _MAX_DEPTH = 100_000, 32  # of the modules of a TorchScript archive
_LOCAL_HEADER = 30  # bytes of the header of a zip entry, before its name


def read_checkpoint(path: str | Path) -> Any:
    """Read the tensors and plain data of a file of `torch.save` (zip, or before PyTorch 1.6) or a TorchScript archive.

    Returns:
        Nested dictionaries, lists, tuples, numbers and strings. A tensor in a dictionary or a list is a `torch.Tensor`
        on the CPU, a private view of the mapped file. Any other object is a `Placeholder` with the name of its class
        in `.name` and its state in `.state`; so are the moments of an optimizer, tensors in tuples, and sparse,
        quantised and complex tensors.

    Raises:
        InputError: the file has another format, is damaged, or states wrong sizes.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return _read_zip(mapping, path) if mapping[:2] == b"PK" else _read_legacy(mapping)
    except Exception as error:  # a damaged file can raise any error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: need a file of torch.save or TorchScript; this one is damaged or has another format, and "
            f"it was not run ({reason}). Copy it again, or save its state dictionary with torch.save or as safetensors."
        ) from error


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive that is not damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return False


def read_archive(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a TorchScript archive by their dotted names, as views of the mapped file.

    Raises:
        InputError: the archive is damaged, states wrong sizes, or is not a tree of modules.
    """
    root = read_checkpoint(path)
    try:
        return _collect_tensors(root)
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
    if len(content) > _MAX_PICKLE:
        raise ValueError(f"its data.pkl has {len(content):,} bytes")

    def values_of(storage: Storage) -> Tensor:
        name = f"{root}data/{storage.key}"
        if name not in entries:
            raise ValueError(f"{name} is missing")
        raw = _bytes_of(mapping, entries[name])
        if len(raw) != storage.count * storage.dtype.itemsize:
            raise ValueError(f"{name} has {len(raw):,} bytes, not {storage.count} numbers of {storage.dtype}")
        return _view(raw, storage.dtype)

    return _fill_tensors(follow_pickle(io.BytesIO(content)), values_of)


def _bytes_of(mapping: mmap.mmap, entry: zipfile.ZipInfo) -> memoryview:
    """The bytes of a zip entry, which must be uncompressed, complete and undamaged."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ValueError(f"{entry.filename} is compressed")
    header = mapping[entry.header_offset : entry.header_offset + _LOCAL_HEADER]
    if header[:4] != b"PK\3\4":
        raise ValueError(f"{entry.filename} is not where the file says")
    start = entry.header_offset + _LOCAL_HEADER + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    content = memoryview(mapping)[start : start + entry.file_size]
    if len(content) != entry.file_size:
        raise ValueError(f"{entry.filename} is cut short")
    if entry.CRC and zlib.crc32(content) != entry.CRC:  # 0: torch wrote none
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
    starts: dict[str, int] = {}  # key of a storage -> its first byte
    keys = follow_pickle(mapping)
    position = mapping.tell()
    for key in keys:  # a storage is its count of numbers, in eight bytes, and the numbers
        if int.from_bytes(mapping[position : position + 8], "little") != storages[key].count:
            raise ValueError(f"storage {key!r} has another size than the file says")
        starts[key] = position + 8
        position += 8 + storages[key].count * storages[key].dtype.itemsize
    if position > len(mapping):
        raise ValueError("it is cut short")

    def values_of(storage: Storage) -> Tensor:
        start = starts[storage.key]
        raw = memoryview(mapping)[start : start + storage.count * storage.dtype.itemsize]
        return _view(raw, storage.dtype)

    return _fill_tensors(content, values_of)


def _view(raw: memoryview, dtype: torch.dtype) -> Tensor:
    """Bytes as numbers, copied only if they are not aligned."""
    if not raw:
        return torch.empty(0, dtype=dtype)
    values = torch.frombuffer(raw, dtype=torch.uint8)
    return (values.clone() if values.data_ptr() % dtype.itemsize else values).view(dtype)


def _fill_tensors(content: Any, values_of: Callable[[Storage], Tensor]) -> Any:
    """Replace each `StoredTensor` in dictionaries and lists by a tensor, except those of an optimizer."""
    cache: dict[str, Tensor] = {}

    def tensor_of(stored: StoredTensor) -> Tensor:
        if stored.storage.key not in cache:
            cache[stored.storage.key] = values_of(stored.storage)
        return _strided(stored, cache[stored.storage.key])

    if isinstance(content, StoredTensor):
        return tensor_of(content)
    queue, visited = [content], set()
    while queue:
        item = queue.pop()
        if id(item) in visited or not isinstance(item, dict | list | tuple | Placeholder):
            continue
        visited.add(id(item))
        if isinstance(item, Placeholder):
            queue.append(item.state)
        elif isinstance(item, tuple):
            queue.extend(item)
        elif not (isinstance(item, dict) and {"state", "param_groups"} <= item.keys()):  # as torch's optimizers
            for key, value in item.items() if isinstance(item, dict) else enumerate(item):
                if isinstance(value, StoredTensor):
                    item[key] = tensor_of(value)
                else:
                    queue.append(value)
    return content


def _strided(tensor: StoredTensor, values: Tensor) -> Tensor:
    """A view of the numbers of a storage, which must have all of the tensor's."""
    if 0 in tensor.size:
        return values.new_empty(tensor.size)
    last = tensor.offset + sum((length - 1) * step for length, step in zip(tensor.size, tensor.stride, strict=True))
    if last >= len(values):
        raise ValueError(f"a tensor that needs {last + 1:,} numbers; its storage has {len(values):,}")
    if math.prod(tensor.size) > len(values):
        raise ValueError(f"a tensor of {math.prod(tensor.size):,} numbers; its storage has {len(values):,}")
    return values.as_strided(tensor.size, tensor.stride, tensor.offset)


def _collect_tensors(root: Any) -> dict[str, Tensor]:
    """Collect the tensors of a tree of modules by their dotted names."""
    if not _is_module(root):
        raise ValueError(f"it holds {root if isinstance(root, Placeholder) else f'a {type(root).__name__}'}")
    tensors: dict[str, Tensor] = {}
    queue, visited = [("", root, 0)], 0
    while queue:
        prefix, module, depth = queue.pop()
        if not isinstance(module.state, dict) or not all(isinstance(key, str) for key in module.state):
            raise ValueError(f"the state of {prefix or 'its root'} is not a dictionary by name")
        visited += 1 + len(module.state)
        if visited > _MAX_NAMES or depth > _MAX_DEPTH:
            raise ValueError("its modules are not a tree, or too many")
        for key, value in module.state.items():
            if isinstance(value, Tensor):
                tensors[prefix + key] = value
            elif _is_module(value):
                queue.append((f"{prefix}{key}.", value, depth + 1))
    if not tensors:
        raise ValueError("it has no tensors")
    return tensors


def _is_module(value: Any) -> bool:
    return isinstance(value, Placeholder) and value.name.startswith("__torch__.")
