"""Ranks, mAcc and recall: how embeddings become the percentages of Fig. 2, 3 and Tab. 1 (Sec. 4.1); means in percent.

mAcc is accuracy per class, averaged over the classes present, so that a rare class counts as much as a common one.
Deliberately absent: AP, mIoU and PQ (`detection.py`, `semantic.py`, `panoptic.py`).
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor


def ranks_of(scores: Float[Tensor, "R K"], labels: Int64[Tensor, " R"]) -> Int64[Tensor, " R"]:
    """Count, for each region, the other classes that score at least as high as its own (0 = first).

    Ties count against the region, and so does NaN: a region that covers no token has a zero embedding, scores 0 with
    every class, and must not count as right because its class happens to be the first of the list.

    Args:
        labels: the true class of each region, in [0, K).

    Returns:
        Rank of the true class among the K, in [0, K - 1].
    """
    true = scores.gather(1, labels[:, None])  # (R, 1)
    return (~(scores < true)).sum(dim=1) - 1  # (R,)


def mean_accuracy(ranks: Int64[Tensor, " R"], labels: Int64[Tensor, " R"], *, top: int) -> float | None:
    """Average over the classes present the share of a class's regions ranked in the first `top` (mAcc).

    Args:
        ranks: of the true class, 0 = first.
        top: how many first ranks count as right.

    Returns:
        Percent in [0, 100], or None where there is no region at all.
    """
    if labels.numel() == 0:
        return None
    total = torch.bincount(labels)  # (K,)
    right = torch.bincount(labels, weights=(ranks < top).double(), minlength=total.numel())  # (K,)
    present = total > 0
    return 100 * (right[present] / total[present]).mean().item()


def score(ranks: Int64[Tensor, " R"], labels: Int64[Tensor, " R"]) -> dict[str, float | int | None]:
    """Sum up one kind of region: {"top1", "top5"} as mAcc in percent (None without regions) and "count"."""
    return {
        "top1": mean_accuracy(ranks, labels, top=1),
        "top5": mean_accuracy(ranks, labels, top=5),
        "count": labels.numel(),
    }


def recall(
    ranks: Int64[Tensor, " R"], weights: Int64[Tensor, " R"] | None = None, *, among: int
) -> dict[str, float | int | None]:
    """Sum up a retrieval: {"r1", "r5", "r10"} in percent of the queries, and "count".

    None without any query, and where there are no more answers than K: that would always be 100.

    Args:
        among: how many answers a query ranks.
        weights: how many queries each rank counts for; None: one.
    """
    weights = torch.ones_like(ranks) if weights is None else weights
    count = int(weights.sum())
    shares = {
        top: 100 * int(weights[ranks < top].sum()) / count if count and top < among else None for top in (1, 5, 10)
    }
    return {**{f"r{top}": share for top, share in shares.items()}, "count": count}


def percent(value: float) -> float | None:
    """A share in percent; None for NaN."""
    return None if np.isnan(value) else float(100 * value)


def mean_percent(values: np.ndarray) -> float | None:
    """The mean in percent over what is not NaN; None where all is."""
    values = values[~np.isnan(values)]
    return float(100 * values.mean()) if len(values) else None
