"""Checkpoints of a whole CLIP: a folder open_clip itself can open (`local-dir:FOLDER`), written so that a crash leaves
no half file.

Reading and mixing of bare weights are in `saccade.clip.states` and offered here too. Absent: training checkpoints,
which hold an optimizer and belong to the engine.
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from saccade.clip.model import CONFIG_FILE, WEIGHTS_FILE, Clip
from saccade.clip.states import mix_states, read_state

__all__ = ["mix_states", "read_state", "save_clip"]


def save_clip(clip: Clip, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a CLIP as a folder that `saccade.clip.model.load` and open_clip's `local-dir:FOLDER` open.

    Both files are written under temporary names, flushed to the disk and renamed, the weights first; files of an
    earlier save stay whole until then.

    Args:
        clip: with the weights to publish (for CLIPSelf's product, the mixed ones; see `mix_states`).
        folder: made where it does not exist.
        dtype: of the floating point weights in the file; None keeps theirs.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {}
    for key, value in clip.model.state_dict().items():
        value = value.detach().cpu()
        cast = value.to(dtype) if dtype is not None and value.is_floating_point() else value
        state[key] = cast.contiguous().clone()  # a file of its own: no two entries may share memory
    part = folder / f".{WEIGHTS_FILE}.part"
    save_file(state, part, metadata={"format": "pt"})
    _publish(part, folder / WEIGHTS_FILE)
    part = folder / f".{CONFIG_FILE}.part"
    part.write_text(json.dumps(clip.config, indent=2) + "\n", encoding="utf-8")
    _publish(part, folder / CONFIG_FILE)


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
