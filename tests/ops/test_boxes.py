"""Boxes: conversions are inverses, clipping and enlarging derived by hand, and the refusal of invalid boxes."""

import pytest
import torch

from foveate.errors import InputError
from foveate.ops.boxes import (
    boxes_on_input,
    check_boxes,
    clip_boxes,
    enlarge_boxes,
    whole_patches,
    xywh_to_xyxy,
    xyxy_to_xywh,
)


def test_conversions_of_boxes_are_inverses():
    corners = xywh_to_xyxy(torch.tensor([[10.0, 20.0, 30.0, 40.0]]))
    assert corners.tolist() == [[10, 20, 40, 60]]
    assert xyxy_to_xywh(corners).tolist() == [[10, 20, 30, 40]]
    boxes = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(xyxy_to_xywh(xywh_to_xyxy(boxes)), boxes)


def test_clipping_uses_height_and_width_for_their_axes():
    boxes = torch.tensor([[-5.0, -6.0, 300.0, 400.0], [10.0, 20.0, 30.0, 40.0], [210.0, 0.0, 220.0, 50.0]])
    assert clip_boxes(boxes, height=100, width=200).tolist() == [
        [0, 0, 200, 100],
        [10, 20, 30, 40],
        [200, 0, 200, 50],  # wholly outside: empty
    ]


def test_boxes_are_enlarged_about_the_centre_and_clipped():
    boxes = torch.tensor([[40.0, 20.0, 60.0, 60.0], [0.0, 0.0, 20.0, 20.0]])
    # first: centre (50, 40), half sizes (10, 20) * 1.5 = (15, 30); second: centre (10, 10), half 15, cut at 0
    assert enlarge_boxes(boxes, factor=1.5, height=200, width=100).tolist() == [[35, 10, 65, 70], [0, 0, 25, 25]]


def test_boxes_on_the_input_are_scaled_by_one_factor():
    # 30 x 100 at 64 px: 64 wide, and 30 * 0.64 = 19.2, though the image becomes 19 high: the published factor is one
    boxes = torch.tensor([[0.0, 0.0, 100.0, 30.0], [50.0, 15.0, 75.0, 30.0]])
    wanted = torch.tensor([[0.0, 0.0, 64.0, 19.2], [32.0, 9.6, 48.0, 19.2]])
    torch.testing.assert_close(boxes_on_input(boxes, height=30, width=100, size=64), wanted)


def test_all_functions_accept_no_boxes():
    none = torch.zeros(0, 4)
    check_boxes(none)
    assert xywh_to_xyxy(none).shape == xyxy_to_xywh(none).shape == (0, 4)
    assert enlarge_boxes(none, factor=1.5, height=5, width=5).shape == (0, 4)


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        (torch.zeros(3, 5), ["proposals", "(3, 5)", "scores"]),
        (torch.zeros(4), ["(4,)", "(N, 4)"]),
        (torch.tensor([[0, 0, 1, 1]]), ["int64", ".float()"]),
        (torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, float("nan"), 1.0, 1.0]]), ["row 1", "finite"]),
        (torch.tensor([[0.0, 0.0, float("inf"), 1.0]]), ["row 0", "finite"]),
        (torch.tensor([[5.0, 0.0, 5.0, 1.0]]), ["row 0", "x1 < x2", "xywh_to_xyxy"]),
        (torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 9.0, 1.0, 1.0]]), ["row 1", "y1 < y2"]),
    ],
)
def test_invalid_boxes_are_refused_with_a_reason(boxes, words):
    with pytest.raises(InputError) as caught:
        check_boxes(boxes, "proposals")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_whole_patches_truncate_both_corners():
    """Patches of 8: 5..23 begins in patch 0 and ends in patch 2, which is not taken; 10..18 holds no patch of its own
    row and column but 1; 9..15 lies in one patch and is empty; what leaves the grid is cut."""
    boxes = torch.tensor(
        [[5.0, 0.0, 23.0, 8.0], [10.0, 10.0, 18.0, 18.0], [9.0, 9.0, 15.0, 15.0], [20.0, 20.0, 99, 99]]
    )
    found = [patches.nonzero().tolist() for patches in whole_patches(boxes, grid=(3, 4), stride=8)]
    assert found == [[[0, 0], [0, 1]], [[1, 1]], [], [[2, 2], [2, 3]]]
