"""Cached maps of the frozen tower, for training without augmentation (A.3).

    FOLDER/manifest.json            what the maps depend on: tower, input, taps, windows
           ab/cdef....safetensors   one image: "tap/0" .., float16; the manifest's digest in its header

An image is identified by its pixels, not by its name. Every file is written to a temporary name and renamed, so
processes may share a folder. New maps are rounded as stored ones are: a resumed run has the same bits. Old files are
never removed.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from foveate.clip.io.digest import digest_state, read_tensors, save_tensors
from foveate.clip.model import Clip
from foveate.errors import InputError
from foveate.heads.fvit.inputs import input_statistics
from foveate.heads.fvit.names import Resize, Statistics
from foveate.io.files import write_whole
from foveate.io.store import claim_cache
from foveate.types import Sample

FORMAT = 3
OWNER = "foveate maps"  # in the manifest
MAX_FLOAT16 = 65504.0


class FeatureCache:
    """A folder of maps of one tower at one size."""

    def __init__(
        self,
        folder: Path,
        clip: Clip,
        *,
        size: int,
        layers: tuple[int, ...],
        statistics: Statistics = "imagenet",
        resize: Resize = "bilinear",
    ) -> None:
        """Open a folder, which is created if missing.

        Args:
            size: side of the square input [pixels].
            layers: indices of the tapped blocks, with the last block (`Tower.layers`).

        Raises:
            InputError: the folder holds maps of another tower, size or taps, or other files.
        """
        windows = None if clip.windows is None else [clip.windows.size, *clip.windows.blocks]
        mean, std = input_statistics(clip, statistics)
        made_by: dict[str, Any] = {
            "format": FORMAT,
            "tower": digest_state(clip.visual.state_dict()),
            "statistics": [*mean, *std],
            "resize": resize,
            "size": size,
            "layers": list(layers),
            "windows": windows,
        }
        self.folder, self.layers = folder, layers
        self._checked: set[Path] = set()  # files whose digest was checked: once a run, not in every epoch
        self.digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
        claim_cache(folder, made_by, owner=OWNER)

    def read(self, sample: Sample, *, device: torch.device) -> list[Tensor] | None:
        """The taps of an image, (1, C, h, w) float32; None if they are not cached or damaged."""
        path = self._path(sample)
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("made_by") != self.digest:
                    return None
                if path not in self._checked:
                    read_tensors(path, need="cached maps")
                    self._checked.add(path)
                taps = [file.get_tensor(f"tap/{index}") for index in range(len(self.layers))]
        except (OSError, SafetensorError, InputError):
            return None
        return [tap.to(device).float() for tap in taps]

    def write(self, sample: Sample, taps: list[Tensor]) -> list[Tensor]:
        """Cache the taps of an image, (1, C, h, w), and return them as `read` would."""
        halves = {f"tap/{index}": _half(tap) for index, tap in enumerate(taps)}
        content = save_tensors({name: tap.cpu() for name, tap in halves.items()}, {"made_by": self.digest})
        write_whole(self._path(sample), content, shared=True)
        return [tap.float() for tap in halves.values()]

    def _path(self, sample: Sample) -> Path:
        """The file of an image, named by its pixels."""
        pixels = sample.image.cpu().contiguous()
        digest = hashlib.blake2b(repr(tuple(pixels.shape)).encode(), digest_size=16)
        digest.update(pixels.numpy().data)
        key = digest.hexdigest()
        return self.folder / key[:2] / f"{key[2:]}.safetensors"


def _half(tap: Tensor) -> Tensor:
    return tap.detach().float().clamp(-MAX_FLOAT16, MAX_FLOAT16).half().contiguous()  # strides choose kernels, so bits
