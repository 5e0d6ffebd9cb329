"""Compute with bfloat16 copies of float32 weights (mixed precision without autocast and without a loss scaler).

Autocast runs every norm in float32; here a tower computes in bfloat16 throughout, on copies of its weights, and
gradients flow through the copies to the float32 weights that the optimizer moves. A block's copies are made where it
runs, so that its gradients are ready when the backward pass has left it, and processes can exchange them meanwhile.
Norms and softmax still add up in float32 inside their kernels, and rotary tables stay float32.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foveate.clip.attention import RunBlock
from foveate.clip.tower import ImageTower


def in_low_precision(run: RunBlock) -> RunBlock:
    """Run a block with bfloat16 copies of its weights, made for this one run of it."""

    def run_copies(tower: ImageTower, block: Any, *rest: Any) -> Tensor:
        with using(block, low_precision_copies(block)):
            return run(tower, block, *rest)

    return run_copies


def low_precision_copies(module: nn.Module, *, leave: Sequence[nn.Module] = ()) -> dict[str, Tensor]:
    """Copy a module's floating point parameters and buffers to bfloat16, by name; gradients reach the originals.

    What is bfloat16 already is left as it is.

    Args:
        module: of any kind.
        leave: parts of it that are not copied.
    """
    left = {id(tensor) for part in leave for tensor in (*part.parameters(), *part.buffers())}
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    wide = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.dtype != torch.bfloat16]
    names = [name for name in wide if id(tensors[name]) not in left]
    if not names:
        return {}
    return dict(zip(names, _CopyAll.apply(*(tensors[name] for name in names)), strict=True))


class _CopyAll(torch.autograd.Function):
    """float32 -> bfloat16 of many tensors, and their gradients back, each in one call instead of one a tensor."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        copies = [torch.empty_like(tensor, dtype=torch.bfloat16) for tensor in tensors]
        torch._foreach_copy_(copies, tensors)  # pyright: ignore[reportPrivateImportUsage]
        needed = zip(copies, ctx.needs_input_grad, strict=True)
        ctx.mark_non_differentiable(*(copy for copy, need in needed if not need))  # of what is frozen
        ctx.set_materialize_grads(False)  # else it gets zeros, which would be made float32 and thrown away
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [gradient for gradient in gradients if gradient is not None]
        exact = [torch.empty_like(gradient, dtype=torch.float32) for gradient in given]
        torch._foreach_copy_(exact, given)  # pyright: ignore[reportPrivateImportUsage]
        found = iter(exact)
        return tuple(None if gradient is None else next(found) for gradient in gradients)


@contextmanager
def using(module: nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """Let a module compute with other tensors in the places of its own, and put its own back.

    Args:
        module: of any kind; its parameters are not touched.
        tensors: by the names of parameters or buffers.
    """
    places = []
    for name in tensors:
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        places.append((owner._parameters if leaf in owner._parameters else owner._buffers, leaf, name))
    own = [held[leaf] for held, leaf, _ in places]
    for held, leaf, name in places:
        held[leaf] = tensors[name]  # pyright: ignore[reportArgumentType]  what torch.func.functional_call does too
    try:
        yield
    finally:
        for (held, leaf, _), tensor in zip(places, own, strict=True):
            held[leaf] = tensor  # pyright: ignore[reportArgumentType]
