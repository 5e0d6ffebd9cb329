"""The cheapest assignment, against all assignments."""

from itertools import permutations

import pytest
import torch

from foveate.ops.assign import assign


def cheapest(cost: torch.Tensor) -> float:
    if cost.shape[0] < cost.shape[1]:
        cost = cost.T
    many, few = cost.shape
    return min(
        sum(float(cost[row, column]) for column, row in enumerate(rows)) for rows in permutations(range(many), few)
    )


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (5, 3), (3, 5), (6, 6), (7, 2), (4, 0), (0, 3)])
def test_assignment_is_the_cheapest_of_all(shape):
    for seed in range(15):
        torch.manual_seed(seed)
        cost = torch.randn(shape, dtype=torch.float64) if seed % 2 else torch.randint(-3, 4, shape).double()
        rows, columns = assign(cost)
        assert len(rows) == len(columns) == min(shape) and (rows.diff() > 0).all()
        assert len(set(columns.tolist())) == len(columns)
        assert cost[rows, columns].sum().item() == pytest.approx(cheapest(cost) if min(shape) else 0)


def test_a_planted_assignment_of_many_rows_is_found():
    # each column has one row that costs 0, all else costs more
    torch.manual_seed(0)
    planted = torch.randperm(100)[:40]
    cost = 1 + torch.rand(100, 40)
    cost[planted, torch.arange(40)] = 0
    rows, columns = assign(cost)
    assert torch.equal(planted[columns], rows)


def test_costs_that_are_not_finite_are_avoided():
    cost = torch.tensor([[float("nan"), 5.0], [1.0, float("inf")], [2.0, 9.0]])
    assert [one.tolist() for one in assign(cost)] == [[0, 1], [1, 0]]
    assert len(assign(torch.full((2, 2), float("nan")))[0]) == 2
