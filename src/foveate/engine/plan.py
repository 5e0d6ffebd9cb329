"""What a run will cost, told before its first step: memory, the largest batch that fits, time, and what is written.

Memory is counted on a twin of the objective whose tensors hold nothing (`foveate.engine.account`), with the batch and
with twice as many pictures: what grows is a picture's, the rest is fixed. It counts tensors; libraries and the memory
allocator come on top. Time is that of one real batch, forward and backward, whose gradients are dropped: the run's bits
do not change.
"""

import json
import time
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor

from foveate.clip.describe import build
from foveate.clip.model import Clip
from foveate.engine.account import counting
from foveate.engine.log import clock
from foveate.errors import InputError
from foveate.objectives.clipself import ClipSelf, count_regions
from foveate.objectives.image_text import ImageText
from foveate.ops.grid import grid_boxes
from foveate.types import Batch, Sample

Objective = ClipSelf | ImageText

_SURELY = 1.25  # times what there is: beyond the estimate's own error
_PICTURE = (480, 640)  # (height, width) [pixels] of the pictures that are counted: COCO's most frequent size
_MOST_COUNTED = 8  # pictures; of a larger batch this many and twice as many are counted
_HIDDEN = 0.5  # of the peak; where twice the pictures add less, gradients hide what a picture takes
_SHOWN = 16  # pictures; counted, with twice as many, where fewer are hidden
_LOWER = (
    "Lower --batch and raise --accumulate by as much, or use --checkpointing, a smaller --student-size, or "
    "--precision bfloat16."
)


