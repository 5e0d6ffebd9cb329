"""The learning rate by hand, which tensors decay, and rows that must not change."""

from itertools import pairwise

import torch
from torch import nn

from foveate.engine.optim import build_optimizer, learning_rate, stepped_rate, take_step


def test_learning_rate_warms_up_then_falls_along_a_cosine():
    rates = [learning_rate(step, peak=1.0, warmup=4, steps=12) for step in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]  # (step + 1) / 4
    assert rates[4] == 1.0  # cos(0) = 1
    assert abs(rates[8] - 0.5) < 1e-12  # half way: cos(pi/2) = 0
    assert abs(rates[12]) < 1e-12  # cos(pi) = -1
    assert all(a >= b for a, b in pairwise(rates[4:]))


def test_learning_rate_without_warmup_begins_at_the_peak():
    assert learning_rate(0, peak=3e-4, warmup=0, steps=1) == 3e-4


def test_only_matrices_decay():
    layer = nn.Linear(3, 3)
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    optimizer = build_optimizer(layer, weight_decay=0.5)
    layer.weight.grad, layer.bias.grad = torch.zeros(3, 3), torch.zeros(3)
    take_step(optimizer, lr=0.1, weight_decay=0.5)
    # gradient 0: Adam moves nothing; decay multiplies by 1 - 0.1 * 0.5 = 0.95
    torch.testing.assert_close(layer.weight.detach(), torch.full((3, 3), 0.95))
    assert torch.equal(layer.bias.detach(), torch.ones(3))


def test_partly_trained_rows_step_as_adamw_and_the_others_do_not_change():
    torch.manual_seed(0)
    fused = nn.Linear(4, 6, bias=False)
    alone = nn.Parameter(fused.weight.detach()[4:].clone())  # the same two rows as a tensor of their own
    start = fused.weight.detach().clone()
    partly = [(fused.weight, slice(4, None))]
    optimizer = build_optimizer(fused, weight_decay=0.1, partly=partly)
    reference = torch.optim.AdamW([alone], lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        gradient = torch.randn(2, 4)
        fused.weight.grad = torch.cat([torch.zeros(4, 4), gradient])
        alone.grad = gradient.clone()
        take_step(optimizer, lr=1e-2, weight_decay=0.1, partly=partly)
        reference.step()
    assert torch.equal(fused.weight.detach()[:4], start[:4])
    torch.testing.assert_close(fused.weight.detach()[4:], alone.detach(), rtol=1e-6, atol=1e-7)


def test_only_a_finite_step_changes_anything():
    def stepped(*nonfinite):
        torch.manual_seed(0)
        layer = nn.Linear(4, 6)
        partly = [(layer.weight, slice(4, None))]
        optimizer = build_optimizer(layer, weight_decay=0.1, partly=partly)
        for value in nonfinite:
            layer.weight.grad = torch.cat([torch.zeros(4, 4), torch.ones(2, 4)])
            layer.bias.grad = torch.full((6,), float("nan") if value else 1.0)
            value = None if value is None else torch.tensor(value)
            take_step(optimizer, lr=1e-2, weight_decay=0.1, partly=partly, nonfinite=value)
        return [layer.weight, layer.bias, *(v for p in optimizer.state for v in optimizer.state[p].values())]

    plain = stepped(None, None)
    assert len(plain) == 8  # two parameters, each with a counter and two moments
    for steps in ((0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(stepped(*steps), plain, strict=True)), steps


def test_a_stepped_rate_warms_up_stays_and_falls_at_its_milestones():
    rates = [stepped_rate(step, peak=1.0, warmup=2, milestones=(4, 6)) for step in range(8)]
    assert rates[:4] == [0.5, 1.0, 1.0, 1.0]
    assert rates[4:] == [0.1, 0.1, 0.1**2, 0.1**2]


def test_a_group_may_have_a_lower_rate():
    fast, slow = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW(
        [{"params": [fast]}, {"params": [slow], "lr_scale": 0.1}], lr=0.0, weight_decay=0.0, fused=True
    )
    fast.grad, slow.grad = torch.ones(1), torch.ones(1)
    take_step(optimizer, lr=0.5, weight_decay=0.0)
    # Adam's first step is its rate, whatever the gradient
    torch.testing.assert_close(torch.stack([fast, slow]).detach().flatten(), torch.tensor([0.5, 0.95]))


def test_partly_trained_rows_decay_at_the_rate_of_their_group():
    fused = nn.Parameter(torch.ones(6, 4))
    optimizer = torch.optim.AdamW([{"params": [fused], "weight_decay": 0.0, "lr_scale": 0.5}], lr=0.0)
    fused.grad = torch.zeros(6, 4)
    take_step(optimizer, lr=0.1, weight_decay=0.4, partly=[(fused, slice(4, None))])
    # the group's rate is 0.1 * 0.5, so its rows become 1 - 0.05 * 0.4 = 0.98; the others stand still
    torch.testing.assert_close(fused.detach(), torch.cat([torch.ones(4, 4), torch.full((2, 4), 0.98)]))
