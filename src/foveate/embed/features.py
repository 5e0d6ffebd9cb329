"""Pictures to stored features, for `foveate embed`: image embeddings, dense maps, or embeddings of boxes.

What is asked of the model is what the evaluations ask: teacher crops for whole pictures, the padded square input for
the rest (Sec. 3.1, 3.2).
"""

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import Head, RegionHead
from foveate.data.folder import read_folder
from foveate.data.loader import EvaluationSource, OnceSampler, make_loader
from foveate.data.records import Dataset, Record
from foveate.errors import InputError
from foveate.io.store import NOTES, Part, write_part
from foveate.ops.boxes import boxes_on_input, clip_boxes
from foveate.ops.resample import crop_and_resize, fitted_size, normalize, square_inputs
from foveate.progress import picture_bar
from foveate.types import BadSample, Sample

PART_SECONDS = 30.0  # of work that a kill may cost
PART_BYTES = 256_000_000  # of tensors held before they are written


def name_pictures(named: tuple[Path, ...]) -> tuple[Record, ...]:
    """List the pictures of files and folders, each with a name of its own.

    Args:
        named: picture files, and folders that are searched with all below them.

    Returns:
        Records in the order named; an id is the path within the folder named, or the name of the file named.

    Raises:
        InputError: nothing is named, a file or folder is missing, or two pictures have one id, or one no Unicode name.
    """
    if not named:
        raise InputError("PICTURES: need at least one picture or folder; got none.")
    found: dict[str, Record] = {}
    for path in named:
        if (path / "annotations").is_dir():
            raise InputError(f"{path}: is a COCO root; name a folder of pictures in it, such as {path / 'val2017'}.")
        if not path.exists():
            raise InputError(f"{path}: need a picture or a folder of pictures; there is no such file. Check the path.")
        for record in read_folder(path).records if path.is_dir() else (Record(path.name, path),):
            name = str(record.id)
            if name in found:
                raise InputError(
                    f"PICTURES: need a name of its own for each; {found[name].path} and {record.path} are both "
                    f"{name!r}. Name the folder above them."
                )
            if not is_unicode(name):
                raise InputError(f"{path}: need file names in UTF-8; got {name!r}. Rename the file.")
            found[name] = record
    return tuple(found.values())


