"""Images to stored features, for `foveate embed`: image embeddings, dense maps, or embeddings of boxes.

Inputs are those of the evaluations: whole images as crops of the teacher, else the padded square (Sec. 3.1, 3.2).
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import Head, RegionHead
from foveate.data.loader import EvaluationSource, OnceSampler, make_loader
from foveate.data.records import Dataset
from foveate.engine.stop import until_stopped
from foveate.errors import InputError
from foveate.io.store import NOTES, Part, write_part
from foveate.ops.boxes import boxes_on_input, clip_boxes
from foveate.ops.resample import crop_and_resize, fitted_size, normalize, square_inputs
from foveate.progress import image_bar
from foveate.types import BadSample, Sample

PART_SECONDS = 30.0  # maximum work that is lost when the process is killed
PART_BYTES = 256_000_000  # maximum size of unwritten tensors


@dataclass(frozen=True)
class Features:
    """Tensors by name, and a note per image, in order."""

    tensors: dict[str, Tensor]
    images: list[dict[str, Any]]


@torch.inference_mode()
def image_features(clip: Clip, samples: list[Sample]) -> Features:
    """Embed whole images as the teacher does: "image" (B, D), L2-normalised (Sec. 3.2).

    The longest side is resized to the native size; the rest is padded equally with black.
    """
    device = next(clip.parameters()).device
    crops = []
    for sample in samples:
        height, width = sample.image.shape[1:]
        whole = torch.tensor([[0.0, 0.0, width, height]])
        crops.append(crop_and_resize(sample.image.to(device), whole, size=clip.native_size))  # (1, 3, S, S)
    rows = clip.encode_image(normalize(torch.cat(crops), mean=clip.mean, std=clip.std))  # (B, D)
    return Features({"image": rows}, [_note(sample) for sample in samples])


@torch.inference_mode()
def dense_features(clip: Clip, samples: list[Sample], *, size: int, head: Head) -> Features:
    """Compute dense maps without their padding (the student; Sec. 3.1).

    Args:
        size: side of the padded square input [pixels].

    Returns:
        "dense/ID" (D, h, w) of each image, L2-normalised per location; location (r, c) is the square of P pixels at
        (r P, c P) of the resized image; those at the right and bottom edge may include padding.
    """
    device = next(clip.parameters()).device
    images = [sample.image.to(device) for sample in samples]
    inputs = square_inputs(images, size=size, mean=clip.mean, std=clip.std, pad=clip.pad)
    dense = clip.encode_dense(inputs, head=head)  # (B, D, h, w)
    tensors, notes = {}, []
    for sample, dense_map in zip(samples, dense, strict=True):
        height, width = fitted_size(*sample.image.shape[1:], size=size)
        grid = -(-height // clip.patch_size), -(-width // clip.patch_size)
        tensors[f"dense/{sample.id}"] = dense_map[:, : grid[0], : grid[1]]  # (D, h, w)
        notes.append({**_note(sample), "resized": [height, width], "grid": list(grid)})
    return Features(tensors, notes)


@torch.inference_mode()
def box_features(clip: Clip, samples: list[Sample], *, size: int, head: RegionHead) -> Features:
    """Embed the boxes of images by pooling their dense maps (Sec. 3.1).

    Args:
        samples: images with boxes (xyxy, pixels of the image), which are clipped to the image.
        size: side of the padded square input [pixels].

    Returns:
        "boxes/ID" (N, D) of each image, L2-normalised, in the file's order without the boxes that are under one pixel
        wide or high inside the image, whose indices are noted as "dropped".
    """
    device = next(clip.parameters()).device
    usable, notes = [], []
    for sample in samples:
        height, width = sample.image.shape[1:]
        boxes = clip_boxes(sample.boxes, height=height, width=width)  # (N, 4)
        is_usable = (boxes[:, 2:] - boxes[:, :2] >= 1).all(dim=1)  # (N,)
        usable.append(boxes[is_usable])
        notes.append({**_note(sample), "boxes": len(usable[-1]), "dropped": (~is_usable).nonzero()[:, 0].tolist()})
    # the tower runs only on images with a usable box
    pairs = [(sample.image.to(device), boxes) for sample, boxes in zip(samples, usable, strict=True) if len(boxes)]
    rows = torch.empty(0, clip.embed_dim, device=device)
    if pairs:
        inputs = square_inputs([image for image, _ in pairs], size=size, mean=clip.mean, std=clip.std, pad=clip.pad)
        scaled = [boxes_on_input(boxes, height=im.shape[1], width=im.shape[2], size=size) for im, boxes in pairs]
        rows = clip.encode_boxes(inputs, scaled, head=head)  # (R, D)
    per_image = rows.split([len(boxes) for boxes in usable])
    tensors = {f"boxes/{sample.id}": embedded for sample, embedded in zip(samples, per_image, strict=True)}
    return Features(tensors, notes)


def _note(sample: Sample) -> dict[str, Any]:
    note = {"id": sample.id, "height": sample.image.shape[1], "width": sample.image.shape[2]}
    return {**note, "remark": sample.remark} if sample.remark else note


@dataclass
class Unwritten:
    """The features of each batch since the last part was written."""

    start: int
    batches: list[tuple[Features, list[BadSample]]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    @property
    def stop(self) -> int:
        """The number of images before the next batch."""
        return self.start + sum(len(features.images) + len(bad) for features, bad in self.batches)

    def is_full(self) -> bool:
        """Whether it is time to write."""
        size = sum(tensor.nbytes for features, _ in self.batches for tensor in features.tensors.values())
        return size >= PART_BYTES or time.monotonic() - self.since >= PART_SECONDS

    def write(self, folder: Path) -> Part:
        """Write them as a part."""
        rows: dict[str, list[Tensor]] = {}
        for name, tensor in (item for features, _ in self.batches for item in features.tensors.items()):
            rows.setdefault(name, []).append(tensor)
        bad = [{"id": sample.id, "reason": sample.reason} for _, samples in self.batches for sample in samples]
        notes = {"images": [note for features, _ in self.batches for note in features.images], "bad": bad}
        tensors = {name: torch.cat(parts) for name, parts in rows.items()}  # a copy: no two share memory
        return write_part(folder, save(tensors, {NOTES: json.dumps(notes)}), start=self.start, stop=self.stop)


def make_parts(
    compute: Callable[[list[Sample]], Features],
    dataset: Dataset,
    folder: Path,
    *,
    title: str,
    dtype: torch.dtype,
    batch: int,
    done: int,
    workers: int,
    strict: bool,
) -> list[Part]:
    """Embed the remaining images with a progress bar, and write the features in parts; return the new parts.

    Whatever ends it, the batches before are written.

    Args:
        dtype: of the stored features; they are computed in float32.
        done: images in earlier parts, a multiple of `batch` or all of them.

    Raises:
        InputError: `strict`, and an image is unreadable.
        StoppedError: a signal arrived.
    """
    rest = replace(dataset, records=dataset.records[done:])
    source = EvaluationSource(rest, masks=False)
    loader = make_loader(source, OnceSampler(len(rest.records), batch=batch), workers=workers)
    parts, waiting = [], Unwritten(done)
    with image_bar(show=True) as bar:
        task = bar.add_task(title, total=len(dataset.records), completed=done)
        try:
            for samples in until_stopped(loader.all()):  # unreadable images are all reported at the end
                if samples.bad and strict:
                    first = samples.bad[0]
                    raise InputError(f"image {first.id}: {first.reason} (--strict stops at the first)")
                features = compute(samples.samples) if samples.samples else Features({}, [])
                stored = {name: tensor.to(dtype).cpu() for name, tensor in features.tensors.items()}
                waiting.batches.append((Features(stored, features.images), samples.bad))
                if waiting.is_full():
                    parts.append(waiting.write(folder))
                    waiting = Unwritten(waiting.stop)
                bar.advance(task, len(samples.samples) + len(samples.bad))
        finally:
            if waiting.batches:
                parts.append(waiting.write(folder))
    return parts
