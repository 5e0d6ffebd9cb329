"""Cosine k-means on directions with known clusters."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from foveate.errors import InputError
from foveate.ops.kmeans import cosine_kmeans


def bundles(sizes: list[int], spread: float = 0.05) -> torch.Tensor:
    """Tokens scattered about the axes, `sizes[i]` of them about axis i, of very different lengths."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(8)
    tokens = torch.cat([centres[i] + spread * torch.randn(n, 8, generator=generator) for i, n in enumerate(sizes)])
    return tokens * torch.rand(tokens.shape[0], 1, generator=generator).add(0.01) * 100


def group(tokens, clusters, seed=0, **settings):
    return cosine_kmeans(tokens, clusters=clusters, generator=torch.Generator().manual_seed(seed), **settings)


def test_separate_clusters_are_found_and_numbered_by_size():
    labels = group(bundles([20, 50, 30]), 3)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [2] * 20 + [0] * 50 + [1] * 30


def test_clusters_do_not_depend_on_the_order_of_tokens():
    tokens = bundles([20, 50, 30])
    order = torch.randperm(100, generator=torch.Generator().manual_seed(4))
    assert torch.equal(group(tokens[order], 3, seed=5), group(tokens, 3)[order])


def test_small_clusters_are_dissolved_into_the_nearest():
    tokens = bundles([60, 60])
    lone = F.normalize(torch.tensor([[0.8, 0.6, 0, 0, 0, 0, 0, 0]]), dim=1)  # nearer to axis 0, yet apart from both
    labels = group(torch.cat([tokens, lone]), 3, smallest=0.02)  # 1 of 121 is below 2 %
    assert labels.max() == 1 and labels[-1] == labels[0] != labels[-2]
    kept = group(torch.cat([tokens, lone]), 3, smallest=0.0)
    assert kept.max() == 2 and (kept == 2).sum() == 1


def test_identical_tokens_form_one_cluster():
    assert group(torch.ones(30, 4), 5).unique().tolist() == [0]


def test_the_largest_cluster_remains_if_all_are_too_small():
    labels = group(torch.eye(8), 8, smallest=0.5)
    assert labels.shape == (8,) and 0 <= labels.min() <= labels.max() <= 7


def test_another_iteration_does_not_lower_the_mean_similarity():
    tokens = torch.randn(300, 6, generator=torch.Generator().manual_seed(2))

    def agreement(iterations):
        labels = group(tokens, 5, iterations=iterations, smallest=0.0)
        unit = F.normalize(tokens, dim=1)
        means = torch.stack([F.normalize(unit[labels == k].mean(dim=0), dim=0) for k in range(int(labels.max()) + 1)])
        return float((unit * means[labels]).sum(dim=1).mean())

    scores = [agreement(n) for n in (0, 1, 2, 5, 20, 50)]
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(scores))
    assert scores[-1] > scores[0] + 0.01


def test_the_generator_determines_the_clusters():
    tokens = torch.randn(200, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(group(tokens, 6, seed=3), group(tokens, 6, seed=3))


def test_invalid_clusters_and_tokens_are_refused():
    with pytest.raises(InputError, match="need 1 to 4"):
        group(torch.randn(4, 3), 5)
    with pytest.raises(InputError, match="got 0"):
        group(torch.randn(4, 3), 0)
    with pytest.raises(InputError, match="NaN"):
        group(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), 1)
