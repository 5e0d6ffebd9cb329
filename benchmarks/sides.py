"""The two sides of a training step: ours as `foveate distill` runs it, and the plain one, from the same weights."""

import argparse
from copy import deepcopy

import torch
from torch import Tensor

from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.engine.optim import build_optimizer, take_step
from foveate.objectives.clipself import ClipSelf, train_layers
from foveate.objectives.student import Execution
from foveate.types import Batch
from inputs import Item, exact, to_batch
from plain.data import PlainImages
from plain.step import PlainStep

LR, WEIGHT_DECAY = 1e-5, 0.1
PARITY = 1e-4  # largest relative difference of loss and gradients in float32


def copy_of(clip: Clip) -> Clip:
    """The same weights in another model; the tokenizer is shared."""
    return deepcopy(clip, {id(clip.tokenizer): clip.tokenizer} if "tokenizer" in clip.__dict__ else {})


def towers(model: str, device: str = "cpu") -> tuple[Clip, Clip]:
    """A student that has moved a little from its teacher, so that neither loss nor gradient is zero."""
    teacher = load(model, seed=0, device=device)
    student = copy_of(teacher)
    with torch.no_grad():
        for number, parameter in enumerate(student.visual.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)).to(device)
            parameter += 0.02 * noise * (parameter.std() if parameter.numel() > 1 else 1).nan_to_num(0)
    return student, teacher


class Ours:
    """ClipSelf and its fused optimizer; in bfloat16 by copies of the student's weights and a bfloat16 teacher."""

    def __init__(
        self,
        student: Clip,
        teacher: Clip,
        *,
        size: int,
        bfloat16: bool = False,
        valid_tokens: bool = False,
        compiled: bool = False,
        checkpointing: bool = False,
    ) -> None:
        """Set up as the command line does; `valid_tokens` drops the padding tokens."""
        self.partly = train_layers(student)
        if bfloat16 and next(teacher.parameters()).dtype != torch.bfloat16:
            teacher = teacher.to(torch.bfloat16)
        self.objective = ClipSelf(
            student,
            teacher,
            student_size=size,
            tokens="valid" if valid_tokens else "all",
            execution=Execution(low_precision=bfloat16, compiled=compiled, checkpointing=checkpointing),
        )
        self.optimizer = build_optimizer(self.objective, weight_decay=WEIGHT_DECAY, partly=self.partly)

    def step(self, batch: Batch) -> Tensor:
        """Forward, backward, AdamW."""
        loss = self.loss(batch)
        loss.backward()
        self.update()
        return loss.detach()

    def loss(self, batch: Batch) -> Tensor:
        """The objective."""
        return self.objective(batch)

    def update(self) -> None:
        """AdamW, by the gradients there are."""
        take_step(self.optimizer, lr=LR, weight_decay=WEIGHT_DECAY, partly=self.partly)
        self.optimizer.zero_grad(set_to_none=True)


def plain_step(student: Clip, teacher: Clip, *, bfloat16: bool = False) -> PlainStep:
    """The plain side over the same kind of towers."""
    return PlainStep(
        student.visual, teacher.visual, patch=student.patch_size, lr=LR, weight_decay=WEIGHT_DECAY, bfloat16=bfloat16
    )


def plain_images(items: list[Item], clip: Clip, *, size: int) -> PlainImages:
    """The plain loader's data set over the same files and boxes."""
    return PlainImages(items, student_size=size, teacher_size=clip.native_size, mean=clip.mean, std=clip.std)


def stacked(dataset: PlainImages) -> tuple[Tensor, Tensor, Tensor]:
    """All samples as torch's collate stacks them."""
    images, boxes, crops = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return torch.stack(images), torch.stack(boxes), torch.stack(crops)


def parity(options: argparse.Namespace) -> dict[str, float]:
    """Relative differences of loss and gradient on one exact image, in float32 without compilation.

    The student's side is a quarter larger than the native one: positions are resized, and it does not take long.

    Returns:
        loss: |ours - plain| / plain. gradient: largest over the trained tensors of |ours - plain| / |plain|, in the
        Euclidean norm; tensors only one side trains count with 1, unless their gradient is zero.

    Raises:
        AssertionError: beyond 1e-4; nothing measured would mean anything.
    """
    student, teacher = towers(options.model, options.device)
    size = -(-5 * teacher.native_size // (4 * student.patch_size)) * student.patch_size
    items = exact(1, crops=2, student_size=size, teacher_size=teacher.native_size)
    plain = plain_step(copy_of(student), teacher)
    images, boxes, crops = (one.to(plain.device) for one in stacked(plain_images(items, teacher, size=size)))
    theirs = plain.loss(images, *plain.valid(boxes, crops))
    theirs.backward()
    ours = Ours(student, teacher, size=size)
    loss = ours.loss(to_batch(items))
    loss.backward()
    found = {
        "loss": abs(float(loss.detach() - theirs.detach())) / float(theirs.detach()),
        "gradient": gradient_difference(ours.objective.student.visual, plain.student),
    }
    assert max(found.values()) <= PARITY, f"the sides differ: {found}"
    return found


def gradient_difference(ours: torch.nn.Module, plain: torch.nn.Module) -> float:
    """See `parity`."""
    pairs = list(zip(ours.named_parameters(), plain.parameters(), strict=True))
    total = torch.stack([p.grad.norm() for _, p in pairs if p.grad is not None]).norm()
    worst, seen = 0.0, 0
    for (_, a), b in pairs:
        if a.grad is None and b.grad is None:
            continue
        seen += 1
        x, y = (torch.zeros_like(b) if one.grad is None else one.grad for one in (a, b))
        floor = 1e-4 * total  # a tensor with next to no gradient holds rounding alone (biases of keys: exactly zero)
        worst = max(worst, float((x - y).norm() / torch.maximum(y.norm(), floor)))
    assert seen, "no gradients"
    return worst
