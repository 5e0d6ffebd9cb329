"""The plan of a run, printed before its first step: memory, the largest batch that fits, time, and what is written.

It is measured in real forward and backward passes of the first batch, which leave everything as it was: the run's bits
do not change. On a GPU the memory is what the allocator handed out; on the CPU it is what the forward pass stores for
the backward pass, without the buffers of libraries.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from foveate.engine.distributed import Processes
from foveate.engine.log import clock
from foveate.errors import InputError
from foveate.types import Batch

_ADVICE = (
    "Lower --batch and raise --accumulate by as much, or use a smaller input, --precision bfloat16 or "
    "--checkpointing, where the command has them."
)


@dataclass(frozen=True)
class Memory:
    """The memory of one process on its device [bytes]."""

    fixed: int
    per_image: int
    available: int

    def needed(self, batch: int) -> int:
        """With `batch` images in a forward pass."""
        return self.fixed + batch * self.per_image

    @property
    def largest_batch(self) -> int:
        """Images that fit; may be 0."""
        return max(0, (self.available - self.fixed) // self.per_image)


@dataclass(frozen=True)
class Plan:
    """What a run does and needs."""

    model: str
    device: str
    trained: int  # parameters
    parameters: int  # of the whole model
    images: int  # of the training data
    steps: int
    start_step: int
    batch: int  # images of a process in one forward pass
    accumulate: int
    processes: int
    memory: Memory | None  # None: not measured
    seconds: float | None  # of a warm forward and backward pass; None: not measured
    writes: dict[str, int]  # path -> bytes; 0: grows with the run

    @property
    def images_per_step(self) -> int:
        """Over all processes."""
        return self.batch * self.accumulate * self.processes

    @property
    def epochs(self) -> float:
        """Of the whole run."""
        return self.steps * self.images_per_step / self.images

    @property
    def seconds_left(self) -> float | None:
        """Of the whole run, where a pass was measured."""
        return None if self.seconds is None else self.seconds * self.accumulate * (self.steps - self.start_step)

    def record(self) -> dict[str, object]:
        """As JSON, with the derived numbers."""
        memory = self.memory
        derived = {
            "images_per_step": self.images_per_step,
            "epochs": round(self.epochs, 3),
            "memory_needed": None if memory is None else memory.needed(self.batch),
            "largest_batch": None if memory is None else memory.largest_batch,
            "seconds_left": self.seconds_left,
        }
        return json.loads(json.dumps({**asdict(self), **derived}, default=str))

    def lines(self) -> list[str]:
        """The plan for people."""
        parts = f"{self.batch} x {self.accumulate} accumulated x {_count(self.processes, 'process')}"
        lines = [
            f"model     {self.model}: training {self.trained / 1e6:.1f} of {self.parameters / 1e6:.1f} million "
            "parameters",
            f"images    {self.images:,}, {self.images_per_step} per step ({parts}); {self.steps:,} steps are "
            f"{self.epochs:.2f} epochs",
        ]
        if self.memory is None or self.seconds_left is None or self.seconds is None:
            lines.append("cost      not measured: few steps are left, or the first images hold nothing to train on")
        else:
            need = self.memory.needed(self.batch)
            lines += [
                f"memory    about {_size(need)} of {_size(self.memory.available)} on {self.device}: "
                f"{_size(self.memory.fixed)} and {_size(self.memory.per_image)} per image; the largest batch that fits "
                f"is about {self.memory.largest_batch}",
                f"time      about {clock(self.seconds_left)} for {self.steps - self.start_step:,} steps; one forward "
                f"and backward pass took {self.seconds:.3g} s",
            ]
        lines += [f"writes    {path}  {_size(size) if size else ''}".rstrip() for path, size in self.writes.items()]
        if self.memory is not None and self.batch > self.memory.largest_batch:
            lines.append(f"WARNING   a batch of {self.batch} may not fit. {_ADVICE}")
        return lines


def measure_pass(
    objective: nn.Module, batch: Batch, *, count: Callable[[Batch], int], repeat: bool = False
) -> tuple[int, float] | None:
    """Memory and time of a real forward and backward pass, after which everything is as it was.

    Gradients are removed, buffers and torch's random state restored.

    Args:
        objective: a scalar loss of a batch.
        batch: the first of the run.
        count: items of a batch, as in `fit`.
        repeat: measure a second pass, where the first one compiles or starts up a GPU.

    Returns:
        Activations per image [bytes], and seconds; None where the batch has no item.

    Raises:
        InputError: the GPU has too little memory.
    """
    before = [buffer.clone() for buffer in objective.buffers()]
    device = next(objective.parameters()).device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if repeat:
                _pass(objective, batch, device)
            stored, seconds = _pass(objective, batch, device)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"--batch: must fit the memory of {device}; a pass of {len(batch.samples)} images does not. {_ADVICE}"
        ) from error
    with torch.no_grad():
        for buffer, value in zip(objective.buffers(), before, strict=True):
            buffer.copy_(value)
    return (max(1, stored // len(batch.samples)), seconds) if count(batch) else None


def _pass(objective: nn.Module, batch: Batch, device: torch.device) -> tuple[int, float]:
    """Bytes of activations and seconds of one pass, also of a batch without items: all processes must run alike."""
    start = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        objective(batch).backward()
        torch.cuda.synchronize(device)
        stored = torch.cuda.max_memory_allocated(device) - before
    else:
        stored = _backward_counted(objective, batch)
    seconds = time.perf_counter() - start
    for parameter in objective.parameters():
        parameter.grad = None
    return stored, seconds


def _backward_counted(objective: nn.Module, batch: Batch) -> int:
    """Run a pass and count what autograd stores, each storage once, without weights [bytes]."""
    weights = {
        _local(tensor).untyped_storage().data_ptr() for tensor in (*objective.parameters(), *objective.buffers())
    }
    stored: dict[int, int] = {}

    def store(tensor: Tensor) -> Tensor:
        storage = _local(tensor).untyped_storage()
        if storage.data_ptr() not in weights:
            stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor):
        loss = objective(batch)
    loss.backward()
    return sum(stored.values())


def memory_of(objective: nn.Module, per_image: int, *, processes: Processes, sharded: bool = False) -> Memory:
    """Weights, and of what is trained a gradient and AdamW's two moments.

    Args:
        per_image: activations, from `measure_pass` [bytes].
        sharded: whether what is trained is sharded over them.
    """
    weights = sum(_bytes(tensor) for tensor in (*objective.parameters(), *objective.buffers()))
    trained = trained_bytes(objective)
    fixed = weights + 3 * trained
    if sharded:  # weights, gradients and both moments
        fixed -= int(4 * trained * (1 - 1 / processes.size))
    return Memory(fixed, per_image, _available(objective, processes))


def trained_bytes(objective: nn.Module) -> int:
    """Bytes of the trained parameters, on all processes together."""
    return sum(_bytes(parameter) for parameter in objective.parameters() if parameter.requires_grad)


def _available(objective: nn.Module, processes: Processes) -> int:
    """Free memory of the device for this process, and what its weights already take [bytes]."""
    if processes.device.type == "cuda":
        return torch.cuda.mem_get_info(processes.device)[0] + torch.cuda.memory_allocated(processes.device)
    taken = sum(_bytes(_local(tensor)) for tensor in (*objective.parameters(), *objective.buffers()))
    memory = Path("/proc/meminfo")
    if not memory.exists():  # not Linux
        return taken
    [line] = [line for line in memory.read_text().splitlines() if line.startswith("MemAvailable:")]
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(processes.size)))  # they share the machine's memory
    return int(line.split()[1]) * 1024 // local + taken


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'es' * (number > 1)}"
