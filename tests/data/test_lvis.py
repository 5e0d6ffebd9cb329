"""LVIS v1: images named by URL, categories with synonyms and frequency."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from foveate.data.datasets.lvis import is_lvis, read_lvis
from foveate.data.validation import OUTSIDE
from foveate.errors import InputError
from foveate.types import Category

LVIS: dict[str, Any] = {
    "images": [
        {"id": 391895, "coco_url": "http://host/train2017/000000391895.jpg", "height": 40, "width": 60},
        {"id": 5, "coco_url": "http://host/val2017/000000000005.jpg", "height": 50, "width": 50},
    ],
    "categories": [
        {"id": 2, "name": "aerosol_can", "synonyms": ["aerosol_can", "spray_can"], "frequency": "c"},
        {"id": 1, "name": "acorn", "synonyms": ["acorn"], "frequency": "r"},
    ],
    "annotations": [
        {"id": 1, "image_id": 391895, "category_id": 2, "bbox": [1.5, 2, 10, 20.25]},
        {"id": 2, "image_id": 391895, "category_id": 1, "bbox": [60, 2, 10, 20]},
    ],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("train2017/000000391895.jpg", "val2017/000000000005.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    return tmp_path


def written(root: Path, content: object) -> Path:
    path = root / "lvis.json"
    path.write_text(json.dumps(content))
    return path


def test_image_paths_are_the_last_parts_of_urls(root):
    dataset = read_lvis(written(root, LVIS), root)
    assert [record.id for record in dataset.records] == [391895, 5]
    assert [record.path.relative_to(root).as_posix() for record in dataset.records] == [
        "train2017/000000391895.jpg",
        "val2017/000000000005.jpg",
    ]
    first = dataset.records[0]
    assert first.size == (40, 60) and first.boxes == ((1.5, 2, 11.5, 22.25),)
    assert first.labels == (1,) and first.crowd == (False,)  # aerosol_can comes second by id
    assert dataset.categories == (
        Category(1, "acorn", True, ("acorn",), "r"),
        Category(2, "aerosol_can", True, ("aerosol_can", "spray_can"), "c"),
    )
    assert dataset.ignored[OUTSIDE].count == 1 and "annotation 2" in dataset.ignored[OUTSIDE].first


@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        (("images", 0, "coco_url"), 7, "image 391895: need `coco_url`"),
        (("images", 0, "coco_url"), "image.jpg", "image 391895: need `coco_url` that ends in FOLDER/FILE"),
        (("images", 0, "coco_url"), "http://host/../evil.jpg", "image 391895: need `file_name` inside"),
        (("images", 1, "id"), 391895, "image 391895: need a unique `id` per image"),
        (("categories", 0, "frequency"), "x", "category 2: need `frequency`"),
        (("categories", 0, "synonyms"), "can", "category 2: need `synonyms`"),
        (("annotations", 0, "image_id"), 6, "annotation 1: need `image_id`"),
        (("annotations", 0, "bbox"), [1, 2, 3], "annotation 1: need `bbox`"),
    ],
)
def test_a_malformed_entry_is_refused_with_its_id(root, keys, value, reason):
    content = copy.deepcopy(LVIS)
    group, number, field = keys
    content[group][number][field] = value
    with pytest.raises(InputError) as caught:
        read_lvis(written(root, content), root)
    assert reason in str(caught.value) and "lvis.json" in str(caught.value)


@pytest.mark.parametrize(
    ("image", "category", "expected"),
    [
        ({"coco_url": "u"}, {}, True),
        ({"coco_url": "u", "file_name": "f"}, {}, False),  # COCO's own
        ({"coco_url": "u", "file_name": "f", "neg_category_ids": []}, {}, True),
        ({"file_name": "f"}, {"frequency": "r"}, True),
        ({"file_name": "f"}, {"frequency": 12}, False),
    ],
)
def test_is_lvis(image, category, expected):
    assert is_lvis({"images": [image], "categories": [category]}) is expected


def test_a_missing_file_is_refused(root):
    with pytest.raises(InputError, match=r"gone\.json: need an LVIS file; not found"):
        read_lvis(root / "gone.json", root)
