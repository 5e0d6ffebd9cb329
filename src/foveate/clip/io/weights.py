"""Writing a CLIP as a folder for open_clip (`local-dir:FOLDER`) or Hugging Face transformers, without partial files.

Training checkpoints are written by `foveate.engine.checkpoint`.
"""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from foveate.clip.io.describe import CONFIG_FILE, published_tokenizers, to_json
from foveate.clip.io.digest import write_tensors
from foveate.clip.io.hf.names import HF_PREFIXES, to_huggingface
from foveate.clip.io.hf.write import describe_for_huggingface, tokenizer_for_huggingface
from foveate.clip.model import Clip
from foveate.errors import InputError
from foveate.io.files import DiskFullError, full_disk_named, sync_to_disk

WEIGHTS_FILE, HF_WEIGHTS_FILE = "open_clip_model.safetensors", "model.safetensors"
_PARTIAL = ".save_clip.partial"  # folder of the files that are not renamed yet; safetensors has temporary names there
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spiece.model",
    "tokenizer.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip


def save_clip(clip: Clip, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Save a CLIP as a folder that `foveate.load` and open_clip (`local-dir:FOLDER`) open.

    All files are written under temporary names, flushed to the disk and renamed, the weights first. The digest of the
    tensors is in the metadata of the weights, and `foveate.load` checks it. A Hugging Face tokenizer is copied from the
    folder of the CLIP, or written if it was downloaded; before its first use only its published name is stored.

    Args:
        folder: created if needed.
        dtype: of the floating point weights in the file; None: unchanged.

    Raises:
        InputError: the folder cannot be written, for example for lack of space; no partial file remains.

    Example::

        >>> clip = foveate.load("ViT-B-16", pretrained="openai")
        >>> foveate.save_clip(clip, "my-clip", dtype=torch.float16)
        >>> clip = foveate.load("my-clip")
    """
    config, files = to_json(clip.config), _tokenizer_files(clip)
    source = config["model_cfg"]["text_cfg"].get("hf_tokenizer_name")
    if source and (files or source not in published_tokenizers()):
        config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "."  # the folder itself
    files[CONFIG_FILE] = _json(config)
    _write(Path(folder), WEIGHTS_FILE, _state(clip, dtype), files)


def save_huggingface(clip: Clip, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Save a ViT or SigLIP as a transformers folder: CLIPModel or SiglipModel, preprocessing and tokenizer.

    Args:
        folder: created if needed.
        dtype: of the floating point weights in the file; None: unchanged.

    Raises:
        InputError: transformers cannot express this CLIP, or the folder cannot be written.
    """
    # configs and tokenizer
    described = describe_for_huggingface(clip.config, clip.model, name=clip.name)
    text = clip.config["model_cfg"]["text_cfg"]
    files = {name: _json(content) for name, content in described.items()} | _tokenizer_files(clip)
    if not text.get("hf_tokenizer_name"):
        written = tokenizer_for_huggingface(text.get("context_length", 77))
        files |= {name: content.encode() for name, content in written.items()}
    # weights
    state = {key: value.contiguous().clone() for key, value in to_huggingface(_state(clip, dtype)).items()}
    extra = [key for key in state if not key.startswith(HF_PREFIXES)]
    if extra:
        raise InputError(
            f"{clip.name}: cannot be written for transformers, whose models have no name for {len(extra)} of its "
            f"weights, first {extra[0]}. Save it with foveate.save_clip."
        )
    _write(Path(folder), HF_WEIGHTS_FILE, state, files)


def _state(clip: Clip, dtype: torch.dtype | None) -> dict[str, Tensor]:
    state = {}
    for key, value in clip.model.state_dict().items():
        value = value.detach().cpu()
        cast = value.to(dtype) if dtype is not None and value.is_floating_point() else value
        state[key] = cast.contiguous().clone()  # safetensors refuses tensors that share memory
    return state


def _tokenizer_files(clip: Clip) -> dict[str, bytes]:
    """The files of a Hugging Face tokenizer, if it is in a folder or was used."""
    source = clip.config["model_cfg"]["text_cfg"].get("hf_tokenizer_name")
    if not source:
        return {}
    if not Path(source).is_dir():
        if "tokenizer" not in vars(clip):  # not used yet
            return {}
        with TemporaryDirectory() as folder:
            clip.tokenizer.save_pretrained(folder)
            return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    return {name: (Path(source) / name).read_bytes() for name in _TOKENIZER if (Path(source) / name).is_file()}


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _write(folder: Path, weights: str, state: dict[str, Tensor], files: dict[str, bytes]) -> None:
    """Write weights and the small files beside them, in a temporary folder first."""
    partial = folder / _PARTIAL
    parts = {name: partial / name for name in (weights, *files)}
    need = sum(value.numel() * value.element_size() for value in state.values())
    try:
        with full_disk_named(folder / weights, need=need):
            shutil.rmtree(partial, ignore_errors=True)  # of a killed process
            partial.mkdir(parents=True)
            write_tensors(parts[weights], state)
            for name, content in files.items():
                parts[name].write_bytes(content)
            parts[weights].chmod(parts[next(iter(files))].stat().st_mode)  # safetensors lets only the owner read
            for name, part in parts.items():
                sync_to_disk(part)
                part.replace(folder / name)
                sync_to_disk(folder)
    except DiskFullError:
        raise
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{folder}: cannot write a model of {need:,} bytes: {error}. Choose another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
