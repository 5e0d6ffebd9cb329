"""Masks pasted into images: a case derived by hand, a slow loop over pixels, and torch's grid_sample."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from foveate.ops import paste
from foveate.ops.paste import decode_masks, paste_as_rle, paste_masks


def slow_paste(mask: Tensor, box: Tensor, *, height: int, width: int) -> Tensor:
    """One pixel after the other: bilinear between the centres of the cells, zero beyond them."""
    cells = mask.tolist()
    x1, y1, x2, y2 = box.double().tolist()
    drawn = torch.zeros(height, width, dtype=torch.bool)
    for row in range(height):
        for column in range(width):
            v = (row + 0.5 - y1) / (y2 - y1) * len(cells) - 0.5
            u = (column + 0.5 - x1) / (x2 - x1) * len(cells) - 0.5
            value = 0.0
            for i in (int(v // 1), int(v // 1) + 1):
                for j in (int(u // 1), int(u // 1) + 1):
                    if 0 <= i < len(cells) and 0 <= j < len(cells):
                        value += (1 - abs(v - i)) * (1 - abs(u - j)) * cells[i][j] / 255
            drawn[row, column] = value > 0.5
    return drawn


def test_pasted_mask_derived_by_hand():
    # two by two cells over the box (1, 1, 5, 5): a pixel's centre at x lies at (x - 1) / 2 - 0.5 cells from the first
    # cell's centre: columns 1 .. 4 at -0.25, 0.25, 0.75, 1.25, which take .75 0, .75 .25, .25 .75 and 0 .75 of the
    # two cells. The first cell is 1, the others 0: pixel (1, 1) is .75 * .75 = .5625, (1, 2) too, (2, 2) too; all
    # pixels of the columns 3, 4 at most .75 * .25
    mask = torch.tensor([[[255, 0], [0, 0]]], dtype=torch.uint8)
    expected = torch.zeros(6, 7, dtype=torch.bool)
    expected[1:3, 1:3] = True
    assert torch.equal(paste_masks(mask, torch.tensor([[1.0, 1.0, 5.0, 5.0]]), height=6, width=7)[0], expected)
    # a full mask: the box itself, but for its corners, .75 * .75 of a cell deep, which still are above one half
    full = paste_masks(mask * 0 + 255, torch.tensor([[1.0, 1.0, 5.0, 5.0]]), height=6, width=7)[0]
    assert full.sum() == 16 and full[1:5, 1:5].all()


BOXES = torch.tensor(
    [[2.3, 1.1, 20.7, 17.9], [0.0, 0.0, 24.0, 19.0], [5.2, 5.4, 5.9, 6.3], [-3.5, 4.0, 9.1, 30.2], [7.0, 3.0, 8.0, 3.9]]
)


@pytest.mark.parametrize("cells", [2, 7, 28])
def test_pasted_masks_equal_a_loop_over_pixels_and_grid_sample(cells: int):
    generator = torch.Generator().manual_seed(cells)
    masks = torch.randint(0, 256, (len(BOXES), cells, cells), generator=generator).to(torch.uint8)
    found = paste_masks(masks, BOXES, height=19, width=24)
    for drawn, mask, box in zip(found, masks, BOXES, strict=True):
        assert torch.equal(drawn, slow_paste(mask, box, height=19, width=24))
        x = (torch.arange(24).double() + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
        y = (torch.arange(19).double() + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
        grid = torch.stack([x.expand(19, 24), y[:, None].expand(19, 24)], dim=2)[None]
        sampled = grid_sample(mask.double()[None, None] / 255, grid, align_corners=False)[0, 0]
        sure = (sampled - 0.5).abs() > 1e-9
        assert torch.equal(drawn & sure, (sampled > 0.5) & sure)
    assert found.any(dim=(1, 2)).tolist() != [False] * len(BOXES)


def test_run_lengths_are_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 256, (len(BOXES), 28, 28), generator=generator).to(torch.uint8)
    drawn = paste_masks(masks, BOXES, height=19, width=24)
    whole = paste_as_rle(masks, BOXES, height=19, width=24)
    monkeypatch.setattr(paste, "MAX_PIXELS", 1000)  # two images of 456 pixels at once
    assert paste_as_rle(masks, BOXES, height=19, width=24) == whole
    assert torch.equal(decode_masks(whole, height=19, width=24), drawn)
    assert all(one["size"] == [19, 24] and isinstance(one["counts"], str) for one in whole)


def test_empty_boxes_give_empty_masks():
    none = torch.zeros(0, 28, 28, dtype=torch.uint8)
    assert paste_masks(none, torch.zeros(0, 4), height=5, width=6).shape == (0, 5, 6)
    assert paste_as_rle(none, torch.zeros(0, 4), height=5, width=6) == ()
    assert decode_masks((), height=5, width=6).shape == (0, 5, 6)
    full = torch.full((2, 28, 28), 255, dtype=torch.uint8)
    empty = torch.tensor([[3.0, 3.0, 3.0, 9.0], [20.0, 20.0, 30.0, 30.0]])  # without area; outside the image
    assert not paste_masks(full, empty, height=10, width=10).any()
