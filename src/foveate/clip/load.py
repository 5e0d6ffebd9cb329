"""Loading a `Clip` by name, folder or file: its architecture, statistics and weights.

Only open_clip tags and "hf-hub:ORG/NAME" download, and at their first use the tokenizers of open_clip's own list
(SigLIP's). Other names in a file never do.
"""

import difflib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import open_clip
import torch
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from torch import Tensor

from foveate.clip.io.describe import (
    CONFIG_FILE,
    Module,
    build,
    build_empty,
    describe_architecture,
    holds_tokenizer,
    read_config,
)
from foveate.clip.io.hf.read import HF_CONFIG_FILE, check_image_tower, describe_huggingface
from foveate.clip.io.layouts import SETTINGS, fit_names, is_image_tower, join_towers, name_weights
from foveate.clip.io.recognise import recognise
from foveate.clip.io.states import check_state, file_kind, put_state, read_state
from foveate.clip.io.weights import HF_WEIGHTS_FILE, WEIGHTS_FILE
from foveate.clip.model import Clip
from foveate.errors import InputError

Precision = Literal["float32", "bfloat16", "float16"]

SMALL = "foveate-small"  # the small CLIP shipped in clip/small
_SMALL_FOLDER = Path(__file__).parent / "small"
_WEIGHTS = (  # in a folder, the first of these
    WEIGHTS_FILE, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    HF_WEIGHTS_FILE, "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
_IMAGE_TOWER = (
    "{source}: need a whole CLIP; this is only an image tower, {count} tensors, first {first!r}. Give the CLIP it "
    "was trained with, whose text tower is added: load(FILE, text_from=CLIP), "
    "foveate convert FILE OUT --text-from CLIP."
)


@dataclass(frozen=True)
class Found:
    """The config and weights of a name."""

    name: str  # for messages; of the architecture if a file was recognised
    config: dict[str, Any]
    weights: Path | None = None  # a file, or a folder that has one
    state: dict[str, Tensor] | None = None  # its tensors, if they were read already

    @property
    def file(self) -> Path:
        """The weights file; InputError: the folder has none."""
        assert self.weights is not None, f"{self.name}: no weights"
        return _file_in(self.weights) if self.weights.is_dir() else self.weights


def load(
    name: str | Path,
    pretrained: str | Path | None = None,
    *,
    text_from: str | Path | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    seed: int | None = None,
    allow_missing: bool = False,
    allow_extra: bool = False,
) -> Clip:
    """Load a CLIP with its weights.

    Args:
        name: an open_clip architecture ("EVA02-B-16", "ViT-B-16-quickgelu"), or ARCHITECTURE:PRETRAINED with its
            weights ("ViT-B-16-quickgelu:openai"); "foveate-small"; a folder of open_clip (also as "local-dir:FOLDER")
            or of Hugging Face transformers (CLIPModel, SiglipModel); "hf-hub:ORG/NAME", which is downloaded; or a
            weights file, whose architecture is recognised.
        pretrained: a weights file, a folder, or an open_clip tag of the architecture, which is downloaded. None: the
            weights of the folder, or, for an architecture, random weights, with a warning.
        text_from: for the weights of an image tower alone or of an F-ViT: the CLIP it was trained with, whose text
            tower and scale are used; given as `name`, or, if `pretrained` is given, as that.
        device: of the model.
        precision: type of the weights and of the arithmetic.
        seed: of random weights; None: torch's global generator.
        allow_missing: keep random weights for tensors missing in the file; their names are printed to stderr.
        allow_extra: ignore tensors that the model does not have; their names are printed to stderr.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: the name or tag is unknown, the weights are of another architecture, a file is damaged or unsafe, or
            the tower is not supported.

    Example::

        >>> clip = foveate.load("ViT-B-16-quickgelu", "openai", device="cuda", precision="bfloat16")
        >>> clip = foveate.load("runs/distill/model")
        >>> clip = foveate.load("hf-hub:timm/ViT-B-16-SigLIP")
    """
    if precision not in get_args(Precision):
        raise InputError(f"precision: must be one of {', '.join(get_args(Precision))}; got {precision!r}.")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device: need an available device; got {device}, but no GPU is available. Use cpu.")
    found, model = load_module(
        name,
        pretrained=pretrained,
        text_from=text_from,
        seed=seed,
        allow_missing=allow_missing,
        allow_extra=allow_extra,
    )
    clip = Clip(model, name=found.name, config=found.config)
    if found.weights is None:
        warning = f"{name}: no pretrained weights were given, so it is filled with RANDOM numbers. Pass pretrained=..."
        print(warning, file=sys.stderr)
    known = clip.config.get("foveate", {})
    if "pad" not in known and known.keys() & {"alpha", "windows", "gates"}:
        print(f"{name}: does not record how training images were padded; using black (zeros before 2026-11-29).",
              file=sys.stderr)  # fmt: skip
    if clip.gates is not None:
        print(f"{name}: has gates of attention heads, which only --head values3 uses.", file=sys.stderr)
    return clip.to(device, getattr(torch, precision)).eval()


def load_module(
    name: str | Path,
    *,
    pretrained: str | Path | None = None,
    text_from: str | Path | None = None,
    seed: int | None = None,
    allow_missing: bool = False,
    allow_extra: bool = False,
) -> tuple[Found, Module]:
    """Load the open_clip module alone, with any tower; the arguments are those of `load`."""
    architecture, weights = split_weights(str(name))
    if weights is not None and pretrained not in (None, weights):
        raise InputError(f"model: {name} includes its weights; got pretrained {pretrained} too. Remove one of them.")
    name, pretrained = architecture, pretrained or weights
    if text_from is not None:
        found = _find_towers(str(name), None if pretrained is None else str(pretrained), str(text_from))
    else:
        found = _find(str(name))
        if pretrained is not None:
            found = _with_weights(found, str(pretrained))
    if found.weights is None:
        return found, build(found.config, name=found.name, seed=seed)
    empty = build_empty(found.config, name=found.name)  # no memory before the weights are known to fit
    source = found.file
    state = _read_found(found, tag=pretrained is not None and not Path(pretrained).exists())
    if is_image_tower(state) and not allow_missing:
        raise InputError(_IMAGE_TOWER.format(source=source, count=len(state), first=next(iter(state))))
    state = fit_names(state, empty)
    check_state(empty, state, source=str(source), name=found.name, allow_missing=allow_missing, allow_extra=allow_extra)
    model = build(found.config, name=found.name, seed=seed)
    put_state(model, state, source=str(source), name=found.name, allow_missing=allow_missing, allow_extra=allow_extra)
    return found, model


def split_weights(name: str) -> tuple[str, str | None]:
    """Split ARCHITECTURE:PRETRAINED, such as ViT-B-16:openai; no other name is split, and has None."""
    architecture, _, pretrained = name.partition(":")
    is_split = pretrained and describe_architecture(architecture.replace("/", "-")) is not None
    return (architecture, pretrained) if is_split else (name, None)


def read_named(path: Path) -> dict[str, Tensor]:
    """Read a weights file and rename its tensors to open_clip's names."""
    return _read_named(path)[0]


def _read_named(path: Path) -> tuple[dict[str, Tensor], bool]:
    """As `read_named`, and whether the file is OpenAI's own, with quick_gelu."""
    state = read_state(path)
    openai = file_kind(path) == "torchscript" or state.keys() >= SETTINGS
    return name_weights(state, source=str(path)), openai


def _read_found(found: Found, *, tag: bool) -> dict[str, Tensor]:
    """The weights of a model with open_clip's names; refused if they have another activation."""
    if found.state is not None:
        return found.state
    state, openai = _read_named(found.file)
    _check_activation(found, found.file, openai=openai, tag=tag)
    return state


def _check_activation(found: Found, source: Path, *, openai: bool, tag: bool) -> None:
    """Weights do not show their activation: refuse a wrong one if it is known, otherwise print the one that is used."""
    if found.config["model_cfg"].get("quick_gelu"):
        return
    if openai:
        raise InputError(
            f"{source}: OpenAI's files need quick_gelu, which {found.name} lacks. "
            "Load the file by its path alone, or into the architecture whose name ends in -quickgelu."
        )
    name = found.name.replace("/", "-")
    twin = f"{name}-quickgelu"
    if not tag and describe_architecture(name) is not None and describe_architecture(twin) is not None:
        print(
            f"{source}: these weights would fit {twin} as well, and do not show which activation they were trained "
            f"with. GELU is used, as in {name}; weights derived from OpenAI's need {twin}.",
            file=sys.stderr,
        )


def _find_towers(name: str, pretrained: str | None, text_from: str) -> Found:
    """Find an image tower and the CLIP that provides the text tower."""
    if pretrained is None:
        text_name, weights = split_weights(text_from)
        whole = _find(text_name) if weights is None else _with_weights(_find(text_name), weights)
    else:
        whole = _with_weights(_find(name), text_from)
    if whole.weights is None:
        raise InputError(f"text_from: need a CLIP with weights; {text_from} names an architecture. Give a file of it.")
    tower = Path(pretrained or name)
    if not tower.exists():
        raise InputError(f"{tower}: need a weights file or a folder with the image tower; not found. Check the path.")
    if tower.is_dir():
        check_image_tower(tower, quick_gelu=bool(whole.config["model_cfg"].get("quick_gelu")))
        tower = _file_in(tower)
    texts = _read_found(whole, tag=False)
    return Found(whole.name, whole.config, tower, join_towers(read_named(tower), texts, source=str(tower)))


def _find(name: str) -> Found:
    """Find the config of a model and, in a folder or a file, its weights."""
    architecture = describe_architecture(name.replace("/", "-"))
    if architecture is not None:
        return Found(name, architecture)
    if name == SMALL:
        return Found(name, read_config(_SMALL_FOLDER / CONFIG_FILE), _SMALL_FOLDER)
    if name.startswith("hf-hub:"):
        return _find_in(_download(name.removeprefix("hf-hub:")), name)
    path = Path(name.removeprefix("local-dir:"))
    if path.is_dir():
        return _find_in(path, name)
    if path.is_file():
        return _recognise(path)
    repository = re.fullmatch(r"(?:(?:https?://)?huggingface\.co/)?([\w.-]+/[\w.-]+)/?", name)
    if repository is not None:
        hub = f"hf-hub:{repository[1]}"
        raise InputError(
            f"model: {name!r} is neither an open_clip architecture, nor an existing folder or weights file. Write "
            f"{hub} if it is a model of the Hugging Face hub; otherwise check the path."
        )
    names = [SMALL, *open_clip.list_models()]
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5) or [SMALL, "EVA02-B-16", "ViT-B-16", "ViT-L-14"]
    raise InputError(
        f"model: {name!r} is neither an open_clip architecture, nor a folder with {CONFIG_FILE} or {HF_CONFIG_FILE}, "
        f"nor a weights file. Did you mean {', '.join(near)}?"
    )


