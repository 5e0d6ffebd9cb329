"""Configs of Hugging Face transformers' CLIPModel and SiglipModel converted to open_clip's, without transformers.

Models that open_clip's modules cannot express are refused with the reason.
"""

from pathlib import Path
from typing import Any

import open_clip
import timm

from foveate.clip.io.describe import GELUS, check_statistics, read_json
from foveate.errors import InputError

HF_CONFIG_FILE, PREPROCESSOR_FILE = "config.json", "preprocessor_config.json"
TRUNKS = {  # (width, layers, heads) of SigLIP's image towers -> timm's name
    (768, 12, 12): "base",
    (1024, 24, 16): "large",
    (1152, 27, 16): "so400m",
    (1536, 40, 16): "giantopt",
}
_COMPLETE = (
    "Its text tower is missing; name a CLIP that has it: load(FOLDER, text_from=CLIP), "
    "foveate convert FOLDER OUT --text-from CLIP."
)
_REASONS = {  # why other models of transformers are refused
    "clip_vision_model": f"This is an image tower alone (CLIPVisionModel, CLIPVisionModelWithProjection). {_COMPLETE}",
    "siglip_vision_model": f"This is an image tower alone (SiglipVisionModel). {_COMPLETE}",
    "clip_text_model": "This is a text tower alone; its image tower is missing. Give the whole CLIPModel.",
    "siglip_text_model": "This is a text tower alone; its image tower is missing. Give the whole SiglipModel.",
    "siglip2": "This is SigLIP 2 NaFlex, whose image tower is not supported. Use a SigLIP 2 of fixed size (its "
    "model_type is siglip), such as google/siglip2-base-patch16-256.",
}
_RESAMPLES = {2: "bilinear", 3: "bicubic"}
# transformers' defaults, which its configs leave out
_CLIP_TEXT = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
    "max_position_embeddings": 77, "vocab_size": 49408, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}  # fmt: skip
_CLIP_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_channels": 3,
}  # fmt: skip
_SIGLIP_TEXT = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "max_position_embeddings": 64, "vocab_size": 32000, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
}  # fmt: skip
_SIGLIP_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    "num_channels": 3, "vision_use_head": True,
}  # fmt: skip


def describe_huggingface(folder: Path) -> dict[str, Any]:
    """Convert the config of a transformers folder to open_clip's.

    Returns:
        {"model_cfg": ..., "preprocess_cfg": ...}, and "foveate" with the activation of a SigLIP trunk.

    Raises:
        InputError: the model is not a CLIP or SigLIP, or open_clip's modules cannot express it.
    """
    path = folder / HF_CONFIG_FILE
    config = read_json(path, what="transformers' config of a model")
    kind = config.get("model_type")
    if kind not in ("clip", "siglip"):
        reason = _REASONS.get(kind, "It is of another model.") if isinstance(kind, str) else ""
        raise InputError(f'{path}: need "model_type" clip or siglip; got {kind!r}. {reason}')
    vision = _merged(config, "vision_config", _CLIP_VISION if kind == "clip" else _SIGLIP_VISION, path)
    text = _merged(config, "text_config", _CLIP_TEXT if kind == "clip" else _SIGLIP_TEXT, path)
    if vision["num_channels"] != 3:
        raise InputError(f"{path}: need images of 3 channels; got {vision['num_channels']}.")
    described = _describe_clip(config, vision, text, path) if kind == "clip" else _describe_siglip(vision, text, path)
    if kind == "siglip" or text["vocab_size"] != 49408:  # otherwise open_clip's SimpleTokenizer
        described["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = str(folder.resolve())
    return {**described, "preprocess_cfg": _statistics(folder, kind)}


def check_image_tower(folder: Path, *, quick_gelu: bool) -> None:
    """Check that the image tower in a folder has the activation of the CLIP that provides the text tower.

    Only a folder with transformers' config states an activation.

    Raises:
        InputError: the activations differ, or the folder has a whole CLIP.
    """
    path = folder / HF_CONFIG_FILE
    if not path.is_file():
        return
    config = read_json(path, what="transformers' config of a model")
    if config.get("model_type") not in ("clip_vision_model", "siglip_vision_model"):
        raise InputError(
            f'{path}: need an image tower alone, "model_type" clip_vision_model or siglip_vision_model; got '
            f"{config.get('model_type')!r}. Load the folder without text_from (--text-from)."
        )
    act = config.get("hidden_act", "quick_gelu" if config["model_type"] == "clip_vision_model" else "gelu_pytorch_tanh")
    if (act == "quick_gelu") != quick_gelu:
        raise InputError(
            f"{path}: need a text tower of a CLIP with the same activation; this image tower has {act}, the CLIP "
            f"{'quick_gelu' if quick_gelu else 'another'}. Name the CLIP that this tower was trained with."
        )


def _describe_clip(config: dict[str, Any], vision: dict[str, Any], text: dict[str, Any], path: Path) -> dict[str, Any]:
    acts = {vision["hidden_act"], text["hidden_act"]}
    quick = acts == {"quick_gelu"}
    if not quick and not acts <= GELUS.keys():
        raise InputError(
            f"{path}: open_clip builds both towers with quick_gelu, or each with gelu or gelu_pytorch_tanh; "
            f"got {vision['hidden_act']!r} for images and {text['hidden_act']!r} for texts."
        )
    eos = text["eos_token_id"]
    last = eos in (2, text["vocab_size"] - 1)  # old versions write 2 and use the highest token
    model = {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": quick,
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": vision["hidden_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "layers": vision["num_hidden_layers"],
            **_shared(vision),
        },
        "text_cfg": {**_text(text), **({} if last else {"pool_type": "eos", "eos_id": eos}), **_shared(text)},
    }
    return {"model_cfg": model}


