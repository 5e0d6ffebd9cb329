"""Regions from files of boxes, ignored boxes, and the published draw."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from foveate.data.loader import ImageSource, pack
from foveate.data.records import Dataset, IgnoredEntries, Member, Record
from foveate.data.regions import AMBIGUOUS, UNKNOWN_IMAGE, note_boxless, sample_proposals, with_boxes
from foveate.data.validation import OUTSIDE, TINY
from foveate.errors import InputError


def make_images(*records: Record) -> Dataset:
    return Dataset("some", (), records, {})


THREE = make_images(
    Record("a.jpg", Path("/d/train2017/a.jpg")),
    Record("deep/000000000012.jpg", Path("/d/train2017/deep/000000000012.jpg")),
    Record(7, Path("/d/train2017/c.png"), 30, 40, ((0, 0, 9, 9),), (1,), (True,)),
)


def written(folder: Path, content: object) -> Path:
    path = folder / "boxes.json"
    path.write_text(json.dumps(content))
    return path


def test_proposals_are_shuffled_limited_and_filtered_by_area():
    good = tuple((float(i), 0.0, i + 8.0, 8.0) for i in range(30))  # 8 x 8: just large enough
    record = Record(1, Path("x"), 2000, 2000, (*good, (0, 0, 7.9, 8), (0, 0, 1025, 1024)))
    drawn = [
        sample_proposals(record, height=2000, width=2000, keep=20, generator=torch.Generator().manual_seed(seed))
        for seed in range(20)
    ]
    rows = [tuple(box) for boxes in drawn for box in boxes.tolist()]
    assert set(rows) == set(good)  # the too small and the too large never appear, all others do
    assert max(map(len, drawn)) == 20 and min(map(len, drawn)) < 20  # sieved after the cap
    assert drawn[0].tolist() != drawn[1].tolist()


def test_an_image_without_a_usable_box_gives_its_corner(tmp_path):
    """A quarter of each side of 40 x 24 px (T6 of the public code): 10 x 6; `is_boxless` is set."""
    Image.new("RGB", (40, 24)).save(tmp_path / "a.png")
    record = Record(1, tmp_path / "a.png", 24, 40, ((0, 0, 2, 2),))
    assert len(sample_proposals(record, height=24, width=40, keep=20, generator=torch.Generator())) == 0
    good = replace(record, boxes=((0, 0, 20, 20),))
    source = ImageSource(Dataset("x", (), (record, good), {}), regions="boxes")
    corner, usable = source[0, 0], source[0, 1]
    assert corner.boxes.tolist() == [[0, 0, 10, 6]] and corner.is_boxless and not usable.is_boxless
    batch = pack([corner, usable]).unpack()
    assert [sample.is_boxless for sample in batch.samples] == [True, False]


def test_boxes_across_the_border_are_clipped_to_the_decoded_image():
    record = Record(1, Path("x"), boxes=((10, 5, 300, 300), (50, 50, 90, 90)))  # the second is outside
    boxes = sample_proposals(record, height=30, width=40, keep=20, generator=torch.Generator())
    assert boxes.tolist() == [[10, 5, 40, 30]]


@pytest.mark.parametrize("name", ["deep/000000000012.jpg", "000000000012.jpg", "000000000012", 12, "12.jpg"])
def test_images_are_matched_by_name_or_number(tmp_path, name):
    content = [{"image_id": name, "bbox": [1, 2, 10, 20], "score": 0.5}]
    if name == "12.jpg":  # no name of any image
        with pytest.raises(InputError, match=r"none of its 1 \(such as .*\) is among the 3"):
            with_boxes(THREE, written(tmp_path, content))
        return
    dataset = with_boxes(THREE, written(tmp_path, content))
    assert [record.boxes for record in dataset.records] == [(), ((1, 2, 11, 22),), ()]
    assert dataset.records[2].labels == () == dataset.records[2].crowd and dataset.ignored == {}


def test_all_forms_give_the_same_boxes(tmp_path):
    results = [
        {"image_id": 7, "bbox": [0, 0, 5, 5], "score": 0.9},
        {"image_id": "a.jpg", "bbox": [1, 1, 5, 5], "score": 0.8},
        {"image_id": 7, "bbox": [2, 2, 5, 5], "score": 0.7},
    ]
    expected = [((1, 1, 6, 6),), (), ((0, 0, 5, 5), (2, 2, 7, 7))]
    assert [r.boxes for r in with_boxes(THREE, written(tmp_path, results)).records] == expected
    plain = {"c.png": [[0, 0, 5, 5], [2, 2, 7, 7]], "train2017/a.jpg": [[1, 1, 6, 6]]}
    assert [r.boxes for r in with_boxes(THREE, written(tmp_path, plain)).records] == expected
    images = [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 9}, {"id": 3, "file_name": "c.png"}]
    notes = [{"image_id": entry["image_id"], "bbox": entry["bbox"]} for entry in results]
    notes = [{**entry, "image_id": {7: 3, "a.jpg": 1}[entry["image_id"]]} for entry in notes]
    records = with_boxes(THREE, written(tmp_path, {"images": images, "annotations": notes})).records
    assert [record.boxes for record in records] == expected
    assert [record.size for record in records] == [(8, 9), None, (30, 40)]  # as stated; then the decoder checks it


def test_unusable_boxes_are_counted(tmp_path):
    content = {
        "a.jpg": [[-5, -5, 0, 0], [3, 3, 3.5, 9], [-5, 0, 4, 4]],
        "c.png": [[40, 0, 50, 9], [39.5, 0, 50, 9], [0, 0, 99, 99]],
        "z.jpg": [[0, 0, 9, 9]],
    }
    dataset = with_boxes(THREE, written(tmp_path, content), accept=True)
    assert [record.boxes for record in dataset.records] == [((0, 0, 4, 4),), (), ((0, 0, 40, 30),)]
    assert {reason: entries.count for reason, entries in dataset.ignored.items()} == {
        OUTSIDE: 2,
        TINY: 2,
        UNKNOWN_IMAGE: 1,
    }
    assert "z.jpg" in dataset.ignored[UNKNOWN_IMAGE].first


def test_two_images_with_one_name_need_their_folders(tmp_path):
    two = make_images(Record("x/a.jpg", Path("/d/x/a.jpg")), Record("y/a.jpg", Path("/d/y/a.jpg")))
    dataset = with_boxes(two, written(tmp_path, {"a.jpg": [[0, 0, 9, 9]], "y/a.jpg": [[0, 0, 8, 8]]}))
    assert [record.boxes for record in dataset.records] == [(), ((0, 0, 8, 8),)]
    where = f"{tmp_path}/boxes.json: image 'a.jpg' is x/a.jpg and y/a.jpg"
    assert dataset.ignored == {AMBIGUOUS: IgnoredEntries(1, where)}
    with pytest.raises(InputError, match=r"none of its 1 .* 1: name means two images; .* is x/a.jpg and y/a.jpg\)"):
        with_boxes(two, written(tmp_path, {"a.jpg": [[0, 0, 9, 9]]}))


def test_names_that_mean_images_are_accepted_with_a_note(tmp_path):
    content = {"train2017\\a.JPG": [[0, 0, 9, 9]], "deep\\000000000012.JPG": [[0, 0, 8, 8]]}
    dataset = with_boxes(THREE, written(tmp_path, content))
    assert [record.boxes for record in dataset.records] == [((0, 0, 9, 9),), ((0, 0, 8, 8),), ()]
    (line,) = dataset.ignored_lines()
    assert "none of its 2 names of images exists as written; 2 were found with another case" in line


def test_a_file_without_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="need boxes of at least one image; got COCO's form without images"):
        with_boxes(THREE, written(tmp_path, {"images": [], "annotations": []}))


def test_an_image_named_twice_or_of_another_size_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"'train2017/a.jpg': need every image once"):
        with_boxes(THREE, written(tmp_path, {"a.jpg": [], "train2017/a.jpg": []}))
    content = {"images": [{"id": 1, "file_name": "c.png", "height": 40, "width": 30}], "annotations": []}
    with pytest.raises(InputError, match=r"need boxes for 30 x 40 pixels .* got them for 40 x 30"):
        with_boxes(THREE, written(tmp_path, content))


def test_images_in_shards_are_matched_by_key(tmp_path):
    shard = make_images(*(Record(f"s.tar:{key}", Path("s.tar"), member=Member(key, 0, 1)) for key in ("k/5", "k/6")))
    for name in ("s.tar:k/5", "k/5", "5.jpg", "k/5.png"):
        dataset = with_boxes(shard, written(tmp_path, {name: [[0, 0, 9, 9]]}))
        assert [len(record.boxes) for record in dataset.records] == [1, 0], name


def test_images_without_a_usable_box_are_noted():
    assert note_boxless(make_images(THREE.records[2])).ignored_lines() == []
    (line,) = note_boxless(
        make_images(THREE.records[0], THREE.records[2])
    ).ignored_lines()  # half is not more than half
    assert line.startswith("1 of 2 images have no box") and line.endswith("the first: a.jpg")
    (line,) = note_boxless(THREE).ignored_lines()
    assert line.startswith("WARNING   2 of 3 images have no box") and "the first: a.jpg. That is most" in line
    assert "--regions" in line and "--data" in line


def test_the_note_counts_what_sample_proposals_rejects():
    """What is noted at the start is what `sample_proposals` gives: areas of 8 x 8 to 1024 x 1024, sides of a pixel."""
    sides = [(7.9, 8), (8, 8), (0.9, 100), (1024, 1024), (1025, 1024), (64, 1), (63, 1)]
    records = [Record(f"{w} {h}", Path("x.jpg"), boxes=((2, 3, 2 + w, 3 + h),)) for w, h in sides]
    used = [
        len(sample_proposals(record, height=2000, width=2000, keep=9, generator=torch.Generator()))
        for record in records
    ]
    assert used == [0, 1, 0, 1, 0, 1, 0]
    noted = [len(note_boxless(make_images(record)).notes) for record in records]
    assert noted == [1 - count for count in used]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([{"image_id": 7}], r"result 0: bbox: need \[x, y, width, height\]"),
        ([{"image_id": 7, "bbox": [0, 0, 1, 1]}, {"image_id": True, "bbox": [0, 0, 1, 1]}], "result 1: need an object"),
        ([{"image_id": 7, "bbox": [0, 0, 1, 1]}, 3], "result 1: need an object"),
        ([{"image_id": 7, "bbox": [0, 0, float("nan"), 1]}], "result 0: bbox: need finite numbers"),
        ([], "need COCO's images and annotations, a list of results"),
    ],
)
def test_a_malformed_list_of_results_is_refused_with_the_index(tmp_path, content, reason):
    with pytest.raises(InputError, match=reason):
        with_boxes(THREE, written(tmp_path, content))