def is_unicode(name: str) -> bool:
    """Whether a file name can be written into JSON; a name from the disk may hold bytes that are no UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Features:
    """Tensors by name, and a note about each picture they come from, in order."""

    tensors: dict[str, Tensor]
    pictures: list[dict[str, Any]]


@torch.inference_mode()
def image_features(clip: Clip, samples: list[Sample]) -> Features:
    """Embed whole pictures as CLIP does (the teacher; Sec. 3.2).

    Args:
        clip: the model.
        samples: pictures; the longest side is resized to the native size, black goes equally around the rest.

    Returns:
        "image" (B, D), L2-normalised.
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
        clip: the model.
        samples: pictures.
        size: side of the padded square input [pixels].
        head: how the last block makes dense tokens.

    Returns:
        "dense/ID" (D, h, w) of each picture, L2-normalised per location; location (r, c) is the square of P pixels at
        (r P, c P) of the resized picture, and those at the right and bottom edge may hold some padding.
    """
    device = next(clip.parameters()).device
    images = [sample.image.to(device) for sample in samples]
    inputs = square_inputs(images, size=size, mean=clip.mean, std=clip.std, pad=clip.pad)
    dense = clip.encode_dense(inputs, head=head)  # (B, D, h, w)
    tensors, notes = {}, []
    for sample, one in zip(samples, dense, strict=True):
        height, width = fitted_size(*sample.image.shape[1:], size=size)
        grid = -(-height // clip.patch_size), -(-width // clip.patch_size)
        tensors[f"dense/{sample.id}"] = one[:, : grid[0], : grid[1]]  # (D, h, w)
        notes.append({**_note(sample), "resized": [height, width], "grid": list(grid)})
    return Features(tensors, notes)


@torch.inference_mode()
def box_features(clip: Clip, samples: list[Sample], *, size: int, head: RegionHead) -> Features:
    """Embed the boxes of pictures by pooling their dense maps (Sec. 3.1).

    Args:
        clip: the model.
        samples: pictures with boxes (xyxy, pixels of the picture), which are clipped to it here.
        size: side of the padded square input [pixels].
        head: how the last block makes dense tokens.

    Returns:
        "boxes/ID" (N, D) of each picture, L2-normalised, in the file's order without the boxes that are under one pixel
        wide or high inside the picture; their places are noted as "dropped".
    """
    device = next(clip.parameters()).device
    kept, notes = [], []
    for sample in samples:
        height, width = sample.image.shape[1:]
        boxes = clip_boxes(sample.boxes, height=height, width=width)  # (N, 4)
        usable = (boxes[:, 2:] - boxes[:, :2] >= 1).all(dim=1)  # (N,)
        kept.append(boxes[usable])
        notes.append({**_note(sample), "boxes": len(kept[-1]), "dropped": (~usable).nonzero()[:, 0].tolist()})
    asked = [(sample.image.to(device), own) for sample, own in zip(samples, kept, strict=True) if len(own)]
    rows = torch.empty(0, clip.embed_dim, device=device)
    if asked:
        inputs = square_inputs([image for image, _ in asked], size=size, mean=clip.mean, std=clip.std, pad=clip.pad)
        scaled = [boxes_on_input(own, height=image.shape[1], width=image.shape[2], size=size) for image, own in asked]
        rows = clip.encode_boxes(inputs, scaled, head=head)  # (R, D)
    each = rows.split([len(own) for own in kept])
    return Features({f"boxes/{sample.id}": own for sample, own in zip(samples, each, strict=True)}, notes)


def _note(sample: Sample) -> dict[str, Any]:
    return {"id": sample.id, "height": sample.image.shape[1], "width": sample.image.shape[2]}


@dataclass
class Unwritten:
    """What was made since the last part."""

    start: int
    stop: int
    tensors: dict[str, list[Tensor]] = field(default_factory=dict)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    bad: list[BadSample] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def is_full(self) -> bool:
        """Whether it is time to write."""
        held = sum(one.nbytes for many in self.tensors.values() for one in many)
        return held >= PART_BYTES or time.monotonic() - self.since >= PART_SECONDS

    def write(self, folder: Path) -> Part:
        """Write it as a part."""
        notes = {"pictures": self.pictures, "bad": [{"id": one.id, "reason": one.reason} for one in self.bad]}
        tensors = {name: torch.cat(many) for name, many in self.tensors.items()}  # a copy: no two share memory
        return write_part(folder, save(tensors, {NOTES: json.dumps(notes)}), start=self.start, stop=self.stop)


def make_parts(
    clip: Clip,
    dataset: Dataset,
    folder: Path,
    *,
    what: Literal["image", "dense", "boxes"],
    size: int,
    head: RegionHead,
    dtype: torch.dtype,
    batch: int,
    done: int,
    workers: int,
    strict: bool,
) -> list[Part]:
    """Embed the pictures that are not done yet, and write them in parts as they are finished, with a bar.

    Args:
        clip: the model, on its device.
        dataset: all pictures.
        folder: of the parts.
        what: which features.
        size: side of the padded square input of dense and boxes [pixels].
        head: of dense and boxes.
        dtype: in which they are stored; they are computed in float32.
        batch: pictures embedded at once.
        done: pictures that earlier parts hold, a multiple of `batch` or all of them.
        workers: processes that decode.
        strict: raise on the first bad picture instead of noting it.

    Returns:
        The new parts.

    Raises:
        InputError: strict, and a picture cannot be used.
    """
    rest = replace(dataset, records=dataset.records[done:])
    source = EvaluationSource(rest, masks=False)
    loader = make_loader(source, OnceSampler(len(rest.records), batch=batch), workers=workers)
    parts, waiting = [], Unwritten(done, done)
    with picture_bar(show=True) as bar:
        task = bar.add_task(f"{what} embeddings", total=len(dataset.records), completed=done)
        for packed in loader.loader:  # the bare loader: here any number of bad pictures is told at the end
            one = packed.unpack()
            if one.bad and strict:
                raise InputError(f"picture {one.bad[0].id}: {one.bad[0].reason} (--strict ends at the first)")
            if one.samples:
                features = _features(clip, one.samples, what=what, size=size, head=head)
                for name, tensor in features.tensors.items():
                    waiting.tensors.setdefault(name, []).append(tensor.to(dtype).cpu())
                waiting.pictures += features.pictures
            waiting.bad += one.bad
            waiting.stop += len(one.samples) + len(one.bad)
            if waiting.is_full():
                parts.append(waiting.write(folder))
                waiting = Unwritten(waiting.stop, waiting.stop)
            bar.advance(task, len(one.samples) + len(one.bad))
    if waiting.stop > waiting.start:
        parts.append(waiting.write(folder))
    return parts


def _features(
    clip: Clip, samples: list[Sample], *, what: Literal["image", "dense", "boxes"], size: int, head: RegionHead
) -> Features:
    match what:
        case "image":
            return image_features(clip, samples)
        case "dense":
            assert head != "masked", "refused at the door"
            return dense_features(clip, samples, size=size, head=head)
        case "boxes":
            return box_features(clip, samples, size=size, head=head)
