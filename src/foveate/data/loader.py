"""Records -> batches: the order of the images, their regions, and the worker processes that decode them.

The stream of images is a pure function of (seed, position): position p is image p mod N of the permutation of epoch
p // N, and from any start on, batch j of rank r takes the positions start + (j * world size + r) * batch + 0, 1, ...
So every epoch has every image exactly once, a batch may span two epochs, a run can be resumed at any position with
another number of processes, and the images of a step do not depend on the number of processes. Regions depend on
(seed, epoch, index) only, not on the number of workers. Workers return uint8 images of their original sizes; crops,
resizing and normalisation happen on the compute device. There is no augmentation, and unreadable images are not
replaced.
"""

import hashlib
import itertools
import multiprocessing
import re
import shutil
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from traceback import clear_frames
from types import FrameType
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
from foveate.errors import ExhaustedError, InputError, ran_out_of_memory
from foveate.io.memory import free_memory
from foveate.ops.grid import grid_pairs, sample_grid
from foveate.types import BadSample, Batch, LabelMap, Sample, Segments

MAX_UNREADABLE = 16  # images; up to so many never end a run
MAX_UNREADABLE_FRACTION = 0.5  # of the images read so far; above it the run ends


# ------------------------------------------------------------------------------------------------------------ the order


def derive_seed(*parts: int) -> int:
    """Hash integers to one 63-bit seed, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_order(count: int, *, seed: int, epoch: int) -> list[int]:
    """The order of an epoch's images: a permutation of 0..count-1 that depends on (seed, epoch) only."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return torch.randperm(count, generator=generator).tolist()


