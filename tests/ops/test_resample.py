"""Resampling against Pillow and against the kernel written out pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.errors import InputError
from foveate.ops import resample
from foveate.ops.resample import (
    check_side,
    crop_and_resize,
    fitted_size,
    normalize,
    pad_right_bottom,
    resize_longest,
    resize_longest_bilinear,
    square_input,
    square_inputs,
)


def make_image(height: int, width: int, seed: int = 0, contrast: float = 1.0) -> torch.Tensor:
    """A uint8 image with smooth parts, hard edges and noise.

    Below a contrast of about 0.6 the kernel's overshoot stays within 0 .. 255, so that the clamp between the two
    passes, and with it their order (which Pillow chooses by size), does not matter.
    """
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    smooth = 127 + 100 * torch.sin(x / 9.0) * torch.cos(y / 13.0)
    edges = 255.0 * (((x // 7) + (y // 5)) % 2)
    noise = 255 * torch.rand(height, width, generator=generator)
    levels = torch.stack([smooth, edges, noise])
    return (127.5 + (levels - 127.5) * contrast).round().clamp(0, 255).to(torch.uint8)


def pillow_crop(image: torch.Tensor, box: list[float], size: int) -> torch.Tensor:
    """The plain path: cut, resize the longest side, paste in the middle of a black square."""
    cut = Image.fromarray(image.permute(1, 2, 0).numpy()).crop(tuple(box))  # Image.crop rounds the corners itself
    longest = max(cut.size)
    width, height = (max(1, round(side * size / longest)) for side in cut.size)
    square = Image.new("RGB", (size, size))
    square.paste(cut.resize((width, height), Image.Resampling.BICUBIC), ((size - width) // 2, (size - height) // 2))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float()


def slow_axis(values: list[float], out: int) -> list[float]:
    """Antialiased bicubic resize of one line, a = -0.5, from the definition."""
    ratio = len(values) / out
    stretch = max(1.0, ratio)
    result = []
    for o in range(out):
        centre = (o + 0.5) * ratio
        total = weighted = 0.0
        for i, value in enumerate(values):
            t = abs((i + 0.5 - centre) / stretch)
            if t < 1:
                weight = 1.5 * t**3 - 2.5 * t**2 + 1
            elif t < 2:
                weight = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
            else:
                weight = 0.0
            total += weight
            weighted += weight * value
        result.append(min(255.0, max(0.0, weighted / total)))
    return result


def slow_resize(plane: list[list[float]], height: int, width: int) -> list[list[float]]:
    rows = [slow_axis(row, width) for row in plane]
    columns = [slow_axis([row[x] for row in rows], height) for x in range(width)]
    return [[columns[x][y] for x in range(width)] for y in range(height)]


BOXES = [
    [0.0, 0.0, 97.0, 61.0],  # whole, shrinks
    [10.4, 7.6, 40.5, 50.5],  # fractional corners; 40.5 and 50.5 round to 40 and 50
    [90.0, 55.0, 97.0, 61.0],  # a few pixels at the corner, grows
    [20.0, 30.0, 21.0, 60.0],  # one pixel wide
    [3.0, 10.0, 90.0, 12.0],  # two pixels high
    [40.0, 20.0, 72.0, 52.0],  # exactly the target size: copied
]


@pytest.mark.parametrize("box", BOXES)
def test_crop_equals_pillow_within_one_grey_level(box):
    image = make_image(61, 97)
    ours = crop_and_resize(image, torch.tensor([box]), size=32)[0]
    difference = (ours - pillow_crop(image, box, 32)).abs()
    assert difference.max() <= 1.5, difference.max()  # Pillow rounds to whole levels after each of its two passes
    assert difference.mean() <= 0.3, difference.mean()


def test_crop_equals_the_definition():
    image = make_image(19, 23, seed=3)
    box = [2.0, 3.0, 21.0, 15.0]  # 19 wide, 12 high -> 11 x round(12 * 11 / 19) = 11 x 7, black above floor(4 / 2) = 2
    ours = crop_and_resize(image, torch.tensor([box]), size=11)[0]
    for channel in range(3):
        cut = image[channel, 3:15, 2:21].float().tolist()
        wanted = torch.zeros(11, 11)
        wanted[2:9] = torch.tensor(slow_resize(cut, 7, 11))
        torch.testing.assert_close(ours[channel], wanted, atol=2e-3, rtol=0)


def test_boxes_in_a_batch_do_not_change_each_other():
    image = make_image(61, 97)
    together = crop_and_resize(image, torch.tensor(BOXES), size=24)
    alone = torch.cat([crop_and_resize(image, torch.tensor([box]), size=24) for box in BOXES])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)


def test_a_crop_does_not_depend_on_pixels_outside_its_box():
    image = torch.full((3, 40, 40), 255, dtype=torch.uint8)
    image[:, 10:30, 10:30] = 100
    crops = crop_and_resize(image, torch.tensor([[10.0, 10.0, 30.0, 30.0]]), size=33)
    torch.testing.assert_close(crops, torch.full_like(crops, 100.0), atol=1e-3, rtol=0)


def test_boxes_outside_or_thinner_than_a_pixel_give_one_pixel():
    image = make_image(20, 30)
    boxes = torch.tensor([[50.0, 50.0, 60.0, 60.0], [4.1, 4.1, 4.3, 4.2], [-9.0, -9.0, -2.0, -2.0]])
    crops = crop_and_resize(image, boxes, size=8)
    for crop, pixel in zip(crops, [image[:, 19, 29], image[:, 4, 4], image[:, 0, 0]], strict=True):
        torch.testing.assert_close(crop, pixel.float()[:, None, None].expand(3, 8, 8), atol=1e-3, rtol=0)


def test_no_boxes_and_a_one_pixel_image():
    assert crop_and_resize(make_image(5, 6), torch.zeros(0, 4), size=8).shape == (0, 3, 8, 8)
    image = torch.tensor([[[9]], [[8]], [[7]]], dtype=torch.uint8)
    crop = crop_and_resize(image, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), size=3)[0]
    torch.testing.assert_close(crop, image.float().expand(3, 3, 3))


def test_uint8_and_float_images_give_the_same():
    image = make_image(21, 33)
    boxes = torch.tensor([[0.0, 0.0, 33.0, 21.0]])
    assert torch.equal(crop_and_resize(image, boxes, size=16), crop_and_resize(image.float(), boxes, size=16))


def test_bfloat16_autocast_does_not_cost_grey_levels():
    image, boxes = make_image(61, 97), torch.tensor(BOXES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = crop_and_resize(image, boxes, size=16)
    assert torch.equal(inside, crop_and_resize(image, boxes, size=16))


@pytest.mark.parametrize(
    ("height", "width", "size", "wanted"),
    [
        (480, 640, 224, (168, 224)),
        (640, 480, 1024, (1024, 768)),
        (1, 5000, 100, (1, 100)),  # 100 / 5000 rounds to 0, kept at 1
        (3, 6, 7, (4, 7)),  # 3.5 -> 4, halves to even
        (5, 10, 9, (4, 9)),  # 4.5 -> 4
        (64, 64, 64, (64, 64)),
    ],
)
def test_fitted_size_derived_by_hand(height, width, size, wanted):
    assert fitted_size(height, width, size=size) == wanted


@pytest.mark.parametrize(("height", "width", "size"), [(61, 97, 32), (61, 97, 160), (97, 61, 40), (30, 1, 15)])
def test_resize_longest_equals_pillow(height, width, size):
    image = make_image(height, width, contrast=0.6)
    ours = resize_longest(image, size=size)
    h, w = fitted_size(height, width, size=size)
    assert ours.shape == (3, h, w)
    plain = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((w, h), Image.Resampling.BICUBIC)
    difference = (ours - torch.from_numpy(np.array(plain)).permute(2, 0, 1).float()).abs()
    assert difference.max() <= 1.5 and difference.mean() <= 0.3, (difference.max(), difference.mean())


def test_a_whole_image_crop_is_the_resized_image_in_black():
    image = make_image(61, 97)
    crop = crop_and_resize(image, torch.tensor([[0.0, 0.0, 97.0, 61.0]]), size=32)[0]
    resized = resize_longest(image, size=32)  # 20 x 32, so 6 black rows above and below
    assert torch.equal(crop[:, 6:26], resized)
    assert crop[:, :6].abs().max() == 0 and crop[:, 26:].abs().max() == 0


def test_random_sizes_agree_with_pillow_in_shape_and_position():
    generator = torch.Generator().manual_seed(5)
    for _ in range(30):
        height, width, size = (int(n) for n in torch.randint(2, 90, (3,), generator=generator))
        corner = torch.rand(2, generator=generator) * torch.tensor([width - 1.0, height - 1.0])
        far = corner + 1 + torch.rand(2, generator=generator) * (torch.tensor([width, height]) - corner - 1)
        box = torch.cat([corner, far])
        if (far.round() - corner.round()).min() < 1:
            continue
        image = make_image(height, width, contrast=0.6)
        difference = crop_and_resize(image, box[None], size=size)[0] - pillow_crop(image, box.tolist(), size)
        assert difference.abs().max() <= 1.5, (height, width, size, box)


def test_pad_and_normalize():
    padded = pad_right_bottom(torch.ones(3, 2, 3), height=4, width=5)
    assert padded.shape == (3, 4, 5)
    assert padded[:, :2, :3].min() == 1 and padded[:, 2:].max() == 0 and padded[:, :, 3:].max() == 0
    masks = pad_right_bottom(torch.ones(2, 2, 3, dtype=torch.bool), height=3, width=3)
    assert masks.dtype == torch.bool and masks[:, :2].all() and not masks[:, 2].any()
    with pytest.raises(AssertionError, match="larger"):
        pad_right_bottom(torch.ones(3, 5, 3), height=4, width=5)
    mean, std = (0.48, 0.45, 0.4), (0.26, 0.25, 0.27)
    levels = torch.tensor([0.0, 128.0, 255.0])[:, None, None].expand(3, 2, 2)
    wanted = [(level / 255 - m) / s for level, m, s in zip((0, 128, 255), mean, std, strict=True)]
    normal = normalize(levels, mean=mean, std=std)
    torch.testing.assert_close(normal[:, 0, 0], torch.tensor(wanted), atol=1e-6, rtol=1e-6)
    assert math.isclose(float(normalize(levels[None], mean=mean, std=std)[0, 2, 1, 1]), wanted[2], rel_tol=1e-5)


@pytest.mark.parametrize("pad", ["zero", "black"])
def test_square_input_is_the_resized_image_with_its_padding(pad):
    image, mean, std = make_image(61, 97), (0.48, 0.45, 0.4), (0.26, 0.25, 0.27)
    square = square_input(image, size=32, mean=mean, std=std, pad=pad)  # 61 x 97 -> 20 x 32
    assert square.shape == (3, 32, 32)
    assert torch.equal(square[:, :20], normalize(resize_longest(image, size=32), mean=mean, std=std))
    black = [-m / s for m, s in zip(mean, std, strict=True)]  # (0 / 255 - mean) / std
    wanted = torch.tensor(black if pad == "black" else [0.0, 0.0, 0.0])[:, None, None].expand(3, 12, 32)
    torch.testing.assert_close(square[:, 20:], wanted)
    other = make_image(20, 9, seed=1)
    both = square_inputs([image, other], size=32, mean=mean, std=std, pad=pad)
    assert torch.equal(both[0], square) and both.shape == (2, 3, 32, 32)
    assert torch.equal(both[1, :, :, 14:], both[0, :, 31:, :1].expand(3, 32, 18))  # 20 x 9 -> 32 x 14


@pytest.mark.parametrize(
    ("size", "nearest"), [(60, "56 or 64"), (0, "8"), (-8, "8"), (3, "8"), (9, "8 or 16"), (17, "16 or 24")]
)
def test_a_side_that_is_not_a_multiple_of_the_patch_is_refused_with_the_nearest(size, nearest):
    check_side(64, patch=8, flag="--size")
    check_side(8, patch=8, flag="--size")
    with pytest.raises(InputError, match=f"--size: need a positive multiple of the patch size 8; got {size}. "
                                         f"Try {nearest}\\."):  # fmt: skip
        check_side(size, patch=8, flag="--size")


def test_crops_in_several_batches_are_the_same(monkeypatch):
    image, boxes = make_image(61, 97), torch.tensor(BOXES)
    whole = crop_and_resize(image, boxes, size=24)
    monkeypatch.setattr(resample, "_MAX_VALUES", 3 * 61 * 97)  # room for the largest box alone, then for some at once
    torch.testing.assert_close(crop_and_resize(image, boxes, size=24), whole, atol=1e-3, rtol=0)
    monkeypatch.setattr(resample, "_LARGE", 100)
    monkeypatch.setattr(resample, "_STRIP", 3 * 97 * 4)  # 4 rows of the widest box, more of the others
    torch.testing.assert_close(crop_and_resize(image, boxes, size=24), whole, atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [640, 250, 64])
def test_bilinear_equals_cv2_within_one_grey_level(size):
    cv2 = pytest.importorskip("cv2")
    image = make_image(375, 500)
    height, width = fitted_size(375, 500, size=size)
    theirs = cv2.resize(image.permute(1, 2, 0).numpy(), (width, height), interpolation=cv2.INTER_LINEAR)
    found = resize_longest_bilinear(image, size=size)
    difference = (found - torch.from_numpy(theirs).permute(2, 0, 1)).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.15  # cv2 computes in fixed point
    assert torch.equal(found, found.round()) and torch.equal(resize_longest_bilinear(image, size=500), image.float())


def test_bilinear_derived_by_hand():
    # 2 -> 4: centres lie at -1/4, 1/4, 3/4, 5/4 pixels of the source; what lies outside is the edge's
    image = torch.tensor([0, 100], dtype=torch.uint8).expand(3, 1, 2)
    assert resize_longest_bilinear(image, size=4)[0].tolist() == [[0.0, 25.0, 75.0, 100.0]] * 2
    # 8 -> 2 without antialiasing: only the two pixels around 1.5 and 5.5
    image = torch.tensor([9, 10, 20, 9, 9, 30, 50, 9], dtype=torch.uint8).expand(3, 1, 8)
    assert resize_longest_bilinear(image, size=2)[0].tolist() == [[15.0, 40.0]]
