"""What a piece of work costs, counted operator by operator instead of timed: the same numbers on every machine.

Inside torch's FakeTensorMode the work is not even done: a step of the largest tower is counted in seconds, in no memory
to speak of (`saccade.engine.plan`, benchmarks/account.py). A fused kernel is one operator; views are none.
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

_FREE = frozenset(
    ("_local_scalar_dense", "_unsafe_view", "detach", "empty", "empty_like", "empty_strided", "lift_fresh")
)
"""Operators that move nothing although their signature does not call them views."""


@dataclass
class Account:
    """What was counted, in all and by operator."""

    flops: int = 0  # a multiply and an add are two
    operators: int = 0  # that read or write memory
    bytes_moved: int = 0  # operands read and results written, once an operator
    bytes_saved: int = 0  # kept by the forward pass for the backward pass, parameters apart
    peak_bytes: int = 0  # the most that was alive at once of what was made inside
    calls: dict[str, int] = field(default_factory=dict)  # operator -> how often
    moved: dict[str, int] = field(default_factory=dict)  # operator -> bytes


@contextmanager
def counting() -> Iterator[Account]:
    """Count what runs inside the block; the account is whole once the block is left."""
    account = Account()
    saved: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not tensor.is_leaf and storage._cdata not in saved and not isinstance(tensor, nn.Parameter):
            saved[storage._cdata] = storage
            account.bytes_saved += storage.nbytes()
        return tensor

    with _Counter(account), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield account


class _Counter(TorchDispatchMode):
    """Sees every operator on its way to the kernel."""

    def __init__(self, account: Account) -> None:
        super().__init__()
        self._account, self._alive = account, 0
        self._followed: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for one in results:
            self._follow(one.untyped_storage())
        name = func._overloadpacket.__name__
        if func.is_view or func.namespace == "prim" or name in _FREE:
            return result
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        moved = sum(one.numel() * one.element_size() for one in (*given, *results))
        account = self._account
        account.operators, account.bytes_moved = account.operators + 1, account.bytes_moved + moved
        account.calls[name] = account.calls.get(name, 0) + 1
        account.moved[name] = account.moved.get(name, 0) + moved
        if func._overloadpacket in flop_registry:
            account.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        """Count a storage as alive until nobody holds it."""
        key, size = storage._cdata, storage.nbytes()
        if key in self._followed:
            return

        def gone(_: Any) -> None:
            self._alive -= size
            self._followed.pop(key, None)

        self._followed[key] = weakref.ref(storage, gone)
        self._alive += size
        self._account.peak_bytes = max(self._account.peak_bytes, self._alive)
