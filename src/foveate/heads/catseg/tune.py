"""Which weights of a CLIP learn with CAT-Seg: some of attention, slowly; the rest keeps what it knows.

    2024    of both towers the matrices that make queries and values; no biases, no positions
    2023    of the image tower all of attention, and the positions

Where one matrix makes queries, keys and values, its keys' rows get no gradient and are not decayed (`partly`).
Deliberately absent: text towers of Hugging Face, whose names nobody looked at; they stay as they are.
"""

from functools import partial

import torch
from torch import Tensor, nn

from foveate.clip.dense import last_block_use
from foveate.clip.model import Clip
from foveate.clip.names import Head

FUSED = ("in_proj_weight", "qkv.weight")
APART = ("q_proj.weight", "v_proj.weight")
POSITIONS = ("positional_embedding", "pos_embed")
Partly = tuple[nn.Parameter, slice]


def unfreeze_queries_and_values(clip: Clip, *, head: Head) -> tuple[Partly, ...]:
    """Let the query and value matrices of both towers learn, and nothing else (2024).

    Args:
        clip: changed here.
        head: of the dense map; what it does without stays frozen.

    Returns:
        The matrices of which only some rows learn, with these rows; see `engine.optim.take_step`.
    """
    clip.requires_grad_(False)
    unused, rows = last_block_use(clip.visual, head=head)
    idle, of_last = {id(one) for one in unused}, {id(one): kept for one, kept in rows}
    partly = []
    for name, parameter in clip.model.named_parameters():
        is_fused = ".attn." in name and name.endswith(FUSED)
        if id(parameter) in idle or not (is_fused or name.endswith(APART)):
            continue
        parameter.requires_grad_(True)
        if is_fused:
            third = len(parameter) // 3
            kept = [slice(0, third), slice(2 * third, 3 * third)]
            kept = [of_last[id(parameter)]] if id(parameter) in of_last else kept
            parameter.register_hook(partial(_keep_rows, kept=kept))
            partly += [(parameter, one) for one in kept]
    return tuple(partly)


def unfreeze_attention(clip: Clip, *, head: Head) -> tuple[Partly, ...]:
    """Let attention and positions of the image tower learn, and nothing else (2023); as the function above."""
    clip.requires_grad_(False)
    unused, rows = last_block_use(clip.visual, head=head)
    idle = {id(one) for one in unused}
    for name, parameter in clip.visual.named_parameters():
        if id(parameter) not in idle and (".attn." in name or name.endswith(POSITIONS)):
            parameter.requires_grad_(True)
    return tuple((parameter, kept) for parameter, kept in rows if parameter.requires_grad)


def _keep_rows(gradient: Tensor, *, kept: list[slice]) -> Tensor:
    """The gradient of some rows, zero elsewhere."""
    found = torch.zeros_like(gradient)
    for rows in kept:
        found[rows] = gradient[rows]
    return found
