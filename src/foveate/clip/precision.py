"""Mixed precision with bfloat16 copies of float32 weights, without autocast and without a loss scaler.

Autocast runs every norm in float32; here a tower computes in bfloat16 throughout, on copies of its weights, and
gradients reach the float32 weights of the optimizer through the copies. The copies of a block are made when it runs, so
that its gradients are complete when its backward pass ends, and processes can exchange them meanwhile. Norms and
softmax accumulate in float32 inside their kernels, and rotary tables remain float32.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foveate.clip.attention import RunBlock
from foveate.clip.tower import ImageTower


def in_low_precision(run: RunBlock) -> RunBlock:
    """Run a block with bfloat16 copies of its weights, made for this run."""

    def run_copies(tower: ImageTower, block: Any, *rest: Any) -> Tensor:
        with using(block, low_precision_copies(block)):
            return run(tower, block, *rest)

    return run_copies


def low_precision_copies(module: nn.Module, *, leave: Sequence[nn.Module] = ()) -> dict[str, Tensor]:
    """Copy the floating point parameters and buffers of a module to bfloat16, by name; gradients reach the originals.

    Tensors that are bfloat16 already, and those of the modules in `leave`, are not copied.
    """
    excluded = {id(tensor) for part in leave for tensor in (*part.parameters(), *part.buffers())}
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    wide = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.dtype != torch.bfloat16]
    names = [name for name in wide if id(tensors[name]) not in excluded]
    if not names:
        return {}
    return dict(zip(names, _CopyAll.apply(*(tensors[name] for name in names)), strict=True))


class _CopyAll(torch.autograd.Function):
    """Convert many tensors to bfloat16, and their gradients to float32, each in one call."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        copies = [torch.empty_like(tensor, dtype=torch.bfloat16) for tensor in tensors]
        torch._foreach_copy_(copies, tensors)  # pyright: ignore[reportPrivateImportUsage]
        needs = zip(copies, ctx.needs_input_grad, strict=True)
        ctx.mark_non_differentiable(*(copy for copy, need in needs if not need))  # of frozen weights
        ctx.set_materialize_grads(False)  # no zeros, which would be converted for nothing
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        present = [gradient for gradient in gradients if gradient is not None]
        converted = [torch.empty_like(gradient, dtype=torch.float32) for gradient in present]
        torch._foreach_copy_(converted, present)  # pyright: ignore[reportPrivateImportUsage]
        remaining = iter(converted)
        return tuple(None if gradient is None else next(remaining) for gradient in gradients)


@contextmanager
def using(module: nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """Replace parameters and buffers of a module, by name, and restore its own at the end."""
    slots = []
    for name in tensors:
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        slots.append((owner._parameters if leaf in owner._parameters else owner._buffers, leaf, name))
    originals = [slot[leaf] for slot, leaf, _ in slots]
    for slot, leaf, name in slots:
        slot[leaf] = tensors[name]  # pyright: ignore[reportArgumentType]  as torch.func.functional_call does
    try:
        yield
    finally:
        for (slot, leaf, _), tensor in zip(slots, originals, strict=True):
            slot[leaf] = tensor  # pyright: ignore[reportArgumentType]
