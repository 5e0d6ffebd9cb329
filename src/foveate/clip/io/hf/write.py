"""Configs and tokenizer of a CLIP for Hugging Face transformers, without transformers (see `foveate.clip.io.hf.read`).

Models that CLIPModel and SiglipModel cannot express are refused with the reason.
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

_VISION_KEYS = {
    "layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "norm_kwargs", "act_kwargs",
    "patch_dropout", "output_tokens",
}  # fmt: skip
_TEXT_KEYS = {
    "layers", "width", "heads", "mlp_ratio", "context_length", "vocab_size", "norm_kwargs", "act_kwargs", "pool_type",
    "eos_id", "pad_id", "output_tokens", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode",
}  # fmt: skip


def describe_for_huggingface(
    config: dict[str, Any], model: open_clip.CLIP | open_clip.CustomTextCLIP, *, name: str
) -> dict[str, dict[str, Any]]:
    """The contents of transformers' config.json and preprocessor_config.json, by file name.

    Args:
        config: of open_clip.
        model: built from it.
        name: of the model, for the message.

    Raises:
        InputError: transformers' CLIPModel and SiglipModel cannot express it.
    """
    match model.visual:
        case VisionTransformer() as visual:
            description = _clip(config["model_cfg"], visual, name)
        case TimmModel(trunk=TimmVisionTransformer() as trunk) if trunk.global_pool == "map":
            description = _siglip(config["model_cfg"], trunk, name)
        case _:
            raise _cannot(name, "only ViT and SigLIP image towers, not EVA-02 or residual networks")
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
    """The contents of vocab.json, merges.txt and tokenizer_config.json of CLIP's tokenizer, by file name."""
    tokenizer = open_clip.SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): index for token, index in tokenizer.encoder.items()}
    merges = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer.bpe_ranks)]
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
    _check_plain(vision, CLIPVisionCfg, _VISION_KEYS, {}, name)
    _check_plain(text, CLIPTextCfg, _TEXT_KEYS, {}, name)
    pool, vocabulary = text.get("pool_type", "argmax"), text.get("vocab_size", 49408)
    if pool not in ("argmax", "eos"):
        raise _cannot(name, f"only texts pooled at their end token, not pool_type {pool}")
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
    _check_plain(text, CLIPTextCfg, _TEXT_KEYS - {"pool_type"}, needed, name)
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
    """Keys of image and text towers; without `act`, it is the exact or approximate GELU."""
    norm, gelu = stated.get("norm_kwargs") or {}, stated.get("act_kwargs") or {}
    if norm.keys() - {"eps"} or gelu.keys() - {"approximate"} or (act is not None and gelu):
        raise _cannot(name, f"no such norm or activation as {norm or gelu}")
    approximations = {approximate: gelu_name for gelu_name, approximate in GELUS.items()}
    return {
        "hidden_size": width,
        "intermediate_size": int(width * stated.get("mlp_ratio", 4.0)),
        "num_hidden_layers": layers,
        "hidden_act": act or approximations[gelu.get("approximate", "none")],
        "layer_norm_eps": norm.get("eps", 1e-5),
    }


def _check_plain(stated: dict[str, Any], cfg: type, keys: set[str], fixed: dict[str, Any], name: str) -> None:
    """Refuse settings without a key in transformers, unless they have the value that is fixed there."""
    for field in fields(cfg):
        default = None if field.default is MISSING else field.default
        value = stated.get(field.name, default)
        if field.name not in keys and value != fixed.get(field.name, default):
            raise _cannot(name, f"no {field.name} {value!r}")


def _act_of(act: nn.Module, name: str) -> str:
    """Find the name of a timm trunk's activation by its values."""
    inputs = torch.linspace(-4, 4, 65)
    for gelu_name, approximate in GELUS.items():
        if torch.allclose(act(inputs), F.gelu(inputs, approximate=approximate), atol=1e-6):
            return gelu_name
    raise _cannot(name, f"no such activation as timm's {type(act).__name__}")


def _cannot(name: str, reason: str) -> InputError:
    return InputError(
        f"{name}: cannot be written for transformers, whose CLIPModel and SiglipModel have {reason}. "
        "Save it with foveate.save_clip."
    )
