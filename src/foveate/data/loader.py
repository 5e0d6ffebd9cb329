"""Records -> batches: which image when, which regions of it, and workers that do nothing but decode.

The stream of images is a pure function of (seed, position): position p is image p mod N of epoch p // N's own
permutation, and from any start on, batch j of rank r takes the positions start + (j * world size + r) * batch and those
that follow it. So every epoch shows every image exactly once, a batch may hold the end of one epoch and the start of
the next, a run can go on at any position with another number of processes, and the images of a step do not depend on
how many share it. Regions are drawn from (seed, epoch, index) alone: the same bits whatever the number of workers.
Workers hand over uint8 images of their own size; crops, resizing and normalisation happen on the compute device.
Deliberately absent: augmentation (the method has none), padding to a common size, replacing bad images.
"""

import hashlib
import itertools
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int16, UInt8
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from foveate.data.captions import draw_caption
from foveate.data.images import ImageError
from foveate.data.instance_masks import decode_masks
from foveate.data.panoptic import panoptic_segments
from foveate.data.records import Dataset, Record, read_record
from foveate.data.regions import corner_box, note_boxless, sample_proposals
from foveate.data.semantic import SemanticData, read_image_and_labels
from foveate.errors import InputError
from foveate.ops.grid import grid_pairs, sample_grid
from foveate.types import BadSample, Batch, LabelMap, Sample, Segments

FEW_BAD = 16  # bad images that prove nothing yet about the data
BAD_SHARE = 0.5  # of the images seen; beyond it the data, not the images, is wrong


# ------------------------------------------------------------------------------------------------------------ the order


def derive_seed(*parts: int) -> int:
    """Mix whole numbers into one 63-bit seed, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_order(count: int, *, seed: int, epoch: int) -> list[int]:
    """Order the images of one epoch: a permutation of 0..count-1 that depends on (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return torch.randperm(count, generator=generator).tolist()


class BatchSampler:
    """Which (epoch, index) pairs each batch of one process holds; see the module's docstring for the rule."""

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
            count: images of the data set.
            batch: images a process and step.
            seed: of the run; the permutations depend on it and the epoch.
            rank: of this process, in 0..world_size-1.
            world_size: processes that share a step.
            start: images that all processes together took from the stream before, however many they were.
            batches: how many this process yields; None: go on for ever.

        Raises:
            InputError: no images, or a batch below 1.
        """
        if count < 1:
            raise InputError("data: need at least one image; the data set has none. Check the folder and the split.")
        if batch < 1:
            raise InputError(f"batch: need at least 1 image; got {batch}.")
        assert 0 <= rank < world_size and start >= 0, f"rank {rank} of {world_size}, start {start}"
        self.count, self.batch, self.seed = count, batch, seed
        self.rank, self.world_size = rank, world_size
        self.start, self.batches = start, batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        known, order = -1, []
        for number in itertools.count() if self.batches is None else range(self.batches):
            first = self.start + (number * self.world_size + self.rank) * self.batch
            pairs = []
            for position in range(first, first + self.batch):
                epoch, place = divmod(position, self.count)
                if epoch != known:
                    known, order = epoch, epoch_order(self.count, seed=self.seed, epoch=epoch)
                pairs.append((epoch, order[place]))
            yield pairs

    def __len__(self) -> int:
        """Batches to come; only where they end."""
        if self.batches is None:
            raise TypeError("a sampler without `batches` is endless")  # what list() expects of those
        return max(0, self.batches)


class OnceSampler:
    """Every image exactly once, in order: for evaluation."""

    def __init__(self, count: int, *, batch: int) -> None:
        """Take `batch` of `count` images at a time, fewer in the last batch."""
        if batch < 1:
            raise InputError(f"batch: need at least 1 image; got {batch}.")
        self.count, self.batch = count, batch

    def __iter__(self) -> Iterator[list[int]]:
        return (list(range(start, min(start + self.batch, self.count))) for start in range(0, self.count, self.batch))

    def __len__(self) -> int:
        return -(-self.count // self.batch)


# --------------------------------------------------------------------------------------------------------- the images


class ImageSource(TorchDataset[Sample | BadSample]):
    """(epoch, index) -> a decoded image with the regions to train on, or the reason why there is none (Sec. 3.2)."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        regions: Literal["grid", "boxes"] = "grid",
        seed: int = 0,
        limit: int = 6,
        rule: str = "published",
        keep: int = 20,
        captions: bool = False,
    ) -> None:
        """Remember what to draw.

        Args:
            dataset: the images.
            regions: "grid": one random grid's patches; "boxes": the annotation's boxes as proposals.
            seed: with epoch and index it fixes the regions.
            limit: M, the most rows and columns of a grid.
            rule: "published" or "all" grids; see `ops.grid.grid_pairs`.
            keep: at most so many regions an image.
            captions: draw one of each image's captions too, after its regions, which it does not change.

        Raises:
            InputError: unknown regions or rule, a number out of range, or boxes or captions asked of a data set without
                any.
        """
        if regions not in ("grid", "boxes"):
            raise InputError(f'regions: must be "grid" or "boxes"; got "{regions}".')
        if regions == "boxes" and not any(record.boxes for record in dataset.records):
            raise InputError(f'{dataset.name}: regions "boxes" need annotated boxes; it has none. Use regions "grid".')
        if captions and not dataset.captions:
            raise InputError(f"{dataset.name}: need captions; none were read. See foveate.data.captions.")
        if keep < 1:
            raise InputError(f"keep: need at least 1 region an image; got {keep}.")
        grid_pairs(limit, rule)  # refuses what it cannot draw, before any worker starts
        self.dataset = note_boxless(dataset) if regions == "boxes" else dataset
        self.regions, self.seed = regions, seed
        self.limit, self.rule, self.keep, self.captions = limit, rule, keep, captions

    def __len__(self) -> int:
        return len(self.dataset.records)

    def __getitem__(self, place: tuple[int, int]) -> Sample | BadSample:
        epoch, index = place
        record = self.dataset.records[index]
        try:
            image = read_record(record)
        except ImageError as error:
            return BadSample(str(record.id), str(error))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch, index))
        height, width = image.shape[1:]
        if self.regions == "boxes":
            boxes = sample_proposals(record, height=height, width=width, keep=self.keep, generator=generator)
            is_boxless = len(boxes) == 0
            boxes = corner_box(height=height, width=width) if is_boxless else boxes
        else:
            numbers = {"limit": self.limit, "rule": self.rule, "keep": self.keep}
            boxes, is_boxless = sample_grid(height=height, width=width, **numbers, generator=generator), False
        if not self.captions:
            return Sample(str(record.id), image, boxes, is_boxless=is_boxless)
        try:
            caption = draw_caption(self.dataset.captions[index], generator=generator)
        except InputError as error:  # a text in a shard is read only now
            return BadSample(str(record.id), str(error))
        return Sample(str(record.id), image, boxes, caption=caption, is_boxless=is_boxless)


