"""Class-agnostic detections of an image, and a store of them on disk (Sec. 3.3).

Box regression and masks are class-agnostic: a proposal has one box and one mask for any vocabulary. Everything that
depends on the vocabulary or on the fusion of scores is computed from candidates, without the network.

The store is a folder of parts (`foveate.io.store`) of 64 images each: proposals, objectness, boxes, detector, clip
[, masks], one below the other. The notes of a part say which rows belong to which image, and which images were
unreadable. The manifest has what the candidates depend on, and the images. Only one process writes a store.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor

from foveate.clip.io.digest import read_tensors, save_tensors
from foveate.errors import InputError
from foveate.io.listing import Listing
from foveate.io.store import NOTES, Part, claim_parts, find_manifest, find_parts, write_part
from foveate.types import BadSample

IMAGES_PER_PART = 64
OWNER = "foveate candidates"  # in the manifest
FIELDS = ("proposals", "objectness", "boxes", "detector", "clip")  # in every store; masks are optional


@dataclass(frozen=True)
class Candidates:
    """The proposals of one image with everything that scores are made of.

    Embeddings are float16 in memory too, so that stored and new candidates give the same result.
    """

    id: str
    height: int  # of the image [pixels]
    width: int
    proposals: Float[Tensor, "N 4"]  # the RPN's, best first; xyxy, pixels of the image, clipped
    objectness: Float[Tensor, " N"]  # in [0, 1]
    boxes: Float[Tensor, "N 4"]  # regressed; xyxy, pixels of the image, clipped
    detector: Float16[Tensor, "N D"]  # the box head's embedding, unit length
    clip: Float16[Tensor, "N D"]  # the dense feature map pooled at the proposal, unit length; zero stays zero
    masks: UInt8[Tensor, "N S S"] | None = None  # 255 times the probability, relative to `boxes`


class CandidateWriter:
    """Writes the candidates of a list of images in its order, and resumes a stopped run.

    `done` is the number of images already written. Add the remaining images in order, then `close`.
    """

    def __init__(self, folder: Path, *, images: Listing, made_by: dict[str, str]) -> None:
        """Claim a folder, which is created if missing.

        Args:
            images: all of them, in order; their names are the ids.
            made_by: everything the candidates depend on, such as the detector's digest and the input size.

        Raises:
            InputError: the folder holds the candidates of another detector or of other images, or other files.
        """
        ids = [str(name) for name, *_ in images.make()]
        if len(set(ids)) < len(ids):
            raise InputError(f"{folder}: need every image once; {len(ids) - len(set(ids))} of the list are repeated.")
        self.folder, self.ids = folder, ids
        self._added: list[tuple[dict[str, Any], dict[str, Tensor]]] = []  # note and tensors of each image
        identity = {**made_by, "images": len(ids), "ids": _digest(ids), "files": images.identity["sha256"]}
        parts = claim_parts(folder, identity, owner=OWNER, listing=images)
        self.done = self._count_done(parts)

    def add(self, candidates: Candidates) -> None:
        """Add the candidates of the next image."""
        tensors = {name: getattr(candidates, name) for name in FIELDS}
        if candidates.masks is not None:
            tensors["masks"] = candidates.masks
        if any(stored.keys() not in ({}.keys(), tensors.keys()) for _, stored in self._added):
            raise InputError(f"image {candidates.id}: need masks for all images or for none.")
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise InputError(
                    f"image {candidates.id}: need finite candidates; its {name} hold NaN. Check the model's weights."
                )
        note = {"id": candidates.id, "height": candidates.height, "width": candidates.width}
        stored = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        self._add({**note, "count": len(candidates.proposals)}, stored)

    def add_bad(self, image: BadSample) -> None:
        """Record that the next image is unreadable."""
        self._add({"id": image.id, "bad": image.reason}, {})

    def flush(self) -> None:
        """Write what was added since the last part."""
        if self._added:
            self._write()

    def close(self) -> None:
        """Write the last part.

        Raises:
            InputError: some images were not added.
        """
        self.flush()
        if self.done != len(self.ids):
            raise InputError(f"{self.folder}: need all {len(self.ids)} images; got {self.done}.")

    def _add(self, note: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        index = self.done + len(self._added)
        expected = self.ids[index] if index < len(self.ids) else None
        if note["id"] != expected:
            raise InputError(f"{self.folder}: need image {expected} next, in the list's order; got {note['id']}.")
        self._added.append((note, tensors))
        if len(self._added) == IMAGES_PER_PART:
            self._write()

    def _write(self) -> None:
        rows: dict[str, list[Tensor]] = {}
        for name, tensor in (item for _, tensors in self._added for item in tensors.items()):
            rows.setdefault(name, []).append(tensor)
        tensors = {name: torch.cat(parts) for name, parts in rows.items()}
        content = save_tensors(tensors, {NOTES: json.dumps([note for note, _ in self._added])})
        self.done = write_part(self.folder, content, start=self.done, stop=self.done + len(self._added)).stop
        self._added = []

    def _count_done(self, parts: list[Part]) -> int:
        """Count the images of the first parts that match the list, and remove the other parts."""
        done = 0
        for part in parts:
            if part.start == done and _ids_of(part.notes) == self.ids[part.start : part.stop]:
                done = part.stop
            else:
                part.path.unlink()
        return done


class CandidateStore:
    """The candidates of a folder, read one image at a time."""

    def __init__(self, folder: Path) -> None:
        """Open a finished store.

        Raises:
            InputError: no store, an unfinished one, or a part that is missing or damaged.
        """
        manifest = find_manifest(folder, owner=OWNER)
        if manifest is None:
            raise InputError(f"{folder}: need a folder of candidates with its manifest.json; not found. Make them.")
        self.folder, self._parts = folder, find_parts(folder)
        count = self._parts[-1].stop if self._parts else 0
        if count < manifest["images"]:
            raise InputError(
                f"{folder}: need the candidates of all {manifest['images']} images; got those of the first {count}, "
                "the next part is missing or damaged. Run the command that makes them again: it resumes."
            )
        notes = [note for part in self._parts for note in part.notes]
        self.bad = [BadSample(note["id"], note["bad"]) for note in notes if "bad" in note]
        self.ids: list[str] = [note["id"] for note in notes if "bad" not in note]
        if _digest(_ids_of(notes)) != manifest["ids"]:
            raise InputError(
                f"{folder}: need parts of the images in manifest.json; the parts hold others. Make the store again."
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Candidates]:
        for part in self._parts:
            yield from _read_part(part)


def _read_part(part: Part) -> Iterator[Candidates]:
    whole = read_tensors(part.path, need="a part of candidates")
    start = 0
    for note in part.notes:
        if "bad" in note:
            continue
        stop = start + note["count"]
        tensors = {name: rows[start:stop] for name, rows in whole.items()}
        yield Candidates(note["id"], note["height"], note["width"], **tensors)
        start = stop


def _digest(ids: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def _ids_of(notes: list[dict[str, Any]]) -> list[str]:
    return [note["id"] for note in notes]
