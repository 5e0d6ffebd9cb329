"""Ranks, mAcc and recall: how embeddings become the percentages of Fig. 2, 3 and Tab. 1 (Sec. 4.1); means in percent.

mAcc is accuracy per class, averaged over the classes present, so that a rare class counts as much as a common one.
"""

from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from foveate.data.records import Dataset, Record
from foveate.errors import InputError

Prediction = TypeVar("Prediction")
MAX_LISTED = 5  # ids that a result lists


def ranks_of(scores: Float[Tensor, "R K"], labels: Int64[Tensor, " R"]) -> Int64[Tensor, " R"]:
    """Rank of each region's true class (its label) among the K, in [0, K - 1]; 0 is the best.

    Ties count against the region, and so does NaN: a region that covers no token has a zero embedding, scores 0 with
    every class, and must not count as right because its class happens to be the first of the list.
    """
    true = scores.gather(1, labels[:, None])  # (R, 1)
    return (~(scores < true)).sum(dim=1) - 1  # (R,)


def mean_accuracy(ranks: Int64[Tensor, " R"], labels: Int64[Tensor, " R"], *, top: int) -> float | None:
    """Accuracy within the first `top` ranks, averaged over the classes present (mAcc), in percent; None: no region."""
    if labels.numel() == 0:
        return None
    total = torch.bincount(labels)  # (K,)
    right = torch.bincount(labels, weights=(ranks < top).double(), minlength=total.numel())  # (K,)
    present = total > 0
    return 100 * (right[present] / total[present]).mean().item()


def score(ranks: Int64[Tensor, " R"], labels: Int64[Tensor, " R"], *, among: int) -> dict[str, float | int | None]:
    """{"top1", "top5": mAcc in percent, None without regions; "count"} of one kind of region.

    Args:
        among: how many classes compete; the accuracy within K ranks of no more than K is None, since it is always 100.
    """
    return {
        "top1": mean_accuracy(ranks, labels, top=1) if among > 1 else None,
        "top5": mean_accuracy(ranks, labels, top=5) if among > 5 else None,
        "count": labels.numel(),
    }


def recall(
    ranks: Int64[Tensor, " R"], weights: Int64[Tensor, " R"] | None = None, *, among: int
) -> dict[str, float | int | None]:
    """{"r1", "r5", "r10": R@K in percent of the queries; "count": queries} of a retrieval.

    R@K is None without a query, and where there are no more than K answers: that would always be 100.

    Args:
        among: how many answers a query ranks.
        weights: how many queries each rank counts for; None: 1.
    """
    weights = torch.ones_like(ranks) if weights is None else weights
    count = int(weights.sum())
    recalls = {
        f"r{top}": 100 * int(weights[ranks < top].sum()) / count if count and top < among else None
        for top in (1, 5, 10)
    }
    return {**recalls, "count": count}


def percent(value: float) -> float | None:
    """A fraction in percent; None for NaN."""
    return None if np.isnan(value) else float(100 * value)


def mean_percent(values: np.ndarray) -> float | None:
    """The mean in percent over what is not NaN; None where all is."""
    values = values[~np.isnan(values)]
    return float(100 * values.mean()) if len(values) else None


def with_records(
    predictions: Iterable[tuple[str, Prediction]], dataset: Dataset
) -> Iterator[tuple[Record, Prediction | None]]:
    """Each prediction with the record of its image (by id), then the records without a prediction.

    Raises:
        InputError: an unknown image, or one twice.
    """
    missing = {str(record.id): record for record in dataset.records}
    for key, prediction in predictions:
        record = missing.pop(key, None)
        if record is None:
            raise InputError(f"image {key}: need predictions of each image of {dataset.name} once; it is not among "
                             "them, or came twice.")  # fmt: skip
        yield record, prediction
    for record in missing.values():
        yield record, None


def list_missing(ids: Collection[str]) -> dict[str, int | list[str]]:
    """Images without a result, as result files list them."""
    return {"count": len(ids), "first": list(islice(ids, MAX_LISTED))}
