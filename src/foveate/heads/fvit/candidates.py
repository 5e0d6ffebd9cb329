"""What one pass of the detector leaves of each picture, and a store of it on the disk (Sec. 3.3).

Box regression and masks are class-agnostic, so that a proposal has one box and one mask whatever is asked for, and all
that depends on a vocabulary or on how scores are fused can be done again without the network.

    FOLDER/index.json          what the candidates are made by, and of which pictures
    FOLDER/00000.safetensors   64 pictures of the list: proposals, objectness, boxes, detector, clip [, masks], one
                               below the other; its metadata says which rows are whose, and which pictures were bad

A shard is written whole or not at all; the same command goes on after the last whole one. Deliberately absent: two
processes that share the work, compression.
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
from foveate.files import write_whole
from foveate.types import BadSample

SHARD = 64  # pictures
NOTES = "notes"  # the key of a shard's metadata
MADE_BY = "foveate candidates"  # how its index is told from another
ROWS = ("proposals", "objectness", "boxes", "detector", "clip")  # what every store holds; masks where there are any


@dataclass(frozen=True)
class Candidates:
    """The proposals of one picture with all that scores are made of; embeddings are float16, on the disk and fresh, so
    that both give the same result."""

    id: str
    height: int  # of the picture [pixels]
    width: int
    proposals: Float[Tensor, "N 4"]  # the RPN's, best first; xyxy, pixels of the picture, clipped
    objectness: Float[Tensor, " N"]  # in [0, 1]
    boxes: Float[Tensor, "N 4"]  # regressed; xyxy, pixels of the picture, clipped
    detector: Float16[Tensor, "N D"]  # the box head's embedding, unit length
    clip: Float16[Tensor, "N D"]  # the tower's dense map pooled at the proposal, unit length; zero stays zero
    masks: UInt8[Tensor, "N S S"] | None = None  # 255 times the probability, drawn in `boxes`


class CandidateWriter:
    """Writes the candidates of a list of pictures, in its order, and goes on where an earlier run was stopped.

    `done` says how many pictures of the list are already there; hand in the others, good or bad, then `close`.
    """

    def __init__(self, folder: Path, *, ids: Sequence[str], made_by: dict[str, str]) -> None:
        """Claim a folder.

        Args:
            folder: made where it does not exist.
            ids: of all pictures, in the order in which they will come.
            made_by: whatever the candidates depend on, such as the detector's digest and the input's size.

        Raises:
            InputError: it holds the candidates of another detector or of other pictures, or something else.
        """
        if len(set(ids)) < len(ids):
            raise InputError(f"{folder}: need every picture once; {len(ids) - len(set(ids))} of the list come again.")
        self.folder, self.ids = folder, list(ids)
        self._notes: list[dict[str, Any]] = []
        self._rows: dict[str, list[Tensor]] = {}
        identity = {"candidates": MADE_BY, "made_by": made_by, "pictures": len(ids), "ids": _digest(ids)}
        there = _read_index(folder) if folder.exists() else None
        if there is None:
            if folder.exists() and any(folder.iterdir()):
                raise InputError(f"{folder}: need an empty folder or one of candidates; it is neither. Name another.")
            write_whole(folder / "index.json", (json.dumps(identity, indent=1) + "\n").encode())
        else:
            _refuse_another(folder, there, identity)
        self.done = self._claim()

    def add(self, one: Candidates) -> None:
        """Take the candidates of the next picture."""
        tensors = {name: getattr(one, name) for name in ROWS}
        if one.masks is not None:
            tensors["masks"] = one.masks
        if self._rows and self._rows.keys() != tensors.keys():
            raise InputError(f"picture {one.id}: need masks for all pictures or for none.")
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise InputError(f"picture {one.id}: need finite candidates; its {name} hold NaN. Is the model whole?")
            self._rows.setdefault(name, []).append(tensor.detach().cpu())
        self._note({"id": one.id, "height": one.height, "width": one.width, "count": len(one.proposals)})

    def add_bad(self, one: BadSample) -> None:
        """Take note that the next picture could not be used."""
        self._note({"id": one.id, "bad": one.reason})

    def close(self) -> None:
        """Write what is left; all pictures must have come."""
        if self._notes:
            self._write()
        if self.done != len(self.ids):
            raise InputError(f"{self.folder}: need all {len(self.ids)} pictures; {self.done} came.")

    def _note(self, note: dict[str, Any]) -> None:
        place = self.done + len(self._notes)
        expected = self.ids[place] if place < len(self.ids) else None
        if note["id"] != expected:
            raise InputError(f"{self.folder}: need picture {expected} next, in the list's order; got {note['id']}.")
        self._notes.append(note)
        if len(self._notes) == SHARD:
            self._write()

    def _write(self) -> None:
        tensors = {name: torch.cat(many) for name, many in self._rows.items()}
        write_whole(_shard(self.folder, self.done // SHARD), save(tensors, {NOTES: json.dumps(self._notes)}))
        self.done += len(self._notes)
        self._notes, self._rows = [], {}

    def _claim(self) -> int:
        """Count the pictures of the whole shards from the first on; what a killed process half wrote is removed."""
        done = 0
        for path in sorted(self.folder.glob("*.safetensors*")):
            expected = self.ids[done : done + SHARD]
            notes = _read_notes(path)
            if notes is not None and path == _shard(self.folder, done // SHARD) and _ids_of(notes) == expected:
                done += len(notes)
            else:
                path.unlink()
        return done


class CandidateStore:
    """The candidates of a folder, read one picture at a time."""

    def __init__(self, folder: Path) -> None:
        """Open a finished store.

        Raises:
            InputError: no store, one that is not finished, or a shard that is missing or damaged.
        """
        there = _read_index(folder)
        if there is None:
            raise InputError(f"{folder}: need a folder of candidates with its index.json; there is none. Make them.")
        self.folder = folder
        self.made_by: dict[str, str] = there["made_by"]
        self.bad: list[BadSample] = []
        self.ids: list[str] = []  # of the good pictures
        self._shards: list[tuple[Path, list[dict[str, Any]]]] = []
        listed: list[str] = []
        for start in range(0, there["pictures"], SHARD):
            path = _shard(folder, start // SHARD)
            notes = _read_notes(path)
            if notes is None:
                problem = "is damaged" if path.exists() else "is missing"
                raise InputError(
                    f"{folder}: need the candidates of all {there['pictures']} pictures; {path.name} {problem}. "
                    "Give the command that makes them again: it goes on there."
                )
            listed += _ids_of(notes)
            self.bad += [BadSample(note["id"], note["bad"]) for note in notes if "bad" in note]
            self.ids += [note["id"] for note in notes if "bad" not in note]
            self._shards.append((path, notes))
        if _digest(listed) != there["ids"]:
            raise InputError(
                f"{folder}: need the pictures that index.json is of; the shards hold others. Make it again."
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Candidates]:
        for path, notes in self._shards:
            yield from _read_shard(path, notes)


def _read_shard(path: Path, notes: list[dict[str, Any]]) -> Iterator[Candidates]:
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            start = 0
            for note in notes:
                if "bad" in note:
                    continue
                stop = start + note["count"]
                tensors = {name: one[start:stop] for name, one in slices.items()}
                yield Candidates(note["id"], note["height"], note["width"], **tensors)
                start = stop
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: need a shard of candidates; {error}. Make them again.") from error


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"


def _digest(ids: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def _ids_of(notes: list[dict[str, Any]]) -> list[str]:
    return [note["id"] for note in notes]


def _read_index(folder: Path) -> dict[str, Any] | None:
    """What a store's index says; None where there is none of candidates."""
    try:
        there = json.loads((folder / "index.json").read_bytes())
    except (OSError, ValueError):
        return None
    return there if isinstance(there, dict) and there.get("candidates") == MADE_BY else None


def _refuse_another(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    before, now = ({**one["made_by"], "pictures": one["pictures"], "ids": one["ids"]} for one in (there, here))
    differing = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if differing:
        lines = [
            f"  {name}: there {before.get(name, '(absent)')}, here {now.get(name, '(absent)')}" for name in differing
        ]
        raise InputError(
            f"{folder}: holds candidates that were made otherwise. Differing:\n"
            + "\n".join(lines)
            + "\nGive the same command to go on, or name another folder."
        )


def _read_notes(path: Path) -> list[dict[str, Any]] | None:
    """What a shard says about its pictures; None where it is not whole."""
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads((file.metadata() or {})[NOTES])
            rows = sum(note.get("count", 0) for note in notes)
            lengths = {file.get_slice(name).get_shape()[0] for name in file.keys()}  # noqa: SIM118
            return notes if lengths <= {rows} else None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
