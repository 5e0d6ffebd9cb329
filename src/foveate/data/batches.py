"""The images of a data set in batches, read once and in order: what evaluation and prediction run over.

Deliberately absent: shuffling and augmentation, which belong to training (`loader.py`).
"""

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

    batch: int = 8  # images per batch; fewer where some cannot be read, and in the last
    crop_batch: int = 128  # crops per batch, where crops are embedded too
    limit: int | None = None  # only the first so many images; None: all
    workers: int = 0  # processes that decode; 0: this one
    strict: bool = False  # raise at the first image that cannot be read, instead of counting it
    progress: bool = False  # show a bar with rate and time left on stderr


LOADING = Loading()  # small batches, read by this process, without a bar


class Batches:
    """An iterator over batches of samples that counts the images read and collects those that could not be."""

    def __init__(self, dataset: Dataset, loading: Loading = LOADING, *, masks: bool = False) -> None:
        """Prepare to read.

        Args:
            dataset: the images, in the order in which they are read.
            loading: how.
            masks: whether samples carry their annotated segments.

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
        self.bad: list[BadSample] = []  # images that could not be read

    def __iter__(self) -> Iterator[list[Sample]]:
        with image_bar(show=self.progress) as bar:
            task = bar.add_task(f"images of {self.dataset.name}", total=len(self.dataset.records))
            for batch in self.loader:
                self.count += len(batch.samples)
                self.bad += batch.bad
                if batch.samples:
                    yield batch.samples
                bar.advance(task, len(batch.samples) + len(batch.bad))
        if self.count == 0:
            raise InputError(f"{self.dataset.name}: no image could be read{self._first_reasons()}")

    def samples(self) -> Iterator[Sample]:
        """All samples, one after the other."""
        for batch in self:
            yield from batch

    def _first_reasons(self) -> str:
        if not self.bad:
            return ": the data set is empty. Is this the right folder and split?"
        reasons = "; ".join(f"{sample.id}: {sample.reason}" for sample in self.bad[:3])
        return f" of {len(self.bad)}; the first: {reasons}"

    def bad_listed(self) -> list[dict[str, str]]:
        """The images that could not be read, as result files list them."""
        return [{"id": sample.id, "reason": sample.reason} for sample in self.bad]
