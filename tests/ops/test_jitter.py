"""Large-scale jitter: without it the padded square, and a case of cropping, scaling and mirroring derived by hand."""

import pytest
import torch

from foveate.ops.jitter import Jitter, draw_jitter, jitter_boxes, jitter_image, jitter_masks, no_jitter, place_jitter
from foveate.ops.resample import fitted_size, square_input

STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


def make_image(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(37, 50), (60, 31), (64, 64)])
def test_without_jitter_the_input_is_the_padded_square(shape):
    height, width = shape
    image, jitter = make_image(height, width), no_jitter(height, width, size=64)
    assert torch.equal(
        jitter_image(image, jitter, size=64, **STATISTICS), square_input(image, size=64, pad="zero", **STATISTICS)
    )
    boxes = torch.tensor([[3.0, 5.0, 30.0, 33.0], [0.0, 0.0, 31.0, 37.0]])
    moved, is_left = jitter_boxes(boxes, jitter)
    h, w = fitted_size(height, width, size=64)  # each axis by its own factor, as mmdet's detectors have it
    wanted = boxes * torch.tensor([w / width, h / height] * 2)
    torch.testing.assert_close(moved, wanted)
    assert is_left.all()
    same = place_jitter(height, width, size=64, scale=1.0, down=0.7, across=0.3, flip=False)
    assert same == jitter  # a scale of 1 sees all, wherever it looks


def test_a_crop_derived_by_hand():
    # 40 x 80 at scale 2 on 40 pixels: the long side becomes 80, so a factor of 1; 40 of 80 columns are seen, 40 rows
    jitter = place_jitter(40, 80, size=40, scale=2.0, down=0.0, across=0.5, flip=True)
    assert jitter == Jitter(top=0, left=20, height=40, width=40, longest=40, flip=True)  # int(.5 * 41) = 20
    image = make_image(40, 80)
    found = jitter_image(image, jitter, size=40, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert torch.allclose(found, image[:, :, 20:60].flip(2) / 255, atol=1e-5)
    boxes = torch.tensor(
        [
            [30.0, 5.0, 50.0, 15.0],  # x: 10..30 of the part, mirrored 40 - 30 .. 40 - 10
            [0.0, 0.0, 21.0, 10.0],  # 1 of 21 columns left: under a tenth
            [17.5, 0.0, 20.5, 10.0],  # half a column
            [0.0, 0.0, 40.0, 10.0],  # 20 of 40 columns, cut at the edge: x 0..20, mirrored 20..40
        ]
    )
    moved, is_left = jitter_boxes(boxes, jitter)
    assert is_left.tolist() == [True, False, False, True]
    assert moved[0].tolist() == [10.0, 5.0, 30.0, 15.0] and moved[3].tolist() == [20.0, 0.0, 40.0, 10.0]
    masks = torch.zeros(1, 40, 80, dtype=torch.bool)
    masks[0, 5:15, 30:50] = True
    there = jitter_masks(masks, jitter, size=48)
    assert there.shape == (1, 48, 48) and there.sum() == 200 and there[0, 5:15, 10:30].all()


def test_a_small_scale_shrinks_and_pads():
    jitter = place_jitter(40, 80, size=40, scale=0.25, down=0.0, across=0.0, flip=False)
    assert (jitter.height, jitter.width, jitter.longest, jitter.fitted) == (40, 80, 10, (5, 10))
    image = torch.full((3, 40, 80), 255, dtype=torch.uint8)
    found = jitter_image(image, jitter, size=40, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert torch.allclose(found[:, :5, :10], torch.ones(3, 5, 10)) and found.sum().isclose(torch.tensor(150.0))
    moved, is_left = jitter_boxes(torch.tensor([[8.0, 8.0, 40.0, 24.0], [0.0, 0.0, 7.0, 40.0]]), jitter)
    assert moved[0].tolist() == [1.0, 1.0, 5.0, 3.0] and is_left.tolist() == [True, False]  # an eighth; 7 / 8 < 1
    assert jitter_masks(torch.ones(1, 40, 80, dtype=torch.bool), jitter, size=40).sum() == 50


def test_draws_stay_inside_and_come_from_the_generator():
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_jitter(37, 90, size=64, generator=generator) for _ in range(200)]
    for one in drawn:
        assert 0 <= one.top <= 37 - one.height and 0 <= one.left <= 90 - one.width
        assert max(fitted_size(one.height, one.width, size=one.longest)) <= 64
    assert {one.flip for one in drawn} == {True, False}
    assert min(one.longest for one in drawn) < 12 and min(one.width for one in drawn) < 60
    again = draw_jitter(37, 90, size=64, generator=torch.Generator().manual_seed(0))
    assert again == drawn[0]
