"""The best word of a class speaks for it."""

import pytest
import torch

from saccade.ops.synonyms import best_synonym
from saccade.types import InputError


def test_the_best_of_each_class():
    scores = torch.tensor([[0.1, 0.9, -3.0, -1.0, -2.0, 0.0], [5.0, 4.0, 7.0, 8.0, 9.0, 0.5]])
    # classes of 2, 3 and 1 words: max(0.1, 0.9), max(-3, -1, -2), 0; below zero too the best counts, not zero
    assert best_synonym(scores, [2, 3, 1]).tolist() == torch.tensor([[0.9, -1.0, 0.0], [5.0, 9.0, 0.5]]).tolist()
    assert best_synonym(scores[:0], [2, 3, 1]).shape == (0, 3)


def test_it_equals_a_loop_and_gives_gradients_to_the_best():
    scores = torch.randn(5, 9, generator=torch.Generator().manual_seed(0), requires_grad=True)
    counts, parts = [1, 4, 2, 2], scores.split([1, 4, 2, 2], dim=1)
    found = best_synonym(scores, counts)
    assert torch.equal(found, torch.stack([part.max(dim=1).values for part in parts], dim=1))
    found.sum().backward()
    assert scores.grad is not None and scores.grad.sum(dim=1).tolist() == [4.0] * 5


@pytest.mark.parametrize("counts", [[], [2, 0, 4], [2, 3]])
def test_other_counts_are_refused(counts):
    with pytest.raises(InputError, match="need at least 1 word a class, 6 in all"):
        best_synonym(torch.zeros(2, 6), counts)
