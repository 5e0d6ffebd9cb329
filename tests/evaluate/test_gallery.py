"""The draw of galleries: different distractors that depend only on names."""

from foveate.evaluate.gallery import draw_others


def test_distractors_are_different_and_exclude_the_name():
    names = [f"p{n}" for n in range(9)]
    for place in range(9):
        others = draw_others(names, place, count=4, seed=0)
        assert len(set(others)) == 4 and place not in others and set(others) <= set(range(9))
        assert sorted(draw_others(names, place, count=50, seed=0)) == [n for n in range(9) if n != place]
    assert draw_others(names, 3, count=0, seed=0) == [] and draw_others(["alone"], 0, count=4, seed=0) == []


def test_the_draw_depends_on_seed_name_and_purpose():
    names = [f"p{n}" for n in range(40)]
    first = draw_others(names, 7, count=5, seed=0)
    assert draw_others(names, 7, count=5, seed=0) == first
    assert draw_others(names, 7, count=5, seed=1) != first
    assert draw_others(names, 8, count=5, seed=0) != first
    assert draw_others(names, 7, count=5, seed=0, purpose="regions") != first
