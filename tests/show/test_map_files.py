"""Written maps are read back by the readers of the data."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.data.datasets.coco import read_panoptic
from foveate.data.images import read_image, read_values
from foveate.data.panoptic import read_panoptic_map
from foveate.errors import InputError
from foveate.show.map_files import panoptic_categories, panoptic_png, panoptic_record, write_label_map
from foveate.types import LabelMap, PanopticMap, SegmentInfo

BIG = 3 + 256 * 2 + 65536 * 1  # the colour (3, 2, 1)


def test_few_classes_are_8_bits_with_the_colours_of_the_drawings(tmp_path):
    labels = torch.tensor([[0, 1, -1], [254, 0, 1]])
    write_label_map(tmp_path / "deep" / "m.png", LabelMap(labels), classes=255)
    assert read_values(tmp_path / "deep" / "m.png", bits=8).tolist() == [[0, 1, 255], [254, 0, 1]]
    shown = read_image(tmp_path / "deep" / "m.png").permute(1, 2, 0)  # (2, 3, 3)
    assert shown[0].tolist() == [[0, 114, 178], [213, 94, 0], [0, 0, 0]]
    assert [one.name for one in (tmp_path / "deep").iterdir()] == ["m.png"]  # nothing half written


def test_one_class_is_8_bits_too(tmp_path):
    # a palette of few colours would be packed into fewer bits, which readers stretch
    write_label_map(tmp_path / "m.png", LabelMap(torch.tensor([[0, -1, 0]])), classes=1)
    assert read_values(tmp_path / "m.png", bits=8).tolist() == [[0, 255, 0]]
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P" and np.asarray(image).tolist() == [[0, 255, 0]]


@pytest.mark.parametrize("classes", [256, 300, 65535])
def test_many_classes_are_16_bits(tmp_path, classes):
    labels = torch.tensor([[0, 255], [classes - 1, -1]])
    write_label_map(tmp_path / "m.png", LabelMap(labels), classes=classes)
    assert read_values(tmp_path / "m.png", bits=16).tolist() == [[0, 255], [classes - 1, 65535]]


def test_a_map_without_classes(tmp_path):
    write_label_map(tmp_path / "m.png", LabelMap(torch.full((2, 2), -1)), classes=7)
    assert read_values(tmp_path / "m.png", bits=8).tolist() == [[255, 255], [255, 255]]


@pytest.mark.parametrize(
    ("labels", "name", "classes", "told"),
    [
        ([[0, 3]], "m.png", 3, r"need classes 0 to 2, or -1; got 0 to 3"),
        ([[-2, 0]], "m.png", 3, r"got -2 to 0"),
        ([[0]], "m.png", 65536, r"need 1 to 65535"),
        ([[0]], "m.png", 0, r"need 1 to 65535"),
        ([[0]], "m.jpg", 3, r"ends in \.png"),
    ],
)
def test_wrong_maps_are_refused(tmp_path, labels, name, classes, told):
    with pytest.raises(InputError, match=told):
        write_label_map(tmp_path / name, LabelMap(torch.tensor(labels)), classes=classes)
    assert not list(tmp_path.iterdir())


def panoptic() -> PanopticMap:
    """5 x 6 pixels: a thing in 2 x 3, stuff in two corners, a single pixel, a crowd, and a thing without a pixel."""
    ids = torch.zeros(5, 6, dtype=torch.int64)
    ids[1:3, 2:5] = 5
    ids[0, 1] = ids[4, 5] = BIG
    ids[3, 0] = 2**24 - 1
    ids[4, 0:2] = 256
    segments = (
        SegmentInfo(5, 0, True, score=0.75),
        SegmentInfo(BIG, 2, False),
        SegmentInfo(2**24 - 1, 1, True),
        SegmentInfo(256, 1, True, is_crowd=True),
        SegmentInfo(77, 0, True),
    )
    return PanopticMap(ids, segments)


def test_a_record_by_hand():
    record = panoptic_record(panoptic(), image_id=9, file_name="9.png")
    assert record["image_id"] == 9 and record["file_name"] == "9.png"
    rows = [tuple(info.values()) for info in record["segments_info"]]
    assert [*record["segments_info"][0]] == ["id", "category_id", "area", "bbox", "iscrowd", "score"]
    assert rows == [
        (5, 1, 6, [2, 1, 3, 2], 0, 0.75),
        (BIG, 3, 2, [1, 0, 5, 5], 0, 1.0),
        (2**24 - 1, 2, 1, [0, 3, 1, 1], 0, 1.0),
        (256, 2, 2, [0, 4, 2, 1], 1, 1.0),
    ]


def test_panoptic_files_are_read_back(tmp_path):
    found = panoptic()
    nothing = PanopticMap(torch.zeros(5, 6, dtype=torch.int64), ())
    images = []
    for number, one in ((9, found), (10, nothing)):
        Image.new("RGB", (6, 5)).save(tmp_path / f"{number}.jpg")
        (tmp_path / f"{number}.png").write_bytes(panoptic_png(one))
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 5, "width": 6})
    assert read_image(tmp_path / "9.png")[:, 0, 1].tolist() == [3, 2, 1]
    content = {
        "images": images,
        "annotations": [
            panoptic_record(one, image_id=number, file_name=f"{number}.png")
            for number, one in ((9, found), (10, nothing))
        ],
        "categories": panoptic_categories(["cat", "dog", "sky"], [True, True, False]),
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    dataset = read_panoptic(tmp_path / "panoptic.json", tmp_path, tmp_path)
    assert [one.name for one in dataset.categories] == ["cat", "dog", "sky"] and not dataset.ignored
    again = read_panoptic_map(dataset.records[0], dataset.categories)
    assert torch.equal(again.ids, found.ids)
    rows = [(one.id, one.label, one.is_thing, one.is_crowd) for one in again.segments]
    assert rows == [(one.id, one.label, one.is_thing, one.is_crowd) for one in found.segments[:4]]
    again = read_panoptic_map(dataset.records[1], dataset.categories)
    assert again.segments == () and not again.ids.any()


def test_unknown_ids_are_refused():
    ids = torch.tensor([[1, 2]])
    with pytest.raises(AssertionError, match="ids that no segment has"):
        panoptic_record(PanopticMap(ids, (SegmentInfo(1, 0, True),)), image_id=1, file_name="1.png")
    with pytest.raises(AssertionError, match="24 bits"):
        panoptic_png(PanopticMap(torch.tensor([[2**24]]), ()))
