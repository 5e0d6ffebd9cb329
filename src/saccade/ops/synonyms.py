"""Scores of words -> scores of classes: the best word of a class speaks for it (open-vocabulary segmentation, Tab. 5).

Deliberately absent: the mean over synonyms' embeddings, which is taken before there are scores.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saccade.types import InputError


def best_synonym(scores: Float[Tensor, "N S"], counts: Sequence[int]) -> Float[Tensor, "N K"]:
    """Take the highest score among the words of each class.

    Args:
        scores: of every word, class by class.
        counts: how many words each class has, at least 1; they add up to S.

    Raises:
        InputError: a class without a word, or another number of words.
    """
    if not counts or min(counts) < 1 or sum(counts) != scores.shape[1]:
        raise InputError(f"counts: need at least 1 word a class, {scores.shape[1]} in all; got {list(counts)[:20]}.")
    best = scores.new_empty(len(scores), len(counts))
    places = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(scores.device)  # (S,)
    return best.scatter_reduce(1, places.expand_as(scores), scores, "amax", include_self=False)
