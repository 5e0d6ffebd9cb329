"""Parameter groups, and SyncBN, of trained parameters only."""

from torch import nn

from foveate.heads.common.groups import convert_trained_norms, parameter_groups


def test_frozen_parameters_and_empty_groups_are_left_out():
    frozen, matrix, norm = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2, bias=False), nn.LayerNorm(2)
    parts = [([*frozen.parameters(), *matrix.parameters()], 1.0), (norm.parameters(), 0.1), (frozen.parameters(), 0.5)]
    groups = parameter_groups(parts, weight_decay=0.2, decays=lambda parameter: parameter.ndim >= 2)
    assert groups == [
        {"params": [matrix.weight], "weight_decay": 0.2, "lr_scale": 1.0},
        {"params": [norm.weight, norm.bias], "weight_decay": 0.0, "lr_scale": 0.1},
    ]


def test_only_trained_batch_norms_are_replaced_and_parameters_are_the_same_objects():
    head = nn.ModuleDict({"tower": nn.Sequential(nn.BatchNorm2d(2)), "pyramid": nn.Sequential(nn.BatchNorm2d(2))})
    head["tower"].requires_grad_(False)
    names, parameters = [*head.state_dict()], [*head.parameters()]
    convert_trained_norms(head)
    assert type(head["tower"][0]) is nn.BatchNorm2d and isinstance(head["pyramid"][0], nn.SyncBatchNorm)
    assert [*head.state_dict()] == names
    assert all(new is old for new, old in zip(head.parameters(), parameters, strict=True))
