"""Records what a command hands to the library, deep enough that two runs of it can be compared.

`Recording` puts recorders in the place of named functions and classes of the package, wherever they are imported;
`freeze` turns what they are called with into plain tuples: the fields of dataclasses, the numbers of tensors, the
keywords of partials, the groups of optimizers, the settings and weights of modules.
"""

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path, PurePath
from types import FunctionType, GeneratorType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import foveate

EXACT = 256  # tensors of as many numbers are compared number by number, larger ones by sums and a sample
LARGE = 10_000  # containers of more are the tables of a tokenizer
PLAIN = {type(None), bool, int, float, bytes}
NAMED = {torch.dtype, torch.device, torch.Size}
MODULE = frozenset(vars(nn.Module()))  # what every module has


class ReachedError(Exception):
    """The last call that is recorded: the command need not go on."""


class Recording:
    """The calls of one run of a command."""

    def __init__(self, replaced: Mapping[str, "Stand"], *, opaque: tuple[type, ...] = (), root: Path) -> None:
        """Prepare to record.

        Args:
            replaced: name of a definition -> what stands for it.
            opaque: classes of which nothing is compared, such as the flags of the command.
            root: folder of the run, whose path is left out of what is compared.
        """
        self.calls: list[tuple[str, Any]] = []
        self._replaced, self._opaque, self._root = replaced, opaque, str(root)

    def note(self, name: str, values: Any) -> None:
        """Add a call, and the arithmetic that it is made in."""
        arithmetic = str(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else "float32"
        self.calls.append((name, (freeze(values, opaque=self._opaque, root=self._root), arithmetic)))

    def put(self, patch: pytest.MonkeyPatch) -> None:
        """Put the recorders in place."""
        for name, stand in self._replaced.items():
            original, places = find_definition(name)
            if inspect.isclass(original):
                patch.setattr(original, "__init__", self._recorder(name, original.__init__, stand))
            for holder, attribute in () if inspect.isclass(original) else places:
                patch.setattr(holder, attribute, self._recorder(name, original, stand))

    def _recorder(self, name: str, original: Callable[..., Any], stand: "Stand") -> Callable[..., Any]:
        signature = inspect.signature(original)

        def recorder(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            arguments = dict(bound.arguments)
            if stand.recorded:
                self.note(name, {key: one for key, one in arguments.items() if key not in (*stand.without, "self")})
            return original(*args, **kwargs) if stand.result is None else stand.result(arguments)

        return recorder


class Stand:
    """What stands for a definition while a command runs."""

    def __init__(
        self,
        result: Callable[[dict[str, Any]], Any] | None = None,
        *,
        without: Iterable[str] = (),
        recorded: bool = True,
    ) -> None:
        """Remember what to do.

        Args:
            result: makes the result out of the arguments; None: the definition itself is called.
            without: arguments that are not compared.
            recorded: whether the call counts.
        """
        self.result, self.without, self.recorded = result, tuple(without), recorded


def reached(arguments: dict[str, Any]) -> Any:
    """The result of the last call."""
    raise ReachedError


# ----------------------------------------------------------------------------------------------------- the definitions


def find_definition(name: str) -> tuple[Any, list[tuple[Any, str]]]:
    """A function or class of the package, and everywhere it is held.

    Args:
        name: "fit", or where several have it the end of its module too, "clip.load:load"; "Class.method" of a method.
    """
    module, _, path = name.rpartition(":")
    owner, _, method = path.rpartition(".")
    held = [
        (thing, places)
        for thing, places in _definitions().get(owner or method, [])
        if thing.__module__.endswith(f".{module}" if module else "")
    ]
    assert len(held) == 1, f"{name}: needs one definition in the package; got {[thing.__module__ for thing, _ in held]}"
    thing, places = held[0]
    return (getattr(thing, method), [(thing, method)]) if owner else (thing, places)


_FOUND: dict[str, list[tuple[Any, list[tuple[Any, str]]]]] = {}


def _definitions() -> dict[str, list[tuple[Any, list[tuple[Any, str]]]]]:
    """All functions and classes of the package by name, each with the modules that hold it."""
    if not _FOUND:
        for found in pkgutil.walk_packages(foveate.__path__, "foveate."):
            importlib.import_module(found.name)
        held: dict[int, tuple[Any, list[tuple[Any, str]]]] = {}
        for name, module in [*sys.modules.items()]:
            for attribute, thing in [*vars(module).items()] if name.startswith("foveate.") else []:
                if inspect.isroutine(thing) or inspect.isclass(thing):
                    held.setdefault(id(thing), (thing, []))[1].append((module, attribute))
        for thing, places in held.values():
            if str(getattr(thing, "__module__", "")).startswith("foveate.") and hasattr(thing, "__name__"):
                _FOUND.setdefault(thing.__name__, []).append((thing, places))
    return _FOUND


# --------------------------------------------------------------------------------------------------------- the freezing


def freeze(value: Any, *, opaque: tuple[type, ...] = (), root: str = "\0") -> Any:
    """Plain tuples, numbers and texts that are equal where two values are."""
    return _Freezer(opaque, root)(value)


class _Freezer:
    def __init__(self, opaque: tuple[type, ...], root: str) -> None:
        self._opaque, self._root = opaque, root
        self._met: dict[int, tuple[int, Any]] = {}  # by id, with the value itself, so that no other gets its id

    def __call__(self, value: Any) -> Any:
        kind = type(value)
        if kind in PLAIN:
            return value
        if isinstance(value, str | PurePath):
            return re.sub(r"/tmp\w{8}(?=/|$)", "/temporary", str(value).replace(self._root, "ROOT"))
        if kind in NAMED:
            return str(value)
        if kind in self._opaque or kind is Recording:
            return kind.__name__
        if id(value) in self._met:
            return "met", self._met[id(value)][0]
        self._met[id(value)] = (len(self._met), value)
        if isinstance(value, Tensor | np.ndarray):
            return _numbers(value)
        if isinstance(value, dict | list | tuple) and len(value) > LARGE:
            return kind.__name__, len(value)
        if isinstance(value, dict | MappingProxyType):
            return tuple((self(key), self(one)) for key, one in value.items())
        if isinstance(value, list | tuple):
            return tuple(self(one) for one in value)
        if isinstance(value, set | frozenset):
            return tuple(self(one) for one in sorted(value, key=str))
        return kind.__qualname__, self._object(value)

    def _object(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            own = {name: one for name, one in vars(value).items() if name not in MODULE}
            named = {**value._parameters, **value._buffers, **value._modules}
            return self(own), self(named), value.training
        if isinstance(value, torch.optim.Optimizer):
            return self(value.param_groups)
        if isinstance(value, torch.Generator):
            return value.initial_seed()
        if isinstance(value, partial):
            return self((value.func, value.args, value.keywords))
        if isinstance(value, MethodType):
            return self((value.__func__, value.__self__))
        if isinstance(value, FunctionType):
            return value.__qualname__, self([cell.cell_contents for cell in value.__closure__ or ()])
        if isinstance(value, GeneratorType):
            return self({} if value.gi_frame is None else value.gi_frame.f_locals)
        if isinstance(value, type | ModuleType):
            return value.__name__
        if is_dataclass(value):
            return self({field.name: getattr(value, field.name, None) for field in fields(value)})
        return self(getattr(value, "__dict__", {}))


def _numbers(value: Tensor | np.ndarray) -> Any:
    tensor = torch.as_tensor(value if isinstance(value, Tensor) else value.copy()).detach().reshape(-1)
    gradient = isinstance(value, Tensor) and value.requires_grad
    if tensor.numel() > EXACT:
        sample = tensor[:: tensor.numel() // 16].tolist()
        tensor = [*sample, float(tensor.sum()) if tensor.dtype != torch.bool else int(tensor.count_nonzero())]
    else:
        tensor = tensor.tolist()
    return str(value.dtype), tuple(value.shape), gradient, tuple(tensor)
