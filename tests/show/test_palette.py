"""Colours of classes: stable and distinct."""

import numpy as np

from foveate.show.palette import class_colours, oklab, shade_colour


def test_the_colour_of_a_class_is_independent_of_the_vocabularys_length():
    long = class_colours(1203)
    assert long.shape == (1203, 3) and long.dtype == np.uint8
    for count in (1, 2, 9, 133, 256, 257):
        assert np.array_equal(class_colours(count), long[:count])
    # the charts' first: "#0072B2" is 0, 114, 178 and "#D55E00" is 213, 94, 0
    assert long[:2].tolist() == [[0, 114, 178], [213, 94, 0]]
    assert class_colours(0).shape == (0, 3)


def test_colours_repeat_for_more_classes_than_colours():
    colours = class_colours(10_000)
    distinct = len(np.unique(colours, axis=0))
    assert 1000 < distinct < 10_000 and np.array_equal(colours[distinct], colours[0])


def test_oklab_equals_published_values():
    # Ottosson's white is 1, 0, 0, his black 0, 0, 0; CSS Color 4 gives red as 0.62796, 0.22486, 0.12585
    found = oklab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]], np.uint8))
    assert np.allclose(found, [[1, 0, 0], [0, 0, 0], [0.62796, 0.22486, 0.12585]], atol=2e-4)


def test_colours_are_far_apart_and_none_is_black_white_or_grey():
    lab = oklab(class_colours(256))
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 9 * np.eye(256)
    # 0.02 is about the least difference that is seen side by side; random colours of this number come nearer
    assert apart.min() > 0.02 and apart[:24, :24].min() > 0.08
    drawn = lab[8:]  # those chosen here
    assert drawn[:, 0].min() >= 0.42 and drawn[:, 0].max() <= 0.9 and np.hypot(drawn[:, 1], drawn[:, 2]).min() >= 0.06


def test_shades_of_a_colour():
    blue = np.array([0, 114, 178], np.uint8)
    assert shade_colour(blue, 0).tolist() == [0, 114, 178]
    assert shade_colour(blue, 1).tolist() == [89, 163, 205]  # 0.65 * blue + 0.35 * 255 = 89.25, 163.35, 204.95
    assert shade_colour(blue, 2).tolist() == [0, 80, 125]  # 0.7 * blue = 0, 79.8, 124.6
    assert shade_colour(blue, 7).tolist() == [0, 114, 178]  # seven shades, then again