def _find_in(folder: Path, name: str) -> Found:
    if (folder / CONFIG_FILE).is_file():
        return Found(name, read_config(folder / CONFIG_FILE), folder)
    if (folder / HF_CONFIG_FILE).is_file():
        return Found(name, describe_huggingface(folder), folder)
    raise InputError(
        f"{folder}: need {CONFIG_FILE} (open_clip's) or {HF_CONFIG_FILE} (transformers') in this folder; "
        "found neither. Or give a weights file, whose architecture is detected."
    )


def _recognise(path: Path) -> Found:
    """Find the architecture of a weights file: by the config beside it, or by its content."""
    if path.name in _WEIGHTS and any((path.parent / beside).is_file() for beside in (CONFIG_FILE, HF_CONFIG_FILE)):
        return Found(str(path), _find_in(path.parent, str(path)).config, path)
    state, openai = _read_named(path)
    if is_image_tower(state):
        raise InputError(_IMAGE_TOWER.format(source=path, count=len(state), first=next(iter(state))))
    described = {SMALL: read_config(_SMALL_FOLDER / CONFIG_FILE)}
    described |= {model: config for model in open_clip.list_models() if (config := describe_architecture(model))}
    name = recognise(state, described, source=str(path), quick_gelu=True if openai else None)
    return Found(name, described[name], path, state)


