"""Pooling against RoIAlign and the mask mean written from their definitions."""

import pytest
import torch
import torch.nn.functional as F
from slow.common import pool_box, resize

from foveate.errors import InputError
from foveate.ops import pool
from foveate.ops.pool import pool_boxes, pool_indexed_boxes, pool_masks, shrink_masks


def dense_map(batch: int, width: int, h: int, w: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(batch, width, h, w, generator=torch.Generator().manual_seed(seed)), dim=1)


BOXES = [
    [
        torch.tensor(
            [[0.0, 0.0, 112.0, 80.0], [3.7, 9.1, 55.2, 33.3], [100.0, 70.0, 112.0, 80.0], [40.0, 40.0, 41.0, 42.0]]
        )
    ],
    [torch.tensor([[16.0, 16.0, 32.0, 32.0]])],
]


@pytest.mark.parametrize("boxes", BOXES)
def test_pooled_boxes_equal_the_definition_of_roi_align(boxes):
    dense = dense_map(1, 6, 5, 7)
    pooled = pool_boxes(dense, boxes, stride=16)
    for one, box in zip(pooled, boxes[0].tolist(), strict=True):
        torch.testing.assert_close(one, pool_box(dense[0], box, 16), atol=1e-5, rtol=1e-5)


def test_a_box_of_one_location_pools_that_location():
    dense = dense_map(1, 6, 5, 7)
    # location (row 2, column 3) covers pixels 48..64 x 32..48 at stride 16; its one sample lies on its centre
    pooled = pool_boxes(dense, [torch.tensor([[48.0, 32.0, 64.0, 48.0]])], stride=16)
    torch.testing.assert_close(pooled[0], dense[0, :, 2, 3])


def test_pooled_boxes_are_in_the_order_of_images_and_boxes():
    dense = dense_map(3, 4, 4, 4)
    boxes = [
        torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 8.0, 32.0, 32.0]]),
        torch.zeros(0, 4),
        torch.tensor([[4.0, 4.0, 9.0, 30.0]]),
    ]
    pooled = pool_boxes(dense, boxes, stride=8)
    alone = torch.cat([pool_boxes(dense[i : i + 1], [boxes[i]], stride=8) for i in range(3)])
    assert pooled.shape == (3, 4)
    torch.testing.assert_close(pooled, alone)
    torch.testing.assert_close(pooled.norm(dim=1), torch.ones(3))


def test_boxes_in_one_tensor_may_be_in_any_order():
    dense = dense_map(2, 4, 4, 4)
    boxes = [torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 8.0, 32.0, 32.0]]), torch.tensor([[4.0, 4.0, 9.0, 30.0]])]
    mixed = pool_indexed_boxes(dense, torch.cat(boxes)[[2, 0, 1]], torch.tensor([1, 0, 0]), stride=8)
    assert torch.equal(mixed, pool_boxes(dense, boxes, stride=8)[[2, 0, 1]])


def test_pooling_no_regions_keeps_the_autograd_graph():
    dense = dense_map(2, 4, 3, 3).requires_grad_()
    for pooled in (
        pool_boxes(dense, [torch.zeros(0, 4)] * 2, stride=8),
        pool_masks(dense, [torch.zeros(0, 3, 3, dtype=torch.bool)] * 2),
    ):
        assert pooled.shape == (0, 4)
        pooled.sum().backward()
        assert dense.grad is not None and dense.grad.abs().max() == 0


def test_low_precision_maps_are_pooled_in_float32():
    dense = dense_map(1, 4, 6, 6)
    boxes = [torch.tensor([[0.0, 0.0, 31.0, 40.0]])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pool_boxes(dense.bfloat16(), boxes, stride=8)
        masks = pool_masks(dense.bfloat16(), [torch.ones(1, 6, 6, dtype=torch.bool)])
    assert pooled.dtype == masks.dtype == torch.float32
    torch.testing.assert_close(pooled, pool_boxes(dense.bfloat16().float(), boxes, stride=8))


def test_pooled_masks_are_means_over_their_locations():
    dense = dense_map(2, 5, 3, 4)
    some = torch.rand(3, 3, 4, generator=torch.Generator().manual_seed(1)) > 0.5
    masks = [some, torch.ones(1, 3, 4, dtype=torch.bool)]
    pooled = pool_masks(dense, masks)
    wanted = []
    for i, image_masks in enumerate(masks):
        for mask in image_masks:
            places = [dense[i, :, y, x] for y in range(3) for x in range(4) if mask[y, x]]
            mean = torch.stack(places).mean(dim=0)
            wanted.append(mean / mean.norm())
    torch.testing.assert_close(pooled, torch.stack(wanted))


def test_a_mask_without_locations_gives_zero_not_nan():
    pooled = pool_masks(dense_map(1, 5, 3, 4), [torch.zeros(2, 3, 4, dtype=torch.bool)])
    assert torch.equal(pooled, torch.zeros(2, 5))


def test_wrong_number_of_regions_is_refused():
    with pytest.raises(InputError, match="boxes: need one tensor per image, 2 in all; got 1"):
        pool_boxes(dense_map(2, 4, 3, 3), [torch.zeros(0, 4)], stride=8)
    with pytest.raises(InputError, match="masks: need one tensor per image"):
        pool_masks(dense_map(1, 4, 3, 3), [])


def test_masks_are_resized_by_four_taps_without_antialiasing():
    share = torch.tensor([0.5, 0.9, 0.97, 0.1])[:, None, None]
    masks = torch.rand(4, 33, 50, generator=torch.Generator().manual_seed(2)) > share
    shrunk = shrink_masks(masks, grid=(5, 7))
    for mask, one in zip(masks, shrunk, strict=True):
        assert torch.equal(one, resize(mask[:, :, None].float(), 5, 7)[:, :, 0] > 1e-6)


def test_masks_resized_in_several_chunks_are_the_same(monkeypatch):
    masks = torch.rand(5, 20, 30, generator=torch.Generator().manual_seed(3)) > 0.8
    whole = shrink_masks(masks, grid=(4, 6))
    monkeypatch.setattr(pool, "_MAX_VALUES", 2 * 20 * 30)  # two, two and one
    assert torch.equal(shrink_masks(masks, grid=(4, 6)), whole)
    monkeypatch.setattr(pool, "_MAX_VALUES", 1)  # less than a mask
    assert torch.equal(shrink_masks(masks, grid=(4, 6)), whole)


def test_a_mask_between_the_taps_vanishes_and_a_block_does_not_change():
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 0, 0] = True  # taps of location 0 at stride 16 are pixels 6, 7, 8, 9
    masks[1, 16:32, 32:48] = True  # exactly location (1, 2)
    shrunk = shrink_masks(masks, grid=(4, 4))
    assert not shrunk[0].any()
    assert shrunk[1].nonzero().tolist() == [[1, 2]]
    assert shrink_masks(masks[:0], grid=(4, 4)).shape == (0, 4, 4)
