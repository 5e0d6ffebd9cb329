"""COCO's layout, and errors for others."""

from pathlib import Path

import pytest

from foveate.data.layout import find_coco
from foveate.errors import InputError


def layout(root: Path) -> Path:
    for name in ("val2017", "annotations/panoptic_val2017"):
        (root / name).mkdir(parents=True)
    for kind in ("instances", "panoptic", "captions"):
        (root / "annotations" / f"{kind}_val2017.json").touch()
    return root


def test_coco_layout_is_found(tmp_path):
    root = layout(tmp_path / "coco")
    notes = root / "annotations"
    files = find_coco(root, "val")
    assert files.images == root / "val2017" and files.instances == notes / "instances_val2017.json"
    assert files.captions == notes / "captions_val2017.json"
    (notes / "captions_val2017.json").unlink()
    assert find_coco(root, "val").captions is None


def test_another_layout_is_refused_with_the_paths_tried(tmp_path):
    root = layout(tmp_path / "coco")
    with pytest.raises(
        InputError, match=r"train2017; the folder does not exist. The root contains: annotations, val2017"
    ):
        find_coco(root, "train")
    with pytest.raises(InputError, match='"train", "val" or "test"; got "minival"'):
        find_coco(root, "minival")
    with pytest.raises(InputError, match="nothing, it does not exist"):
        find_coco(tmp_path / "gone", "val")
    for path in (root / "annotations").glob("*.json"):
        path.unlink()
    with pytest.raises(InputError, match=r"found none of .*instances_val2017\.json, .*panoptic_val2017\.json"):
        find_coco(root, "val")
