"""Checkpoints of a whole CLIP: a folder open_clip itself can open (`local-dir:FOLDER`), written so that a crash leaves
no half file.

Absent: reading and mixing of bare weights (`saccade.clip.states`), and training checkpoints, which hold an optimizer
and belong to the engine.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from saccade.clip.load import CONFIG_FILE, WEIGHTS_FILE
from saccade.clip.model import Clip
from saccade.types import InputError


def save_clip(clip: Clip, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a CLIP as a folder that `saccade.clip.load.load` and open_clip's `local-dir:FOLDER` open.

    Both files are written under temporary names, flushed to the disk and renamed, the weights first; files of an
    earlier save stay whole until then.

    Args:
        clip: with the weights to publish (for CLIPSelf's product the mixed ones, see `saccade.clip.states.mix_states`).
        folder: made where it does not exist.
        dtype: of the floating point weights in the file; None keeps theirs.

    Raises:
        InputError: the folder cannot be written (a full disk, say); nothing half written is left in it.
    """
    folder = Path(folder)
    state = {}
    for key, value in clip.model.state_dict().items():
        value = value.detach().cpu()
        cast = value.to(dtype) if dtype is not None and value.is_floating_point() else value
        state[key] = cast.contiguous().clone()  # a file of its own: no two entries may share memory
    parts = {name: folder / f".{name}.part" for name in (WEIGHTS_FILE, CONFIG_FILE)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, parts[WEIGHTS_FILE], metadata={"format": "pt"})
        parts[CONFIG_FILE].write_text(json.dumps(clip.config, indent=2) + "\n", encoding="utf-8")
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
