"""The frozen tower's maps of an image, computed once and read after: for training without augmentation (A.3).

    FOLDER/manifest.json         what the maps depend on: tower, input, taps, windows
           ab/cdef....safetensors   one image: "tap/0" .., float16; the digest in its header

An image goes by its pixels, not by its name, so the maps of another image set are never used. Every file is written
under a temporary name and renamed, so that processes may share a folder and a kill leaves nothing half written. Fresh
maps are rounded as stored ones are: a run that is stopped and goes on has the same bits. Deliberately absent: removing
old files, maps of augmented images.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from foveate.clip.io.digest import digest_state
from foveate.clip.model import Clip
from foveate.heads.fvit.inputs import input_statistics
from foveate.heads.fvit.names import Resize, Statistics
from foveate.io.files import write_whole
from foveate.io.store import claim_cache
from foveate.types import Sample

FORMAT = 3
OWNER = "foveate maps"  # in the manifest
LARGEST = 65504.0  # of float16


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
        """Open a folder, or begin it.

        Args:
            folder: made where missing.
            clip: whose tower makes the maps.
            size: side of the square input [pixels].
            layers: the stages tapped, the last one included (`Tower.layers`).
            statistics: what the input is normalised with.
            resize: how images are resized.

        Raises:
            InputError: the folder holds maps of another tower, size or taps, or something else.
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
        self.digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
        claim_cache(folder, made_by, owner=OWNER)

    def read(self, sample: Sample, *, device: torch.device) -> list[Tensor] | None:
        """The taps of an image as a batch of one, float32; None where there are none, or only damaged ones."""
        path = self._path(sample)
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("made_by") != self.digest:
                    return None
                taps = [file.get_tensor(f"tap/{place}") for place in range(len(self.layers))]
        except (OSError, SafetensorError):
            return None
        return [tap.to(device).float() for tap in taps]

    def write(self, sample: Sample, taps: list[Tensor]) -> list[Tensor]:
        """Keep the taps of an image.

        Args:
            sample: the image.
            taps: of a batch of one.

        Returns:
            The taps as `read` would give them.
        """
        named = {f"tap/{place}": _half(tap) for place, tap in enumerate(taps)}
        content = save({name: one.cpu() for name, one in named.items()}, {"made_by": self.digest})
        write_whole(self._path(sample), content, shared=True)
        return [one.float() for one in named.values()]

    def _path(self, sample: Sample) -> Path:
        """An image's file, by its pixels."""
        pixels = sample.image.cpu().contiguous()
        name = hashlib.blake2b(repr(tuple(pixels.shape)).encode(), digest_size=16)
        name.update(pixels.numpy().data)
        key = name.hexdigest()
        return self.folder / key[:2] / f"{key[2:]}.safetensors"


def _half(one: Tensor) -> Tensor:
    return one.detach().float().clamp(-LARGEST, LARGEST).half().contiguous()  # strides choose kernels, so bits
