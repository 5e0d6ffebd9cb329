"""Regions of a dense map by hierarchical merging."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.ops.regions import MAX_FRACTION, MIN_LOCATIONS, find_regions


def scene(*boxes: tuple[int, int, int, int], height: int = 12, width: int = 16, noise: float = 0.05) -> Tensor:
    """A dense map (8, h, w) of a background with a block of another direction for each box (xyxy, locations)."""
    torch.manual_seed(0)
    dense = torch.eye(8)[0][:, None, None].repeat(1, height, width)
    for index, (x1, y1, x2, y2) in enumerate(boxes, start=1):
        dense[:, y1:y2, x1:x2] = torch.eye(8)[index][:, None, None]
    return F.normalize(dense + noise * torch.randn_like(dense), dim=0)


def test_blocks_are_the_best_regions() -> None:
    boxes = [(2, 1, 6, 5), (9, 6, 14, 10)]
    regions = find_regions(scene(*boxes))
    assert {tuple(box) for box in regions.boxes[:2].int().tolist()} == {*boxes}
    for box, mask, embedding in zip(regions.boxes[:2].int().tolist(), regions.masks, regions.embeddings, strict=False):
        rows, columns = mask.nonzero().T
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box
        assert mask.sum() == (box[2] - box[0]) * (box[3] - box[1])
        assert embedding.norm() == pytest.approx(1) and embedding.argmax() == boxes.index(tuple(box)) + 1


def test_regions_are_sorted_bounded_and_do_not_overlap_much() -> None:
    dense = scene((2, 1, 6, 5), (9, 6, 14, 10), noise=0.5)
    regions = find_regions(dense, keep=7)
    assert len(regions.boxes) == 7 and (regions.scores.diff() <= 0).all() and (regions.scores >= 0).all()
    sizes = regions.masks.flatten(1).sum(dim=1)
    assert sizes.min() >= MIN_LOCATIONS and sizes.max() <= MAX_FRACTION * 12 * 16


def test_the_result_does_not_depend_on_the_order_of_the_axes() -> None:
    dense = scene((2, 1, 6, 5), (9, 6, 14, 10))
    upright, turned = find_regions(dense), find_regions(dense.mT.contiguous())
    assert turned.boxes[:2][:, [1, 0, 3, 2]].tolist() == upright.boxes[:2].tolist()
    torch.testing.assert_close(turned.scores[:2], upright.scores[:2])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (1, 20), (20, 1)])
def test_thin_and_tiny_maps(height: int, width: int) -> None:
    regions = find_regions(scene(height=height, width=width))
    assert regions.masks.shape == (len(regions.boxes), height, width)
    assert len(regions.boxes) == 0 or height * width >= MIN_LOCATIONS


def test_a_map_of_one_value_has_finite_scores() -> None:
    regions = find_regions(scene(noise=0.0))
    assert regions.scores.isfinite().all() and regions.scores.abs().max() < 1e-5
