"""Region-text supervision against a slow loop; the drawn classes; what is trained."""

import math
from copy import deepcopy

import open_clip
import pytest
import torch
import torch.nn.functional as F

from foveate.clip.model import Clip
from foveate.errors import InputError
from foveate.objectives.clipself import ClipSelf, train_layers
from foveate.objectives.region_text import RegionText, draw_classes, pseudo_labels, region_text_loss
from foveate.types import Batch, Sample


def rows(count: int, size: int, *, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_pseudo_labels_by_hand():
    nouns = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    crops = torch.tensor([[0.6, 0.8], [0.8, 0.6], [-0.8, 0.6], [0.0, -1.0]])
    # cosines: .6 .8 -.6 | .8 .6 -.8 | -.8 .6 .8 | 0 -1 0, where the first of equals counts
    assert pseudo_labels(crops, nouns).tolist() == [1, 0, 2, 0]


def slow_loss(regions: list, nouns: list, labels: list[int], columns: list[int], scale: float) -> float:
    """-log sigmoid(x) where a column is the region's class, -log(1 - sigmoid(x)) elsewhere; summed, then averaged."""
    total = 0.0
    for region, label in zip(regions, labels, strict=True):
        for column in columns:
            x = scale * sum(a * b for a, b in zip(region, nouns[column], strict=True))
            p = 1 / (1 + math.exp(-x))
            total += -math.log(p if column == label else 1 - p)
    return total / len(regions)


def test_the_loss_is_a_sum_over_classes_and_a_mean_over_regions():
    regions, nouns, labels = rows(5, 4, seed=0), rows(9, 4, seed=1), torch.tensor([3, 3, 0, 8, 1])
    columns, counts = torch.tensor([0, 1, 3, 8, 5, 2, 7]), torch.tensor([True] * 5 + [False] * 2)
    loss = region_text_loss(regions, nouns[columns], labels[:, None] == columns, counts, scale=torch.tensor(6.0))
    expected = slow_loss(regions.tolist(), nouns.tolist(), labels.tolist(), [0, 1, 3, 8, 5], 6.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_with_all_classes_drawn_the_loss_is_the_slow_loop():
    regions, crops, nouns = rows(6, 4, seed=2), rows(6, 4, seed=3), rows(7, 4, seed=4)
    labels = [max(range(7), key=lambda k: float(crop @ nouns[k])) for crop in crops]
    loss = RegionText(nouns, scale=3.0)(regions, crops)
    assert loss.item() == pytest.approx(slow_loss(regions.tolist(), nouns.tolist(), labels, [*range(7)], 3.0), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_drawn_classes_are_those_present_and_random_others_up_to_the_number(seed):
    torch.manual_seed(seed)
    labels = torch.randint(0, 1000, (40,))
    chosen, counts = draw_classes(labels, count=1000, min_classes=100)
    columns = chosen[counts].tolist()
    assert set(labels.tolist()) <= set(columns) and len(columns) == len(set(columns)) == 100
    others, _ = draw_classes(labels, count=1000, min_classes=100)
    assert set(chosen.tolist()) != set(others.tolist())  # drawn again
    torch.manual_seed(seed)
    torch.randint(0, 1000, (40,))
    assert torch.equal(draw_classes(labels, count=1000, min_classes=100)[0], chosen)  # from the global generator


def test_other_classes_are_drawn_evenly():
    torch.manual_seed(0)
    labels, counted = torch.tensor([0, 0]), torch.zeros(10)
    for _ in range(3000):
        chosen, counts = draw_classes(labels, count=10, min_classes=4)
        counted[chosen[counts]] += 1
    # class 0 always, each of the 9 others in 3 of 9 draws: 1000 +- 26
    assert counted[0] == 3000 and (counted[1:] - 1000).abs().max() < 130


def test_all_present_classes_are_drawn_even_above_the_number():
    labels = torch.arange(150).repeat(2)
    chosen, counts = draw_classes(labels, count=1000, min_classes=100)
    assert sorted(chosen[counts].tolist()) == list(range(150))


def test_few_classes_are_all_drawn_once():
    chosen, counts = draw_classes(torch.tensor([2, 2, 0]), count=5, min_classes=100)
    assert sorted(chosen.tolist()) == [0, 1, 2, 3, 4] and counts.all()
    with pytest.raises(InputError, match="need at least 2"):
        RegionText(rows(1, 4, seed=0), scale=1.0)


TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 1, "layers": 1},
}


def test_in_clipself_only_the_student_gets_gradients():
    torch.manual_seed(0)
    config = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.3] * 3}}
    student = Clip(open_clip.CLIP(**deepcopy(TINY)), name="tiny", config=config)
    train_layers(student)
    compare = RegionText(rows(200, 16, seed=5), scale=student.model.logit_scale.exp())
    assert not compare.scale.requires_grad and not list(compare.parameters())
    objective = ClipSelf(student, deepcopy(student), student_size=32, compare=compare)
    image = torch.randint(0, 256, (3, 32, 40), dtype=torch.uint8)
    batch = Batch([Sample("a", image, torch.tensor([[0.0, 0, 20, 32], [20, 0, 40, 32]]))], [])
    loss = objective(batch)
    loss.backward()
    assert loss.item() > 0
    for name, parameter in objective.named_parameters():
        is_block = name.startswith("student.model.visual.transformer.resblocks.")
        assert (parameter.grad is not None) == parameter.requires_grad == is_block, name
    assert objective(Batch([], [])).item() == 0

    # what it is: the same towers, with nouns in place of the cosine
    torch.manual_seed(7)
    whole = objective(batch)
    torch.manual_seed(7)
    crops, _ = objective._encode_crops(batch.samples)
    assert torch.equal(whole, compare(objective._encode_regions(batch.samples)[0], crops))
