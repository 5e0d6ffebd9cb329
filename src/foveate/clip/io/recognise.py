"""The architecture of weights without a config: the one that has all their names and shapes.

Configs are first compared by the sizes they state; the remaining ones are built without memory and compared tensor by
tensor. Configs that differ only in the activation fit the same weights; the user must then choose.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from foveate.clip.io.describe import build_empty, refusal
from foveate.clip.io.layouts import fit_names
from foveate.errors import InputError

Sizes = dict[str, Any]  # of a CLIP, by their names in the message


def recognise(
    state: dict[str, Tensor], described: Mapping[str, dict[str, Any]], *, source: str, quick_gelu: bool | None = None
) -> str:
    """Return the name of the architecture of weights.

    Args:
        state: with open_clip's names.
        described: candidates by name, each with "model_cfg".
        source: path of the weights, for the message.
        quick_gelu: whether the model was trained with this activation; None: unknown.

    Raises:
        InputError: no candidate fits (gives the sizes and the nearest ones), or several do (lists them).
    """
    # candidates by the sizes they state
    sizes = weights_sizes(state)
    mismatches = {}  # of each candidate
    for name, config in described.items():
        stated = stated_sizes(config["model_cfg"])
        mismatches[name] = sum(stated[key] != sizes.get(key) for key in stated)
    empty = {
        name: build_empty(described[name], name=name)
        for name, count in mismatches.items()
        if count == 0
        and quick_gelu in (None, bool(described[name]["model_cfg"].get("quick_gelu")))
        and refusal(described[name]["model_cfg"]) is None
    }
    # of these, those with all names and shapes
    fits = [name for name, model in empty.items() if is_fit(model, state)] or [
        name for name, model in empty.items() if is_fit(model, fit_names(state, model))
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise InputError(
            f"{source}: these weights fit several architectures, {', '.join(fits)}, which differ in properties that "
            f'weights do not determine (such as the activation). Choose one: load({fits[0]!r}, pretrained="{source}").'
        )
    got = ", ".join(f"{key} {value}" for key, value in sizes.items() if value is not None) or "nothing of a CLIP"
    nearest = sorted(mismatches, key=lambda name: mismatches[name])[:5] if sizes else []
    hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
    first = ", ".join(map(repr, list(state)[:5])) or "nothing"
    raise InputError(
        f"{source}: these weights fit no architecture of open_clip; found {got}.{hint} Its {len(state)} tensors "
        f"begin with {first}; expected are 'logit_scale', 'transformer.resblocks.0.ln_1.weight' (or 'text.' before it) "
        "and 'visual.conv1.weight' or 'visual.trunk.blocks.0.attn.q_proj.weight'. Name the architecture to see what is "
        "missing: load(NAME, pretrained=FILE), foveate convert FILE OUT --model NAME."
    )


def is_fit(model: nn.Module, state: dict[str, Tensor]) -> bool:
    """Whether weights have the names and shapes of a model; a scale or bias may be a scalar or a vector of one."""
    expected = model.state_dict()
    return expected.keys() == state.keys() and all(
        state[key].shape == value.shape or (value.numel() == state[key].numel() == 1 and key.startswith("logit_"))
        for key, value in expected.items()
    )


def weights_sizes(state: dict[str, Tensor]) -> Sizes:
    """The sizes of a CLIP as far as its weights show them."""
    text = "" if "token_embedding.weight" in state else "text."
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    sizes: Sizes = {}
    if "visual.conv1.weight" in shapes and "visual.class_embedding" in shapes:
        sizes["vision"] = "ViT"
        sizes["width"], sizes["patch"] = shapes["visual.conv1.weight"][0], shapes["visual.conv1.weight"][-1]
        sizes["layers"] = _count(state, r"visual\.transformer\.resblocks\.(\d+)\.")
    elif "visual.layer1.0.conv1.weight" in shapes:
        sizes["vision"], sizes["width"] = "ResNet", shapes["visual.layer1.0.conv1.weight"][0]
        sizes["layers"] = tuple(_count(state, rf"visual\.layer{i}\.(\d+)\.") for i in range(1, 5))
    elif any(key.startswith("visual.trunk.") for key in shapes):
        if not any(key.startswith("visual.trunk.blocks.0.") for key in shapes):
            sizes["vision"] = "timm, in stages"
        else:
            sizes["vision"] = "timm, pooled by attention" if "visual.trunk.attn_pool.latent" in shapes else "timm"
        if "visual.trunk.patch_embed.proj.weight" in shapes:
            sizes["patch"] = shapes["visual.trunk.patch_embed.proj.weight"][-1]
    if f"{text}token_embedding.weight" in shapes:
        sizes["vocabulary"], sizes["text width"] = shapes[f"{text}token_embedding.weight"]
        sizes["text layers"] = _count(state, rf"{re.escape(text)}transformer\.resblocks\.(\d+)\.")
    if f"{text}positional_embedding" in shapes:
        sizes["context"] = shapes[f"{text}positional_embedding"][0]
    return sizes


def stated_sizes(model: dict[str, Any]) -> Sizes:
    """The same sizes as far as a config states them."""
    vision, text = model["vision_cfg"], model["text_cfg"]
    sizes: Sizes = {}
    trunk = vision.get("timm_model_name")
    if trunk:
        if trunk.startswith(("convnext", "fastvit", "swin")):
            sizes["vision"] = "timm, in stages"
        else:
            sizes["vision"] = "timm, pooled by attention" if vision.get("timm_pool") == "map" else "timm"
        patch = re.search(r"patch(\d+)", trunk)
        sizes |= {"patch": int(patch[1])} if patch else {}
    elif isinstance(vision.get("layers"), list):
        sizes |= {"vision": "ResNet", "width": vision.get("width", 64), "layers": tuple(vision["layers"])}
    else:
        sizes |= {"vision": "ViT", "width": vision.get("width", 768), "layers": vision.get("layers", 12)}
        sizes["patch"] = vision.get("patch_size", 16)
    if not text.get("hf_model_name"):
        sizes |= {"vocabulary": text.get("vocab_size", 49408), "text width": text.get("width", 512)}
        sizes |= {"text layers": text.get("layers", 12), "context": text.get("context_length", 77)}
    return sizes


def _count(state: dict[str, Tensor], pattern: str) -> int:
    return len({match[1] for key in state if (match := re.match(pattern, key))})
