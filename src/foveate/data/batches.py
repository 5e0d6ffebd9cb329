"""The images of a data set in batches, once and in order: the input of evaluation and prediction."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from foveate.data.loader import EvaluationSource, OnceSampler, make_loader
from foveate.data.records import Dataset
from foveate.errors import InputError
from foveate.progress import image_bar
from foveate.types import BadSample, Sample


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How images are read and batched."""

    batch: int = 8  # images per batch; fewer if some are unreadable, and in the last
    crop_batch: int = 128  # crops per batch, where crops are embedded too
    limit: int | None = None  # read only the first so many images; None: all
    workers: int = 0  # processes that decode; 0: this one
    strict: bool = False  # raise at the first unreadable image instead of counting it
    progress: bool = False  # show a bar with rate and remaining time on stderr


LOADING = Loading()


class Batches:
    """An iterator over batches of samples that counts the images read and collects the unreadable ones."""

    def __init__(self, dataset: Dataset, loading: Loading = LOADING, *, masks: bool = False) -> None:
        """Create the loader.

        Args:
            masks: samples have their annotated segments with masks.

        Raises:
            InputError: a limit or a batch below 1.
        """
        if loading.limit is not None and loading.limit < 1:
            raise InputError(f"--limit: need at least 1 image; got {loading.limit}.")
        if loading.batch < 1:
            raise InputError(f"--batch: need at least 1 image; got {loading.batch}.")
        self.dataset = dataset if loading.limit is None else replace(dataset, records=dataset.records[: loading.limit])
        self.progress = loading.progress
        self.loader = make_loader(
            EvaluationSource(self.dataset, masks=masks),
            OnceSampler(len(self.dataset.records), batch=loading.batch),
            workers=loading.workers,
            strict=loading.strict,
        )
        self.count = 0  # images read so far
        self.bad: list[BadSample] = []  # unreadable images

    def __iter__(self) -> Iterator[list[Sample]]:
        with image_bar(show=self.progress) as bar:
            task = bar.add_task(f"images of {self.dataset.name}", total=len(self.dataset.records))
            for batch in self.loader:
                self.count += len(batch.samples)
                self.bad += batch.bad
                if batch.samples:
                    yield batch.samples
                bar.advance(task, len(batch.samples) + len(batch.bad))
        if self.count:
            return
        if not self.bad:
            raise InputError(
                f"{self.dataset.name}: no image could be read: the data set is empty. Check folder and split."
            )
        reasons = "; ".join(f"{sample.id}: {sample.reason}" for sample in self.bad[:3])
        raise InputError(f"{self.dataset.name}: no image could be read of {len(self.bad)}; the first: {reasons}")

    def samples(self) -> Iterator[Sample]:
        """All samples, one after the other."""
        for batch in self:
            yield from batch

    def bad_listed(self) -> list[dict[str, str]]:
        """The unreadable images, as result files list them."""
        return [{"id": sample.id, "reason": sample.reason} for sample in self.bad]
