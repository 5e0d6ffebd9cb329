"""A CLIP as a folder of Hugging Face transformers: the inverse of reading one (`foveate.clip.io.hf.read`).

What CLIPModel and SiglipModel cannot express is refused with the reason. Absent: transformers itself, which writing
does not need, and the check that it opens the result (`foveate convert` makes it).
"""

import json
from dataclasses import MISSING, fields
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from foveate.clip.io.describe import GELUS
from foveate.clip.io.hf.read import HF_CONFIG_FILE, PREPROCESSOR_FILE
from foveate.errors import InputError

_VISION_TOLD = {
    "layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "norm_kwargs", "act_kwargs",
    "patch_dropout", "output_tokens",
}  # fmt: skip
_TEXT_TOLD = {
    "layers", "width", "heads", "mlp_ratio", "context_length", "vocab_size", "norm_kwargs", "act_kwargs", "pool_type",
    "eos_id", "pad_id", "output_tokens", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode",
}  # fmt: skip


def describe_for_huggingface(
    config: dict[str, Any], model: open_clip.CLIP | open_clip.CustomTextCLIP, *, name: str
) -> dict[str, dict[str, Any]]:
    """Describe an open_clip model as transformers does.

    Args:
        config: its description.
        model: built from it.
        name: what messages call it.

    Returns:
        The contents of config.json and preprocessor_config.json by their names.

    Raises:
        InputError: transformers' CLIPModel and SiglipModel cannot express it.
    """
    match model.visual:
        case VisionTransformer() as visual:
            description = _clip(config["model_cfg"], visual, name)
        case TimmModel(trunk=TimmVisionTransformer() as trunk) if trunk.global_pool == "map":
            description = _siglip(config["model_cfg"], trunk, name)
        case _:
            raise _cannot(name, "only ViT and SigLIP image towers; EVA-02 and residual networks have no place there")
    if (description["model_type"] == "siglip") != (model.logit_bias is not None):
        raise _cannot(name, "a bias of the logits with SigLIP and none with CLIP")
    side, statistics = description["vision_config"]["image_size"], config["preprocess_cfg"]
    square = {"height": side, "width": side}
    preprocessor: dict[str, Any] = {
        "image_processor_type": "SiglipImageProcessor", "do_resize": True, "size": square,
        "resample": 2 if statistics.get("interpolation") == "bilinear" else 3,
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(statistics["mean"]), "image_std": list(statistics["std"]),
    }  # fmt: skip
    if description["model_type"] == "clip":
        preprocessor |= {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True}
        if statistics.get("resize_mode") != "squash":
            preprocessor |= {"size": {"shortest_edge": side}, "do_center_crop": True, "crop_size": square}
        else:
            preprocessor |= {"do_center_crop": False}
    return {HF_CONFIG_FILE: description, PREPROCESSOR_FILE: preprocessor}


def tokenizer_for_huggingface(context_length: int) -> dict[str, str]:
    """Write CLIP's own byte pairs as transformers' CLIPTokenizer reads them.

    Returns:
        The contents of vocab.json, merges.txt and tokenizer_config.json by their names.
    """
    ours = open_clip.SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): number for token, number in ours.encoder.items()}
    merges = ["#version: 0.2", *(" ".join(pair) for pair in ours.bpe_ranks)]
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": context_length,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(merges) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
    }


def _clip(model: dict[str, Any], visual: VisionTransformer, name: str) -> dict[str, Any]:
    vision, text, quick = model["vision_cfg"], model["text_cfg"], bool(model.get("quick_gelu"))
    _check_plain(vision, CLIPVisionCfg, _VISION_TOLD, {}, name)
    _check_plain(text, CLIPTextCfg, _TEXT_TOLD, {}, name)
    pool, vocabulary = text.get("pool_type", "argmax"), text.get("vocab_size", 49408)
    if pool not in ("argmax", "eos"):
        raise _cannot(name, f"only texts read at their end token; this one has pool_type {pool}")
    size: Any = visual.image_size
    patch: Any = visual.patch_size
    width = vision.get("width", 768)
    images = {
        **_tower(vision, width, vision.get("layers", 12), "quick_gelu" if quick else None, name),
        "num_attention_heads": width // vision.get("head_width", 64),
        "image_size": size[0], "patch_size": patch[0], "model_type": "clip_vision_model",
    }  # fmt: skip
    texts = {
        **_texts(text, "quick_gelu" if quick else None, name),
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1 if pool == "argmax" else text.get("eos_id", 2),
        "model_type": "clip_text_model",
    }
    return {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": model["embed_dim"],
        "text_config": {**texts, "projection_dim": model["embed_dim"]},
        "vision_config": {**images, "projection_dim": model["embed_dim"]},
    }  # fmt: skip


