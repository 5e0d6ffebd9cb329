"""What one pass of the detector leaves of each image, and a store of it on the disk (Sec. 3.3).

Box regression and masks are class-agnostic, so that a proposal has one box and one mask whatever is asked for, and all
that depends on a vocabulary or on how scores are fused can be done again without the network.

The store is a folder of parts (`foveate.io.store`) of 64 images each: proposals, objectness, boxes, detector, clip
[, masks], one below the other; a part's notes say which rows are whose, and which images were bad. Its manifest says
what the candidates depend on, and of which images they are.
Deliberately absent: two processes that share the work, compression.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float16, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from foveate.errors import InputError
from foveate.io.store import NOTES, Part, claim_parts, find_manifest, find_parts, write_part
from foveate.types import BadSample

SHARD = 64  # images
OWNER = "foveate candidates"  # in the manifest
ROWS = ("proposals", "objectness", "boxes", "detector", "clip")  # what every store holds; masks where there are any


@dataclass(frozen=True)
class Candidates:
    """The proposals of one image with all that scores are made of; embeddings are float16, on the disk and fresh, so
    that both give the same result."""

    id: str
    height: int  # of the image [pixels]
    width: int
    proposals: Float[Tensor, "N 4"]  # the RPN's, best first; xyxy, pixels of the image, clipped
    objectness: Float[Tensor, " N"]  # in [0, 1]
    boxes: Float[Tensor, "N 4"]  # regressed; xyxy, pixels of the image, clipped
    detector: Float16[Tensor, "N D"]  # the box head's embedding, unit length
    clip: Float16[Tensor, "N D"]  # the tower's dense map pooled at the proposal, unit length; zero stays zero
    masks: UInt8[Tensor, "N S S"] | None = None  # 255 times the probability, drawn in `boxes`


class CandidateWriter:
    """Writes the candidates of a list of images, in its order, and goes on where an earlier run was stopped.

    `done` says how many images of the list are already there; hand in the others, good or bad, then `close`.
    """

    def __init__(self, folder: Path, *, ids: Sequence[str], made_by: dict[str, str]) -> None:
        """Claim a folder.

        Args:
            folder: made where it does not exist.
            ids: of all images, in the order in which they will come.
            made_by: whatever the candidates depend on, such as the detector's digest and the input's size.

        Raises:
            InputError: it holds the candidates of another detector or of other images, or something else.
        """
        if len(set(ids)) < len(ids):
            raise InputError(f"{folder}: need every image once; {len(ids) - len(set(ids))} of the list come again.")
        self.folder, self.ids = folder, list(ids)
        self._notes: list[dict[str, Any]] = []
        self._rows: dict[str, list[Tensor]] = {}
        parts = claim_parts(folder, {**made_by, "images": len(ids), "ids": _digest(ids)}, owner=OWNER)
        self.done = self._keep_ours(parts)

    def add(self, one: Candidates) -> None:
        """Take the candidates of the next image."""
        tensors = {name: getattr(one, name) for name in ROWS}
        if one.masks is not None:
            tensors["masks"] = one.masks
        if self._rows and self._rows.keys() != tensors.keys():
            raise InputError(f"image {one.id}: need masks for all images or for none.")
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise InputError(f"image {one.id}: need finite candidates; its {name} hold NaN. Is the model whole?")
            self._rows.setdefault(name, []).append(tensor.detach().cpu())
        self._note({"id": one.id, "height": one.height, "width": one.width, "count": len(one.proposals)})

    def add_bad(self, one: BadSample) -> None:
        """Take note that the next image could not be used."""
        self._note({"id": one.id, "bad": one.reason})

    def close(self) -> None:
        """Write what is left; all images must have come."""
        if self._notes:
            self._write()
        if self.done != len(self.ids):
            raise InputError(f"{self.folder}: need all {len(self.ids)} images; {self.done} came.")

    def _note(self, note: dict[str, Any]) -> None:
        place = self.done + len(self._notes)
        expected = self.ids[place] if place < len(self.ids) else None
        if note["id"] != expected:
            raise InputError(f"{self.folder}: need image {expected} next, in the list's order; got {note['id']}.")
        self._notes.append(note)
        if len(self._notes) == SHARD:
            self._write()

    def _write(self) -> None:
        tensors = {name: torch.cat(many) for name, many in self._rows.items()}
        content = save(tensors, {NOTES: json.dumps(self._notes)})
        self.done = write_part(self.folder, content, start=self.done, stop=self.done + len(self._notes)).stop
        self._notes, self._rows = [], {}

    def _keep_ours(self, parts: list[Part]) -> int:
        """Count the images of the parts from the first on; parts of other images and what follows are removed."""
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
            InputError: no store, one that is not finished, or a shard that is missing or damaged.
        """
        there = find_manifest(folder, owner=OWNER)
        if there is None:
            raise InputError(f"{folder}: need a folder of candidates with its manifest.json; there is none. Make them.")
        self.folder, self._parts = folder, find_parts(folder)
        count = self._parts[-1].stop if self._parts else 0
        if count < there["images"]:
            raise InputError(
                f"{folder}: need the candidates of all {there['images']} images; got those of the first {count}, "
                "the next part is missing or damaged. Give the command that makes them again: it resumes there."
            )
        notes = [note for part in self._parts for note in part.notes]
        self.bad = [BadSample(note["id"], note["bad"]) for note in notes if "bad" in note]
        self.ids: list[str] = [note["id"] for note in notes if "bad" not in note]
        if _digest(_ids_of(notes)) != there["ids"]:
            raise InputError(
                f"{folder}: need the images that manifest.json is of; the parts hold others. Make it again."
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Candidates]:
        for part in self._parts:
            yield from _read_part(part)


def _read_part(part: Part) -> Iterator[Candidates]:
    try:
        with safe_open(part.path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            start = 0
            for note in part.notes:
                if "bad" in note:
                    continue
                stop = start + note["count"]
                tensors = {name: one[start:stop] for name, one in slices.items()}
                yield Candidates(note["id"], note["height"], note["width"], **tensors)
                start = stop
    except (SafetensorError, OSError) as error:
        raise InputError(f"{part.path}: need a part of candidates; {error}. Make them again.") from error


def _digest(ids: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def _ids_of(notes: list[dict[str, Any]]) -> list[str]:
    return [note["id"] for note in notes]
