"""What a piece of work costs, counted operator by operator instead of timed: the same numbers on every machine.

Inside torch's FakeTensorMode the work is not even done: a step of the largest tower is counted in seconds, in no memory
to speak of (`foveate.engine.plan`, benchmarks/account.py). A fused kernel is one operator; views are none. Workspaces
inside a kernel, and what torch.compile would fuse, are not seen.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

_EMPTY = frozenset(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"))
"""Operators that take memory and write nothing."""
_FREE = frozenset(("_local_scalar_dense", "lift_fresh"))
"""Operators that hand on what is there."""


@dataclass
class Account:
    """What was counted, in all and by operator."""

    flops: int = 0  # a multiply and an add are two
    operators: int = 0  # that read or write memory
    bytes_moved: int = 0  # operands read and results written, once an operator, as if none were fused
    bytes_saved: int = 0  # kept by the forward pass for the backward pass, each piece of memory once, parameters apart
    peak_bytes: int = 0  # the most that was alive at once of what was made inside, gradients included
    calls: dict[str, int] = field(default_factory=dict)  # operator -> how often
    moved: dict[str, int] = field(default_factory=dict)  # operator -> bytes


@contextmanager
def counting() -> Iterator[Account]:
    """Count what runs inside the block, fake or real; the account is whole once the block is left."""
    account = Account()
    counter = _Counter(account)
    with counter, torch.autograd.graph.saved_tensors_hooks(counter.keep, lambda tensor: tensor):
        yield account
    account.bytes_saved = counter.saved_bytes()


class _Counter(TorchDispatchMode):
    """Sees every operator on its way to the kernel, and every tensor that autograd keeps."""

    def __init__(self, account: Account) -> None:
        super().__init__()
        self._account, self._alive, self._saved = account, 0, 0
        self._known = _by_storage()  # storages met so far
        self._kept = _by_storage()  # storages kept for backward -> bytes
        self._parameters = _by_storage()  # storages of parameters

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _tensors((args, kwargs))
        before = {id(self._meet(one, is_new=False)) for one in given}
        result = func(*args, **(kwargs or {}))
        results = _tensors(result)
        after = {id(self._meet(one, is_new=True)) for one in results}
        name = func._overloadpacket.__name__
        is_view = bool(results) and after <= before and not func._schema.is_mutable
        if not (is_view or name in _EMPTY or name in _FREE or func.namespace == "prim"):
            self._note(name, sum(_size(one) for one in (*given, *results)))
        if func._overloadpacket in flop_registry:
            self._account.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result

    def keep(self, tensor: Tensor) -> Tensor:
        """Note what autograd keeps for the backward pass."""
        storage = tensor.untyped_storage()
        if storage not in self._kept:
            self._kept[storage] = storage.nbytes()
            self._saved += storage.nbytes()
        return tensor

    def saved_bytes(self) -> int:
        """All that was kept but parameters: autograd hands those over as plain tensors, an operator gets them whole."""
        return self._saved - sum(size for storage, size in self._kept.items() if storage in self._parameters)

    def _note(self, name: str, moved: int) -> None:
        account = self._account
        account.operators, account.bytes_moved = account.operators + 1, account.bytes_moved + moved
        account.calls[name] = account.calls.get(name, 0) + 1
        account.moved[name] = account.moved.get(name, 0) + moved

    def _meet(self, tensor: Tensor, *, is_new: bool) -> torch.UntypedStorage:
        """Follow memory from its first appearance, as the result of an operator, to its end."""
        storage = tensor.untyped_storage()
        if isinstance(tensor, nn.Parameter):
            self._parameters[storage] = True
        if storage not in self._known:
            self._known[storage] = True
            if is_new:
                size = storage.nbytes()
                self._alive += size
                self._account.peak_bytes = max(self._account.peak_bytes, self._alive)
                weakref.finalize(storage, self._forget, size).atexit = False
        return storage

    def _forget(self, size: int) -> None:
        self._alive -= size


def _by_storage() -> Any:
    """A dictionary that forgets a storage when its memory is let go."""
    return WeakIdKeyDictionary(ref_type=weakref.ref)  # pyright: ignore[reportArgumentType]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _size(tensor: Tensor) -> int:
    """Bytes to read or write; of an expanded tensor what it repeats."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
