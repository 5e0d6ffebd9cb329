"""Memory and time of a real forward and backward pass, which leaves everything as it was, so the run's bits too.

On a GPU the memory is what the allocator handed out; on a CPU it is what the forward pass stores for the backward pass,
without the buffers of libraries. There a forward pass that takes long, or would store more than there is room for, is
left, and one image is measured instead.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_forward_pre_hook

from foveate.errors import InputError
from foveate.types import Batch

PATIENCE = 10.0  # seconds of a forward pass on a CPU
LONGEST = 4  # times as long may that of one image take
PASSES = 3  # forward passes that a forward and a backward pass take about as long as
ADVICE = (
    "Lower --batch and raise --accumulate by the same factor, or use a smaller input, --precision bfloat16 or "
    "--checkpointing, where the command has them."
)
ADVICE_FOR_ONE = "Use a smaller input or model, --precision bfloat16 or --checkpointing, where the command has them."


class Cost(NamedTuple):
    """What a pass takes."""

    per_image: int  # activations [bytes]
    seconds: float  # of the whole batch
    shortcut: str = ""  # what was measured instead of the whole batch, if anything
    is_least: bool = False  # the numbers are lower bounds


def measure_pass(
    objective: nn.Module,
    batch: Batch,
    *,
    count: Callable[[Batch], int],
    repeat: bool = False,
    room: float = math.inf,
    patience: float = math.inf,
) -> Cost | None:
    """Measure a pass; gradients are removed, buffers and torch's random state restored.

    Args:
        objective: a scalar loss of a batch.
        batch: the first of the run.
        count: items of a batch, as in `fit`.
        repeat: measure a second pass, where the first one compiles or starts up a GPU.
        room: for the activations on a CPU [bytes].
        patience: with a forward pass on a CPU [seconds].

    Returns:
        The cost of the batch; None where it has no item.

    Raises:
        InputError: the device has too little memory.
    """
    before = [buffer.clone() for buffer in objective.buffers()]
    device = next(objective.parameters()).device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if repeat:
                _pass(objective, batch, device, _Watch())
            cost = _cost(objective, batch, device, count=count, room=room, patience=patience)
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
        raise InputError(
            f"--batch: must fit the memory of {device}; a pass of {len(batch.samples)} images does not. "
            f"{ADVICE if len(batch.samples) > 1 else ADVICE_FOR_ONE}"
        ) from error
    with torch.no_grad():
        for buffer, value in zip(objective.buffers(), before, strict=True):
            buffer.copy_(value)
    return cost if count(batch) else None


def local_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _cost(
    objective: nn.Module,
    batch: Batch,
    device: torch.device,
    *,
    count: Callable[[Batch], int],
    room: float,
    patience: float,
) -> Cost:
    """The cost of a batch: of all of it, or else of its first image with an item, times the number of images."""
    size, least = len(batch.samples), 1
    is_bounded = min(room, patience) < math.inf
    if size != 1 or not is_bounded:  # also a batch without items: all processes must run alike
        watch = _Watch(room, patience)
        try:
            seconds = _pass(objective, batch, device, watch)
            return Cost(max(1, watch.stored // max(1, size)), seconds)
        except _LeftError:
            least = watch.stored // size + 1 if watch.is_full else 1
    singles = (replace(batch, samples=[sample]) for sample in batch.samples)
    single = next((each for each in singles if count(each)), batch)
    watch = _Watch(room, LONGEST * patience, backward_within=patience)
    shortcut = "" if size == 1 else f"1 of {size} images was measured"
    try:
        seconds = _pass(objective, single, device, watch)
        if watch.is_forward_only:
            shortcut = f"the forward pass of 1 of {size} images was measured"
    except _LeftError:
        seconds = PASSES * watch.seconds
        limit = "when memory was full" if watch.is_full else f"after {watch.seconds:.0f} s"
        shortcut = f"the forward pass of 1 of {size} images was stopped {limit}"
        return Cost(max(least, watch.stored), size * seconds, shortcut, is_least=True)
    return Cost(max(least, watch.stored), size * seconds, shortcut)


class _LeftError(Exception):
    """A forward pass was left."""


@dataclass
class _Watch:
    """What autograd stores in a forward pass on a CPU; it leaves one that takes too much."""

    room: float = math.inf  # [bytes]
    patience: float = math.inf  # [seconds]
    backward_within: float = math.inf  # seconds of a forward pass that a backward pass follows
    is_forward_only: bool = False
    stored: int = 0  # [bytes]
    start: float = field(default_factory=time.perf_counter)
    sizes: dict[int, int] = field(default_factory=dict)  # of each storage, by its address [bytes]

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    @property
    def is_full(self) -> bool:
        return self.stored > self.room

    def forward(self, objective: nn.Module, batch: Batch) -> Tensor:
        """The loss; each storage counts once, weights do not."""
        weights = {
            local_part(tensor).untyped_storage().data_ptr()
            for tensor in (*objective.parameters(), *objective.buffers())
        }

        def store(tensor: Tensor) -> Tensor:
            storage = local_part(tensor).untyped_storage()
            if storage.data_ptr() not in weights:
                self.stored += storage.nbytes() - self.sizes.get(storage.data_ptr(), 0)
                self.sizes[storage.data_ptr()] = storage.nbytes()
            self.check()
            return tensor

        is_bounded = min(self.room, self.patience) < math.inf
        hook = register_module_forward_pre_hook(lambda *_: self.check()) if is_bounded else None
        try:
            with torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor):
                return objective(batch)
        finally:
            if hook is not None:
                hook.remove()

    def check(self) -> None:
        """Leave the pass if it takes too much."""
        if self.is_full or self.seconds > self.patience:
            raise _LeftError


def _pass(objective: nn.Module, batch: Batch, device: torch.device, watch: _Watch) -> float:
    """Run a pass, and count what it stores; its seconds."""
    try:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            objective(batch).backward()
            torch.cuda.synchronize(device)
            watch.stored = torch.cuda.max_memory_allocated(device) - before
            return watch.seconds
        loss = watch.forward(objective, batch)
        if watch.seconds > watch.backward_within:
            watch.is_forward_only = True
            return PASSES * watch.seconds
        loss.backward()
        return watch.seconds
    finally:
        for parameter in objective.parameters():
            parameter.grad = None
