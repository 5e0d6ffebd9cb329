"""The content of a pickle, read without importing or calling anything in it.

A pickle is a program for a stack machine, whose opcodes are interpreted here: plain data (numbers, strings,
dictionaries, lists, tuples) is returned, a tensor becomes a `StoredTensor`, which refers to its numbers in the file,
and any other object a `Placeholder` with its name and state. A file cannot choose a call.
"""

import mmap
import pickletools
from dataclasses import dataclass
from typing import IO, Any, cast

import torch

_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_PLAIN = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MAX_OPCODES = 20_000_000  # a ViT-L with its optimizer has about 100,000
_MAX_KEY = 2**63  # of dictionaries; larger ones could be made to collide


class Placeholder:
    """Replaces an object that was not built."""

    __slots__ = ("name", "state")

    def __init__(self, name: str) -> None:
        self.name = name  # of its class, or of the function that returns it
        self.state: Any = None  # the argument of its __setstate__

    def __repr__(self) -> str:
        return f"<{self.name!r}, not built>"


class _Global(Placeholder):
    """A name that a pickle imports."""

    __slots__ = ()


@dataclass(frozen=True)
class Storage:
    """A block of numbers in the file."""

    key: str
    dtype: torch.dtype
    count: int


class StoredTensor(Placeholder):
    """A tensor that was not read: the numbers of a storage that it views."""

    __slots__ = ("offset", "size", "storage", "stride")

    def __init__(self, storage: Storage, offset: Any, size: Any, stride: Any) -> None:
        super().__init__("torch.Tensor")
        if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
            raise ValueError("a tensor without its size and stride")
        if not all(type(number) is int and 0 <= number < 2**48 for number in (offset, *size, *stride)):
            raise ValueError(f"a tensor of offset {offset}, size {size} and stride {stride}")
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


def follow_pickle(file: IO[bytes] | mmap.mmap, storages: dict[str, Storage] | None = None) -> Any:
    """Read one pickle from the position of a file, and leave the position at its end.

    Args:
        storages: receives every storage of the pickle, by its key.

    Returns:
        Plain data, `StoredTensor`s and `Placeholder`s, nested as in the pickle.

    Raises:
        ValueError, LookupError, TypeError or another: the pickle is damaged or has opcodes that no checkpoint needs.
    """
    machine = _Machine({} if storages is None else storages)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], file))):
        if opcode.name == "STOP":
            return machine.stack.pop()
        if count > _MAX_OPCODES:
            raise ValueError(f"a pickle of more than {_MAX_OPCODES:,} opcodes")
        machine.step(opcode.name, argument)
    raise ValueError("a pickle without an end")


class _Machine:
    """The stack, its marks and the memo."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case _ if name in _PLAIN:
                stack.append(argument)
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "MARK":
                self.marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case _:
                self.collect(name, argument)

    def collect(self, name: str, argument: Any) -> None:
        """Make containers and fill them."""
        stack = self.stack
        match name:
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(Placeholder("set"))
            case "FROZENSET":
                self.since_mark()
                stack.append(Placeholder("frozenset"))
            case "LIST":
                stack.append(self.since_mark())
            case "DICT":
                items = self.since_mark()
                stack.append({})
                _set_items(stack[-1], items)
            case "TUPLE":
                stack.append(tuple(self.since_mark()))
            case _ if name in _TUPLES:
                count = _TUPLES[name]
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS" | "ADDITEMS":
                items = [stack.pop()] if name == "APPEND" else self.since_mark()
                _extend(stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, value])
            case "SETITEMS":
                items = self.since_mark()
                _set_items(stack[-1], items)
            case _:
                self.add_placeholder(name, argument)

    def add_placeholder(self, name: str, argument: Any) -> None:
        """Push a placeholder for an object."""
        stack = self.stack
        match name:
            case "GLOBAL":
                stack.append(_Global(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_Global(f"{_text(module)}.{_text(attribute)}"))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_result(function, arguments))
            case "NEWOBJ" | "NEWOBJ_EX":
                del stack[-1 if name == "NEWOBJ" else -2 :]
                stack.append(Placeholder(_name_of(stack.pop())))
            case "OBJ":
                stack.append(Placeholder(_name_of(self.since_mark()[0])))
            case "INST":
                self.since_mark()
                stack.append(Placeholder(argument.replace(" ", ".", 1)))
            case "BUILD":
                state = stack.pop()
                if type(stack[-1]) is Placeholder:
                    stack[-1].state = state
            case "BINPERSID":
                stack.append(self.register(_storage(stack.pop())))
            case _:
                raise ValueError(f"opcode {name}")

    def register(self, storage: Storage | Placeholder) -> Storage | Placeholder:
        if isinstance(storage, Storage) and self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {storage.key!r} is described in two ways")
        return storage

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a name that is no text")
    return value


def _name_of(value: Any) -> str:
    if not isinstance(value, Placeholder):
        raise ValueError(f"a call of a {type(value).__name__}")
    return value.name


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Placeholder):
        raise ValueError(f"items for a {type(target).__name__}")


def _set_items(target: Any, items: list[Any]) -> None:
    """Fill a dictionary with alternating keys and values; entries whose keys are not numbers or strings are ignored."""
    if isinstance(target, Placeholder):
        return
    if not isinstance(target, dict):
        raise ValueError(f"entries for a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, str | float | bytes) or (isinstance(key, int) and abs(key) < _MAX_KEY) or key is None:
            target[key] = value


def _result(function: Any, arguments: Any) -> Any:
    """The result of a call, which is not made: a tensor, a dictionary, or else a placeholder."""
    name = _name_of(function)
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        return Placeholder(name)
    match name, arguments:
        case "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor", (storage, offset, size, stride, *rest):
            if not isinstance(storage, Storage):
                return Placeholder(_name_of(storage))
            if rest[2:] and rest[2]:  # a view that negates or conjugates
                return Placeholder(f"{name} with metadata")
            return StoredTensor(storage, offset, size, stride)
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", (tensor, *_):
            return tensor
        case "torch._tensor._rebuild_from_type_v2", (rebuild, _, tuple(inner), *_):
            return _result(rebuild, inner)
        case "torch.Size", (tuple(size),):
            return size
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", ([*pairs],):
            ordered: dict[Any, Any] = {}
            for key, value in pairs:
                _set_items(ordered, [key, value])
            return ordered
    return Placeholder(name)


def _storage(identity: Any) -> Storage | Placeholder:
    """The storage of a persistent identity; a placeholder if its type is unknown."""
    match identity:
        case ("module", _Global() as kind, *_):  # torch's old form, of a class with its source
            return kind
        case ("storage", _Global() as kind, str(key), _, int(count), *view):
            module, _, name = kind.name.rpartition(".")
            is_known = module in ("torch", "torch.cuda") and name in _DTYPES and view in ([], [None])
            return Storage(key, _DTYPES[name], count) if is_known else Placeholder(kind.name)
    raise ValueError("a persistent identity that is not a storage")
