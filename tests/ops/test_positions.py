"""Positions for any grid: against four bicubic taps and a rotation written as complex numbers."""

import cmath
import math

import pytest
import torch
from slow.common import resize

from foveate.ops.positions import resize_positions, rotary_table, rotate


@pytest.mark.parametrize("grid", [(4, 4), (7, 5), (3, 9), (2, 2), (8, 8), (1, 1)])
@pytest.mark.parametrize("has_class_token", [True, False])
def test_absolute_positions_equal_bicubic_four_taps(grid, has_class_token):
    positions = torch.randn(16 + has_class_token, 6, generator=torch.Generator().manual_seed(0))
    resized = resize_positions(positions, grid=grid, native=(4, 4), has_class_token=has_class_token)
    assert resized.shape == (grid[0] * grid[1] + has_class_token, 6)
    if has_class_token:
        assert torch.equal(resized[0], positions[0])
    wanted = resize(positions[int(has_class_token) :].reshape(4, 4, 6), *grid).reshape(-1, 6)
    torch.testing.assert_close(resized[int(has_class_token) :], wanted, atol=1e-5, rtol=1e-5)


def test_positions_of_the_native_grid_are_unchanged_in_any_type():
    positions = torch.randn(7, 4)
    assert resize_positions(positions, grid=(2, 3), native=(2, 3), has_class_token=True) is positions
    half = resize_positions(positions.bfloat16(), grid=(4, 3), native=(2, 3), has_class_token=True)
    whole = resize_positions(positions.bfloat16().float(), grid=(4, 3), native=(2, 3), has_class_token=True)
    assert half.dtype == torch.bfloat16 and torch.equal(half, whole.bfloat16())
    with pytest.raises(AssertionError, match="not a grid"):
        resize_positions(positions, grid=(2, 2), native=(3, 3), has_class_token=True)


def test_an_exported_graph_gives_the_native_positions_to_the_bit(monkeypatch):
    positions = torch.randn(13, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    resized = resize_positions(positions, grid=(3, 4), native=(3, 4), has_class_token=True)
    assert resized is not positions and torch.equal(resized, positions)


def test_rotation_equals_complex_multiplication_pair_by_pair():
    h, w, width, native = 3, 5, 8, (4, 4)
    tokens = torch.randn(2, h * w, width, generator=torch.Generator().manual_seed(0))
    turned = rotate(tokens, *rotary_table((h, w), native=native, head_width=width))
    for row in range(h):
        for column in range(w):
            y, x = row / h * 4, column / w * 4  # squeezed into the native 4 x 4 range
            # 8 channels: pairs 0, 1 turn with the row, 2, 3 with the column; frequencies 1 and 10000^(-1/2) = 0.01
            angles = [y, y * 0.01, x, x * 0.01]
            for pair, angle in enumerate(angles):
                for head in range(2):
                    a, b = tokens[head, row * w + column, 2 * pair : 2 * pair + 2].tolist()
                    wanted = complex(a, b) * cmath.exp(1j * angle)
                    got = turned[head, row * w + column, 2 * pair : 2 * pair + 2]
                    torch.testing.assert_close(got, torch.tensor([wanted.real, wanted.imag]), atol=1e-5, rtol=1e-5)


def test_native_positions_are_integers_and_those_of_a_double_grid_halves():
    cosines, _ = rotary_table((16, 16), native=(16, 16), head_width=64)
    double, _ = rotary_table((32, 32), native=(16, 16), head_width=64)
    # index 2 i of 32 stands where index i of 16 stands
    assert torch.allclose(cosines.reshape(16, 16, 64), double.reshape(32, 32, 64)[::2, ::2], atol=1e-6)
    torch.testing.assert_close(cosines.reshape(16, 16, 64)[3, 0, 0], torch.tensor(math.cos(3.0)))


def test_rotation_preserves_lengths_types_and_relative_angles():
    cosines, sines = rotary_table((4, 6), native=(4, 6), head_width=16)
    query, key = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(3))
    queries, keys = (rotate(one.expand(24, 16), cosines, sines).reshape(4, 6, 16) for one in (query, key))
    torch.testing.assert_close(queries.norm(dim=2), query.norm().expand(4, 6))
    # the product depends on the offset only: (0, 0) . (1, 2) == (2, 3) . (3, 5)
    torch.testing.assert_close(queries[0, 0] @ keys[1, 2], queries[2, 3] @ keys[3, 5], atol=1e-4, rtol=1e-4)
    assert rotate(query.expand(24, 16).bfloat16(), cosines, sines).dtype == torch.bfloat16
