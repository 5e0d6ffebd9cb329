"""AdamW as the paper uses it (Sec. 4.1): which tensors decay, the learning rate of a step, and the step itself.

A learning rate is a pure function of the step, so no scheduler state is saved. Distillation has one rate; the heads
train the blocks of a tower at a lower one (`lr_scale` of a parameter group).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from foveate.engine.distributed import spread_like, whole_tensor

PartlyTrained = tuple[nn.Parameter, slice]
"""A matrix of which only some rows are trained (the value rows of a fused query-key-value projection)."""


def build_optimizer(
    module: nn.Module,
    *,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    partly: Sequence[PartlyTrained] = (),
) -> torch.optim.AdamW:
    """One fused AdamW over all parameters with `requires_grad`; the learning rate is set by `take_step`.

    Args:
        weight_decay: for matrices; 1-D tensors (norms, biases) get none.
        partly: matrices whose untrained rows must not decay; `take_step` decays their trained rows.
    """
    by_hand = {id(parameter) for parameter, _ in partly}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert trained, "nothing to train: no parameter requires a gradient"
    decayed = [parameter for parameter in trained if parameter.ndim >= 2 and id(parameter) not in by_hand]
    plain = [parameter for parameter in trained if parameter.ndim < 2 or id(parameter) in by_hand]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=betas, eps=eps, fused=True)


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Linear warm-up to `peak`, then a cosine to zero.

    Args:
        step: from 0; the rate of the first of `warmup` steps is peak / warmup.
        peak: the rate at the last step of the warm-up.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def stepped_rate(step: int, *, peak: float, warmup: int, milestones: Sequence[int] = (), factor: float = 0.1) -> float:
    """Linear warm-up to `peak`, then constant, multiplied by `factor` from each milestone on (the heads; A.3)."""
    return peak * min(1.0, (step + 1) / max(1, warmup)) * factor ** sum(step >= milestone for milestone in milestones)


def gradient_norm(trained: Sequence[nn.Parameter]) -> Float[Tensor, ""]:
    """The Euclidean norm of all gradients together, on their device; the host does not wait for it."""
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    return whole_tensor(torch.nn.utils.get_total_norm(gradients))


@torch.no_grad()
def take_step(
    optimizer: torch.optim.Optimizer,
    *,
    lr: float,
    weight_decay: float,
    partly: Sequence[PartlyTrained] = (),
    nonfinite: Float[Tensor, ""] | None = None,
) -> None:
    """One optimizer step at a given rate; nothing changes, moments and counters included, where `nonfinite` is 1.

    AdamW decays whole tensors. Of a tensor trained in some rows only, the other rows have zero gradients and are not
    moved by Adam; so that they do not decay either, such tensors are outside the decayed group, and their trained rows
    are decayed here by AdamW's factor.

    Args:
        lr: learning rate, multiplied by the "lr_scale" of a group.
        weight_decay: of the trained rows of `partly`.
        partly: as given to `build_optimizer`.
        nonfinite: 0 or 1, on the device of the parameters, so that the host does not wait.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for parameter, rows in partly:
        factor = torch.full((), 1 - rates.get(id(parameter), lr) * weight_decay, device=parameter.device)
        factor = factor if nonfinite is None else factor.masked_fill_(nonfinite > 0, 1.0)
        if isinstance(parameter, DTensor):  # rows of a sharded tensor cannot be written alone
            factors = factor.new_ones(parameter.shape[0], 1)
            factors[rows] = factor
            parameter.mul_(spread_like(factors, parameter))
        else:
            parameter[rows].mul_(factor)
    optimizer.found_inf = nonfinite  # pyright: ignore[reportAttributeAccessIssue]  as GradScaler does
    optimizer.step()
