"""COCO's instance masks in every form, and malformed ones that must not reach the decoder."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from foveate.data.instance_masks import (
    BAD_POLYGON,
    EMPTY_MASK,
    FAR_OUTSIDE,
    FLAT,
    NO_MASK,
    decode_masks,
    encode_mask,
)
from foveate.data.loader import EvaluationSource
from foveate.data.records import IgnoredEntries
from foveate.data.sources import open_data
from foveate.errors import InputError

SIZE = {"height": 4, "width": 6}
SQUARE = [[1, 1, 4, 1, 4, 3, 1, 3]]  # columns 1..3, rows 1..2
# column by column from the top left: column 0 and one pixel, two set, two not, two set, two not, two set, the rest
RUNS = {"size": [4, 6], "counts": [5, 2, 2, 2, 2, 2, 9]}


def pixels_of(value):
    return decode_masks((encode_mask("here", value, **SIZE),), **SIZE)[0]


def test_a_polygon_and_its_run_lengths_give_the_same_pixels():
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[1:3, 1:4] = True
    text = coco.frPyObjects(RUNS, 4, 6)["counts"].decode()
    for value in (SQUARE, RUNS, {"size": [4, 6], "counts": text}):
        assert torch.equal(pixels_of(value), expected)


def test_compressed_counts_of_random_masks_round_trip():
    random = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 3), (120, 90), (1, 5000)):
        pixels = (random.random((height, width)) < random.random()).astype(np.uint8)
        pixels[0, 0] = 1
        text = coco.encode(np.asfortranarray(pixels))["counts"].decode()
        encoded = encode_mask("here", {"size": [height, width], "counts": text}, height=height, width=width)
        assert torch.equal(decode_masks((encoded,), height=height, width=width)[0], torch.from_numpy(pixels).bool())


def test_polygons_that_cannot_be_drawn_are_ignored_beside_others():
    faults: dict[str, IgnoredEntries] = {}
    bad = ([], [1, 1, 2, 2], [1, 1, 2, 2, 3], [1, 1, 2, 2, 3, 3, 4], [1, 1, 2, 2, float("nan"), 3])
    for number, polygon in enumerate(bad):
        assert encode_mask(f"object {number}", [polygon], **SIZE) == NO_MASK
        mask = encode_mask(f"object {number}", [polygon, *SQUARE], **SIZE, faults=faults)
        assert mask == encode_mask("here", SQUARE, **SIZE)
    assert faults == {BAD_POLYGON: IgnoredEntries(len(bad), "object 0")}


def test_unusable_masks_give_a_reason():
    assert encode_mask("here", SQUARE[0], **SIZE) == FLAT and encode_mask("here", [[]], **SIZE) == NO_MASK
    assert encode_mask("here", None, **SIZE) == NO_MASK and encode_mask("here", [], **SIZE) == NO_MASK
    assert encode_mask("here", {"size": [4, 6], "counts": [24]}, **SIZE) == EMPTY_MASK
    assert encode_mask("here", [[1e9, 0, 1e9, 5, 0, 5]], **SIZE) == FAR_OUTSIDE
    assert decode_masks((), **SIZE).shape == (0, 4, 6)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"size": [4, 6], "counts": [5, 2]}, "cover 7 pixels instead of 24"),  # the decoder would read beyond
        ({"size": [4, 6], "counts": [30]}, "cover 30 pixels instead of 24"),
        ({"size": [6, 4], "counts": [24]}, r"size \[6, 4\], which is \[width, height\], where .* = \[4, 6\]"),
        ({"size": [4, 6], "counts": [-3, 27]}, "whole numbers"),
        ({"size": [4, 6], "counts": "\x00"}, "whole numbers"),
        ({"size": [4, 6], "counts": "P"}, "whole numbers"),
        ({"size": [4, 6], "counts": "oooooooooo"}, "whole numbers"),
        ([["1", 1, 2, 2, 3, 3]], "three corners"),
        ("text", "polygons or run lengths"),
    ],
)
def test_malformed_masks_are_refused_before_decoding(value, says):
    with pytest.raises(InputError, match=f"here.*{says}"):
        encode_mask("here", value, **SIZE)


def test_open_data_reads_masks(tmp_path):
    from PIL import Image

    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "val2017" / "1.png")
    common = {"image_id": 1, "category_id": 3, "bbox": [1, 1, 3, 2], "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 4, "width": 6}],
        "categories": [{"id": 3, "name": "box"}],
        "annotations": [{"id": 1, **common, "segmentation": SQUARE}, {"id": 2, **common}],
    }
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    dataset = open_data(tmp_path, split="val", annotations="masks")
    assert dataset.ignored[NO_MASK].count == 1
    sample = EvaluationSource(dataset)[0]
    assert sample.segments.masks.sum() == 6 and sample.segments.masks[0, 1:3, 1:4].all()
    plain = open_data(tmp_path, split="val")
    assert len(plain.records[0].boxes) == 2
    with pytest.raises(InputError, match="masks"):
        EvaluationSource(plain)
