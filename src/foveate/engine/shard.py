"""The student's weights sharded over the processes (FSDP2), for ViT-H/14 and above.

Each block is gathered when it runs and released after it; what is outside the blocks, and the last blocks, which a head
runs in parts, are gathered for the whole step. Frozen towers (the teacher, the text tower) are whole on every process.
"""

from types import MethodType
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from foveate.clip.dense import blocks_run_whole, tower_stages
from foveate.clip.tower import ImageTower
from foveate.engine.distributed import Processes
from foveate.errors import InputError
from foveate.objectives.clipself import ClipSelf


def shard_student(objective: ClipSelf, *, processes: Processes, bfloat16: bool = False) -> None:
    """Shard the student's weights over the processes; the optimizer must be made after this.

    Args:
        objective: after `train_layers` of its student.
        processes: at least two.
        bfloat16: gather and compute in bfloat16, add gradients in float32; the objective then needs no copies.

    Raises:
        InputError: one process, a residual network, or tokens "valid" (processes would not run in step).
    """
    student = objective.student
    if processes.size < 2:
        raise InputError("--fsdp: needs at least 2 processes to shard over; got 1. Start them with torchrun.")
    if isinstance(student.visual, ModifiedResNet):
        raise InputError(f"--fsdp: is for transformers; {student.name} is a residual network. Remove it.")
    if objective.tokens == "valid":
        raise InputError("--fsdp: needs --tokens all, so that every process runs the blocks equally often.")
    mesh = init_device_mesh(processes.device.type, (processes.size,))
    kind = torch.bfloat16 if bfloat16 else None
    policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
    run, stages = student.run_block, tower_stages(student.visual)

    def run_gathered(block: nn.Module, tower: ImageTower, *inputs: Any) -> Tensor:
        return run(tower, block, *inputs)

    for block in stages[:-1]:
        # FSDP gathers around a method of the module it shards
        block.run_gathered = MethodType(run_gathered, block)  # pyright: ignore[reportArgumentType]
    for block in blocks_run_whole(student.visual, head=objective.head):
        fully_shard(block, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(block, "run_gathered")  # pyright: ignore[reportArgumentType]
    student.run_block = lambda tower, block, *inputs: block.run_gathered(tower, *inputs)
    tower = {id(parameter) for parameter in student.visual.parameters()}
    frozen = {p for p in objective.parameters() if not p.requires_grad and id(p) not in tower}
    fully_shard(objective, mesh=mesh, mp_policy=policy, ignored_params=frozen)