class BatchSampler:
    """The (epoch, index) pairs of each batch of one process; the module's docstring states the rule."""

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
        """Store the arguments.

        Args:
            count: number of images of the data set.
            batch: images per process and step.
            seed: of the run.
            rank: of this process, in 0..world_size-1.
            world_size: number of processes.
            start: position in the stream: images taken before by all processes together.
            batches: number of batches of this process; None: infinite.

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
        order_epoch, order = -1, []  # the permutation of one epoch is in memory at a time
        for step in itertools.count() if self.batches is None else range(self.batches):
            first = self.start + (step * self.world_size + self.rank) * self.batch
            pairs = []
            for position in range(first, first + self.batch):
                epoch, offset = divmod(position, self.count)
                if epoch != order_epoch:
                    order_epoch, order = epoch, epoch_order(self.count, seed=self.seed, epoch=epoch)
                pairs.append((epoch, order[offset]))
            yield pairs

    def __len__(self) -> int:
        """Number of batches; TypeError if infinite, as list() expects."""
        if self.batches is None:
            raise TypeError("a sampler without `batches` is infinite")
        return max(0, self.batches)


class OnceSampler:
    """Every image exactly once, in order, for evaluation; the last batch may be smaller."""

    def __init__(self, count: int, *, batch: int) -> None:
        if batch < 1:
            raise InputError(f"batch: need at least 1 image; got {batch}.")
        self.count, self.batch = count, batch

    def __iter__(self) -> Iterator[list[int]]:
        return (list(range(start, min(start + self.batch, self.count))) for start in range(0, self.count, self.batch))

    def __len__(self) -> int:
        return -(-self.count // self.batch)


# --------------------------------------------------------------------------------------------------------- the images


class ImageSource(TorchDataset[Sample | BadSample]):
    """(epoch, index) -> a decoded image with the regions to train on, or why it is unreadable (Sec. 3.2)."""

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
        """Check the arguments, before any worker starts.

        Args:
            regions: "grid": the patches of one random grid; "boxes": the annotated boxes.
            seed: the regions depend on it, the epoch and the index.
            limit: M, maximum number of rows and columns of a grid.
            rule: "published" or "all" grids; see `ops.grid.grid_pairs`.
            keep: maximum number of regions per image.
            captions: also draw one caption per image, after its regions, which do not change.

        Raises:
            InputError: unknown regions or rule, a number out of range, or a data set without boxes or captions.
        """
        if regions not in ("grid", "boxes"):
            raise InputError(f'regions: must be "grid" or "boxes"; got "{regions}".')
        if regions == "boxes" and not any(record.boxes for record in dataset.records):
            raise InputError(
                f'{dataset.name}: regions "boxes" need annotated boxes; the data has none. Use regions "grid".'
                f"{dataset.ignored_sentence()}"
            )
        if captions and not dataset.captions:
            raise InputError(f"{dataset.name}: need captions; none were read. Read them with foveate.data.captions.")
        if keep < 1:
            raise InputError(f"keep: need at least 1 region per image; got {keep}.")
        grid_pairs(limit, rule)  # raises InputError
        self.dataset = note_boxless(dataset) if regions == "boxes" else dataset
        self.regions, self.seed = regions, seed
        self.limit, self.rule, self.keep, self.captions = limit, rule, keep, captions

    def __len__(self) -> int:
        return len(self.dataset.records)

    def __getitem__(self, key: tuple[int, int]) -> Sample | BadSample:
        epoch, index = key
        record, remarks = self.dataset.records[index], list[str]()
        try:
            image = read_record(record, remarks=remarks)
        except ImageError as error:
            return BadSample(str(record.id), str(error))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch, index))
        height, width = image.shape[1:]
        if self.regions == "boxes":
            boxes = sample_proposals(record, height=height, width=width, keep=self.keep, generator=generator)
            is_boxless = len(boxes) == 0
            boxes = corner_box(height=height, width=width) if is_boxless else boxes
        else:
            grid = {"limit": self.limit, "rule": self.rule, "keep": self.keep}
            boxes, is_boxless = sample_grid(height=height, width=width, **grid, generator=generator), False
        try:  # the text of a shard is read only now
            captions = self.dataset.captions[index] if self.captions else None
            caption = None if captions is None else draw_caption(captions, generator=generator)
        except InputError as error:
            return BadSample(str(record.id), str(error))
        remark = "; ".join(remarks)
        return Sample(str(record.id), image, boxes, caption=caption, is_boxless=is_boxless, remark=remark)


class EvaluationSource(TorchDataset[Sample | BadSample]):
    """index -> a decoded image with its annotated segments, or why it is unreadable (Fig. 2 and 3)."""

    def __init__(self, dataset: Dataset, *, masks: bool = True) -> None:
        """Check the data set.

        Args:
            masks: decode the panoptic PNGs or the objects' masks. False: masks are (N, 0, 0), and boxes of stuff are
                the annotated ones.

        Raises:
            InputError: masks are requested but the data has neither panoptic annotations nor masks of objects.
        """
        records = dataset.records
        if masks and any(record.panoptic is None and len(record.masks) < len(record.boxes) for record in records):
            raise InputError(
                f"{dataset.name}: masks need panoptic annotations or objects with masks; these have none. Read the "
                "panoptic file, or an instances file with its masks."
            )
        self.dataset, self.masks = dataset, masks

    def __len__(self) -> int:
        return len(self.dataset.records)

    def __getitem__(self, index: int) -> Sample | BadSample:
        record, categories, remarks = self.dataset.records[index], self.dataset.categories, list[str]()
        try:
            image = read_record(record, remarks=remarks)
            is_panoptic = self.masks and record.panoptic is not None
            segments = panoptic_segments(record, categories) if is_panoptic else self._objects(record)
        except ImageError as error:
            return BadSample(str(record.id), str(error))
        return Sample(str(record.id), image, segments.boxes, segments, remark="; ".join(remarks))

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
    """index, or (epoch, index) -> a decoded image with its label map, or why it is unreadable."""

    def __init__(self, data: SemanticData) -> None:
        self.data, self.dataset = data, data.dataset

    def __len__(self) -> int:
        return len(self.dataset.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample | BadSample:
        record, remarks = self.dataset.records[key if isinstance(key, int) else key[1]], list[str]()
        try:
            image, label_map = read_image_and_labels(record, self.data, remarks=remarks)
        except ImageError as error:
            return BadSample(str(record.id), str(error))
        return Sample(str(record.id), image, torch.zeros(0, 4), label_map=label_map, remark="; ".join(remarks))


# ---------------------------------------------------------------------------------------------------------- the batches


@dataclass(frozen=True)
class PackedBatch:
    """A batch as a worker sends it: all images in one tensor and all boxes in another.

    Each tensor sent takes a shared file and an open descriptor, of which a process may have 1,024: 8 workers with two
    batches of 32 would need more.
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
    remarks: list[str]
    bad: list[BadSample]

    def pin_memory(self) -> "PackedBatch":
        """The batch with images and boxes in page-locked memory; DataLoader calls it."""
        return replace(self, images=self.images.pin_memory(), boxes=self.boxes.pin_memory())

    def unpack(self) -> Batch:
        """The samples; their images and boxes are views."""
        images = self.images.split([3 * height * width for height, width in self.shapes])
        boxes = self.boxes.split(self.counts)
        maps: list[LabelMap | None] = [None] * len(self.ids)
        if self.classes is not None:
            classes = self.classes.long().split([height * width for height, width in self.shapes])
            maps = [LabelMap(flat.view(shape)) for flat, shape in zip(classes, self.shapes, strict=True)]
        rest = (self.segments, self.captions, maps, self.boxless, self.remarks)
        parts = zip(self.ids, self.shapes, images, boxes, *rest, strict=True)
        samples = [Sample(key, flat.view(3, *shape), *rest) for key, shape, flat, *rest in parts]
        return Batch(samples, self.bad)


