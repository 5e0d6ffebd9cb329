"""Compute with bfloat16 copies of float32 weights (mixed precision without autocast and without a loss scaler).

Autocast runs every norm in float32 and casts frozen weights again in each step; here a tower computes in bfloat16
throughout, on copies made once a step, and gradients flow through the copies to the float32 weights that the optimizer
moves. Norms and softmax still add up in float32 inside their kernels, and rotary tables stay float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def low_precision_copies(module: nn.Module) -> dict[str, Tensor]:
    """Copy a module's floating point parameters and buffers to bfloat16, by name; gradients reach the originals."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items() if tensor.is_floating_point()}


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