def _file_in(folder: Path) -> Path:
    """The weights file of a folder."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder}: need weights in this folder, one of {', '.join(_WEIGHTS)}; there are none.")


def _with_weights(found: Found, pretrained: str) -> Found:
    """Use the weights of a file, a folder or an open_clip tag; a tag also sets its statistics."""
    path = Path(pretrained)
    if path.exists():
        if path.is_dir() and holds_tokenizer(path):
            text = found.config["model_cfg"]["text_cfg"]
            text |= {"hf_tokenizer_name": str(path.resolve())} if text.get("hf_tokenizer_name") else {}
        return Found(found.name, found.config, path)
    name, config = found.name, found.config
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
        return Found(name, config, Path(download_pretrained(described)))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"pretrained: could not download {pretrained!r} of {name} ({error}). Give a weights file. To estimate "
            "time and memory, random weights are enough (--dry-run --pretrained None)."
        ) from error


def _download(repository: str) -> Path:
    """Download a model folder from the Hugging Face hub: configs, tokenizer, weights (safetensors if available)."""
    from huggingface_hub import snapshot_download

    small = ["*.json", "*.txt", "*.model"]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=[*small, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(repository, allow_patterns=[*small, "*.bin"]))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"model: could not download {repository!r} from the Hugging Face hub ({error}).") from error
    return folder
