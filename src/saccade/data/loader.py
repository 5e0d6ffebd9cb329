"""Records -> batches: which picture when, which regions of it, and workers that do nothing but decode.

The stream of pictures is a pure function of (seed, step, rank, world size): position p of the stream is picture p mod N
of epoch p // N's own permutation, and step s takes the positions s * G .. (s + 1) * G - 1, G = batch * world size, rank
after rank. So every epoch shows every picture exactly once, a batch may hold the end of one epoch and the start of the
next, a run can start at any step, and the pictures of a step do not depend on how many processes share it. Regions are
drawn from (seed, epoch, index) alone: the same bits whatever the number of workers (Sec. 3.2; grids or proposals).
Workers hand over uint8 pictures of their own size; crops, resizing and normalisation happen on the compute device.
Deliberately absent: augmentation (the method has none), padding to a common size, replacing bad pictures.
"""

import hashlib
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from saccade.data.coco import Dataset, Record, read_instances, read_panoptic
from saccade.data.folder import read_folder
from saccade.data.layout import find_coco, find_pictures
from saccade.data.panoptic import panoptic_segments
from saccade.data.pictures import PictureError, read_picture
from saccade.ops.grid import grid_pairs, sample_grid
from saccade.types import BadSample, Batch, InputError, Sample, Segments

SMALLEST_AREA, LARGEST_AREA = 8.0**2, 1024.0**2  # of a proposal [pixels of the picture squared]
FEW_BAD = 16  # bad pictures that prove nothing yet about the data
BAD_SHARE = 0.5  # of the pictures seen; beyond it the data, not the pictures, is wrong


def open_data(
    path: Path | str, *, split: str, annotations: Literal["instances", "panoptic", "none"] = "instances"
) -> Dataset:
    """Read a COCO root or, where there is no `annotations/` in it, a plain folder of pictures.

    Args:
        path: the folder.
        split: "train", "val" or "test"; a plain folder has none, there it is not looked at.
        annotations: which of a COCO root's files to read; "none" lists the pictures of the split's folder (ids are
            their names), whatever the annotations are.

    Raises:
        InputError: neither is there, or a file is not what it must be.
    """
    path = Path(path)
    if annotations == "none":
        is_coco = any((path / name).is_dir() for name in ("annotations", "train2017", "val2017", "test2017"))
        return read_folder(find_pictures(path, split) if is_coco else path)
    if not (path / "annotations").is_dir():
        if annotations == "panoptic":
            raise InputError(f"{path}: need a COCO root with panoptic annotations; it has no folder `annotations`.")
        return read_folder(path)
    files = find_coco(path, split)
    if annotations == "panoptic":
        if files.panoptic is None or files.panoptic_pngs is None:
            wanted = path / "annotations" / f"panoptic_{split}2017"
            raise InputError(f"{path}: need {wanted}.json and the folder {wanted}; not both are there.")
        return read_panoptic(files.panoptic, files.pictures, files.panoptic_pngs)
    if files.instances is None:
        wanted = path / "annotations" / f"instances_{split}2017.json"
        raise InputError(f"{path}: need {wanted}; it is not there. To use only the pictures, name {files.pictures}.")
    return read_instances(files.instances, files.pictures)


# ------------------------------------------------------------------------------------------------------------ the order


