"""Connected parts and room for names, against slow loops."""

import numpy as np
import pytest

from foveate.show.naming import connected_parts, largest_parts, roomiest_place


def flood(labels: np.ndarray) -> np.ndarray:
    """Number parts by filling each from its first pixel."""
    parts = np.full(labels.shape, -1)
    count = 0
    for start in np.ndindex(*labels.shape):
        if parts[start] >= 0:
            continue
        waiting = [start]
        while waiting:
            y, x = waiting.pop()
            inside = 0 <= y < labels.shape[0] and 0 <= x < labels.shape[1]
            if inside and parts[y, x] < 0 and labels[y, x] == labels[start]:
                parts[y, x] = count
                waiting += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        count += 1
    return parts


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (13, 17), (30, 30)])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_connected_parts_equal_flood_filling(shape, count):
    labels = np.random.default_rng(count).integers(0, count, shape)
    assert np.array_equal(connected_parts(labels), flood(labels))


def test_a_spiral_is_one_part():
    # 1s wind from the outside to the middle, so that numbers must travel far
    spiral = np.array([
        [1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 1],
        [1, 1, 1, 1, 1, 0, 1],
        [1, 0, 0, 0, 1, 0, 1],
        [1, 0, 1, 1, 1, 0, 1],
        [1, 0, 0, 0, 0, 0, 1],
        [1, 1, 1, 1, 1, 1, 1],
    ])  # fmt: skip
    assert connected_parts(spiral).max() == 1


def test_the_largest_part_of_each_label():
    labels = np.array([[0, 0, -1, 1], [2, -1, 0, 1], [1, -1, 0, 0]])
    parts = largest_parts(labels)
    assert set(parts) == {0, 1, 2}
    assert parts[0].nonzero()[0].tolist() == [1, 2, 2] and parts[0].nonzero()[1].tolist() == [2, 2, 3]
    assert np.argwhere(parts[1]).tolist() == [[0, 3], [1, 3]] and np.argwhere(parts[2]).tolist() == [[1, 0]]
    assert largest_parts(np.full((2, 3), -1)) == {}


def test_a_name_is_written_where_it_has_the_most_room():
    # a T: the bar (rows 0-4, 21 wide) takes names wider than the stem (rows 5-20, columns 8-12)
    inside = np.zeros((21, 21), bool)
    inside[:5] = inside[5:, 8:13] = True
    assert roomiest_place(inside, height=2.0, width=8.0) == (2, 10)
    # of upright ones the largest are 5 x 20, in columns 8-12 and rows 0 to 18: middle 10 is the nearest to the mean
    row, column = roomiest_place(inside, height=8.0, width=2.0)
    assert column == 10 and 8 <= row <= 12


def test_the_position_equals_a_slow_search():
    inside = np.random.default_rng(0).random((14, 18)) < 0.9
    height, width = 2.0, 5.0

    def room(y: int, x: int) -> float:
        """The largest scale at which the name around a pixel is inside, in steps of a thousandth."""
        best = 0.0
        for scale in np.arange(0.001, 9, 0.001):
            down, along = int(scale * height / 2), int(scale * width / 2)
            if y < down or x < along or y + down >= 14 or x + along >= 18:
                break
            if not inside[y - down : y + down + 1, x - along : x + along + 1].all():
                break
            best = scale
        return best

    rooms = {(y, x): room(y, x) for y, x in np.argwhere(inside).tolist()}
    place = roomiest_place(inside, height=height, width=width)
    assert inside[place] and rooms[place] >= max(rooms.values()) - 0.01


def test_only_free_positions_are_used():
    inside = np.zeros((5, 9), bool)
    inside[1:4, 1:8] = True
    free = np.ones((5, 9), bool)
    assert roomiest_place(inside, height=1.0, width=3.0, free=free) == (2, 4)
    free[:, :6] = False
    row, column = roomiest_place(inside, height=1.0, width=3.0, free=free)
    assert column in (6, 7) and row == 2
    assert roomiest_place(inside, height=1.0, width=3.0, free=np.zeros((5, 9), bool)) is None
    assert roomiest_place(np.zeros((5, 9), bool), height=1.0, width=3.0) is None
    inside[:] = False
    inside[4, 8] = True
    assert roomiest_place(inside, height=99.0, width=99.0) == (4, 8)
