"""Drawn maps: colours and positions of names."""

import numpy as np
import pytest
import torch

from foveate.errors import InputError
from foveate.show.palette import class_colours
from foveate.show.segmentation import draw_label_map, draw_panoptic
from foveate.types import LabelMap, PanopticMap, SegmentInfo

BLUE, VERMILION = (0, 114, 178), (213, 94, 0)  # of the first two classes


def grey(height: int, width: int) -> torch.Tensor:
    return torch.full((3, height, width), 100, dtype=torch.uint8)


def halves(height: int = 480, width: int = 480) -> torch.Tensor:
    labels = torch.zeros(height, width, dtype=torch.int64)
    labels[:, width // 2 :] = 1
    return labels


def where(drawn: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    """(row, column) of the pixels that have exactly this colour: those of a name's background."""
    return np.argwhere((drawn == colour).all(axis=2))


def test_colours_contours_and_names_of_two_classes():
    drawn = np.asarray(draw_label_map(grey(480, 480), LabelMap(halves()), names=["cat", "dog"]))
    assert drawn.shape == (480, 480, 3)
    # 0.45 * 100 + 0.55 * (0, 114, 178) = 45, 107.7, 142.9; of (213, 94, 0) = 162.15, 96.7, 45
    assert drawn[9, 9].tolist() == [45, 108, 143] and drawn[9, 470].tolist() == [162, 97, 45]
    # the line: 0.2 * (45, 107.7, 142.9) + 0.8 * 255 = 213, 225.54, 232.58, one pixel wide
    assert drawn[9, 239].tolist() == [213, 226, 233]
    assert drawn[9, 238].tolist() == [45, 108, 143] and drawn[9, 240].tolist() == [162, 97, 45]
    for colour, middle in ((BLUE, (239.5, 119.5)), (VERMILION, (239.5, 359.5))):
        ground = where(drawn, colour)
        assert len(ground) > 100
        assert abs((ground.min(axis=0) + ground.max(axis=0)) / 2 - middle).max() <= 2


def test_the_opacity_of_colours():
    drawn = np.asarray(draw_label_map(grey(480, 480), LabelMap(halves()), names=["a", "b"], opacity=1.0))
    assert drawn[9, 9].tolist() == list(BLUE)
    drawn = np.asarray(draw_label_map(grey(480, 480), LabelMap(halves()), names=["a", "b"], opacity=0.0))
    assert drawn[9, 9].tolist() == [100, 100, 100]


def test_small_images_are_enlarged_by_whole_factors():
    for size, enlarged in (
        ((160, 192), (480, 576)),
        ((1, 1), (480, 480)),
        ((479, 10), (958, 20)),
        ((9, 481), (9, 481)),
    ):
        labels = torch.zeros(size, dtype=torch.int64)
        drawn = draw_label_map(grey(*size), LabelMap(labels), names=["a"])
        assert drawn.size == enlarged[::-1]


def test_pixels_of_no_class_are_unchanged():
    image = torch.randint(0, 256, (3, 500, 490), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    nothing = torch.full((500, 490), -1)
    plain = image.permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(draw_label_map(image, LabelMap(nothing), names=[])), plain)
    assert np.array_equal(np.asarray(draw_label_map(image, LabelMap(nothing), names=["cat"])), plain)
    something = nothing.clone()
    something[200:300, 200:300] = 0
    drawn = np.asarray(draw_label_map(image, LabelMap(something), names=["cat"]))
    assert np.array_equal(drawn[(something < 0).numpy()], plain[(something < 0).numpy()])
    # the outline lies inside, at all four sides: 0.8 * 255 = 204 at least
    for side in (drawn[200, 200:300], drawn[299, 200:300], drawn[200:300, 200], drawn[200:300, 299]):
        assert side.min() >= 204


def test_a_name_is_written_only_in_the_largest_part():
    labels = torch.zeros(480, 480, dtype=torch.int64)
    labels[20:120, 20:120] = labels[200:440, 200:460] = 1  # two parts: 100 x 100, and 240 x 260 around (320, 330)
    drawn = np.asarray(draw_label_map(grey(480, 480), LabelMap(labels), names=["cat", "dog"]))
    ground = where(drawn, VERMILION)
    assert abs((ground.min(axis=0) + ground.max(axis=0)) / 2 - (319.5, 329.5)).max() <= 2


def test_names_on_a_large_image():
    # places are sought in every third pixel of 2000: the class's square is around (900, 1500)
    labels = torch.full((1000, 2000), -1)
    labels[800:1000, 1400:1600] = 0
    drawn = np.asarray(draw_label_map(grey(1000, 2000), LabelMap(labels), names=["cat"]))
    ground = where(drawn, BLUE)
    assert abs((ground.min(axis=0) + ground.max(axis=0)) / 2 - (899.5, 1499.5)).max() <= 4


def test_tiny_parts_are_coloured_but_not_named():
    labels = torch.zeros(480, 480, dtype=torch.int64)
    labels[50, 50] = labels[300, 301] = 1
    drawn = np.asarray(draw_label_map(grey(480, 480), LabelMap(labels), names=["cat", "dog"]))
    assert len(where(drawn, VERMILION)) == 0 and len(where(drawn, BLUE)) > 100
    assert drawn[50, 50, 0] > drawn[50, 50, 2] + 3  # reddish below its contour, not bluish


def test_names_do_not_cover_each_other():
    # strips lower than a name at the lower edge, and narrower than one in the right corner; all are written, moved
    # into the image where they would leave it
    labels = torch.zeros(480, 640, dtype=torch.int64)
    labels[462:470, :320], labels[471:479, :320] = 1, 2
    labels[400:480, 628:634], labels[400:480, 634:] = 3, 4
    names = ["sky", "road", "kerb", "post", "pole"]
    drawn = np.asarray(draw_label_map(grey(480, 640), LabelMap(labels), names=names, opacity=0.3))
    boxes = []
    for colour in class_colours(5).tolist():
        ground = where(drawn, tuple(colour))
        assert len(ground) > 100
        boxes.append((*ground.min(axis=0), *ground.max(axis=0)))
        top, left, bottom, right = boxes[-1]
        assert 13 <= bottom - top <= 22 and 20 <= right - left <= 50  # whole, each on one piece
    for one in range(5):
        for other in range(one):
            a, b = boxes[one], boxes[other]
            assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1], (names[one], names[other])


def test_a_name_without_a_free_position_is_skipped():
    # the lower strip is smaller, so its name comes first, 18 pixels high around row 35; any name around a row of the
    # upper strip would reach into it
    labels = torch.full((480, 40), -1)
    labels[21:31], labels[31:40] = 0, 1
    drawn = np.asarray(draw_label_map(grey(480, 40), LabelMap(labels), names=["cat", "dog"]))
    assert len(where(drawn, VERMILION)) > 100 and len(where(drawn, BLUE)) == 0


def test_long_names_stay_in_the_image():
    drawn = np.asarray(draw_label_map(grey(480, 480), LabelMap(halves()), names=["x" * 500, "dog"]))
    ground = where(drawn, BLUE)
    assert len(ground) > 100 and ground[:, 1].max() < 479


def test_things_of_a_class_have_shades_and_stuff_has_one_colour():
    ids = torch.zeros(480, 480, dtype=torch.int64)
    ids[:240, :240], ids[:240, 240:], ids[240:, :240], ids[240:, 240:] = 7, 3, 900, 41
    segments = (SegmentInfo(3, 0, True), SegmentInfo(900, 1, False), SegmentInfo(7, 0, True), SegmentInfo(41, 1, False))
    drawn = np.asarray(draw_panoptic(grey(480, 480), PanopticMap(ids, segments), names=["cat", "sky"]))
    assert drawn[9, 400].tolist() == [45, 108, 143]  # the first cat: the class's colour
    # the second: (89, 163, 205), a third lighter; 45 + 0.55 * that = 93.95, 134.65, 157.75
    assert drawn[9, 9].tolist() == [94, 135, 158]
    assert drawn[400, 9].tolist() == drawn[400, 400].tolist() == [162, 97, 45]
    # a name at each: in each quarter its colour without the image
    for rows, columns, colour in ((0, 240, BLUE), (0, 0, (89, 163, 205)), (240, 0, VERMILION), (240, 240, VERMILION)):
        assert len(where(drawn[rows : rows + 240, columns : columns + 240], colour)) > 100


def test_panoptic_maps_without_segments_and_with_tiny_ones():
    image = grey(500, 490)
    ids = torch.zeros(500, 490, dtype=torch.int64)
    assert (np.asarray(draw_panoptic(image, PanopticMap(ids, ()), names=[])) == 100).all()
    ids[3, 4], ids[499, 489] = 1, 2
    segments = (SegmentInfo(1, 0, True), SegmentInfo(2, 0, True), SegmentInfo(5, 0, True))  # the last has no pixel
    drawn = np.asarray(draw_panoptic(image, PanopticMap(ids, segments), names=["cat"]))
    assert (drawn != 100).any(axis=2).sum() == 2


def test_wrong_maps_are_refused():
    with pytest.raises(InputError, match=r"names: need one for each class of the map, whose largest is 1; got 1"):
        draw_label_map(grey(480, 480), LabelMap(halves()), names=["cat"])
    with pytest.raises(InputError, match=r"480 x 480 pixels \(height x width\); it has 480 x 400"):
        draw_label_map(grey(480, 480), LabelMap(halves(480, 400)), names=["cat", "dog"])
    one = PanopticMap(torch.ones(4, 4, dtype=torch.int64), (SegmentInfo(1, 5, True),))
    with pytest.raises(InputError, match="largest is 5; got 2"):
        draw_panoptic(grey(4, 4), one, names=["cat", "dog"])
    # more names than the map has classes are a vocabulary of which this image shows a part
    draw_panoptic(grey(4, 4), one, names=["cat"] * 400)
