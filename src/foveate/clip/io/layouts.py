"""Layouts of published CLIP weights, recognised by the names of their tensors, and open_clip's names for them.

The names of Hugging Face are in `foveate.clip.io.hf.names`.
"""

import re
import sys

import open_clip
import torch
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor

from foveate.clip.io.describe import Module
from foveate.clip.io.hf.names import from_huggingface, is_huggingface
from foveate.errors import InputError

SETTINGS = {"input_resolution", "context_length", "vocab_size"}  # numbers among the tensors of OpenAI's files
_DETECTOR = "backbone.visual."  # prefix of CLIP's image tower in an F-ViT
_TOWERS = ("conv1.weight", "patch_embed.proj.weight", "trunk.patch_embed.proj.weight")  # of an image tower alone
_HF_TOWER = "embeddings.patch_embedding.weight"  # likewise, by transformers
_SCALE = "text.logit_scale"  # name of the scale in EVA-CLIP's training code
_EVA_NAMES = (
    (".attn.q_bias", ".attn.q_proj.bias"),
    (".attn.v_bias", ".attn.v_proj.bias"),
    (".attn.inner_attn_ln.", ".attn.norm."),
    (".mlp.w1.", ".mlp.fc1_g."),
    (".mlp.w2.", ".mlp.fc1_x."),
    (".mlp.w3.", ".mlp.fc2."),
    (".mlp.ffn_ln.", ".mlp.norm."),
)
_DERIVED = re.compile(r"(^|\.)(attn_mask|position_ids|rope\.freqs_(cos|sin))$")  # tables that models recompute


def name_weights(state: dict[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Rename the weights of a CLIP to open_clip's names, without tables that models recompute.

    Args:
        state: of open_clip, OpenAI, EVA-CLIP, the training code of CLIPSelf, CLIM, DeCLIP, DenseVLM and FineCLIP,
            transformers, or an F-ViT detector, whose image tower is returned.
        source: path of the weights; what is ignored of a detector is printed to stderr.
    """
    state = drop_derived({key: value for key, value in state.items() if key not in SETTINGS})
    if any(key.startswith(_DETECTOR) for key in state):
        state = _image_tower(state, source)
    elif _HF_TOWER in state:
        state = {f"vision_model.{key}": value for key, value in state.items()}
    elif any(key in state for key in _TOWERS):
        state = {f"visual.{key}": value for key, value in state.items()}
    if _SCALE in state and ("logit_scale" not in state or torch.equal(state["logit_scale"], state[_SCALE])):
        state = {"logit_scale": state[_SCALE]} | {key: value for key, value in state.items() if key != _SCALE}
    return from_huggingface(state) if is_huggingface(state) else rename_eva(state)


def rename_eva(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename EVA-CLIP's weights, and those published with CLIPSelf, to open_clip's names; others are not changed."""
    if "visual.blocks.0.attn.q_proj.weight" not in state:
        return state
    renamed = {}
    for key, value in state.items():
        if key.startswith("visual."):
            key = f"visual.trunk.{key.removeprefix('visual.')}"
            for theirs, ours in _EVA_NAMES:
                key = key.replace(theirs, ours)
        renamed[key] = value
    return renamed


def drop_derived(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove tables that every model recomputes: causal masks, position ids, rotary tables."""
    return {key: value for key, value in state.items() if not _DERIVED.search(key)}


def fit_names(state: dict[str, Tensor], model: Module) -> dict[str, Tensor]:
    """Rename the text tower's weights to those of a model, with or without "text.", and reshape scales to its form."""
    if isinstance(model, open_clip.CustomTextCLIP):
        state = convert_to_custom_text_state_dict(state)
    elif not any(key.startswith("transformer.") for key in state):
        twice = [key for key in state if key.startswith("text.") and key.removeprefix("text.") in state]
        if twice:
            raise InputError(f"need each tensor once; the file has {twice[0]} and {twice[0].removeprefix('text.')}.")
        state = {key.removeprefix("text."): value for key, value in state.items()}
    fitted = dict(state)
    for key, value in model.state_dict().items():
        if key.startswith("logit_") and key in state and state[key].numel() == value.numel() == 1:
            fitted[key] = state[key].reshape(value.shape)
    return fitted


def is_image_tower(state: dict[str, Tensor]) -> bool:
    """Whether weights are those of an image tower alone."""
    return bool(state) and all(key.startswith("visual.") for key in state)


def join_towers(image: dict[str, Tensor], text: dict[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Complete an image tower with the text tower and the scale of another CLIP.

    Args:
        text: of a whole CLIP; its image tower is not used.
        source: path of the image tower, for the message.

    Raises:
        InputError: `image` has a text tower.
    """
    texts = {key: value for key, value in text.items() if not key.startswith("visual.")}
    repeated = [key for key in texts if key in image and not key.startswith("logit_")]
    if repeated:
        raise InputError(
            f"{source}: need an image tower alone where a text tower is taken from another CLIP; this file has its "
            f"own, {len(repeated)} tensors, first {repeated[0]!r}. Load it without text_from (--text-from)."
        )
    return texts | image


def _image_tower(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    tower = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith(_DETECTOR)}
    ignored = sorted({key.split(".")[0] for key in state if not key.startswith(_DETECTOR)})
    print(
        f"{source}: a detector; the {len(tower)} tensors under {_DETECTOR} are read as CLIP's image tower, the other "
        f"{len(state) - len(tower)} are ignored ({', '.join(ignored)}).",
        file=sys.stderr,
    )
    return tower
