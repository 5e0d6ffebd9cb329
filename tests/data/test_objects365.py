"""Objects365: both versions, in every layout of the unpacked archives."""

import json
from pathlib import Path

import pytest

from foveate.data.datasets.objects365 import read_objects365
from foveate.errors import InputError


def annotated(root: Path, *names: str) -> Path:
    images = [{"id": number, "file_name": name, "height": 30, "width": 40} for number, name in enumerate(names)]
    notes = [
        {"id": 10, "image_id": 0, "category_id": 1, "bbox": [1.25, 2, 10, 20], "iscrowd": 1, "isfake": 0},
        {"id": 11, "image_id": 0, "category_id": 1, "bbox": [float("nan"), 2, 10, 20], "iscrowd": 0},
    ]
    path = root / "zhiyuan_objv2_train.json"
    path.write_text(json.dumps({"images": images, "annotations": notes, "categories": [{"id": 1, "name": "Person"}]}))
    return path


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


V2 = ("images/v1/patch8/objects365_v1_00420917.jpg", "images/v2/patch16/objects365_v2_00908726.jpg")


@pytest.mark.parametrize(
    ("names", "where"),
    [
        (V2, ("images/v1/patch8/objects365_v1_00420917.jpg", "images/v2/patch16/objects365_v2_00908726.jpg")),
        (V2, ("train/images/v1/patch8/objects365_v1_00420917.jpg", None)),
        (V2, ("train/patch8/objects365_v1_00420917.jpg", "train/patch16/objects365_v2_00908726.jpg")),
        (V2, (None, "images/train/patch16/objects365_v2_00908726.jpg")),
        (V2, ("train/objects365_v1_00420917.jpg", "train/objects365_v2_00908726.jpg")),
        (("obj365_train_000000000001.jpg",), ("train/obj365_train_000000000001.jpg",)),
        (("obj365_train_000000000001.jpg",), ("obj365_train_000000000001.jpg",)),
    ],
)
def test_images_are_found_in_every_layout_of_the_archives(tmp_path, names, where):
    existing = {put(tmp_path / name) for name in where if name is not None}
    dataset = read_objects365(annotated(tmp_path, *names), tmp_path, split="train")
    paths = [record.path for record in dataset.records]
    assert existing <= set(paths) and len(paths) == len(names)
    assert all(path.name == Path(name).name for path, name in zip(paths, names, strict=True))
    assert dataset.records[0].boxes == ((1.25, 2, 11.25, 22),) and dataset.records[0].crowd == (True,)
    assert sum(entries.count for entries in dataset.ignored.values()) == 1


def test_missing_images_are_refused_with_the_folders_tried(tmp_path):
    with pytest.raises(InputError, match=r"none of the first 2 exists \(the first: images/v1/patch8") as caught:
        read_objects365(annotated(tmp_path, *V2), tmp_path, split="train")
    assert str(tmp_path / "images" / "train") in str(caught.value)


@pytest.mark.parametrize("name", ["../objects365_v1_1.jpg", "/etc/objects365_v1_1.jpg"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
    put(tmp_path / V2[0])
    with pytest.raises(InputError, match=r"image 1: need `file_name` inside"):
        read_objects365(annotated(tmp_path, V2[0], name), tmp_path, split="train")