@dataclass(frozen=True)
class Memory:
    """Of one process on its device [bytes]."""

    fixed: int
    a_picture: int
    available: int
    least: int = 0  # however few the pictures: gradients alone may be more than what is kept of these

    def needed(self, batch: int) -> int:
        """With so many pictures in a forward pass."""
        return max(self.least, self.fixed + batch * self.a_picture)

    @property
    def largest_batch(self) -> int:
        """How many pictures fit; may be 0."""
        return max(0, (self.available - self.fixed) // self.a_picture) if self.least <= self.available else 0


@dataclass(frozen=True)
class Plan:
    """What a run will do and take."""

    model: str
    device: str
    trained: int  # parameters
    parameters: int  # of the whole CLIP
    pictures: int
    steps: int
    start_step: int
    batch: int  # pictures of a process in one forward pass
    accumulate: int
    processes: int
    memory: Memory
    seconds: float | None  # of a forward and backward pass; None: not measured
    writes: dict[str, int]  # what is written where -> bytes, 0 where it grows with the run

    @property
    def pictures_a_step(self) -> int:
        """Over all processes."""
        return self.batch * self.accumulate * self.processes

    @property
    def seconds_left(self) -> float | None:
        """Of the whole run, where a pass was measured."""
        return None if self.seconds is None else self.seconds * self.accumulate * (self.steps - self.start_step)

    def record(self) -> dict[str, object]:
        """As JSON, with what follows from the numbers."""
        follows = {
            "pictures_a_step": self.pictures_a_step,
            "epochs": round(self.steps * self.pictures_a_step / self.pictures, 3),
            "memory_needed": self.memory.needed(self.batch),
            "largest_batch": self.memory.largest_batch,
            "seconds_left": self.seconds_left,
        }
        return json.loads(json.dumps({**asdict(self), **follows}, default=str))


def tell_plan(plan: Plan) -> str:
    """A plan as lines to read."""
    memory, each, epochs = plan.memory, plan.pictures_a_step, plan.steps * plan.pictures_a_step / plan.pictures
    parts = f"{plan.batch} x {plan.accumulate} accumulated x {plan.processes} process{'es' * (plan.processes > 1)}"
    need = memory.needed(plan.batch)
    lines = [
        f"model     {plan.model}: training {plan.trained / 1e6:.1f} of {plan.parameters / 1e6:.1f} million parameters",
        f"pictures  {plan.pictures:,}, {each} a step ({parts}); {plan.steps:,} steps are {epochs:.2f} epochs",
        f"memory    about {_size(need)} of {_size(memory.available)} on {plan.device}: {_size(memory.fixed)} and "
        f"{_size(memory.a_picture)} a picture; the largest batch that fits is {memory.largest_batch}",
    ]
    if plan.seconds_left is None:
        lines.append("time      not measured: there are too few steps left, or the first pictures hold no region")
    else:
        lines.append(
            f"time      about {clock(plan.seconds_left)} for {plan.steps - plan.start_step:,} steps; one forward and "
            f"backward pass took {plan.seconds:.3g} s"
        )
    lines += [f"writes    {path}  {_size(size) if size else ''}".rstrip() for path, size in plan.writes.items()]
    if plan.batch > memory.largest_batch:
        lines.append(f"WARNING   a batch of {plan.batch} may not fit. {_LOWER}")
    return "\n".join(lines)


def estimate_memory(
    objective: Objective,
    *,
    batch: int,
    regions: int,
    processes: int = 1,
    local: int = 1,
    sharded: bool = False,
    bfloat16: bool = False,
) -> Memory:
    """Count what a step of a process holds at most.

    Args:
        objective: as it will be trained, on its device.
        batch: pictures in a forward pass.
        regions: of a picture, at most.
        processes: of the run.
        local: of these, on this machine; they share its memory where they compute on the CPU.
        sharded: whether the student's weights are spread over the processes.
        bfloat16: whether such weights are gathered in bfloat16; the objective does not know of it.
    """
    twin, mode = _twin(objective, low_precision=sharded and bfloat16)
    boxes = grid_boxes(4, -(-regions // 4), height=_PICTURE[0], width=_PICTURE[1])[:regions]  # real: sizes hang on them
    first = min(batch, _MOST_COUNTED)
    low, high = (_peak(twin, mode, boxes, pictures=pictures) for pictures in (first, 2 * first))
    least = low
    if high - low < _HIDDEN * low:
        first = _SHOWN
        low, high = (_peak(twin, mode, boxes, pictures=pictures) for pictures in (first, 2 * first))
    tensors = [*twin.parameters(), *twin.buffers()]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    trained = sum(p.numel() * p.element_size() for p in twin.parameters() if p.requires_grad)
    a_picture = max(1, (high - low) // first)
    held = weights + 3 * trained
    if sharded:  # weights, gradients and both moments
        held -= int(4 * trained * (1 - 1 / processes))
    return Memory(held + low - first * a_picture, a_picture, _available(objective, local), least=held + least)


def _peak(twin: Objective, mode: FakeTensorMode, boxes: Float[Tensor, "N 4"], *, pictures: int) -> int:
    """What a pass of so many pictures holds at most, beyond weights, gradients and moments [bytes]."""
    with mode:
        image = torch.empty(3, *_PICTURE, dtype=torch.uint8)
        for parameter in twin.parameters():  # as in every batch but a step's first: else the most that is alive
            if parameter.requires_grad:  # could be the gradients, whatever the batch
                parameter.grad = torch.empty_like(parameter)
        with counting() as account:
            twin(Batch([Sample("", image, boxes, caption=f"{i}") for i in range(pictures)], [])).backward()
    return account.peak_bytes


def check_memory(memory: Memory, *, batch: int, device: torch.device) -> None:
    """Refuse a batch that a GPU surely has no room for, before it is tried; a near one is only warned about.

    Raises:
        InputError: bytes needed, bytes there, and what to lower.
    """
    if device.type == "cuda" and memory.needed(batch) > _SURELY * memory.available:
        raise InputError(
            f"--batch {batch}: needs about {_size(memory.needed(batch))} on {device}, which has "
            f"{_size(memory.available)}; the largest batch that fits is {memory.largest_batch}. {_LOWER}"
        )


def written(objective: Objective, out: Path, *, copies: int, tensorboard: bool) -> dict[str, int]:
    """What a run writes where, and how many bytes of it; 0 where that grows with the run."""
    trained = sum(p.numel() * p.element_size() for p in objective.parameters() if p.requires_grad)
    product = 4 * sum(parameter.numel() for parameter in objective.student.parameters())
    sizes = {"model": product, "checkpoints": 3 * copies * trained, "metrics.jsonl": 0, "tensorboard": 0}
    return {str(out / name): size for name, size in sizes.items() if tensorboard or name != "tensorboard"}


def measure_pass(objective: Objective, batches: Iterable[Batch]) -> float | None:
    """Time a forward and backward pass of real pictures, and leave everything as it was [seconds].

    Returns:
        None where the pictures hold no region.
    """
    device = next(objective.student.parameters()).device
    batches, taken = list(batches), None
    is_slow_at_first = device.type == "cuda" or objective.compiled
    for batch in [*batches, *batches] if is_slow_at_first else batches:
        began = time.monotonic()
        objective(batch).backward()  # also of a batch without regions: spread weights want all processes to run
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.monotonic() - began if count_regions(batch) else None
        objective.zero_grad(set_to_none=True)
    return taken


def measure_kept(objective: nn.Module, batch: Batch) -> tuple[int, float]:
    """One real pass, forward and backward, of any objective, for those that `estimate_memory` cannot count.

    The gradients are dropped and buffers (BatchNorm's statistics) put back, so that the run's bits do not change; what
    is drawn inside comes from torch's global stream, which every step of `fit` seeds for itself.

    Args:
        objective: a scalar loss of a batch.
        batch: of the run.

    Returns:
        What the forward pass kept for the backward pass [bytes], weights not counted, and seconds.
    """
    before = [buffer.clone() for buffer in objective.buffers()]
    own = {one.untyped_storage().data_ptr() for one in (*objective.parameters(), *objective.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    began = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = objective(batch)
    loss.backward()
    loss.item()  # waits for the device
    seconds = time.perf_counter() - began
    for parameter in objective.parameters():
        parameter.grad = None
    with torch.no_grad():
        for buffer, value in zip(objective.buffers(), before, strict=True):
            buffer.copy_(value)
    return sum(kept.values()), seconds


def _twin(objective: Objective, *, low_precision: bool = False) -> tuple[Objective, FakeTensorMode]:
    """The same objective over tensors that hold nothing, and the mode it works in."""
    towers = [objective.student] if isinstance(objective, ImageText) else [objective.student, objective.teacher]
    kinds = {name: parameter.dtype for name, parameter in towers[-1].named_parameters()}
    compare = None if isinstance(objective, ImageText) else deepcopy(objective.compare)
    if compare is not None:
        compare.cpu()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.device("meta"):
        empty = [Clip(build(one.config, name=one.name, seed=0), name=one.name, config=one.config) for one in towers]
        for name, parameter in empty[-1].named_parameters():
            parameter.data = parameter.data.to(kinds[name])
    with mode:
        for one in empty:
            one.to_empty(device="cpu")
        twin = _rebuilt(objective, empty, compare=compare, low_precision=objective.low_precision or low_precision)
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(name in trained)
    return twin, mode


def _rebuilt(objective: Objective, towers: list[Clip], *, compare: nn.Module | None, low_precision: bool) -> Objective:
    """The same objective over other towers."""
    if isinstance(objective, ImageText):
        towers[0].tokenizer = objective.student.tokenizer  # whose words take a second to read
        return ImageText(
            towers[0],
            student_size=objective.student_size,
            pad=objective.pad,
            low_precision=low_precision,
            checkpointing=objective.checkpointing,
        )
    return ClipSelf(
        towers[0],
        towers[1],
        student_size=objective.student_size,
        pad=objective.pad,
        head=objective.head,
        tokens=objective.tokens,
        keep=objective.keep,
        keep_crops=objective.keep_crops,
        correlation=objective.correlation,
        correlation_head=objective.correlation_head,
        low_precision=low_precision,
        checkpointing=objective.checkpointing,
        chunk=objective.chunk,
        compare=compare,
    )


def _available(objective: Objective, local: int) -> int:
    """What the device has left, and what the towers already take of it [bytes]."""
    device = next(objective.student.parameters()).device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device)
    tensors = [one.to_local() if isinstance(one, DTensor) else one for one in objective.state_dict().values()]
    taken = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    memory = Path("/proc/meminfo")
    if not memory.exists():  # not Linux
        return taken
    [line] = [line for line in memory.read_text().splitlines() if line.startswith("MemAvailable:")]
    return int(line.split()[1]) * 1024 // local + taken


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
