"""Folders of a whole CLIP: one open_clip itself can open (`local-dir:FOLDER`), or one for Hugging Face transformers;
both written so that a crash leaves no half file.

Absent: reading and mixing of bare weights (`foveate.clip.io.states`), and training checkpoints, which hold an optimizer
and belong to the engine.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from foveate.clip.io.describe import CONFIG_FILE, published_tokenizers, to_json
from foveate.clip.io.hf.names import HF_PLACES, to_huggingface
from foveate.clip.io.hf.write import describe_for_huggingface, tokenizer_for_huggingface
from foveate.clip.model import Clip
from foveate.errors import InputError

WEIGHTS_FILE, HF_WEIGHTS_FILE = "open_clip_model.safetensors", "model.safetensors"
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spiece.model",
    "tokenizer.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip


def save_clip(clip: Clip, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a CLIP as a folder that `foveate.clip.load.load` and open_clip's `local-dir:FOLDER` open.

    All files are written under temporary names, flushed to the disk and renamed, the weights first; files of an
    earlier save stay whole until then. A Hugging Face tokenizer is copied from the folder the CLIP came from, or
    written if it was fetched; where no text was needed so far, its published name stays.

    Args:
        clip: the weights to publish (CLIPSelf's product: the mixed ones, `foveate.clip.io.states.mix_states`).
        folder: made where it does not exist.
        dtype: of the floating point weights in the file; None keeps theirs.

    Raises:
        InputError: the folder cannot be written (a full disk, say); nothing half written is left in it.
    """
    config, files = to_json(clip.config), _tokenizer_files(clip)
    source = config["model_cfg"]["text_cfg"].get("hf_tokenizer_name")
    if source and (files or source not in published_tokenizers()):
        config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "."  # this folder, wherever it goes
    files[CONFIG_FILE] = _json(config)
    _write(Path(folder), WEIGHTS_FILE, _state(clip, dtype), files)


def save_huggingface(clip: Clip, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a CLIP as a folder of Hugging Face transformers: CLIPModel or SiglipModel, preprocessing and tokenizer.

    Args:
        clip: a ViT or SigLIP.
        folder: made where it does not exist.
        dtype: of the floating point weights in the file; None keeps theirs.

    Raises:
        InputError: transformers cannot express this CLIP, or the folder cannot be written.
    """
    described = describe_for_huggingface(clip.config, clip.model, name=clip.name)
    text = clip.config["model_cfg"]["text_cfg"]
    files = {name: _json(content) for name, content in described.items()} | _tokenizer_files(clip)
    if not text.get("hf_tokenizer_name"):
        written = tokenizer_for_huggingface(text.get("context_length", 77))
        files |= {name: content.encode() for name, content in written.items()}
    state = {key: value.contiguous().clone() for key, value in to_huggingface(_state(clip, dtype)).items()}
    strange = [key for key in state if not key.startswith(HF_PLACES)]
    if strange:
        raise InputError(
            f"{clip.name}: cannot be written for transformers, whose models have no place for {len(strange)} of its "
            f"weights, first {strange[0]}."
        )
    _write(Path(folder), HF_WEIGHTS_FILE, state, files)


def _state(clip: Clip, dtype: torch.dtype | None) -> dict[str, Tensor]:
    state = {}
    for key, value in clip.model.state_dict().items():
        value = value.detach().cpu()
        cast = value.to(dtype) if dtype is not None and value.is_floating_point() else value
        state[key] = cast.contiguous().clone()  # a file of its own: no two entries may share memory
    return state


def _tokenizer_files(clip: Clip) -> dict[str, bytes]:
    """The tokenizer of the folder a CLIP came from, or one it has fetched; nothing where it has CLIP's own."""
    source = clip.config["model_cfg"]["text_cfg"].get("hf_tokenizer_name")
    if not source:
        return {}
    if not Path(source).is_dir():
        if "tokenizer" not in vars(clip):  # by name only, and not needed so far
            return {}
        with TemporaryDirectory() as folder:
            clip.tokenizer.save_pretrained(folder)
            return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    return {name: (Path(source) / name).read_bytes() for name in _TOKENIZER if (Path(source) / name).is_file()}


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _write(folder: Path, weights: str, state: dict[str, Tensor], files: dict[str, bytes]) -> None:
    """Write weights and the small files beside them, each whole or not at all."""
    parts = {name: folder / f".{name}.part" for name in (weights, *files)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, parts[weights], metadata={"format": "pt"})
        for name, content in files.items():
            parts[name].write_bytes(content)
        parts[weights].chmod(parts[next(iter(files))].stat().st_mode)  # safetensors makes files for their owner alone
        for name, part in parts.items():
            _publish(part, folder / name)
    except (OSError, SafetensorError) as error:
        for part in parts.values():
            with suppress(OSError):
                part.unlink(missing_ok=True)
        need = sum(value.numel() * value.element_size() for value in state.values())
        raise InputError(
            f"{folder}: cannot write a model of {need:,} bytes: {error}. Free some space or choose another folder."
        ) from error


def _publish(part: Path, final: Path) -> None:
    """Flush a finished temporary file to the disk, give it its name, and flush the folder that now lists it."""
    _flush(part)
    part.replace(final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
