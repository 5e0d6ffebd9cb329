"""Detections in the forms of annotation tools, checked against their documented schemas."""

import json
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from pycocotools import mask as coco

from foveate.errors import InputError
from foveate.predict.formats import WRITERS, write_format

NAMES = ["dog", "traffic light: red"]


def content(*file_names: str, with_mask: bool = False) -> dict[str, Any]:
    """A box [10, 5, 40, 30] of the second class in each image of 60 x 40 pixels."""
    images, annotations = [], []
    for number, name in enumerate(file_names or ("a.jpg",), start=1):
        images.append({"id": number, "file_name": name, "height": 40, "width": 60})
        box = {"id": number, "image_id": number, "category_id": 2, "bbox": [10, 5, 40, 30], "score": 0.5}
        annotations.append({**box, "area": 1200, "iscrowd": 0, **({"segmentation": ring()} if with_mask else {})})
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)],
    }


def ring() -> dict[str, Any]:
    """Two parts, of which the first has a hole."""
    inside = np.zeros((40, 60), np.uint8)
    inside[5:20, 10:30] = 1
    inside[10:14, 15:20] = 0
    inside[30:35, 40:50] = 1
    encoded: Any = coco.encode(np.asfortranarray(inside))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def test_yolo_has_centres_and_sides_in_parts_of_the_image() -> None:
    files = write_format(content("sub/a b.jpg"), "yolo")
    assert files["labels/sub/a b.txt"] == "1 0.5 0.5 0.666667 0.75\n"
    assert '  1: "traffic light: red"\n' in files["data.yaml"]  # quoted, or YAML reads a mapping


def test_yolo_outlines_enclose_the_parts_without_their_holes() -> None:
    lines = write_format(content(with_mask=True), "yolo")["labels/a.txt"].splitlines()
    assert [line.split()[0] for line in lines] == ["1", "1"]
    points = [np.array(line.split()[1:], float).reshape(-1, 2) * (60, 40) for line in lines]
    extents = sorted((*outline.min(axis=0), *outline.max(axis=0)) for outline in points)
    np.testing.assert_allclose(extents, [(10, 5, 30, 20), (40, 30, 50, 35)], atol=1e-3)


def test_voc_counts_pixels_from_one() -> None:
    root = ElementTree.fromstring(write_format(content(), "voc")["annotations/a.xml"])
    assert [root.findtext(f"object/bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")] == [
        "11", "6", "50", "35",
    ]  # fmt: skip
    assert root.findtext("object/name") == NAMES[1] and root.findtext("size/width") == "60"


def test_cvat_has_boxes_or_polygons_with_their_score() -> None:
    root = ElementTree.fromstring(write_format(content(), "cvat")["annotations.xml"])
    box = root.find("image/box")
    assert box is not None and {key: box.get(key) for key in ("label", "xtl", "ytl", "xbr", "ybr")} == {
        "label": NAMES[1], "xtl": "10.00", "ytl": "5.00", "xbr": "50.00", "ybr": "35.00",
    }  # fmt: skip
    assert box.findtext("attribute") == "0.5"
    assert [name.text for name in root.findall("meta/task/labels/label/name")] == NAMES
    polygons = ElementTree.fromstring(write_format(content(with_mask=True), "cvat")["annotations.xml"])
    assert len(polygons.findall("image/polygon")) == 2 and polygons.find("image/box") is None


def test_label_studio_has_percent_and_one_result_for_each_box() -> None:
    (task,) = json.loads(write_format(content("a b.jpg"), "label-studio")["tasks.json"])
    (result,) = task["predictions"][0]["result"]
    assert result["type"] == "rectanglelabels" and result["value"]["rectanglelabels"] == [NAMES[1]]
    assert (result["original_width"], result["original_height"], result["score"]) == (60, 40, 0.5)
    sides = [result["value"][key] for key in ("x", "y", "width", "height")]
    np.testing.assert_allclose(sides, [100 / 6, 12.5, 200 / 3, 75])
    assert task["data"]["image"].endswith("a%20b.jpg")


def test_fiftyone_has_relative_boxes_by_the_stem_of_the_image() -> None:
    written = json.loads(write_format(content(), "fiftyone")["labels.json"])
    assert written["classes"] == NAMES
    (box,) = written["labels"]["a"]
    assert box["label"] == NAMES[1] and box["confidence"] == 0.5
    np.testing.assert_allclose(box["bounding_box"], [1 / 6, 0.125, 2 / 3, 0.75])


@pytest.mark.parametrize("format", ["yolo", "voc", "fiftyone"])
def test_two_images_with_one_stem_are_refused(format: Any) -> None:
    with pytest.raises(InputError, match="differ without their suffix"):
        write_format(content("a.jpg", "a.png"), format)


@pytest.mark.parametrize("format", WRITERS)
def test_an_image_without_detections_is_written_too(format: Any) -> None:
    empty = {**content("a.jpg", "b.jpg"), "annotations": []}
    files = write_format(empty, format)
    assert "labels/b.txt" in files if format == "yolo" else "b" in "".join((*files, *files.values()))
