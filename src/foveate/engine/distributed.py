"""The processes of one run, as torchrun started them: gloo for CPU tensors, nccl for those of a GPU.

Small numbers and messages of the host are sent by gloo, so that they never wait for a GPU. In one process these
functions do nothing. A process that dies or stalls ends the others within `timeout`, as `LostProcessError`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from foveate.errors import ExhaustedError, InputError


class LostProcessError(RuntimeError):
    """Another process of the run died, exited, or has not answered in time."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """The process that writes files and prints."""
        return self.rank == 0

    def total(self, numbers: list[float]) -> list[float]:
        """Sum numbers of the host over the processes, in float64; every process gets the same sums."""
        if self.size == 1:
            return numbers
        vector = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(vector)
        return vector.tolist()

    def add_up(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place, on its device; the host does not wait for a GPU."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, by rank; every process gets all. For small objects such as messages."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that all processes leave together: an InputError or ExhaustedError of one of them is raised in all.

        Raises:
            InputError, ExhaustedError: of this process, or with the message of the first process that has one.
        """
        refusal: InputError | ExhaustedError | None = None
        try:
            yield
        except (InputError, ExhaustedError) as error:
            refusal = error
        refusals = self.gather(None if refusal is None else (type(refusal), str(refusal)))
        if refusal is not None:
            raise refusal
        for kind, message in (pair for pair in refusals if pair is not None):
            raise kind(message)


@contextmanager
def joined(device: str, *, timeout: int) -> Iterator[Processes]:
    """Join the processes that torchrun started, or be the only one, for the length of the block.

    Args:
        device: auto, cpu, cuda or cuda:N; with several processes, cuda means one GPU each.
        timeout: seconds without an answer from another process after which this one fails.

    Raises:
        InputError: the device does not exist, or torchrun's variables are incomplete.
        LostProcessError: another process is gone or silent.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    variables = {name: os.environ[name] for name in names if name in os.environ}
    size = int(variables.get("WORLD_SIZE", "1"))
    if size > 1 and len(variables) < len(names):
        missing = ", ".join(name for name in names if name not in variables)
        raise InputError(f"WORLD_SIZE is {size} but {missing} is not set; start several processes with torchrun.")
    chosen = choose_device(device, local_rank=int(variables.get("LOCAL_RANK", "0")) if size > 1 else None)
    if size == 1:
        yield Processes(rank=0, size=1, device=chosen)
        return
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    is_whole = True
    try:
        with loss_noticed(lambda: "outside of the training loop"):
            yield Processes(rank=dist.get_rank(), size=dist.get_world_size(), device=chosen)
    except BaseException as error:
        is_whole = isinstance(error, InputError | SystemExit)  # of all processes alike
        raise
    finally:
        if is_whole:  # else this could wait for a process that is lost, or for one that waits for this one
            dist.destroy_process_group()


@contextmanager
def loss_noticed(where: Callable[[], str]) -> Iterator[None]:
    """Raise `LostProcessError` in place of torch's various errors for a process that is gone.

    Args:
        where: called when it happened; the beginning of the message.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo raises a plain RuntimeError, from a reduction or out of a backward; its text names its source file
        if isinstance(error, LostProcessError) or not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
            raise
        text = str(error).splitlines()[0]  # gloo's: [file:line] What happened. Advice.
        reason = text.rpartition("] ")[2].partition(". ")[0] if "/gloo/" in text else text
        raise LostProcessError(
            f"{where()}: another process of this run died or stopped responding ({reason})."
        ) from error


def whole_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded over the processes (FSDP); all of them must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of another, and sharded as that one is; the inverse of `whole_tensor`."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def choose_device(name: str, *, local_rank: int | None) -> torch.device:
    """The compute device by name; with several processes, the GPU numbered `local_rank`.

    Raises:
        InputError: not a device's name, or the GPU does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"--device: must be auto, cpu, cuda or cuda:N; got {name}.")
    if device.type == "cpu":
        return device
    index = local_rank if local_rank is not None else device.index or 0
    if index >= torch.cuda.device_count():
        raise InputError(f"--device {name}: needs GPU {index}; this machine has {torch.cuda.device_count()}. Use cpu.")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device