def pack(items: Sequence[Sample | BadSample]) -> PackedBatch:
    """Concatenate the samples of a step, without padding; unreadable images are listed separately."""
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
        remarks=[sample.remark for sample in good],
        bad=[item for item in items if isinstance(item, BadSample)],
    )


@dataclass
class BatchLoader:
    """Iterates over batches; raises InputError at too many unreadable images, or at the first if strict."""

    loader: DataLoader[PackedBatch]
    strict: bool
    name: str
    remarks: dict[str, str]  # the data set's, which the images that are read add to

    def __iter__(self) -> Iterator[Batch]:
        count, unreadable = 0, 0
        for batch in self.all():
            self.remarks.update({sample.id: sample.remark for sample in batch.samples if sample.remark})
            if batch.bad and self.strict:
                first = batch.bad[0]
                raise InputError(f"image {first.id}: {first.reason} (strict: the first unreadable image ends the run)")
            count += len(batch.samples) + len(batch.bad)
            unreadable += len(batch.bad)
            if unreadable > MAX_UNREADABLE and unreadable > MAX_UNREADABLE_FRACTION * count:
                raise InputError(
                    f"{self.name}: need readable images; {unreadable} of the first {count} are unreadable. "
                    f"The last, {batch.bad[-1].id}: {batch.bad[-1].reason}"
                )
            yield batch

    def all(self) -> Iterator[Batch]:
        """The batches without a limit on unreadable images.

        Raises:
            ExhaustedError: a worker died, or memory ran out while images were decoded.
        """
        others, free = {*multiprocessing.active_children()}, free_memory()
        stream = iter(self.loader)  # starts the workers
        workers = sorted({*multiprocessing.active_children()} - others, key=lambda worker: worker.pid or 0)
        # they ignore SIGTERM, so one that is left when this process exits would be waited for without end
        weakref.finalize(stream, _kill, workers)
        while True:
            reason = packed = None
            try:
                with _awaiting(workers):
                    packed = next(stream, None)
            except (MemoryError, RuntimeError, OSError, EOFError) as error:
                reason = _why_lost(error, workers)
                if reason is None:
                    raise
                clear_frames(error.__traceback__)
            if reason is not None:  # outside of `except`: nothing holds the stream now, and its workers end
                del stream
                known = f"; {free / 1e9:.1f} GB of memory were available at the batch before"
                raise ExhaustedError(f"{self.name}: {reason}{known}")
            if packed is None:
                return
            free = free_memory()
            yield packed.unpack()

    def __len__(self) -> int:
        return len(self.loader)


