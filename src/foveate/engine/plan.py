"""The plan of a run, printed before its first step: memory, the largest batch that fits, time, and what is written.

What is known without computing is printed first: weights, gradients and moments of the optimizer, which are refused
where they do not fit. The rest is measured (`foveate.engine.measure`).
"""

import json
import os
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from foveate.engine.distributed import Processes
from foveate.engine.log import clock
from foveate.engine.measure import ADVICE, ADVICE_FOR_ONE, local_part
from foveate.errors import InputError
from foveate.io.memory import free_memory


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
    shortcut: str = ""  # of the measurement, see `Cost`
    is_least: bool = False  # memory and time are lower bounds

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

    def known_lines(self, memory: Memory) -> list[str]:
        """The plan for people, as far as it is known before a pass; of the memory, what no batch changes."""
        parts = f"{self.batch} x {self.accumulate} accumulated x {_count(self.processes, 'process')}"
        return [
            f"model     {self.model}: training {self.trained / 1e6:.1f} of {self.parameters / 1e6:.1f} million "
            "parameters",
            f"images    {self.images:,}, {self.images_per_step} per step ({parts}); {self.steps:,} steps are "
            f"{self.epochs:.2f} epochs",
            *(f"writes    {path}  {_size(size) if size else ''}".rstrip() for path, size in self.writes.items()),
            f"memory    {_size(memory.fixed)} of {_size(memory.available)} on {self.device} before any image: weights, "
            "and gradients and moments of what is trained",
        ]

    def measured_lines(self) -> list[str]:
        """The rest of the plan, after a pass."""
        lines = []
        if self.memory is None or self.seconds_left is None or self.seconds is None:
            lines.append("cost      not measured: few steps are left, or the first images hold nothing to train on")
        else:
            need, about, most = self.memory.needed(self.batch), "about", "about"
            if self.is_least:
                about, most = "at least", "at most"
            took = f"takes {about}" if self.shortcut else "took"
            lines += [
                f"memory    {about} {_size(need)} of {_size(self.memory.available)} on {self.device}: "
                f"{_size(self.memory.fixed)} and {_size(self.memory.per_image)} per image; the largest batch that fits "
                f"is {most} {self.memory.largest_batch}",
                f"time      {about} {clock(self.seconds_left)} for {self.steps - self.start_step:,} steps; one forward "
                f"and backward pass {took} {self.seconds:.3g} s" + (f" ({self.shortcut})" if self.shortcut else ""),
            ]
        if self.memory is not None and self.batch > self.memory.largest_batch:
            lines.append(f"WARNING   a batch of {self.batch} may not fit. {ADVICE}")
        return lines


def require_fixed(memory: Memory, *, model: str, device: torch.device) -> None:
    """Refuse a model whose weights, gradients and moments alone do not fit.

    Raises:
        InputError: states what is needed and what is free.
    """
    if memory.fixed > memory.available:
        raise InputError(
            f"{model}: needs {_size(memory.fixed)} on {device} for weights, and gradients and moments of what is "
            f"trained; {_size(memory.available)} are free. Free memory, choose a smaller model, or train fewer blocks "
            "with --layers, where the command has it."
        )


def require_batch(plan: Plan) -> None:
    """Refuse a batch that does not fit the memory of the machine; whether it fits a GPU, the pass has shown.

    Raises:
        InputError: states what is needed, what is free and what would fit.
    """
    memory = plan.memory
    if memory is None or plan.device != "cpu" or plan.batch <= memory.largest_batch:
        return
    fits = f"the largest that fits is about {memory.largest_batch}" if memory.largest_batch else "not even 1 fits"
    raise InputError(
        f"--batch: must fit the memory of {plan.device}; a pass of {plan.batch} images needs at least "
        f"{_size(memory.needed(plan.batch))}, {_size(memory.available)} are free, and {fits}. "
        f"{ADVICE if memory.largest_batch else ADVICE_FOR_ONE}"
    )


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
    taken = sum(_bytes(local_part(tensor)) for tensor in (*objective.parameters(), *objective.buffers()))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(processes.size)))  # they share the machine's memory
    return free_memory() // local + taken


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'es' * (number > 1)}"
