"""The batches that a process trains on, and those of its held-out loss."""

from collections.abc import Callable, Iterable

from foveate.data.listing import list_trained
from foveate.data.loader import (
    BatchLoader,
    BatchSampler,
    EvaluationSource,
    ImageSource,
    SemanticSource,
    epoch_order,
    make_loader,
)
from foveate.data.overlap import shared_images
from foveate.data.records import Dataset
from foveate.engine.distributed import Processes
from foveate.io.listing import Listing
from foveate.train.flags import ReaderFlags
from foveate.types import Batch

HELD_OUT_IMAGES = 64  # that the held-out loss is computed of, at most
Source = ImageSource | EvaluationSource | SemanticSource


def listings_of(source: Source, held_out: Source | None) -> dict[str, Listing]:
    """The images that a run trains on and those of its held-out loss, by the flags that name them."""
    sources = {"data": source, "validate": held_out}
    return {flag: list_trained(each.dataset.records) for flag, each in sources.items() if each is not None}


def training_batches(
    config: ReaderFlags, source: Source, processes: Processes
) -> Callable[[int, int], Iterable[Batch]]:
    """(images taken before, steps to come) -> the batches of these steps in this process."""

    def batches(start: int, steps: int) -> BatchLoader:
        sampler = BatchSampler(
            len(source),
            batch=config.batch,
            seed=config.seed,
            rank=processes.rank,
            world_size=processes.size,
            start=start,
            batches=steps * config.accumulate,
        )
        order = sampler if isinstance(source, ImageSource) else [[index for _, index in pairs] for pairs in sampler]
        pin = processes.device.type == "cuda"
        return make_loader(source, order, workers=config.workers, strict=config.strict, pin=pin)

    return batches


def count_images(batch: Batch) -> int:
    """The images that the loss of a batch is the mean over."""
    return len(batch.samples)


def held_out_batches(config: ReaderFlags, source: Source | None, processes: Processes) -> BatchLoader | None:
    """This process's part of the held-out images: the same ones, with the same regions, in every run.

    Each process gets the same number of batches; the last ones may be empty.
    """
    if source is None:
        return None
    chosen = _chosen(source)
    local = chosen[processes.rank :: processes.size]
    items = [(0, index) for index in local] if isinstance(source, ImageSource) else local
    longest = -(-len(chosen) // processes.size)  # images of a process
    batches = [items[first : first + config.batch] for first in range(0, longest, config.batch)]
    return make_loader(source, batches, workers=config.workers)


def held_out_lines(dataset: Dataset, source: Source | None) -> list[str]:
    """What is reported of the held-out data: ignored files, and training images in it."""
    if source is None:
        return []
    lines = [f"--validate: {line}" for line in source.dataset.ignored_lines()]
    chosen = [source.dataset.records[index] for index in _chosen(source)]
    shared = shared_images(dataset.records, chosen)
    if shared:
        held_out, trained = shared[0]
        lines.append(
            f"WARNING   --validate: {len(shared)} of the {len(chosen)} held-out images are training images: their loss "
            f"says nothing about other images; the first: {held_out.id} is {trained.id} of --data"
        )
    return lines


def _chosen(source: Source) -> list[int]:
    """The indices of the held-out images that the loss is computed of."""
    return epoch_order(len(source), seed=0, epoch=0)[:HELD_OUT_IMAGES]