# ---------------------------------------------------------------------------------------------------------- the workers


class _HeldBack:
    """Torch's handler of SIGCHLD, called only while a batch is awaited.

    It raises an error where a worker has died. Anywhere else that would be half-way through an optimizer's step or a
    checkpoint.
    """

    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self.handler, self.is_awaiting = handler, False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.is_awaiting:
            self.handler(number, frame)


@contextmanager
def _awaiting(workers: Sequence[BaseProcess]) -> Iterator[None]:
    """Raise an error in this block where a worker dies, or died since the last one."""
    handler = signal.getsignal(signal.SIGCHLD)
    is_main = threading.current_thread() is threading.main_thread()
    if not workers or not is_main or not callable(handler):  # torch has set no handler
        yield
        return
    if not isinstance(handler, _HeldBack):
        handler = _HeldBack(handler)
        signal.signal(signal.SIGCHLD, handler)
    handler.is_awaiting = True
    try:
        handler(signal.SIGCHLD, None)
        yield
    finally:
        handler.is_awaiting = False


def _kill(workers: Sequence[BaseProcess]) -> None:
    """End the workers that have not ended yet."""
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def _why_lost(error: BaseException, workers: Sequence[BaseProcess]) -> str | None:
    """Which process decodes no more, and why; None: the error has another reason."""
    if isinstance(error, EOFError | ConnectionError):  # while it sent a batch; its end is known a little later
        ended = connection.wait([worker.sentinel for worker in workers], timeout=5)
        for worker in workers:
            worker.join(5 if worker.sentinel in ended else 0)
    one = f"one of the {len(workers)} worker processes that decode images"
    for worker in workers:
        if worker.exitcode is not None:
            return f"{one} (pid {worker.pid}) {_how_ended(worker.exitcode)}"
    if not ran_out_of_memory(error):
        return None
    number = re.search(r"DataLoader worker process (\d+)", str(error))
    if number is None:
        return "memory ran out in this process, which decodes images"
    pid = f" (pid {workers[int(number[1])].pid})" if int(number[1]) < len(workers) else ""
    return f"memory ran out in {one}{pid}"


def _how_ended(exitcode: int) -> str:
    """How a process ended that should not have, and what is known of the reason."""
    match -exitcode:
        case signal.SIGKILL:
            return "was killed by SIGKILL, as the system does where memory runs out"
        case signal.SIGBUS if Path("/dev/shm").is_dir():
            free = shutil.disk_usage("/dev/shm").free
            return f"was killed by SIGBUS, as where /dev/shm is full ({free / 1e9:.1f} GB are free now)"
        case number if number > 0:
            return f"was killed by {signal.Signals(number).name}, a crash of a library that it uses"
        case _:
            return f"ended by itself with status {exitcode}"


def ignore_signals(worker: int) -> None:
    """Make a worker ignore SIGTERM and SIGINT, which Ctrl-C and torchrun send to the whole process group.

    The training process still needs its images to finish the step and save. Workers end when it ends.
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
    """Make a loader of batches; the number of workers does not change their bits.

    Args:
        sampler: the source's indices, one list per step: a `BatchSampler` or a `OnceSampler`.
        workers: processes that decode; 0: this one.
        strict: raise InputError at the first unreadable image. Otherwise it is in `Batch.bad`, and it is an error only
            if more than half of the images read (and more than 16) are unreadable.
        pin: put images into page-locked memory, from which a GPU copies while it computes.

    Raises:
        InputError: workers below 0.
    """
    if workers < 0:
        raise InputError(f"workers: need 0 (decode in this process) or more; got {workers}.")
    # a generator of its own: without it the loader draws from torch's global one, and resuming would change that
    loader: DataLoader[Any] = DataLoader(
        source,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=pack,
        worker_init_fn=ignore_signals,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(0),
    )
    return BatchLoader(loader, strict, source.dataset.name, source.dataset.remarks)
