"""mAcc and ranks against hand-made numbers and an independent loop."""

import math

import pytest
import torch

from foveate.evaluate.score import mean_accuracy, ranks_of, score


def test_mean_accuracy_by_hand():
    # class 0: right, wrong, wrong -> 1/3; class 2: right -> 1; class 1 has no region and does not count
    ranks, labels = torch.tensor([0, 3, 1, 0]), torch.tensor([0, 0, 0, 2])
    assert mean_accuracy(ranks, labels, top=1) == pytest.approx(100 * (1 / 3 + 1) / 2)
    assert mean_accuracy(ranks, labels, top=2) == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert mean_accuracy(ranks, labels, top=4) == 100


def test_mean_accuracy_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 9, generator=generator)
    labels = torch.randint(0, 9, (200,), generator=generator)
    labels[labels == 4] = 3  # a class that is absent
    for top in (1, 5):
        shares = []
        for label in sorted(set(labels.tolist())):
            own = [row for row, true in zip(scores.tolist(), labels.tolist(), strict=True) if true == label]
            right = sum(label in sorted(range(9), key=lambda k: -row[k])[:top] for row in own)
            shares.append(right / len(own))
        expected = 100 * sum(shares) / len(shares)
        assert mean_accuracy(ranks_of(scores, labels), labels, top=top) == pytest.approx(expected)


def test_ties_and_nan_count_against_the_region():
    scores = torch.tensor([[0.0, 0.0, 0.0], [math.nan, math.nan, math.nan], [0.5, 0.5, 0.1], [0.9, 0.5, math.nan]])
    # all equal, all NaN: last; equal to one other: second; a NaN rival counts as above
    assert ranks_of(scores, torch.tensor([0, 1, 1, 0])).tolist() == [2, 2, 1, 1]


def test_score_of_one_kind_of_region():
    assert score(torch.tensor([0, 3, 0]), torch.tensor([0, 0, 1]), among=6) == {"top1": 75.0, "top5": 100.0, "count": 3}
    nothing = torch.tensor([], dtype=torch.int64)
    assert score(nothing, nothing, among=6) == {"top1": None, "top5": None, "count": 0}


@pytest.mark.parametrize(("among", "found"), [(5, (75.0, None)), (1, (None, None))])
def test_accuracy_within_as_many_ranks_as_classes_is_none(among, found):
    scores = score(torch.tensor([0, 3, 0]), torch.tensor([0, 0, 1]), among=among)
    assert (scores["top1"], scores["top5"]) == found  # it would always be 100
