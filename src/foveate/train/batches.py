"""Which images a process of a run trains on, step by step, and on which its held-out loss is measured."""

from collections.abc import Callable, Iterable

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
from foveate.train.flags import ReaderFlags
from foveate.types import Batch

Source = ImageSource | EvaluationSource | SemanticSource


def training_batches(
    config: ReaderFlags, source: Source, processes: Processes
) -> Callable[[int, int], Iterable[Batch]]:
    """How to get the batches of this process.

    Args:
        config: batch, accumulate, seed, workers, strict.
        source: of the images.
        processes: of the run.

    Returns:
        (images of the stream that were taken before, steps to come) -> the batches of these steps.
    """

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
    """How many images the loss of a batch is the mean over."""
    return len(batch.samples)


def held_out_batches(
    config: ReaderFlags, source: Source | None, processes: Processes, *, count: int = 64
) -> BatchLoader | None:
    """This process's share of the held-out images: the same ones, with the same regions, in every run.

    Args:
        config: batch, workers.
        source: of the held-out images; None: there are none.
        processes: of the run; each gets as many batches, the last ones perhaps empty.
        count: images, over all processes.
    """
    if source is None:
        return None
    chosen = epoch_order(len(source), seed=0, epoch=0)[:count]
    mine = chosen[processes.rank :: processes.size]
    places = [(0, index) for index in mine] if isinstance(source, ImageSource) else mine
    longest = -(-len(chosen) // processes.size)
    batches = [places[first : first + config.batch] for first in range(0, longest, config.batch)]
    return make_loader(source, batches, workers=config.workers)
