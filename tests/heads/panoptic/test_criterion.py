"""Losses of masks, against those of transformers with this package's assignment in place of scipy's."""

import pytest
import torch

from foveate.heads.panoptic.criterion import LossWeights, Target, mask_losses, match, sample
from foveate.ops.assign import assign

WEIGHTS = LossWeights(points=64)


@pytest.fixture
def batch():
    """Two images with three targets and one."""
    torch.manual_seed(0)
    class_logits, masks = torch.randn(2, 6, 4), 3 * torch.randn(2, 6, 8, 8)
    counts = (3, 1)
    targets = [Target(torch.rand(n, 32, 32) > 0.6, torch.randint(0, 3, (n,))) for n in counts]
    return class_logits.requires_grad_(), masks.requires_grad_(), targets


def test_losses_equal_those_of_transformers(batch, monkeypatch):
    modeling = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    configuring = pytest.importorskip("transformers.models.mask2former.configuration_mask2former")
    monkeypatch.setattr(modeling, "requires_backends", lambda *_: None)
    monkeypatch.setattr(modeling, "linear_sum_assignment", lambda cost: assign(cost), raising=False)
    config = configuring.Mask2FormerConfig(train_num_points=64, id2label={0: "a", 1: "b", 2: "c"})
    class_logits, masks, targets = batch
    library = modeling.Mask2FormerLoss(config, {})
    torch.manual_seed(1)
    truth = [one.masks.float() for one in targets]
    expected = library(masks, class_logits, truth, [one.labels for one in targets])
    torch.manual_seed(1)
    found = mask_losses(class_logits, masks, targets, WEIGHTS)
    assert found["class"].item() == pytest.approx(2 * expected["loss_cross_entropy"].item(), rel=1e-5)
    assert found["mask"].item() == pytest.approx(5 * expected["loss_mask"].item(), rel=1e-5)
    assert found["dice"].item() == pytest.approx(5 * expected["loss_dice"].item(), rel=1e-5)


def test_the_right_query_is_matched():
    truth = torch.zeros(2, 16, 16, dtype=torch.bool)
    truth[0, :8], truth[1, 8:] = True, True
    masks = torch.stack([torch.zeros(16, 16), 20.0 * truth[1] - 10, 20.0 * truth[0] - 10])
    queries, chosen = match(torch.zeros(3, 3), masks, Target(truth, torch.tensor([0, 1])), WEIGHTS)
    assert queries.tolist() == [1, 2] and chosen.tolist() == [1, 0]
    # where masks are alike, the class decides
    alike = torch.zeros(2, 16, 16)
    logits = torch.tensor([[0.0, 5.0, 0.0], [5.0, 0.0, 0.0]])
    assert match(logits, alike, Target(truth, torch.tensor([0, 1])), WEIGHTS)[1].tolist() == [1, 0]


def test_matching_under_bfloat16():
    truth = torch.zeros(1, 16, 16, dtype=torch.bool)
    truth[0, :8] = True
    masks = torch.stack([20.0 * truth[0] - 10, 20.02 * truth[0] - 10.01])  # a thousandth surer
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert match(torch.zeros(2, 2), 0.1 * masks, Target(truth, torch.tensor([0])), WEIGHTS)[0].tolist() == [1]


def test_images_without_targets_teach_no_object(batch):
    class_logits, masks, targets = batch
    nothing = Target(targets[0].masks[:0], targets[0].labels[:0])
    found = mask_losses(class_logits, masks, [nothing, nothing], WEIGHTS)
    sum(found.values()).backward()
    assert found["mask"] == found["dice"] == 0 and found["class"] > 0 and masks.grad is not None
    assert (class_logits.grad[..., -1] < 0).all()  # up with "nothing"
    more = Target(torch.ones(9, 32, 32, dtype=torch.bool), torch.zeros(9, dtype=torch.int64))  # than queries
    assert all(one.isfinite() for one in mask_losses(class_logits, masks, [more, nothing], WEIGHTS).values())


def test_sampling_between_cells():
    one = torch.tensor([[[1.0, 3.0]]])  # centres at a quarter and three quarters
    places = torch.tensor([[[0.25, 0.5], [0.5, 0.5], [0.75, 0.5]]])
    assert sample(one, places).tolist() == [[1.0, 2.0, 3.0]]
