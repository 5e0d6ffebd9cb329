"""Parameter groups of the heads' optimizers, and batch statistics shared by processes."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Head = TypeVar("Head", bound=nn.Module)


def parameter_groups(
    parts: Iterable[tuple[Iterable[nn.Parameter], float]],
    *,
    weight_decay: float,
    decays: Callable[[nn.Parameter], bool],
) -> list[dict[str, Any]]:
    """Sort the trained parameters into groups for an optimizer.

    Args:
        parts: parameters with the factor of their learning rate; frozen ones are ignored.
        weight_decay: of the parameters for which `decays` is true; the others have none.

    Returns:
        "params", "weight_decay" and "lr_scale", the factor of the group's learning rate; no group is empty.
    """
    groups = []
    for parameters, scale in parts:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for is_decayed, decay in ((True, weight_decay), (False, 0.0)):
            members = [parameter for parameter in trained if decays(parameter) == is_decayed]
            if members:
                groups.append({"params": members, "weight_decay": decay, "lr_scale": scale})
    return groups


def synchronise(head: Head) -> Head:
    """Replace trained BatchNorm layers by SyncBN if there are several processes on GPUs.

    torch has no such layer on the CPU: each process normalises by its own images, and the running statistics of the
    first process are saved.
    """
    if next(head.parameters()).device.type == "cuda" and dist.is_initialized() and dist.get_world_size() > 1:
        convert_trained_norms(head)
    return head


def convert_trained_norms(head: nn.Module) -> None:
    """Replace the trained BatchNorm layers of a head by SyncBN, in place; parameters stay the same objects."""
    for parent in list(head.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, _BatchNorm) and any(parameter.requires_grad for parameter in layer.parameters()):
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(layer))
