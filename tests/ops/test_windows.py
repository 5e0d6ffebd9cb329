"""Windows: the location of every token, and merging as the inverse of splitting."""

import pytest
import torch

from foveate.ops.windows import merge_windows, split_windows


@pytest.mark.parametrize(
    ("grid", "size"), [((4, 6), (2, 2)), ((5, 7), (3, 3)), ((2, 3), (4, 4)), ((1, 1), (1, 1)), ((3, 9), (3, 4))]
)
def test_tokens_are_split_into_windows_and_merged(grid, size):
    (h, w), (s, t) = grid, size
    tokens = torch.arange(1.0, 2 * h * w * 3 + 1).reshape(2, h * w, 3)  # no zero: zeros are what is filled in
    windows = split_windows(tokens, grid=grid, size=size)
    down, across = -(-h // s), -(-w // t)
    assert windows.shape == (2, down * across, s * t, 3)
    for row in range(down * s):
        for column in range(across * t):
            place = (row // s) * across + column // t
            inside = (row % s) * t + column % t
            wanted = tokens[:, row * w + column] if row < h and column < w else torch.zeros(2, 3)
            assert torch.equal(windows[:, place, inside], wanted)
    assert torch.equal(merge_windows(windows, grid=grid, size=size), tokens)


def test_masks_are_split_into_windows():
    own = torch.ones(1, 6, 1, dtype=torch.bool)
    windows = split_windows(own, grid=(2, 3), size=(2, 2))
    assert windows[0, :, :, 0].tolist() == [[True] * 4, [True, False, True, False]]
