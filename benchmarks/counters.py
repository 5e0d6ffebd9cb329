"""A stand-in until `saccade.engine.account` is there: what a piece of work costs, counted operator by operator.

Deterministic, and under FakeTensorMode it needs neither the memory nor the time of the work.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass
class Account:
    """What was counted."""

    flops: int = 0  # a multiply and an add are two
    operators: int = 0  # that read or write memory: views are none
    bytes_moved: int = 0  # operands read and results written, each once an operator
    bytes_saved: int = 0  # kept for backward, parameters apart
    peak_bytes: int = 0  # not counted here
    by_operator: Counter[str] = field(default_factory=Counter)  # how often each ran


class _Counter(TorchDispatchMode):
    def __init__(self, account: Account) -> None:
        super().__init__()
        self.account = account

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.is_view or func.namespace == "prim" or func._overloadpacket._qualified_op_name in FREE:
            return result
        self.account.operators += 1
        name = func._overloadpacket.__name__
        self.account.by_operator[name] += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        self.account.bytes_moved += sum(one.numel() * one.element_size() for one in tensors)
        if func._overloadpacket in flop_registry:
            self.account.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        return result


FREE = {
    "aten::_local_scalar_dense", "aten::_unsafe_view", "aten::detach", "aten::empty", "aten::empty_like",
    "aten::empty_strided",
}  # fmt: skip


@contextmanager
def counting() -> Iterator[Account]:
    """Count what runs inside the block."""
    account, seen = Account(), set()

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if not isinstance(tensor, torch.nn.Parameter) and key not in seen and not tensor.is_leaf:
            seen.add(key)
            account.bytes_saved += tensor.untyped_storage().nbytes()
        return tensor

    with _Counter(account), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield account
