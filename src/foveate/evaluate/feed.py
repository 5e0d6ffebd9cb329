"""How pictures reach a protocol: decoded by workers in the data set's order, batched, the bad ones put aside.

Shared by the protocols of this room, as is the packing of teacher crops across pictures, so that the image tower always
gets full batches although pictures hold different numbers of regions.
Deliberately absent: shuffling and augmentation; an evaluation sees every picture once, as it is.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from foveate.clip.model import Clip
from foveate.data.loader import EvaluationSource, OnceSampler, make_loader
from foveate.data.records import Dataset
from foveate.errors import InputError
from foveate.ops.resample import crop_and_resize, normalize
from foveate.progress import picture_bar
from foveate.types import BadSample, Sample


class Feed:
    """The pictures of a data set in batches, read once; afterwards it knows how many were good and which were bad."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        masks: bool,
        batch: int,
        limit: int | None,
        workers: int,
        strict: bool,
        progress: bool,
    ) -> None:
        """Prepare to read.

        Args:
            dataset: the pictures, in the order they are read.
            masks: whether samples carry their annotated segments.
            batch: pictures a batch (fewer where some are bad, and in the last).
            limit: only the first so many pictures; None = all.
            workers: processes that decode; 0 = this one.
            strict: raise on the first bad picture instead of counting it.
            progress: show a bar with rate and time left on stderr.
        """
        if limit is not None and limit < 1:
            raise InputError(f"--limit: need at least 1 picture; got {limit}.")
        if batch < 1:
            raise InputError(f"--batch: need at least 1 picture; got {batch}.")
        self.dataset = dataset if limit is None else replace(dataset, records=dataset.records[:limit])
        self._progress = progress
        self._loader = make_loader(
            EvaluationSource(self.dataset, masks=masks),
            OnceSampler(len(self.dataset.records), batch=batch),
            workers=workers,
            strict=strict,
        )
        self.pictures = 0  # good ones so far
        self.bad: list[BadSample] = []

    def __iter__(self) -> Iterator[list[Sample]]:
        with picture_bar(show=self._progress) as bar:
            task = bar.add_task(f"pictures of {self.dataset.name}", total=len(self.dataset.records))
            for batch in self._loader:
                self.pictures += len(batch.samples)
                self.bad += batch.bad
                if batch.samples:
                    yield batch.samples
                bar.advance(task, len(batch.samples) + len(batch.bad))
        if self.pictures == 0:
            raise InputError(f"{self.dataset.name}: no picture could be read{self._first_reasons()}")

    def _first_reasons(self) -> str:
        if not self.bad:
            return ": the data set is empty. Is this the right folder and split?"
        return f" of {len(self.bad)}; the first: " + "; ".join(f"{item.id}: {item.reason}" for item in self.bad[:3])

    def bad_listed(self) -> list[dict[str, str]]:
        """The bad pictures as they go into a result file."""
        return [{"id": item.id, "reason": item.reason} for item in self.bad]


class CropPacker:
    """Embeds crops in full batches across pictures; what it returns is in the order the crops came."""

    def __init__(self, clip: Clip, *, batch: int) -> None:
        """Remember the tower whose image embedding is wanted and the crops a batch."""
        if batch < 1:
            raise InputError(f"--crop-batch: need at least 1 crop; got {batch}.")
        self.clip, self.batch = clip, batch
        self.waiting: list[Float[Tensor, "N 3 S S"]] = []
        self.done: list[Float[Tensor, "N D"]] = []

    def add(self, image: UInt8[Tensor, "3 H W"], boxes: Float[Tensor, "N 4"]) -> None:
        """Cut a picture's boxes (xyxy, pixels of the picture); embed as soon as a batch is full."""
        if boxes.shape[0] == 0:
            return
        crops = crop_and_resize(image, boxes, size=self.clip.native_size)  # (N, 3, S, S)
        self.waiting.append(normalize(crops, mean=self.clip.mean, std=self.clip.std))
        while sum(len(crops) for crops in self.waiting) >= self.batch:
            self._embed(self.batch)

    def _embed(self, count: int) -> None:
        packed = torch.cat(self.waiting)
        self.done.append(self.clip.encode_image(packed[:count]))
        self.waiting = [packed[count:]]

    def finish(self) -> Float[Tensor, "R D"]:
        """Embed what still waits and return everything, L2-normalised."""
        if any(len(crops) for crops in self.waiting):
            self._embed(sum(len(crops) for crops in self.waiting))
        self.waiting = []
        return torch.cat(self.done) if self.done else torch.empty(0, self.clip.embed_dim)
