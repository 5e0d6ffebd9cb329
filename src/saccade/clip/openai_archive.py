"""The tensors of a TorchScript archive, OpenAI's own files, read without running or importing anything in it.

Such a file is a zip with compiled code, which is left alone, and a pickle (`data.pkl`) that describes a tree of modules
whose tensors lie beside it as raw bytes. Here the pickle may use the opcodes such files need and a few names, all
answered by inert objects of this file; modules become `_Node`s that keep what was stored in them. Absent: everything
else a TorchScript archive can hold (quantised and sparse tensors, tensors in lists, compressed tensors).
"""

import io
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saccade.types import InputError

_TYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_OPCODES = {
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID",
    "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
}  # fmt: skip
_LISTS = {"build_intlist", "build_doublelist", "build_boollist", "build_tensorlist"}
_SETTINGS = {"input_resolution", "context_length", "vocab_size"}  # OpenAI keeps these numbers among the tensors
_LARGEST_PICKLE = 64 * 2**20  # bytes; that of the largest CLIP has less than one million
_MOST_NAMES, _DEEPEST = 100_000, 32


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
        Views of the stored bytes, on the CPU; OpenAI's three numbers (the input size and the two of the text) are
        left out.

    Raises:
        InputError: damaged, lying about its sizes, or holding anything but a tree of modules (which is not run).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except Exception as error:  # a damaged archive fails in more ways than can be listed
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: holds something else than a TorchScript archive's modules and tensors, or is damaged; "
            f"it was not run ({first})."
        ) from error


def _read(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"need one data.pkl; got {len(roots)}")
    entry = archive.getinfo(f"{roots[0]}data.pkl")
    if entry.file_size > _LARGEST_PICKLE:
        raise ValueError(f"its data.pkl claims {entry.file_size:,} bytes")
    content = archive.read(entry)
    _check_opcodes(content)
    root = _Unpickler(io.BytesIO(content)).load()
    if not isinstance(root, _Node):
        raise ValueError(f"need a module; got a {type(root).__name__}")
    views = {key: value for key, value in _walk(root).items() if key not in _SETTINGS}
    if not views:
        raise ValueError("there is no tensor in it")
    blocks: dict[str, Tensor] = {}
    for view in views.values():
        if view.block.key not in blocks:
            blocks[view.block.key] = _read_block(archive, f"{roots[0]}data/{view.block.key}", view.block)
    return {key: _view(view, blocks[view.block.key]) for key, view in views.items()}


def _check_opcodes(content: bytes) -> None:
    """Refuse what such files do not need, before any of it is followed."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in _OPCODES:
            raise ValueError(f"opcode {opcode.name}")
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(content):  # the memo would grow to hold it
            raise ValueError(f"memo entry {argument:,}")


class _Inert:
    """What a pickle may make and pass on, but never change."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise ValueError(f"a {type(self).__name__} has no state")


class _Block(_Inert):
    """A block of numbers beside the pickle."""

    __slots__ = ("count", "dtype", "key")

    def __init__(self, dtype: torch.dtype, key: str, count: int) -> None:
        self.dtype, self.key, self.count = dtype, key, count


class _View(_Inert):
    """A tensor: which numbers of a block it shows."""

    __slots__ = ("block", "offset", "size", "stride")

    def __init__(self, block: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        if not isinstance(block, _Block) or not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise ValueError("a tensor without its storage, size or stride")
        if not all(type(number) is int and 0 <= number < 2**48 for number in (offset, *size, *stride)):
            raise ValueError(f"a tensor of offset {offset}, size {size} and stride {stride}")
        self.block, self.offset, self.size, self.stride = block, offset, size, stride


class _Call(_Inert):
    """A name the pickle may call."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


class _Node:
    """What stands for a module, whatever its class: it keeps the attributes stored in it."""

    __slots__ = ("attributes",)

    def __new__(cls) -> "_Node":
        node = super().__new__(cls)
        node.attributes = {}
        return node

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise ValueError("a module's state is not a dictionary by name")
        self.attributes: dict[str, Any] = state


class _Unpickler(pickle.Unpickler):
    """Knows `_Node`s, tensors and lists; every other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Node
        match module, name:
            case "torch._utils", "_rebuild_tensor_v2":
                return _Call(_View)
            case "torch._utils", "_rebuild_parameter":
                return _Call(lambda tensor, *_: tensor)
            case "torch.jit._pickle", _ if name in _LISTS:
                return _Call(lambda values: values)
            case "torch.jit._pickle", "restore_type_tag":
                return _Call(lambda value, _: value)
            case "collections", "OrderedDict":
                return _Call(dict)
            case "torch", _ if name in _TYPES:
                return _TYPES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> _Block:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str) or not key.isdecimal():
            raise pickle.UnpicklingError(f"it asks for {pid!r}")
        return _Block(dtype, key, count)


def _walk(root: _Node) -> dict[str, _View]:
    """Collect the tensors of a tree of modules by their dotted names."""
    found: dict[str, _View] = {}
    waiting, visited = [("", root, 0)], 0
    while waiting:
        prefix, node, depth = waiting.pop()
        visited += 1 + len(node.attributes)
        if visited > _MOST_NAMES or depth > _DEEPEST:
            raise ValueError("its modules are not a tree, or too many")
        for key, value in node.attributes.items():
            if isinstance(value, _View):
                found[prefix + key] = value
            elif isinstance(value, _Node):
                waiting.append((f"{prefix}{key}.", value, depth + 1))
    return found


def _read_block(archive: zipfile.ZipFile, name: str, block: _Block) -> Tensor:
    """Read a block of numbers, if it is as long as the pickle says and as the zip says."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ValueError(f"{name} is compressed")
    if type(block.count) is not int or entry.file_size != block.count * block.dtype.itemsize:
        raise ValueError(f"{name} has {entry.file_size:,} bytes, not {block.count} numbers of {block.dtype}")
    content = bytearray(archive.read(entry))
    return torch.frombuffer(content, dtype=block.dtype) if content else torch.empty(0, dtype=block.dtype)


def _view(view: _View, numbers: Tensor) -> Tensor:
    """Show the numbers of a block as a tensor, after making sure that the last one asked for lies within it."""
    if numbers.dtype != view.block.dtype or len(numbers) != view.block.count:
        raise ValueError(f"block {view.block.key} is described in two ways")
    if 0 in view.size:
        return numbers.new_empty(view.size)
    last = view.offset + sum((length - 1) * step for length, step in zip(view.size, view.stride, strict=True))
    if last >= len(numbers):
        raise ValueError(f"a tensor that needs {last + 1:,} numbers; its block has {len(numbers):,}")
    return numbers.as_strided(view.size, view.stride, view.offset)
