"""Annotations that contradict their image, area or mask: told one by one, refused by their meaning where all do."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.data.consistency import (
    BEYOND,
    BOX_OF_MASK,
    IMAGE_TWICE,
    NO_BOX,
    OFF_MASK,
    TWICE,
    UNLISTED,
    Checks,
    accepted,
    usable_areas,
)
from foveate.data.instance_masks import FLAT, extent_of_polygons
from foveate.data.panoptic import compare_segments
from foveate.data.regions import with_boxes
from foveate.data.sources import open_annotations, open_data
from foveate.data.validation import ListedImage
from foveate.errors import InputError

HEIGHT, WIDTH = 120, 160
Change = Callable[[dict[str, Any]], Any]


def clean(*, masks: bool = True) -> dict[str, Any]:
    """Six images of 160 x 120 pixels with three boxes each, all within 140 x 110."""
    draw = random.Random(7)
    images = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(1, 7)]
    annotations = []
    for number in range(18):
        x, y = draw.randrange(10, 90), draw.randrange(10, 60)
        w, h = draw.randrange(20, 50), draw.randrange(20, 50)
        entry = {"id": number + 1, "image_id": 1 + number // 3, "category_id": 1 + number % 2, "bbox": [x, y, w, h]}
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotations.append({**entry, "iscrowd": 0, "segmentation": [polygon]} if masks else entry)
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Any]:
    """Write a changed file and images, and open them."""

    def opened(change: Change, *, masks: bool = True, exif: bool = False, kind: str = "instances", **flags: Any) -> Any:
        content = clean(masks=masks)
        change(content)
        block = Image.Exif()
        block[0x0112] = 6 if exif else 1
        for image in content["images"]:
            Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / Path(image["file_name"]).name, exif=block)
        file = tmp_path / "boxes.json"
        file.write_text(json.dumps(content))
        return open_data(tmp_path, split="val", annotations=kind, annotation_file=file, **flags)  # pyright: ignore[reportArgumentType]

    return opened


def each(change: Callable[[Any], list[float]]) -> Change:
    """Change all boxes."""
    return lambda content: [entry.update(bbox=change(*entry["bbox"])) for entry in content["annotations"]]


def corners(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y + h]


def parts(x: float, y: float, w: float, h: float) -> list[float]:
    return [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]


def centred(x: float, y: float, w: float, h: float) -> list[float]:
    return [x + w / 2, y + h / 2, w, h]


def as_lvis(content: dict[str, Any]) -> None:
    for category in content["categories"]:
        category.update(frequency="f", synonyms=[])


def as_objects365(content: dict[str, Any]) -> None:
    for image in content["images"]:
        image["file_name"] = f"objects365_v1_{image['file_name']}"


def with_areas(content: dict[str, Any]) -> None:
    """The areas of the boxes, as exporters without masks write them."""
    for entry in content["annotations"]:
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]


def test_clean_annotations_are_not_told(read):
    def loose(content: dict[str, Any]) -> None:
        content["annotations"][0].update(iscrowd=1, bbox=[0, 0, WIDTH, HEIGHT])

    for change in (
        loose,
        with_areas,
        as_lvis,
        as_objects365,
        each(lambda x, y, w, h: [x + 2.5, y - 2.5, w, h]),
    ):  # rounding
        dataset = read(change)
        assert dataset.ignored_lines() == [] and sum(len(record.boxes) for record in dataset.records) == 18


@pytest.mark.parametrize(
    ("change", "masks", "says"),
    [
        (each(corners), True, "18 of 18 contradict .* are these corners"),
        (each(corners), False, "of 18 contradict .* are these corners"),
        (lambda content: (with_areas(content), each(corners)(content)), False, "18 of 18 contradict .* corners"),
        (lambda content: (as_lvis(content), each(corners)(content)), False, "are these corners"),
        (lambda content: (as_objects365(content), each(corners)(content)), False, "are these corners"),
        (each(parts), True, "18 of 18 are fractions of the image's sides"),
        (lambda content: (as_lvis(content), each(parts)(content)), False, "are fractions of the image's sides"),
        (each(centred), True, "18 of 18 contradict .* are these centres"),
        (each(lambda x, y, w, h: [2 * x, 2 * y, 2 * w, 2 * h]), False, "or of another size of them"),
        (each(lambda x, y, w, h: [HEIGHT - y - h, x, h, w]), True, "were the images turned"),
        (each(lambda x, y, w, h: [HEIGHT - y - h, x + 30, h, w]), False, "were the images turned"),
        (each(lambda x, y, w, h: [x + w, y + h, -w, -h]), False, "width or height is negative"),
        (each(lambda *_: []), False, "all 18 are ignored, 18 because: object has no `bbox`"),
        (lambda content: [one.update(iscrowd=1) for one in content["annotations"]], True, "all 18 objects are crowds"),
        (
            lambda content: content["annotations"].extend(
                {**one, "id": one["id"] + 100} for one in [*content["annotations"]]
            ),
            True,
            "18 of 36 repeated: object is listed twice",
        ),
        (
            lambda content: content["images"].extend({**one, "id": one["id"] + 100} for one in [*content["images"]]),
            True,
            "6 of 12 repeated: image is listed twice",
        ),
    ],
)  # fmt: skip
def test_what_holds_for_most_is_refused_by_its_meaning_unless_accepted(read, change, masks, says):
    with pytest.raises(InputError, match=f"boxes.json: need .*{says}"):
        read(change, masks=masks)
    assert read(change, masks=masks, accept=True).records


def test_annotations_without_images_are_checked_too(read, tmp_path):
    with pytest.raises(InputError, match="corners"):
        read(each(corners))
    with pytest.raises(InputError, match="corners"):
        open_annotations(None, split="val", annotation_file=tmp_path / "boxes.json")
    assert open_annotations(None, split="val", annotation_file=tmp_path / "boxes.json", accept=True).records


def test_single_contradictions_are_counted_with_the_first(read):
    def change(content: dict[str, Any]) -> None:
        entries = content["annotations"]
        entries[0]["bbox"] = [100, 60, 90, 40]  # beyond the right side by 30 pixels, and off its mask
        entries[4]["bbox"] = [10, 10, 100, 100]
        entries.append({**entries[7], "id": 100})
        content["images"].append({**content["images"][0], "id": "again", "file_name": "./1.png"})
        entries[8].pop("bbox")
        entries[9].update(bbox=None, segmentation=[])

    dataset = read(change)
    counts = {kind: entries.count for kind, entries in dataset.consistency.kinds.items()}
    assert counts == {IMAGE_TWICE: 1, BEYOND: 1, OFF_MASK: 2, TWICE: 1, BOX_OF_MASK: 1}
    assert dataset.ignored[NO_BOX].count == 1 and "annotation 10" in dataset.ignored[NO_BOX].first
    assert f"2 found: {OFF_MASK}; the first: " in "\n".join(dataset.ignored_lines())
    third = clean()["annotations"][8]["segmentation"][0]
    assert dataset.records[2].boxes[2] == (third[0], third[1], third[4], third[5])  # of the mask


def test_corners_near_the_origin_are_noticed_though_few_reach_beyond():
    checks, image = Checks("f.json"), ListedImage("a", 100, 100)
    for number in range(100):
        x = 1 + number % 20
        checks.see(f"box {number}", (x, x, x + 20, x + 20), image, crowd=False)
    assert checks.finish().doubt == ""
    for _ in range(3):
        checks.see("far", (60, 60, 90, 90), image, crowd=False)  # as sides it reaches to 150
    assert "3 of 103" in checks.finish().doubt and "corners" in checks.finish().doubt
    checks.see("sides", (30, 30, 20, 20), image, crowd=False)  # no corners
    assert checks.finish().doubt == ""


def test_flat_polygons_are_named_only_with_masks(read):
    def flat(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            entry["segmentation"] = entry["segmentation"][0]

    assert read(flat).ignored_lines() == []
    with pytest.raises(InputError, match="a polygon stands where a list of polygons is needed"):
        read(flat, kind="masks")
    one = read(lambda content: content["annotations"][0].update(segmentation=[1, 1, 9, 1, 9, 9]), kind="masks")
    assert one.ignored[FLAT].count == 1


def test_images_with_an_ignored_exif_rotation_are_told_and_refused_if_the_boxes_fit_it(read):
    dataset = read(lambda content: None, exif=True)
    (line,) = dataset.ignored_lines()
    assert line.startswith("6 found: image is annotated as stored: its EXIF rotation is not applied")
    for masks, shift in ((True, 0), (False, 30)):
        turned = each(lambda x, y, w, h, shift=shift: [HEIGHT - y - h, x + shift, h, w])
        with pytest.raises(
            InputError, match=r"their EXIF block rotates them, and the boxes of \d fit only the rotated"
        ):
            read(turned, exif=True, masks=masks)
        assert read(turned, exif=True, masks=masks, accept=True).records

    def stated(content: dict[str, Any]) -> None:  # as shown: rotated when it is read
        for image in content["images"]:
            image.update(height=WIDTH, width=HEIGHT)
        each(lambda x, y, w, h: [HEIGHT - y - h, x, h, w])(content)

    assert read(stated, exif=True, masks=False).ignored_lines() == []


def test_categories_that_are_no_classes_are_left_out(read):
    def change(content: dict[str, Any]) -> None:
        for category in content["categories"]:
            category["supercategory"] = "animals"
        content["categories"] += [
            {"id": 0, "name": "animals", "supercategory": "none"}, {"id": 7, "name": "_background_"},
            {"id": 8, "name": "person", "supercategory": "person"}, {"id": 9, "name": "bird"},
        ]  # fmt: skip

    dataset = read(change)
    assert [category.name for category in dataset.categories] == ["dog", "cat", "person", "bird"]
    animals, background = dataset.notes
    assert "'animals' is not used as a class: it is the supercategory of others and owns no object" in animals
    assert "'_background_' is not used as a class: it names the background" in background
    without = read(lambda content: (change(content), content.update(annotations=[])))
    assert len(without.categories) == 6  # of a file without annotations nothing is known
    owned = read(lambda content: (change(content), content["annotations"][0].update(category_id=7)))
    assert "_background_" in [category.name for category in owned.categories]
    assert owned.records[0].labels[0] == 2  # sorted by id: dog, cat, _background_


def test_whole_floats_and_null_flags_are_read(read):
    def change(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image.update(id=float(image["id"]), height=120.0, width=160.0)
        for category in content["categories"]:
            category.update(id=float(category["id"]), isthing=None)
        for entry in content["annotations"]:
            entry.update(category_id=float(entry["category_id"]), iscrowd=None)

    dataset, plain = read(change), read(lambda content: None)
    assert dataset.records == plain.records and dataset.categories == plain.categories
    assert repr(tuple(dataset.records)) == repr(tuple(plain.records))  # integers
    with pytest.raises(InputError, match="image 1: need `height`, an integer"):
        read(lambda content: content["images"][0].update(height=120.5))


def test_areas_that_are_none_are_those_of_the_boxes():
    boxes = [(0.0, 0.0, 10.0, 20.0)] * 5  # 200 pixels
    areas, replaced = usable_areas([float("nan"), -1, 0, 401, 150], boxes)
    assert areas.tolist() == [200, 200, 200, 200, 150] and replaced.tolist() == [True] * 4 + [False]
    rounded = [230.0, 200.0, 3.0]  # a thin box's polygon may cover more pixels; a mask may be small in its box
    assert not usable_areas(rounded, boxes[:3])[1].any()
    assert usable_areas([0.01, 0.2, 0.003], boxes[:3])[0].tolist() == [200] * 3  # all are parts of the image
    assert usable_areas([0.0], [(5.0, 5.0, 1.0, 1.0)])[0].tolist() == [0]  # under a pixel or so
    assert usable_areas([], [])[0].shape == (0,)


def test_extents_of_polygons():
    assert extent_of_polygons([[1, 5, 9, 5, 4, 2], [0, 6, 3, 6, 3, 8]]) == (0, 2, 9, 8)
    for value in (None, [], [[]], [[1, 2, 3, 4]], [1, 2, 3, 4, 5, 6], {"size": [4, 4]}, [["1", 2, 3, 4, 5, 6]],
                  [[float("nan")] * 6], "text"):  # fmt: skip
        assert extent_of_polygons(value) is None


# ------------------------------------------------------------------------------------------------------------ panoptic


def panoptic(root: Path, change: Change) -> Path:
    """Three images of a COCO root, each with two squares of things on a strip of stuff."""
    (root / "annotations/panoptic_val2017").mkdir(parents=True)
    (root / "val2017").mkdir()
    images, annotations = [], []
    for number in (1, 2, 3):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / f"val2017/{number}.png")
        colours = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)  # R + 256 G + 65536 B
        colours[100:, :, 0] = 3
        segments = [{"id": 3, "category_id": 2, "bbox": [0, 100, WIDTH, 20]}]
        for key, x in ((1, 20), (2, 90)):
            colours[20:60, x : x + 30, 0] = key
            segments.append({"id": key, "category_id": 1, "bbox": [x, 20, 30, 40], "area": 1200})
        Image.fromarray(colours).save(root / f"annotations/panoptic_val2017/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH})
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    categories = [{"id": 1, "name": "dog", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    change(content)
    (root / "annotations/panoptic_val2017.json").write_text(json.dumps(content))
    return root


def all_segments(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [segment for entry in content["annotations"] for segment in entry["segments_info"]]


def test_boxes_of_segments_are_compared_with_their_pixels(tmp_path):
    clean_root = panoptic(tmp_path / "clean", lambda content: None)
    assert open_data(clean_root, split="val", annotations="panoptic").ignored_lines() == []

    def moved(content: dict[str, Any]) -> None:  # within the image, and of the stated area
        for segment in all_segments(content):
            segment["bbox"] = [0, 0, *segment["bbox"][2:]]

    root = panoptic(tmp_path / "moved", moved)
    with pytest.raises(InputError, match="6 of 9 contradict their image, area or mask"):
        open_data(root, split="val", annotations="panoptic")
    (line,) = open_data(root, split="val", annotations="panoptic", accept=True).ignored_lines()
    assert line.startswith(
        f"6 found: {OFF_MASK} (3 images looked at); the first: {root}"
    )  # stuff has no box of its own


def test_a_missing_box_of_a_segment_is_that_of_its_pixels(tmp_path):
    def change(content: dict[str, Any]) -> None:
        all_segments(content)[1].pop("bbox")
        all_segments(content)[5].update(bbox=None, id=77)  # which is not in the PNG

    dataset = open_data(panoptic(tmp_path / "root", change), split="val", annotations="panoptic")
    assert dataset.records[0].boxes[1] == (20, 20, 50, 60) and len(dataset.records[1].boxes) == 2
    assert dataset.consistency.kinds[BOX_OF_MASK].first.endswith("image 1: segment 1")
    assert dataset.ignored[NO_BOX].first.endswith("image 2: segment 77")


def test_segments_that_the_json_lacks_are_told(tmp_path):
    root = panoptic(tmp_path / "root", lambda content: content["annotations"][1]["segments_info"].pop())
    dataset = open_data(root, split="val", annotations="panoptic")
    (line,) = dataset.ignored_lines()
    assert line.startswith(f"1 found: {UNLISTED}") and line.endswith("2.png (1,200 pixels)")  # 30 x 40
    extents, pixels = compare_segments(dataset.records[1])
    assert extents == [(0, 100, 160, 120), (20, 20, 50, 60)] and pixels == 1200
    assert accepted(dataset, accept=False).consistency.kinds == dataset.consistency.kinds


# ------------------------------------------------------------------------------------------------------ files of boxes


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"1.png": [[60, 50, 30, 20]] * 4}, r"need boxes \[x1, y1, x2, y2\] .* are these \[x, y, width, height\]"),
        ([{"image_id": 1, "bbox": [90, 70, 130, 110]}] * 4, r"\[x, y, width, height\] .* are these corners"),
        ({"1.png": [[0.1, 0.2, 0.5, 0.6]] * 4}, "4 of 4 are fractions of the image's sides"),
    ],
)
def test_files_of_boxes_are_checked_with_the_sizes_of_the_images(tmp_path, entries, says):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "1.png")
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(entries))
    dataset = open_data(tmp_path, split="val")
    with pytest.raises(InputError, match=says):
        with_boxes(dataset, file)
    file.write_text(json.dumps({"1.png": [[1, 1, 50, 60], [10, 10, WIDTH + 20, 60], [1, 1, 50, 60]]}))
    assert list(with_boxes(dataset, file).consistency.kinds) == [BEYOND]  # proposals may repeat
