"""The network's one pass over a data set: a detector's candidates on the disk, for every fusion and vocabulary after.

Deliberately absent: fusing and measuring (`sweep.py`), and several processes.
"""

from dataclasses import replace
from pathlib import Path

from foveate.data.records import Dataset
from foveate.evaluate.feed import Feed
from foveate.heads.fvit.candidates import CandidateStore, CandidateWriter
from foveate.heads.fvit.detector import FViT
from foveate.types import BadSample


def find_candidates(
    detector: FViT,
    dataset: Dataset,
    folder: Path,
    *,
    made_by: dict[str, str],
    batch: int,
    workers: int,
    strict: bool,
    progress: bool,
) -> CandidateStore:
    """Let a detector look at every picture, or go on where an earlier command was stopped.

    Args:
        detector: in evaluation mode.
        dataset: the pictures; annotations are not looked at.
        folder: of the store.
        made_by: what the candidates depend on.
        batch: pictures a batch.
        workers: processes that decode; 0: this one.
        strict: raise at the first bad picture instead of counting it.
        progress: show a bar with rate and time left.

    Returns:
        The finished store.

    Raises:
        InputError: the folder holds the candidates of another detector or of other pictures, or no picture is good.
    """
    writer = CandidateWriter(folder, ids=[str(one.id) for one in dataset.records], made_by=made_by)
    rest = tuple(replace(one, boxes=(), labels=(), crowd=()) for one in dataset.records[writer.done :])
    if rest:
        numbers = {"batch": batch, "limit": None, "workers": workers, "strict": strict, "progress": progress}
        feed = Feed(replace(dataset, records=rest), masks=False, **numbers)
        known = 0  # of the bad ones
        order = {str(one.id): place for place, one in enumerate(rest)}
        for samples in feed:
            found = [*detector.candidates(samples), *feed.bad[known:]]
            known = len(feed.bad)
            for one in sorted(found, key=lambda item: order[item.id]):
                if isinstance(one, BadSample):
                    writer.add_bad(one)
                else:
                    writer.add(one)
        for one in feed.bad[known:]:
            writer.add_bad(one)
    writer.close()
    return CandidateStore(folder)