class EvaluationSource(TorchDataset[Sample | BadSample]):
    """index -> a decoded image with its annotated segments, or the reason why there is none (Fig. 2 and 3)."""

    def __init__(self, dataset: Dataset, *, masks: bool = True) -> None:
        """Remember the data set.

        Args:
            dataset: from `read_panoptic`; without masks also from `read_instances`.
            masks: of the panoptic PNG, or of the records' masks. False: masks are (N, 0, 0) and nothing is decoded;
                stuff boxes are then the annotation's.

        Raises:
            InputError: masks asked of a data set without panoptic annotations or masks.
        """
        if masks and any(one.panoptic is None and len(one.masks) < len(one.boxes) for one in dataset.records):
            raise InputError(
                f"{dataset.name}: masks need panoptic annotations or objects with masks; these have none. Read the "
                "panoptic file instead, or the masks."
            )
        self.dataset, self.masks = dataset, masks

    def __len__(self) -> int:
        return len(self.dataset.records)

    def __getitem__(self, index: int) -> Sample | BadSample:
        record, categories = self.dataset.records[index], self.dataset.categories
        try:
            image = read_record(record)
            is_panoptic = self.masks and record.panoptic is not None
            segments = panoptic_segments(record, categories) if is_panoptic else self._objects(record)
        except ImageError as error:
            return BadSample(str(record.id), str(error))
        return Sample(str(record.id), image, segments.boxes, segments)

    def _objects(self, record: Record) -> Segments:
        things = [self.dataset.categories[label].is_thing for label in record.labels]
        masks = torch.zeros(len(record.boxes), 0, 0, dtype=torch.bool)
        if self.masks and record.size is not None:
            masks = decode_masks(record.masks, height=record.size[0], width=record.size[1])
        return Segments(
            boxes=torch.tensor(record.boxes, dtype=torch.float32).reshape(-1, 4),
            masks=masks,
            labels=torch.tensor(record.labels, dtype=torch.int64),
            is_thing=torch.tensor(things, dtype=torch.bool),
        )


class SemanticSource(TorchDataset[Sample | BadSample]):
    """A decoded image with the class of each pixel, for training and for evaluation."""

    def __init__(self, data: SemanticData) -> None:
        self.data, self.dataset = data, data.dataset

    def __len__(self) -> int:
        return len(self.dataset.records)

    def __getitem__(self, place: int | tuple[int, int]) -> Sample | BadSample:
        """Read the image of an index, or of an (epoch, index): the same in every epoch."""
        record = self.dataset.records[place if isinstance(place, int) else place[1]]
        try:
            image, label_map = read_image_and_labels(record, self.data)
        except ImageError as error:
            return BadSample(str(record.id), str(error))
        return Sample(str(record.id), image, torch.zeros(0, 4), label_map=label_map)


# ---------------------------------------------------------------------------------------------------------- the batches


