"""Masks from a panoptic PNG."""

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.data.images import ImageError
from foveate.data.panoptic import mask_extents, panoptic_segments
from foveate.data.records import Record
from foveate.types import Category

CATEGORIES = (Category(1, "person", True), Category(200, "rug", False))
BIG = 3 + 256 * 2 + 65536 * 1  # the colour (3, 2, 1)


@pytest.fixture
def record(tmp_path):
    """4 x 6 pixels: a thing (colour 5) in 2 x 3, stuff (colour BIG) in two corners, the rest unlabelled."""
    colours = np.zeros((4, 6, 3), np.uint8)
    colours[1:3, 2:5] = (5, 0, 0)
    colours[0, 1] = colours[3, 5] = (3, 2, 1)
    Image.fromarray(colours).save(tmp_path / "p.png")
    return Record(
        9, tmp_path / "p.jpg", 4, 6, ((2, 1, 4.5, 3), (0, 0, 6, 4)), (0, 1), (False,) * 2, (5, BIG), tmp_path / "p.png"
    )


def test_masks_labels_and_boxes(record):
    segments = panoptic_segments(record, CATEGORIES)
    thing, stuff = torch.zeros(2, 4, 6, dtype=torch.bool)
    thing[1:3, 2:5] = True
    stuff[0, 1] = stuff[3, 5] = True
    assert torch.equal(segments.masks, torch.stack([thing, stuff]))
    assert segments.labels.tolist() == [0, 1] and segments.is_thing.tolist() == [True, False]
    # the thing keeps the annotated box (not its mask's 2 1 5 3); the stuff's, 0 0 6 4, becomes its mask's first and
    # last pixels, as published
    assert segments.boxes.tolist() == [[2, 1, 4.5, 3], [1, 0, 5, 3]]
    assert segments.boxes.dtype == torch.float32


def test_an_image_without_segments(record):
    empty = Record(9, record.path, 4, 6, panoptic=record.panoptic)
    segments = panoptic_segments(empty, CATEGORIES)
    assert segments.masks.shape == (0, 4, 6) and segments.boxes.shape == (0, 4) and segments.labels.dtype == torch.int64


def test_extents_equal_a_slow_search():
    masks = torch.rand(20, 7, 9, generator=torch.Generator().manual_seed(0)) > 0.9
    boxes, empty = mask_extents(masks)
    for mask, box, gone in zip(masks, boxes.tolist(), empty.tolist(), strict=True):
        pixels = [(y, x) for y in range(7) for x in range(9) if mask[y, x]]
        assert gone == (not pixels)
        if pixels:
            ys, xs = zip(*pixels, strict=True)
            assert box == [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


def with_(record: Record, **fields: object) -> Record:
    names = ("id", "path", "height", "width", "boxes", "labels", "crowd", "segment_ids", "panoptic")
    return Record(**{**{name: getattr(record, name) for name in names}, **fields})


def test_a_png_without_a_segment_is_refused_with_image_and_id(record):
    with pytest.raises(ImageError, match=r"p\.png: .* image 9; 1 of 2 have none \(the first id: 6\)"):
        panoptic_segments(with_(record, segment_ids=(5, 6)), CATEGORIES)


def test_a_png_of_another_size_or_missing_is_refused(record, tmp_path):
    with pytest.raises(ImageError, match="need 8 x 6"):
        panoptic_segments(with_(record, height=8), CATEGORIES)
    with pytest.raises(ImageError, match="not found"):
        panoptic_segments(with_(record, panoptic=tmp_path / "gone.png"), CATEGORIES)


def test_masks_over_the_memory_limit_are_refused(record):
    many = with_(record, height=7000, width=7000, segment_ids=tuple(range(1, 1001)))
    with pytest.raises(ImageError, match="bytes of masks"):
        panoptic_segments(many, CATEGORIES)
