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
from foveate.engine.distributed import Processes
from foveate.io.listing import Listing
from foveate.train.flags import ReaderFlags
from foveate.types import Batch

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


def held_out_batches(
    config: ReaderFlags, source: Source | None, processes: Processes, *, count: int = 64
) -> BatchLoader | None:
    """This process's part of `count` held-out images: the same ones, with the same regions, in every run.

    Each process gets the same number of batches; the last ones may be empty.
    """
    if source is None:
        return None
    chosen = epoch_order(len(source), seed=0, epoch=0)[:count]
    local = chosen[processes.rank :: processes.size]
    items = [(0, index) for index in local] if isinstance(source, ImageSource) else local
    longest = -(-len(chosen) // processes.size)  # images of a process
    batches = [items[first : first + config.batch] for first in range(0, longest, config.batch)]
    return make_loader(source, batches, workers=config.workers)
