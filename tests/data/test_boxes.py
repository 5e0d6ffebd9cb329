"""Files of boxes in every form, and errors with file, entry and reason."""

import json

import pytest

from foveate.data.boxes import ImageBoxes, read_boxes
from foveate.errors import InputError

IMAGES = ["a.jpg", "sub/b.png", "c.png"]


def coco(images=None, annotations=None) -> dict:
    images = [{"id": 1, "file_name": "sub/b.png"}, {"id": "2", "file_name": "a.jpg"}] if images is None else images
    return {"images": images, "annotations": [] if annotations is None else annotations}


def write(tmp_path, content):
    path = tmp_path / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_coco_form(tmp_path):
    """xywh becomes xyxy; all boxes of an image are in file order, also unusable ones."""
    notes = [
        {"image_id": "2", "bbox": [1, 2, 3, 4.5]},
        {"image_id": 1, "bbox": [-5, 0, 0, -1]},
        {"image_id": "2", "bbox": [0, 0, 1, 1], "category_id": 7},
    ]
    found = read_boxes(write(tmp_path, coco(annotations=notes)), images=IMAGES)
    assert found == {
        "sub/b.png": ImageBoxes(((-5.0, 0.0, -5.0, -1.0),)),
        "a.jpg": ImageBoxes(((1.0, 2.0, 4.0, 6.5), (0.0, 0.0, 1.0, 1.0))),
    }
    sized = coco([{"id": 1, "file_name": "a.jpg", "height": 3, "width": 5}])
    assert read_boxes(write(tmp_path, sized), images=IMAGES) == {"a.jpg": ImageBoxes((), 3, 5)}


def test_plain_form(tmp_path):
    path = write(tmp_path, {"a.jpg": [[1, 2, 3, 4.5], [9, 9, 1, 1]], "c.png": []})
    assert read_boxes(path, images=IMAGES) == {
        "a.jpg": ImageBoxes(((1.0, 2.0, 3.0, 4.5), (9.0, 9.0, 1.0, 1.0)), as_corners=True),
        "c.png": ImageBoxes(as_corners=True),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", r"boxes.json: need COCO's .*got \[1\]"),
        ("{}", "need COCO's"),
        ('{"a.jpg": []', "boxes.json: need a boxes file in JSON; JSONDecodeError"),
        ('{"a.jpg": [], "a.jpg": []}', "need unique keys in each object; got 'a.jpg' 2 times"),
        ({"a.jpg": {"x": 1}}, "image 'a.jpg': need a list of boxes"),
        ({"a.jpg": [[1, 2, 3, 4], [1, 2, 3]]}, r"image 'a.jpg': box 1: need .*got \[1, 2, 3\]"),
        ({"a.jpg": [[1, 2, True, 4]]}, "box 0: need .*four numbers"),
        ('{"a.jpg": [[1, 2, NaN, 4]]}', r"image 'a.jpg': box 0: need finite numbers; got \[1.0, 2.0, nan, 4.0\]"),
        ('{"a.jpg": [[1, 2, 1e999, 4]]}', "box 0: need finite numbers"),
        ('{"a.jpg": [[1, 2, 1' + "0" * 400 + ", 4]]}", "box 0: need finite numbers"),
        ({"b.png": []}, r"image 'b.png': need one of the 3 images, .*such as 'sub/b.png'"),
        ({"annotations": [], "images": 3}, "need a list `images`"),
        (coco([{"id": 1}]), r"images\[0\]: need an object with `id` and `file_name`"),
        (coco([{"id": True, "file_name": "a.jpg"}]), r"images\[0\]: need"),
        (coco([{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "c.png"}]), r"images\[1\]: need a unique `id`"),
        (coco([{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}]), r"images\[1\]: need a unique `id`"),
        (coco([{"id": 1, "file_name": "a.jpg", "height": 3}]), r"images\[0\]: need `height` and `width`"),
        (coco([{"id": 1, "file_name": "d.jpg"}]), "image 'd.jpg': need one of the 3 images"),
        (coco(annotations=[3]), r"annotations\[0\]: need an object"),
        (coco(annotations=[{"image_id": 2, "bbox": [0, 0, 1, 1]}]), r"annotations\[0\]: need `image_id`, one of the 2"),
        (coco(annotations=[{"image_id": [1], "bbox": [0, 0, 1, 1]}]), r"annotations\[0\]: need `image_id`"),
        (coco(annotations=[{"image_id": 1}]), r"annotations\[0\]: bbox: need \[x, y, width, height\]"),
        (coco(annotations=[{"image_id": 1, "bbox": [1e308, 0, 1e308, 1]}]), r"annotations\[0\]: bbox: need finite"),
    ],
)
def test_malformed_files_are_refused_with_entry_and_reason(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_boxes(write(tmp_path, content), images=IMAGES)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="not found"):
        read_boxes(tmp_path / "none.json", images=IMAGES)
