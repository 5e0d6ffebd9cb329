"""Weights of a CLIP that are trained with CAT-Seg; the others are frozen.

    2024    of both towers the query and value matrices; no biases, no positions
    2023    of the image tower all of attention, and the positions

If one matrix makes queries, keys and values, the rows of the keys get no gradient and no weight decay (`partly`). Text
towers of Hugging Face, whose names differ, stay frozen.
"""

from functools import partial

import torch
from torch import Tensor, nn

from foveate.clip.dense import last_block_use
from foveate.clip.model import Clip
from foveate.clip.names import Head

JOINT_MATRICES = ("in_proj_weight", "qkv.weight")
SEPARATE_MATRICES = ("q_proj.weight", "v_proj.weight")
POSITIONS = ("positional_embedding", "pos_embed")
Partly = tuple[nn.Parameter, slice]


def unfreeze_queries_and_values(clip: Clip, *, head: Head) -> tuple[Partly, ...]:
    """Train only the query and value matrices of both towers (2024).

    Args:
        clip: changed here.
        head: of the dense feature map; weights that it does not use stay frozen.

    Returns:
        The matrices trained in some rows only, with these rows; see `engine.optim.take_step`.
    """
    clip.requires_grad_(False)
    unused, rows = last_block_use(clip.visual, head=head)
    unused_ids, last_rows = {id(parameter) for parameter in unused}, {id(matrix): part for matrix, part in rows}
    partly = []
    for name, parameter in clip.model.named_parameters():
        is_joint = ".attn." in name and name.endswith(JOINT_MATRICES)
        if id(parameter) in unused_ids or not (is_joint or name.endswith(SEPARATE_MATRICES)):
            continue
        parameter.requires_grad_(True)
        if is_joint:
            third = len(parameter) // 3
            trained = [slice(0, third), slice(2 * third, 3 * third)]
            trained = [last_rows[id(parameter)]] if id(parameter) in last_rows else trained
            parameter.register_hook(partial(_mask_gradient, trained=trained))
            partly += [(parameter, part) for part in trained]
    return tuple(partly)


def unfreeze_attention(clip: Clip, *, head: Head) -> tuple[Partly, ...]:
    """Train only attention and positions of the image tower (2023); see `unfreeze_queries_and_values`."""
    clip.requires_grad_(False)
    unused, rows = last_block_use(clip.visual, head=head)
    unused_ids = {id(parameter) for parameter in unused}
    for name, parameter in clip.visual.named_parameters():
        if id(parameter) not in unused_ids and (".attn." in name or name.endswith(POSITIONS)):
            parameter.requires_grad_(True)
    return tuple((parameter, part) for parameter, part in rows if parameter.requires_grad)


def _mask_gradient(gradient: Tensor, *, trained: list[slice]) -> Tensor:
    """The gradient of the trained rows, zero elsewhere."""
    masked = torch.zeros_like(gradient)
    for rows in trained:
        masked[rows] = gradient[rows]
    return masked