def _describe_siglip(vision: dict[str, Any], text: dict[str, Any], path: Path) -> dict[str, Any]:
    sizes = (vision["hidden_size"], vision["num_hidden_layers"], vision["num_attention_heads"])
    trunk = f"vit_{TRUNKS.get(sizes)}_patch{vision['patch_size']}_siglip_{vision['image_size']}"
    if not timm.is_model(trunk):
        raise InputError(
            f"{path}: need a SigLIP image tower of timm; it has none of width {sizes[0]}, {sizes[1]} layers and "
            f"{sizes[2]} heads for patches of {vision['patch_size']} and images of {vision['image_size']} pixels."
        )
    if vision["layer_norm_eps"] != 1e-6 or not vision["vision_use_head"] or vision["hidden_act"] not in GELUS:
        raise InputError(
            f"{path}: need layer_norm_eps 1e-06, vision_use_head true and gelu or gelu_pytorch_tanh, as timm's SigLIP "
            f"towers have; got {vision['layer_norm_eps']}, {vision['vision_use_head']} and {vision['hidden_act']}."
        )
    if text["hidden_act"] not in GELUS or (text.get("projection_size") or text["hidden_size"]) != sizes[0]:
        raise InputError(
            f"{path}: need texts embedded with gelu or gelu_pytorch_tanh in {sizes[0]} numbers, as images are; "
            f"got {text['hidden_act']} and {text.get('projection_size')}."
        )
    model = {
        "embed_dim": sizes[0],
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": vision["image_size"], "timm_model_name": trunk, "timm_model_pretrained": False,
            "timm_pool": "map", "timm_proj": "none",
        },
        "text_cfg": {
            **_text(text), "no_causal_mask": True, "proj_bias": True, "pool_type": "last", **_shared(text),
            "tokenizer_kwargs": {"clean": "canonicalize"},
        },
    }  # fmt: skip
    return {"model_cfg": model, "foveate": {"trunk_act": vision["hidden_act"]}}


def _text(text: dict[str, Any]) -> dict[str, Any]:
    return {
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "width": text["hidden_size"],
        "heads": text["num_attention_heads"],
        "layers": text["num_hidden_layers"],
    }


def _shared(tower: dict[str, Any]) -> dict[str, Any]:
    """Keys of image and text towers: the inner width, and norm and activation unless they are open_clip's defaults."""
    width, inner = tower["hidden_size"], tower["intermediate_size"]
    ratio = inner / width if int(width * (inner / width)) == inner else (inner + 0.5) / width  # open_clip rounds down
    stated: dict[str, Any] = {} if ratio == 4 else {"mlp_ratio": ratio}
    stated |= {} if tower["layer_norm_eps"] == 1e-5 else {"norm_kwargs": {"eps": tower["layer_norm_eps"]}}
    return stated | ({"act_kwargs": {"approximate": "tanh"}} if tower["hidden_act"] == "gelu_pytorch_tanh" else {})


def _merged(config: dict[str, Any], key: str, defaults: dict[str, Any], path: Path) -> dict[str, Any]:
    """The config of a tower over its defaults, checked."""
    stated = config.get(key) or {}
    if not isinstance(stated, dict):
        raise InputError(f"{path}: {key} must be a dictionary; got {stated!r}.")
    tower = {**defaults, **stated}
    for name, default in defaults.items():
        if type(default) is int and (type(tower[name]) is not int or not 0 < tower[name] < 2**31):
            raise InputError(f"{path}: {name} must be a number of at least 1; got {tower[name]!r}.")
    if tower["hidden_size"] % tower["num_attention_heads"] or not isinstance(tower["hidden_act"], str):
        raise InputError(f"{path}: {key} must state a hidden_size its heads divide, and the name of an activation.")
    if not isinstance(tower["layer_norm_eps"], int | float):
        raise InputError(f"{path}: layer_norm_eps must be a number; got {tower['layer_norm_eps']!r}.")
    return tower


def _statistics(folder: Path, kind: str) -> dict[str, Any]:
    siglip = kind == "siglip"
    statistics: dict[str, Any] = {
        "mean": [0.5] * 3 if siglip else list(open_clip.OPENAI_DATASET_MEAN),
        "std": [0.5] * 3 if siglip else list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "squash" if siglip else "shortest",
    }
    path = folder / PREPROCESSOR_FILE
    if path.is_file():
        stated = read_json(path, what="transformers' config of the preprocessing")
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
            statistics[ours] = stated.get(theirs, statistics[ours])
        statistics["interpolation"] = _RESAMPLES.get(stated.get("resample", 3), "bicubic")
        check_statistics(statistics, path)
    return statistics
