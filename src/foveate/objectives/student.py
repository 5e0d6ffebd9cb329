"""What the objectives need of a student and how its blocks are run, the same for CLIPSelf and for captions.

Deliberately absent: which parameters are trained (`clipself.train_layers`).
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch._dynamo
from open_clip.modified_resnet import ModifiedResNet

from foveate.clip.attention import RunBlock, recomputed, whole_block
from foveate.clip.dense import blocks_run_whole
from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.clip.precision import in_low_precision, low_precision_copies, using
from foveate.errors import InputError


@dataclass(frozen=True)
class Execution:
    """How blocks are run."""

    low_precision: bool = False  # the student computes with bfloat16 copies of its weights, which stay as they are
    compiled: bool = False  # through torch.compile, in all towers
    checkpointing: bool = False  # store only the input of the student's blocks; run them again in the backward pass


def prepare_student(student: Clip, execution: Execution, *, size: int) -> RunBlock:
    """Check a student and set how it runs its blocks; returns how its teacher runs them.

    Args:
        size: side of the student's square input [pixels].

    Raises:
        InputError: the size is not a multiple of the patch size, or a residual network is to be compiled or
            checkpointed, which would change nothing.
    """
    if size < 1 or size % student.patch_size:
        raise InputError(
            f"student size: must be a multiple of the patch size {student.patch_size}; got {size}. "
            f"Try {max(1, round(size / student.patch_size)) * student.patch_size}."
        )
    if (execution.compiled or execution.checkpointing) and isinstance(student.visual, ModifiedResNet):
        raise InputError(
            f"--compile, --checkpointing: act on transformer blocks; {student.name} is a residual network and has "
            "none. Remove them."
        )
    run = compiled_blocks() if execution.compiled else whole_block
    student.run_block = in_low_precision(run) if execution.low_precision else run
    if execution.checkpointing:
        student.run_block = recomputed(student.run_block)
    return run


def computing_weights(student: Clip, execution: Execution, *, head: Head) -> AbstractContextManager[None]:
    """The student with the weights it computes with, except in blocks that run whole, which have theirs themselves."""
    if not execution.low_precision:
        return nullcontext()
    visual = student.visual
    return using(visual, low_precision_copies(visual, leave=blocks_run_whole(visual, head=head)))


def compiled_blocks() -> RunBlock:
    """Blocks run through torch.compile."""
    # one function for two towers, with and without windows and gradients, for several sizes
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(whole_block)


def compile_tower(clip: Clip) -> None:
    """Run the blocks of a CLIP's image tower through torch.compile, wherever it is used.

    Raises:
        InputError: a residual network, which has no blocks.
    """
    if isinstance(clip.visual, ModifiedResNet):
        raise InputError(f"--compile: acts on transformer blocks; {clip.name} is a residual network. Remove it.")
    clip.run_block = compiled_blocks()