def _siglip(model: dict[str, Any], trunk: TimmVisionTransformer, name: str) -> dict[str, Any]:
    text = model["text_cfg"]
    needed = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    _check_plain(text, CLIPTextCfg, _TEXT_TOLD - {"pool_type"}, needed, name)
    first: Any = trunk.blocks[0]
    norm: Any = trunk.norm
    side: Any = trunk.patch_embed.img_size
    patch: Any = trunk.patch_embed.patch_size
    images = {
        "hidden_size": trunk.embed_dim, "intermediate_size": first.mlp.fc1.out_features,
        "num_hidden_layers": len(trunk.blocks), "num_attention_heads": first.attn.num_heads,
        "image_size": side[0], "patch_size": patch[0], "hidden_act": _act_of(first.mlp.act, name),
        "layer_norm_eps": norm.eps, "vision_use_head": True, "model_type": "siglip_vision_model",
    }  # fmt: skip
    texts = {**_texts(text, None, name), "projection_size": model["embed_dim"], "model_type": "siglip_text_model"}
    return {"architectures": ["SiglipModel"], "model_type": "siglip", "text_config": texts, "vision_config": images}


def _texts(text: dict[str, Any], act: str | None, name: str) -> dict[str, Any]:
    return {
        **_tower(text, text.get("width", 512), text.get("layers", 12), act, name),
        "num_attention_heads": text.get("heads", 8),
        "max_position_embeddings": text.get("context_length", 77),
        "vocab_size": text.get("vocab_size", 49408),
    }


def _tower(stated: dict[str, Any], width: int, layers: int, act: str | None, name: str) -> dict[str, Any]:
    """What transformer towers of both kinds state; `act` None is the usual GELU, exact or approximate."""
    norm, gelu = stated.get("norm_kwargs") or {}, stated.get("act_kwargs") or {}
    if norm.keys() - {"eps"} or gelu.keys() - {"approximate"} or (act is not None and gelu):
        raise _cannot(name, f"no such norm or activation as {norm or gelu}")
    approximations = {approximate: known for known, approximate in GELUS.items()}
    return {
        "hidden_size": width,
        "intermediate_size": int(width * stated.get("mlp_ratio", 4.0)),
        "num_hidden_layers": layers,
        "hidden_act": act or approximations[gelu.get("approximate", "none")],
        "layer_norm_eps": norm.get("eps", 1e-5),
    }


def _check_plain(stated: dict[str, Any], known: type, told: set[str], needed: dict[str, Any], name: str) -> None:
    """Refuse settings that transformers has no word for, unless they are what its models do anyway."""
    for field in fields(known):
        usual = None if field.default is MISSING else field.default
        value = stated.get(field.name, usual)
        if field.name not in told and value != needed.get(field.name, usual):
            raise _cannot(name, f"no {field.name} {value!r}")


def _act_of(act: nn.Module, name: str) -> str:
    """Name the activation of a timm trunk by what it does."""
    inputs = torch.linspace(-4, 4, 65)
    for known, approximate in GELUS.items():
        if torch.allclose(act(inputs), F.gelu(inputs, approximate=approximate), atol=1e-6):
            return known
    raise _cannot(name, f"no such activation as timm's {type(act).__name__}")


def _cannot(name: str, reason: str) -> InputError:
    return InputError(f"{name}: cannot be written for transformers, whose CLIPModel and SiglipModel have {reason}.")
