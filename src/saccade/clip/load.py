"""From a name or a folder to a `Clip` with its weights: which architecture, which statistics, which file (Sec. 4.1).

Nothing is fetched because a name stands in a description; only an open_clip tag downloads. Absent: reading of weights
files (`saccade.clip.states`) and writing of models (`saccade.clip.weights`).
"""

import difflib
import json
import math
import sys
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

from saccade.clip.model import Clip
from saccade.clip.states import put_state, read_state, rename_eva
from saccade.types import InputError

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
SMALL = "saccade-small"  # the small CLIP shipped in clip/small


def load(
    name: str, *, pretrained: str | Path | None = None, device: str | torch.device = "cpu", seed: int | None = None
) -> Clip:
    """Build a CLIP and fill it with weights.

    Args:
        name: an open_clip architecture ("EVA02-B-16", "ViT-B-16-quickgelu"), "saccade-small", or a folder holding
            open_clip_config.json and open_clip_model.safetensors.
        pretrained: a weights file or a folder as above, or an open_clip tag of that architecture (downloaded). None
            takes the folder's or the shipped weights; an architecture is then filled with random numbers, and says so.
        device: where it goes.
        seed: of the random numbers; None draws from torch's global generator.

    Returns:
        The model in evaluation mode, float32.

    Raises:
        InputError: unknown name or tag, weights of another architecture, damaged or unsafe files, unsupported towers.
    """
    config, weights = _find(name)
    if pretrained is not None:
        weights = _weights_of(name, str(pretrained), config)
    clip = Clip(build(config, name=name, seed=seed), name=name, config=config)
    if weights is not None:
        put_state(clip.model, rename_eva(read_state(weights)), source=str(weights), name=name)
    else:
        warning = f"{name}: no pretrained weights were given, so it is filled with RANDOM numbers. Pass pretrained=..."
        print(warning, file=sys.stderr)
    return clip.to(device).eval()


def _find(name: str) -> tuple[dict[str, Any], Path | None]:
    """Find the description of a model and, where it lies in a folder, its weights."""
    architecture = open_clip.get_model_config(name.replace("/", "-")) if ":" not in name else None
    if architecture is not None:
        statistics = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
        return {"model_cfg": architecture, "preprocess_cfg": statistics}, None
    folder = Path(__file__).parent / "small" if name == SMALL else Path(name)
    if folder.is_dir():
        return read_config(folder / CONFIG_FILE), folder / WEIGHTS_FILE
    names = [SMALL, *open_clip.list_models()]
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5) or [SMALL, "EVA02-B-16", "ViT-B-16", "ViT-L-14"]
    raise InputError(
        f"model: {name!r} is neither an open_clip architecture nor a folder with {CONFIG_FILE}. "
        f"Did you mean {', '.join(near)}?"
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read and check open_clip's description of a model.

    Returns:
        {"model_cfg": ..., "preprocess_cfg": {"mean", "std", ...}}, and "saccade" where it has what only Saccade knows.

    Raises:
        InputError: it cannot be read, or is not such a description.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: need open_clip's description of a model; could not read it ({error}).") from error
    model = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model, dict) or not all(
        isinstance(model.get(f"{kind}_cfg"), dict) for kind in ("vision", "text")
    ):
        raise InputError(f"{path}: need model_cfg with embed_dim, vision_cfg and text_cfg, as open_clip writes it.")
    statistics = config.get("preprocess_cfg") or {}
    if not isinstance(statistics, dict):
        raise InputError(f"{path}: preprocess_cfg must be a dictionary; got {statistics!r}.")
    statistics.setdefault("mean", list(open_clip.OPENAI_DATASET_MEAN))
    statistics.setdefault("std", list(open_clip.OPENAI_DATASET_STD))
    for key, least in (("mean", -math.inf), ("std", 0.0)):
        values = statistics[key]
        if not (isinstance(values, list) and len(values) == 3 and all(_is_above(value, least) for value in values)):
            raise InputError(f"{path}: {key} must be three numbers, one a channel, above {least}; got {values!r}.")
    known = {"saccade": config["saccade"]} if isinstance(config.get("saccade"), dict) else {}
    return {"model_cfg": model, "preprocess_cfg": statistics, **known}


def _is_above(value: Any, least: float) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > least


def _weights_of(name: str, pretrained: str, config: dict[str, Any]) -> Path:
    """Turn a file name or an open_clip tag into a file; a tag also sets the statistics it was trained with."""
    path = Path(pretrained)
    if path.exists():
        return path / WEIGHTS_FILE if path.is_dir() else path
    described = get_pretrained_cfg(name.replace("/", "-"), pretrained)
    if not described:
        tags = list_pretrained_tags_by_model(name.replace("/", "-"))
        raise InputError(
            f"pretrained: {pretrained!r} is neither a file nor a tag of {name}. Tags: {', '.join(tags) or 'none'}."
        )
    if bool(described.get("quick_gelu")) != bool(config["model_cfg"].get("quick_gelu")):
        other = name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"
        raise InputError(f"pretrained: {pretrained!r} was trained with the other activation; use the model {other!r}.")
    config["preprocess_cfg"].update({key: list(described[key]) for key in ("mean", "std") if key in described})
    try:
        return Path(download_pretrained(described))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"pretrained: could not download {pretrained!r} of {name} ({error}). Give a file.") from error


def _refusal(model: dict[str, Any]) -> str | None:
    """Say what in a description cannot be built here, or None; in particular what would be fetched by a name in it."""
    trunk, text = model["vision_cfg"].get("timm_model_name") or "", model["text_cfg"]
    if "siglip" in trunk:
        return "SigLIP has no class token and pools by attention, which needs a dense head of its own"
    if ":" in trunk:
        return f"its image tower would be fetched from {trunk}"
    if text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        return "its text tower or tokenizer would be fetched from the Hugging Face hub"
    if "multimodal_cfg" in model:
        return "it is a captioning model (CoCa), which pools by attention"
    return None


def build(config: dict[str, Any], *, name: str, seed: int | None) -> open_clip.CLIP | open_clip.CustomTextCLIP:
    """Build the open_clip module a description asks for, with random numbers, reading nothing from the network."""
    model = json.loads(json.dumps(config["model_cfg"]))  # a copy: open_clip's constructors and we change it
    reason = _refusal(model)
    if reason is not None:
        raise InputError(f"{name}: this model is not supported: {reason}. Use a ViT or EVA-02 of open_clip.")
    model["vision_cfg"]["timm_model_pretrained"] = False
    kind = open_clip.CustomTextCLIP if model.pop("custom_text", False) else open_clip.CLIP
    try:
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            return kind(**model)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise InputError(f"{name}: its description is not one open_clip can build ({error}).") from error