@dataclass(frozen=True)
class PackedBatch:
    """A batch on its way from a worker: all images in one tensor and all boxes in another.

    A tensor that travels costs a shared file and an open descriptor each, of which a process may have 1,024: 8 workers
    with two batches of 32 would need more.
    """

    ids: list[str]
    shapes: list[tuple[int, int]]  # (height, width) [pixels]
    counts: list[int]  # boxes of each image
    images: UInt8[Tensor, " bytes"]
    boxes: Float[Tensor, "R 4"]
    segments: list[Segments | None]
    captions: list[str | None]
    classes: Int16[Tensor, " pixels"] | None  # of semantic data, image by image
    boxless: list[bool]
    bad: list[BadSample]

    def pin_memory(self) -> "PackedBatch":
        """The same batch with its images and boxes in page-locked memory; what a DataLoader calls."""
        return replace(self, images=self.images.pin_memory(), boxes=self.boxes.pin_memory())

    def unpack(self) -> Batch:
        """The batch; its images and boxes are views."""
        images = self.images.split([3 * height * width for height, width in self.shapes])
        boxes = self.boxes.split(self.counts)
        maps: list[LabelMap | None] = [None] * len(self.ids)
        if self.classes is not None:
            classes = self.classes.long().split([height * width for height, width in self.shapes])
            maps = [LabelMap(flat.view(shape)) for flat, shape in zip(classes, self.shapes, strict=True)]
        parts = zip(self.ids, self.shapes, images, boxes, self.segments, self.captions, maps, self.boxless, strict=True)
        samples = [Sample(key, flat.view(3, *shape), *rest) for key, shape, flat, *rest in parts]
        return Batch(samples, self.bad)


def pack(items: Sequence[Sample | BadSample]) -> PackedBatch:
    """Put the good samples of a step beside the bad ones, each in order; nothing is padded or replaced."""
    good = [item for item in items if isinstance(item, Sample)]
    maps = [sample.label_map.labels.short().flatten() for sample in good if sample.label_map is not None]
    assert len(maps) in (0, len(good)), f"{len(maps)} of {len(good)} samples with label maps"
    return PackedBatch(
        ids=[sample.id for sample in good],
        shapes=[(sample.image.shape[1], sample.image.shape[2]) for sample in good],
        counts=[len(sample.boxes) for sample in good],
        images=torch.cat([torch.empty(0, dtype=torch.uint8), *(sample.image.flatten() for sample in good)]),
        boxes=torch.cat([torch.empty(0, 4), *(sample.boxes for sample in good)]),
        segments=[sample.segments for sample in good],
        captions=[sample.caption for sample in good],
        classes=torch.cat(maps) if maps else None,
        boxless=[sample.is_boxless for sample in good],
        bad=[item for item in items if isinstance(item, BadSample)],
    )


@dataclass
class BatchLoader:
    """Iterates over batches, and stops where the images, or too many of them, cannot be used."""

    loader: DataLoader[PackedBatch]
    strict: bool
    name: str

    def __iter__(self) -> Iterator[Batch]:
        seen, bad = 0, 0
        for packed in self.loader:
            batch = packed.unpack()
            if batch.bad and self.strict:
                first = batch.bad[0]
                raise InputError(f"image {first.id}: {first.reason} (strict: the first bad image ends the run)")
            seen, bad = seen + len(batch.samples) + len(batch.bad), bad + len(batch.bad)
            if bad > FEW_BAD and bad > BAD_SHARE * seen:
                raise InputError(
                    f"{self.name}: need images that can be read; {bad} of the first {seen} cannot. "
                    f"The last, {batch.bad[-1].id}: {batch.bad[-1].reason}"
                )
            yield batch

    def __len__(self) -> int:
        return len(self.loader)


def leave_signals_to_the_parent(worker: int) -> None:
    """Make a decoding process deaf to SIGTERM and SIGINT, which Ctrl-C and torchrun send to the whole process group.

    The training process must still get its images to finish its step, save and leave. Workers end when it does.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_loader(
    source: ImageSource | EvaluationSource | SemanticSource,
    sampler: Iterable[list[Any]],
    *,
    workers: int,
    strict: bool = False,
    pin: bool = False,
) -> BatchLoader:
    """Feed batches, decoded by worker processes; the same bits whatever the number of workers.

    Args:
        source: what an index means.
        sampler: lists of the source's indices, one list a step: a `BatchSampler` or a `OnceSampler`.
        workers: processes that decode; 0 = this one.
        strict: raise InputError on the first image that cannot be used. Otherwise it is in `Batch.bad`, and only more
            than half of the images seen (and more than 16) being bad is an error.
        pin: hand the images over in page-locked memory, from which a GPU copies while it computes.

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
        pin_memory=pin,
        generator=torch.Generator().manual_seed(0),  # else it draws from torch's global stream, and resuming changes it
    )
    return BatchLoader(loader, strict, source.dataset.name)