def derive_seed(*parts: int) -> int:
    """Mix whole numbers into one 63-bit seed, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_order(count: int, *, seed: int, epoch: int) -> list[int]:
    """Order the pictures of one epoch: a permutation of 0..count-1 that depends on (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return torch.randperm(count, generator=generator).tolist()


class BatchSampler:
    """Which (epoch, index) pairs each step of one process holds; see the module's docstring for the rule."""

    def __init__(
        self,
        count: int,
        *,
        batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        batches: int | None = None,
    ) -> None:
        """Remember the numbers; nothing is drawn before iteration.

        Args:
            count: pictures of the data set.
            batch: pictures a process and step.
            seed: of the run; the permutations depend on it and the epoch.
            rank: of this process, in 0..world_size-1.
            world_size: processes that share a step.
            start: pictures of the stream that came before: where a resumed run goes on.
            batches: how many to yield; None: go on for ever.

        Raises:
            InputError: no pictures, or a batch below 1.
        """
        if count < 1:
            raise InputError("data: need at least one picture; the data set has none. Check the folder and the split.")
        if batch < 1:
            raise InputError(f"batch: need at least 1 picture; got {batch}.")
        assert 0 <= rank < world_size and start >= 0, f"rank {rank} of {world_size}, start {start}"
        self.count, self.batch, self.seed = count, batch, seed
        self.rank, self.world_size = rank, world_size
        self.start, self.batches = start, batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step, known, order = 0, -1, []
        while self.batches is None or step < self.batches:
            first = self.start + (step * self.world_size + self.rank) * self.batch
            pairs = []
            for position in range(first, first + self.batch):
                epoch, place = divmod(position, self.count)
                if epoch != known:
                    known, order = epoch, epoch_order(self.count, seed=self.seed, epoch=epoch)
                pairs.append((epoch, order[place]))
            yield pairs
            step += 1

    def __len__(self) -> int:
        """Batches to come; only where they end."""
        if self.batches is None:
            raise TypeError("a sampler without an end is endless")  # what list() expects of those
        return self.batches


class OnceSampler:
    """Every picture exactly once, in order: for evaluation."""

    def __init__(self, count: int, *, batch: int) -> None:
        """Take `batch` of `count` pictures at a time, fewer in the last batch."""
        if batch < 1:
            raise InputError(f"batch: need at least 1 picture; got {batch}.")
        self.count, self.batch = count, batch

    def __iter__(self) -> Iterator[list[int]]:
        return (list(range(start, min(start + self.batch, self.count))) for start in range(0, self.count, self.batch))

    def __len__(self) -> int:
        return -(-self.count // self.batch)


# --------------------------------------------------------------------------------------------------------- the pictures


class PictureSource(TorchDataset[Sample | BadSample]):
    """(epoch, index) -> a decoded picture with the regions to train on, or the reason why there is none (Sec. 3.2)."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        regions: Literal["grid", "boxes"] = "grid",
        seed: int = 0,
        limit: int = 6,
        rule: str = "published",
        keep: int = 20,
    ) -> None:
        """Remember what to draw.

        Args:
            dataset: the pictures.
            regions: "grid": one random grid's patches; "boxes": the annotation's boxes as proposals.
            seed: with epoch and index it fixes the regions.
            limit: M, the most rows and columns of a grid.
            rule: "published" or "all" grids; see `ops.grid.grid_pairs`.
            keep: at most so many regions a picture.

        Raises:
            InputError: unknown regions or rule, a number out of range, or boxes asked of a data set without any.
        """
        if regions not in ("grid", "boxes"):
            raise InputError(f'regions: must be "grid" or "boxes"; got "{regions}".')
        if regions == "boxes" and not any(record.boxes for record in dataset.records):
            raise InputError(f'{dataset.name}: regions "boxes" need annotated boxes; it has none. Use regions "grid".')
        if keep < 1:
            raise InputError(f"keep: need at least 1 region a picture; got {keep}.")
        grid_pairs(limit, rule)  # refuses what it cannot draw, before any worker starts
        self.dataset, self.regions, self.seed = dataset, regions, seed
        self.limit, self.rule, self.keep = limit, rule, keep

    def __len__(self) -> int:
        return len(self.dataset.records)

    def __getitem__(self, place: tuple[int, int]) -> Sample | BadSample:
        epoch, index = place
        record = self.dataset.records[index]
        try:
            image = read_picture(record.path, expected_size=record.size)
        except PictureError as error:
            return BadSample(str(record.id), str(error))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch, index))
        height, width = image.shape[1:]
        if self.regions == "boxes":
            boxes = sample_proposals(record, height=height, width=width, keep=self.keep, generator=generator)
        else:
            numbers = {"limit": self.limit, "rule": self.rule, "keep": self.keep}
            boxes = sample_grid(height=height, width=width, **numbers, generator=generator)
        return Sample(str(record.id), image, boxes)


def sample_proposals(
    record: Record, *, height: int, width: int, keep: int, generator: torch.Generator
) -> Float[Tensor, "N 4"]:
    """Draw a picture's annotated boxes as regions: shuffle, take the first `keep`, leave out those of extreme size.

    Returns:
        xyxy, pixels of the picture, areas in [8^2, 1024^2]; the picture's top left quarter where no box is left, as the
        published training does, so that every picture counts in the loss.
    """
    boxes = torch.tensor(record.boxes, dtype=torch.float32).reshape(-1, 4)  # (N, 4)
    boxes = boxes[torch.randperm(len(boxes), generator=generator)[:keep]]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])  # (N,)
    boxes = boxes[(area >= SMALLEST_AREA) & (area <= LARGEST_AREA)]
    return boxes if len(boxes) else torch.tensor([[0.0, 0.0, width / 2, height / 2]])


class EvaluationSource(TorchDataset[Sample | BadSample]):
    """index -> a decoded picture with its annotated segments, or the reason why there is none (Fig. 2 and 3)."""

    def __init__(self, dataset: Dataset, *, masks: bool = True) -> None:
        """Remember the data set.

        Args:
            dataset: from `read_panoptic`; without masks also from `read_instances`.
            masks: False: masks are (N, 0, 0) and no PNG is decoded; stuff boxes are then the annotation's.

        Raises:
            InputError: masks asked of a data set without panoptic annotations.
        """
        if masks and any(record.panoptic is None for record in dataset.records):
            raise InputError(
                f"{dataset.name}: masks need panoptic annotations; these have none. Read the panoptic file instead."
            )
        self.dataset, self.masks = dataset, masks

    def __len__(self) -> int:
        return len(self.dataset.records)

    def __getitem__(self, index: int) -> Sample | BadSample:
        record, categories = self.dataset.records[index], self.dataset.categories
        try:
            image = read_picture(record.path, expected_size=record.size)
            segments = panoptic_segments(record, categories) if self.masks else self._without_masks(record)
        except PictureError as error:
            return BadSample(str(record.id), str(error))
        return Sample(str(record.id), image, segments.boxes, segments)

    def _without_masks(self, record: Record) -> Segments:
        things = [self.dataset.categories[label].is_thing for label in record.labels]
        return Segments(
            boxes=torch.tensor(record.boxes, dtype=torch.float32).reshape(-1, 4),
            masks=torch.zeros(len(record.boxes), 0, 0, dtype=torch.bool),
            labels=torch.tensor(record.labels, dtype=torch.int64),
            is_thing=torch.tensor(things, dtype=torch.bool),
        )


# ---------------------------------------------------------------------------------------------------------- the batches


def pack(items: Sequence[Sample | BadSample]) -> Batch:
    """Put the good samples of a step beside the bad ones, each in order; nothing is padded or replaced."""
    good = [item for item in items if isinstance(item, Sample)]
    return Batch(good, [item for item in items if isinstance(item, BadSample)])


@dataclass
class BatchLoader:
    """Iterates over batches, and stops where the pictures, or too many of them, cannot be used."""

    loader: DataLoader[Batch]
    strict: bool
    name: str

    def __iter__(self) -> Iterator[Batch]:
        seen, bad = 0, 0
        for batch in self.loader:
            if batch.bad and self.strict:
                first = batch.bad[0]
                raise InputError(f"picture {first.id}: {first.reason} (strict: the first bad picture ends the run)")
            seen, bad = seen + len(batch.samples) + len(batch.bad), bad + len(batch.bad)
            if bad > FEW_BAD and bad > BAD_SHARE * seen:
                raise InputError(
                    f"{self.name}: need pictures that can be read; {bad} of the first {seen} cannot. "
                    f"The last, {batch.bad[-1].id}: {batch.bad[-1].reason}"
                )
            yield batch

    def __len__(self) -> int:
        return len(self.loader)


def leave_signals_to_the_parent(worker: int) -> None:
    """Make a decoding process deaf to SIGTERM and SIGINT, which Ctrl-C and torchrun send to the whole process group.

    The training process must still get its pictures to finish its step, save and leave. Workers end when it does.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_loader(
    source: PictureSource | EvaluationSource,
    sampler: Iterable[list[Any]],
    *,
    workers: int,
    strict: bool = False,
) -> BatchLoader:
    """Feed batches, decoded by worker processes; the same bits whatever the number of workers.

    Args:
        source: what an index means.
        sampler: lists of the source's indices, one list a step: a `BatchSampler` or a `OnceSampler`.
        workers: processes that decode; 0 = this one.
        strict: raise InputError on the first picture that cannot be used. Otherwise it is in `Batch.bad`, and only more
            than half of the pictures seen (and more than 16) being bad is an error.

    Raises:
        InputError: workers below 0.
    """
    if workers < 0:
        raise InputError(f"workers: need 0 (decode in this process) or more; got {workers}.")
    loader: DataLoader[Any] = DataLoader(
        source,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=pack,
        worker_init_fn=leave_signals_to_the_parent,
        generator=torch.Generator().manual_seed(0),  # else it draws from torch's global stream, and resuming changes it
    )
    return BatchLoader(loader, strict, source.dataset.name)
