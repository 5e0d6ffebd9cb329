"""Grid patches, counted by hand from Sec. 3.2."""

import pytest
import torch

from foveate.errors import InputError
from foveate.ops.grid import grid_boxes, grid_pairs, sample_grid

# n in ceil(m / 2) .. min(2 m, 6), written out row by row
PUBLISHED = {1: [1, 2], 2: [1, 2, 3, 4], 3: [2, 3, 4, 5, 6], 4: [2, 3, 4, 5, 6], 5: [3, 4, 5, 6], 6: [3, 4, 5, 6]}


def test_grid_of_two_rows_and_three_columns_derived_by_hand():
    # 100 high: rows cut at 50; 90 wide: columns cut at 30 and 60
    assert grid_boxes(2, 3, height=100, width=90).tolist() == [
        [0, 0, 30, 50],
        [30, 0, 60, 50],
        [60, 0, 90, 50],
        [0, 50, 30, 100],
        [30, 50, 60, 100],
        [60, 50, 90, 100],
    ]


def test_corners_are_exact_fractions_and_the_grid_covers_the_image():
    boxes = grid_boxes(3, 7, height=100, width=640)
    assert boxes.dtype == torch.float32
    assert boxes[:, 2].max() == 640 and boxes[:, 3].max() == 100 and boxes[:, :2].min() == 0
    for row in range(3):
        for column in range(7):
            wanted = torch.tensor([column * 640 / 7, row * 100 / 3, (column + 1) * 640 / 7, (row + 1) * 100 / 3])
            torch.testing.assert_close(boxes[row * 7 + column], wanted, rtol=1e-7, atol=0)


def test_grid_pairs_of_both_rules():
    published = grid_pairs(6, "published")
    assert published == [(m, n) for m, columns in PUBLISHED.items() for n in columns]
    assert len(published) == 24
    assert len(set(grid_pairs(6, "all"))) == 36 and set(published) < set(grid_pairs(6, "all"))
    assert grid_pairs(1, "published") == grid_pairs(1, "all") == [(1, 1)]
    assert max(n for _, n in grid_pairs(4, "published")) == 4


def test_mean_number_of_patches_is_thirteen():
    # min(m n, 20) over the 24 pairs: 3 + 20 + 60 + 76 + 75 + 78 = 312, and 312 / 24 = 13.0
    assert sum(min(m * n, 20) for m, n in grid_pairs(6, "published")) / 24 == 13.0
    generator = torch.Generator().manual_seed(0)
    draw = {"height": 480, "width": 640, "limit": 6, "rule": "published", "keep": 20, "generator": generator}
    counts = [sample_grid(**draw).shape[0] for _ in range(4000)]
    # the spread of min(m n, 20) is below 7, so the mean of 4000 draws stays within 0.5 (more than 4 sigma)
    assert abs(sum(counts) / len(counts) - 13.0) < 0.5
    assert max(counts) == 20 and min(counts) == 1


def test_every_pair_is_drawn_equally_often():
    generator = torch.Generator().manual_seed(1)
    seen: dict[tuple[int, int], int] = {}
    for _ in range(6000):
        boxes = sample_grid(height=60, width=60, limit=3, rule="all", keep=99, generator=generator)
        pair = (round(60 / float(boxes[0, 3] - boxes[0, 1])), round(60 / float(boxes[0, 2] - boxes[0, 0])))
        seen[pair] = seen.get(pair, 0) + 1
    # 9 pairs, 667 expected each, sigma = sqrt(6000 * 1/9 * 8/9) = 24
    assert len(seen) == 9 and all(abs(count - 667) < 5 * 24 for count in seen.values())


def test_sampled_patches_belong_to_the_grid_and_are_distinct():
    generator = torch.Generator().manual_seed(2)
    shuffled = 0
    for _ in range(50):
        boxes = sample_grid(height=47, width=91, limit=6, rule="all", keep=20, generator=generator)
        rows = round(47 / float(boxes[0, 3] - boxes[0, 1]))
        columns = round(91 / float(boxes[0, 2] - boxes[0, 0]))
        grid = [tuple(box) for box in grid_boxes(rows, columns, height=47, width=91).tolist()]
        places = [grid.index(tuple(box)) for box in boxes.tolist()]
        assert len(set(places)) == len(places) == min(20, rows * columns)
        shuffled += places != sorted(places)
    assert shuffled > 25


def test_the_same_generator_gives_the_same_patches():
    def draw():
        generator = torch.Generator().manual_seed(7)
        return sample_grid(height=48, width=64, limit=6, rule="published", keep=20, generator=generator)

    assert torch.equal(draw(), draw())


def test_invalid_grid_settings_are_refused():
    generator = torch.Generator()
    for limit in (0, 65, 1000):
        with pytest.raises(InputError, match=f"--grid: must be 1 to 64, .*; got {limit}"):
            grid_pairs(limit, "all")
    with pytest.raises(InputError, match='"published" or "all"'):
        grid_pairs(6, "paper")
    with pytest.raises(InputError, match="at least 1 patch per image; got 0"):
        sample_grid(height=4, width=4, limit=6, rule="all", keep=0, generator=generator)
