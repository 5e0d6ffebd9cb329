"""The contrastive loss against loops over its definition."""

import math

import torch
import torch.nn.functional as F

from saccade.objectives.image_text import clamp_scale, contrastive_loss


def slow_loss(images: list[list[float]], texts: list[list[float]], captions: list[int], scale: float) -> float:
    """Mean of -log softmax over the positives, for pictures against captions and for captions against pictures."""
    count = len(images)
    logits = [[scale * sum(a * b for a, b in zip(i, t, strict=True)) for t in texts] for i in images]
    total = 0.0
    for i in range(count):
        positives = [j for j in range(count) if captions[j] == captions[i]]
        row = math.log(sum(math.exp(x) for x in logits[i]))
        column = math.log(sum(math.exp(logits[j][i]) for j in range(count)))
        total += sum(row - logits[i][j] for j in positives) / len(positives)
        total += sum(column - logits[j][i] for j in positives) / len(positives)
    return total / (2 * count)


def test_it_is_its_definition_with_equal_captions_as_positives() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(6, 4, generator=generator), dim=1)
    texts = F.normalize(torch.randn(6, 4, generator=generator), dim=1)
    captions = torch.tensor([0, 1, 0, 2, 3, 0])
    loss = contrastive_loss(images, texts, captions, scale=torch.tensor(5.0))
    assert abs(loss.item() - slow_loss(images.tolist(), texts.tolist(), captions.tolist(), 5.0)) < 1e-5


def test_all_captions_different_is_clips_own_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    images = F.normalize(torch.randn(5, 8, generator=generator), dim=1)
    texts = F.normalize(torch.randn(5, 8, generator=generator), dim=1)
    logits = 3.0 * images @ texts.T
    both = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, torch.arange(5), scale=torch.tensor(3.0)), both)


def test_the_scale_stays_within_clips_bounds() -> None:
    scale = torch.nn.Parameter(torch.tensor(7.0))
    clamp_scale(scale)
    assert abs(scale.exp().item() - 100) < 0.01
    scale.data.fill_(-1.0)
    clamp_scale(scale)
    assert scale.item() == 0
