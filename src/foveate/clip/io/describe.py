"""Configs of models, open_clip's `open_clip_config.json`: read, checked and built.

Names in a config import nothing, and download nothing but tokenizers of open_clip's own list. Configs of Hugging Face
are read by `foveate.clip.io.hf.read`.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from timm.layers.mlp import Mlp
from torch import nn

from foveate.errors import InputError, listed
from foveate.io.files import reason_of
from foveate.io.json_text import parse_json

CONFIG_FILE = "open_clip_config.json"
GELUS = {"gelu": "none", "gelu_pytorch_tanh": "tanh"}  # name -> approximation; SigLIP's is tanh
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "vocab.json")
_TOKENIZER_SETTINGS = {"clean", "strip_sep_token", "language", "reduction_mask", "additional_special_tokens"}
_MAX_LAYERS = 1000
_STATISTICS = ("mean", "std", "interpolation", "resize_mode")

Module = open_clip.CLIP | open_clip.CustomTextCLIP


def describe_architecture(name: str) -> dict[str, Any] | None:
    """The config of an architecture of open_clip's list; None: unknown.

    The statistics are those of its published weights if they agree (SigLIP's are not OpenAI's).
    """
    model = open_clip.get_model_config(name) if ":" not in name else None
    if model is None:
        return None
    published = [get_pretrained_cfg(name, tag) for tag in list_pretrained_tags_by_model(name)]
    used = [{key: to_json(entry[key]) for key in _STATISTICS if key in entry} for entry in published]
    agreed = used[0] if used and all(entry == used[0] for entry in used) else {}
    statistics = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD), **agreed}
    return {"model_cfg": model, "preprocess_cfg": statistics}


def read_config(path: Path) -> dict[str, Any]:
    """Read and check the config of a model in open_clip's form.

    Returns:
        {"model_cfg": ..., "preprocess_cfg": {"mean", "std", ...}}, and "foveate" if present. The Hugging Face tokenizer
        is the one in the folder of the config; if there is none, a name of open_clip's list remains and is downloaded
        at its first use.

    Raises:
        InputError: the file cannot be read or is not such a config.
    """
    config = read_json(path, what="open_clip's config of a model")
    model = config.get("model_cfg")
    if not isinstance(model, dict) or not all(isinstance(model.get(key), dict) for key in ("vision_cfg", "text_cfg")):
        raise InputError(f"{path}: need model_cfg with embed_dim, vision_cfg and text_cfg, as open_clip writes it.")
    statistics = config.get("preprocess_cfg") or {}
    if not isinstance(statistics, dict):
        raise InputError(f"{path}: preprocess_cfg must be a dictionary; got {statistics!r}.")
    statistics.setdefault("mean", list(open_clip.OPENAI_DATASET_MEAN))
    statistics.setdefault("std", list(open_clip.OPENAI_DATASET_STD))
    check_statistics(statistics, path)
    tokenizer = model["text_cfg"].get("hf_tokenizer_name")
    if tokenizer and (holds_tokenizer(path.parent) or tokenizer not in published_tokenizers()):
        model["text_cfg"]["hf_tokenizer_name"] = str(path.parent.resolve())  # no download by a name in a file
    ignored = [key for key in config if key not in ("model_cfg", "preprocess_cfg", "foveate")]
    if ignored:
        print(f"{path}: ignored unknown keys: {listed(ignored)}", file=sys.stderr)
    settings = {"foveate": config["foveate"]} if isinstance(config.get("foveate"), dict) else {}
    return {"model_cfg": model, "preprocess_cfg": statistics, **settings}


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files of a Hugging Face tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def published_tokenizers() -> set[str]:
    """The Hugging Face tokenizers of open_clip's list of architectures."""
    models = [open_clip.get_model_config(name) or {} for name in open_clip.list_models()]
    return {name for model in models if isinstance(name := model.get("text_cfg", {}).get("hf_tokenizer_name"), str)}


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """Read a dictionary from a JSON file; `what` describes it in the message.

    Raises:
        InputError: the file cannot be read, or is not a dictionary.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: need {what}; {reason_of(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: need {what}; could not read it ({error}). Download or copy it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: need {what}, a dictionary; got a {type(content).__name__}. Download it again.")
    return content


def check_statistics(statistics: dict[str, Any], path: Path) -> None:
    """Refuse a "mean" or "std" that is not three numbers, or a "std" that is not above zero."""
    for key, least in (("mean", -math.inf), ("std", 0.0)):
        values = statistics[key]
        is_valid = isinstance(values, list) and len(values) == 3 and all(isinstance(v, int | float) for v in values)
        if not is_valid or not all(math.isfinite(value) and value > least for value in values):
            raise InputError(f"{path}: {key} must be three numbers, one per channel, above {least}; got {values!r}.")


def refusal(model: dict[str, Any]) -> str | None:
    """The reason why a "model_cfg" is not supported, such as a download by a name in it; None: it is supported."""
    trunk, text = model["vision_cfg"].get("timm_model_name") or "", model["text_cfg"]
    if ":" in trunk or "/" in trunk:
        return f"its image tower would be downloaded from {trunk}"
    if text.get("hf_model_name"):
        return "its text tower would be downloaded from the Hugging Face hub"
    towers = [model["vision_cfg"].get("layers", 12), text.get("layers", 12)]
    counts = [layers for tower in towers for layers in (tower if isinstance(tower, list) else [tower])]
    if not all(type(layers) is int and 0 < layers <= _MAX_LAYERS for layers in counts):
        return f"it needs 1 to {_MAX_LAYERS} layers; it has {towers}"
    if "multimodal_cfg" in model:
        return "it is a captioning model (CoCa), which pools by attention"
    settings = text.get("tokenizer_kwargs", {})
    if not isinstance(settings, dict) or not settings.keys() <= _TOKENIZER_SETTINGS:
        return f"its tokenizer has settings that are not open_clip's: {settings!r}"
    return None


def build(config: dict[str, Any], *, name: str, seed: int | None) -> Module:
    """Build the open_clip module of a config with random weights, without the network.

    Args:
        config: as returned by `read_config`.
        name: of the model, for the message.
        seed: of the weights; None: torch's global generator.

    Raises:
        InputError: the config is not supported, or open_clip cannot build it.
    """
    model = to_json(config["model_cfg"])  # a copy, which open_clip's constructors change
    reason = refusal(model)
    if reason is not None:
        raise InputError(f"{name}: this model is not supported: {reason}. Use a CLIP with both towers of open_clip.")
    model["vision_cfg"]["timm_model_pretrained"] = False
    kind = open_clip.CustomTextCLIP if model.pop("custom_text", False) else open_clip.CLIP
    try:
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            module = kind(**model)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, AssertionError, AttributeError) as error:
        raise InputError(f"{name}: need a config that open_clip can build; it fails ({error}). Correct it.") from error
    act = config.get("foveate", {}).get("trunk_act")
    if act is not None:
        _set_trunk_act(module.visual, act, name)
    return module


def build_empty(config: dict[str, Any], *, name: str) -> Module:
    """As `build`, without memory for the weights, for names and shapes."""
    with torch.device("meta"):
        return build(config, name=name, seed=None)


def to_json(content: Any) -> Any:
    """A deep copy as JSON returns it, with tuples as lists."""
    return json.loads(json.dumps(content))


def _set_trunk_act(visual: nn.Module, act: Any, name: str) -> None:
    """Set the activation of a timm trunk, which open_clip's config cannot state."""
    if not isinstance(act, str) or act not in GELUS:
        raise InputError(f'{name}: "trunk_act" must be one of {", ".join(GELUS)}; got {act!r}.')
    for module in visual.modules():
        if isinstance(module, Mlp):
            module.act = nn.GELU(approximate=GELUS[act])
