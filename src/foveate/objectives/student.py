"""What the objectives ask of a student and how they run its blocks, the same for CLIPSelf and for captions.

Deliberately absent: which parameters learn (`clipself.train_layers`).
"""

import torch
import torch._dynamo
from open_clip.modified_resnet import ModifiedResNet

from foveate.clip.attention import RunBlock, recomputed, whole_block
from foveate.clip.model import Clip
from foveate.clip.precision import in_low_precision
from foveate.errors import InputError


def check_student(student: Clip, *, size: int, compiled: bool, checkpointing: bool) -> None:
    """Refuse what a student cannot be trained with.

    Args:
        student: the CLIP that learns.
        size: side of its square input [pixels].
        compiled, checkpointing: asked for its blocks.

    Raises:
        InputError: the size is not a multiple of the patch size, or a residual network is to be compiled or
            checkpointed, which would change nothing.
    """
    if size < 1 or size % student.patch_size:
        raise InputError(
            f"student size: must be a multiple of the patch size {student.patch_size}; got {size}. "
            f"Try {max(1, round(size / student.patch_size)) * student.patch_size}."
        )
    if (compiled or checkpointing) and isinstance(student.visual, ModifiedResNet):
        raise InputError(
            f"--compile, --checkpointing: act on transformer blocks; {student.name} is a residual network and has "
            "none. Leave them out."
        )


def compiled_blocks(compiled: bool) -> RunBlock:
    """How a tower that computes as it is runs its blocks; through torch.compile where asked."""
    if not compiled:
        return whole_block
    # one function for two towers, with and without windows and gradients, for several sizes
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(whole_block)


def compile_tower(clip: Clip) -> None:
    """Run the blocks of a CLIP's image tower through torch.compile, wherever it is used.

    Raises:
        InputError: a residual network, which has no blocks.
    """
    if isinstance(clip.visual, ModifiedResNet):
        raise InputError(f"--compile: acts on transformer blocks; {clip.name} is a residual network. Leave it out.")
    clip.run_block = compiled_blocks(True)


def student_blocks(run: RunBlock, *, low_precision: bool, checkpointing: bool) -> RunBlock:
    """How a student runs its blocks: on bfloat16 copies of their weights, and again in the backward pass, if asked."""
    run = in_low_precision(run) if low_precision else run
    return recomputed(run) if checkpointing else run
