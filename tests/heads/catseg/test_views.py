"""Views of an image: windows against a slow loop, and labels that follow their pixels."""

import pytest
import torch

from foveate.errors import InputError
from foveate.heads.catseg.views import cut_windows, fold_average, offsets, training_view
from foveate.ops.shortest import resize_shortest
from foveate.types import LabelMap, Sample

CPU = torch.device("cpu")


def test_the_published_windows():
    assert offsets(length=640, window=384, stride=256) == [0, 256]
    with pytest.raises(AssertionError, match="leaves some of 10"):
        offsets(length=10, window=4, stride=4)


def test_folding_windows_equals_a_loop():
    torch.manual_seed(0)
    windows = torch.rand(9, 2, 4, 4)  # 3 x 3 windows of 4, every 3, on 10 x 10
    found = fold_average(windows, length=10, stride=3)
    for y in range(10):
        for x in range(10):
            seen = [
                windows[row * 3 + column, :, y - 3 * row, x - 3 * column]
                for row in range(3)
                for column in range(3)
                if 0 <= y - 3 * row < 4 and 0 <= x - 3 * column < 4
            ]
            torch.testing.assert_close(found[:, y, x], sum(seen) / len(seen))
    image = torch.rand(3, 10, 10)
    torch.testing.assert_close(fold_average(cut_windows(image, window=4, stride=3), length=10, stride=3), image)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((480, 640), (640, 853)),  # 640 / 480 * 640 = 853.3
        ((640, 480), (853, 640)),
        ((427, 640), (640, 959)),  # 959.25
        ((640, 700), (640, 700)),  # as it is
        ((100, 1000), (256, 2560)),  # 6400 is longer than 2560: both shrink by 2.5
        ((3, 1000), (8, 2560)),  # 7.68
        ((1, 5000), (1, 2560)),  # .5, rounded up
    ],
)
def test_the_shortest_edge_is_resized_and_the_longest_bounded(size, wanted):
    image = torch.arange(3 * size[0] * size[1]).remainder(251).to(torch.uint8).view(3, *size)
    found = resize_shortest(image, shortest=640, longest=2560)
    assert found.shape == (3, *wanted) and found.dtype == torch.uint8
    assert size != wanted or torch.equal(found, image)


@pytest.mark.parametrize("height,width", [(40, 90), (90, 40)])
def test_labels_follow_their_pixels(height, width):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, :, width // 2 :] = 200
    image[:, height // 2 :] += 50
    labels = (image[0] > 100).long() + 2 * (image[0] % 100 > 0).long() - 1  # -1 to 2
    sample = Sample("1", image, torch.zeros(0, 4), label_map=LabelMap(labels))
    flipped = 0
    for seed in range(8):
        torch.manual_seed(seed)
        seen, found = training_view(sample, classes=3, size=32, augment=True, device=CPU)
        assert seen.shape == (3, 32, 32) and seen.min() >= 0 and seen.max() <= 255
        assert found.dtype == torch.int64 and set(found.unique().tolist()) <= {-1, 0, 1, 2}
        bright = seen.mean(dim=0)
        order = [bright[found == label].mean() for label in (-1, 1, 0, 2) if (found == label).sum() > 100]
        assert order == sorted(order)  # darkest to brightest: 0, 50, 200, 250
        flipped += bool(bright[:, :16].mean() > bright[:, 16:].mean())
    if height > width:  # of which every crop holds both halves
        assert 0 < flipped < 8
    seen, found = training_view(sample, classes=3, size=32, augment=False, device=CPU)
    assert torch.equal(found[:, 20], torch.tensor([0] * 16 + [2] * 16))


def test_invalid_label_maps_are_refused():
    image, boxes = torch.zeros(3, 4, 5, dtype=torch.uint8), torch.zeros(0, 4)
    for label_map, message in (
        (None, "image 7: need the class of each pixel"),
        (LabelMap(torch.zeros(5, 4, dtype=torch.int64)), r"must have its size \(4, 5\); got \(5, 4\)"),
        (LabelMap(torch.full((4, 5), 3)), "need classes below 3, as the vocabulary has; got 3"),
    ):
        with pytest.raises(InputError, match=message):
            training_view(Sample("7", image, boxes, label_map=label_map), classes=3, size=8, augment=True, device=CPU)
