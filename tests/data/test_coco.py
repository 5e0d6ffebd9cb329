"""COCO annotation files: records, ignored entries, and errors with file, entry and field."""

import copy
import errno
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate.data.datasets.coco import read_instances, read_panoptic
from foveate.data.layout import find_coco
from foveate.data.records import IgnoredEntries
from foveate.data.sources import open_panoptic
from foveate.data.validation import parse
from foveate.errors import InputError
from foveate.types import Category

INSTANCES: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "height": 40, "width": 60},
        {"id": 3, "file_name": "deep/b.jpg", "height": 50, "width": 50},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1.5, 2, 10, 20.25], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 60, 40], "iscrowd": 1},
    ],
}
PANOPTIC: dict[str, Any] = {
    "images": INSTANCES["images"],
    "categories": [{"id": 200, "name": "rug", "isthing": 0}, {"id": 1, "name": "person", "isthing": 1}],
    "annotations": [
        {
            "image_id": 7,
            "file_name": "a.png",
            "segments_info": [
                {"id": 513, "category_id": 200, "bbox": [0, 0, 60, 40], "iscrowd": 0},
                {"id": 1, "category_id": 1, "bbox": [5, 6, 7, 8], "iscrowd": 1},
            ],
        }
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Empty files under the names the annotations use: reading annotations opens no image."""
    for name in ("a.jpg", "deep/b.jpg", "a.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    return tmp_path / "images"


def written(folder: Path, content: object) -> Path:
    path = folder.parent / "notes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def changed(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with one entry set; `place` is like "images.0.id"."""
    content = copy.deepcopy(content)
    *steps, last = [int(step) if step.isdigit() else step for step in key.split(".")]
    target: Any = content
    for step in steps:
        target = target[step]
    if value is DELETED:
        del target[last]
    else:
        target[last] = value
    return content


DELETED = object()


# ------------------------------------------------------------------------------------------------------- what is read


def test_instances_become_records_in_file_order(folder):
    dataset = read_instances(written(folder, INSTANCES), folder)
    assert dataset.name == "notes" and dataset.ignored == {}
    assert dataset.categories == (Category(1, "person", True), Category(90, "toothbrush", True))  # by id
    first, second = dataset.records
    assert (first.id, first.path, first.size) == (7, folder / "a.jpg", (40, 60))
    assert first.boxes == ((1.5, 2, 11.5, 22.25), (0, 0, 60, 40))  # xywh -> xyxy
    assert first.labels == (1, 0) and first.crowd == (False, True)
    assert (second.id, second.path, second.boxes) == (3, folder / "deep/b.jpg", ())  # a record without annotations


def test_panoptic_records_have_segment_ids_and_png_paths(folder):
    dataset = read_panoptic(written(folder, PANOPTIC), folder, folder)
    assert dataset.categories == (Category(1, "person", True), Category(200, "rug", False))
    (record,) = dataset.records  # image 3 has no panoptic annotation
    where = f"{folder.parent / 'notes.json'}: image 3"
    assert dataset.ignored == {"image has no panoptic annotation": IgnoredEntries(1, where)}
    assert record.panoptic == folder / "a.png" and record.segment_ids == (513, 1)
    assert (
        record.boxes == ((0, 0, 60, 40), (5, 6, 12, 14)) and record.labels == (1, 0) and record.crowd == (False, True)
    )


def test_ids_may_be_strings(folder):
    content = changed(changed(INSTANCES, "images.0.id", "x"), "annotations.0.image_id", "x")
    content = changed(content, "annotations.1.image_id", "x")
    assert read_instances(written(folder, content), folder).records[0].id == "x"


def test_empty_lists_give_an_empty_data_set(folder):
    content = {"images": [], "annotations": [], "categories": []}
    assert read_instances(written(folder, content), folder).records == ()


BOXES = {  # xywh in a 40 x 60 (height x width) image -> xyxy, or the reason why it is ignored
    "over every edge": ([-5, -5, 100, 100], (0, 0, 60, 40)),
    "a hair over the edge": ([50, 30, 10.0001, 10.0001], (50, 30, 60, 40)),
    "exactly one pixel": ([59, 39, 1, 1], (59, 39, 60, 40)),
    "one pixel left after clipping": ([-9, 0, 10, 10], (0, 0, 1, 10)),
    "under one pixel wide": ([5, 5, 0.99, 10], "box is under 1 pixel inside the image"),
    "under one pixel after clipping": ([59.5, 5, 10, 10], "box is under 1 pixel inside the image"),
    "no extent": ([5, 5, 0, 0], "box is under 1 pixel inside the image"),
    "negative extent": ([5, 5, -3, 4], "box is under 1 pixel inside the image"),
    "right of the image": ([60, 5, 10, 10], "box is outside the image"),
    "above the image": ([5, -20, 10, 10], "box is outside the image"),
    "not a number": ([float("nan"), 5, 10, 10], "box is not finite"),
    "infinite": ([0, 0, float("inf"), 10], "box is not finite"),
    "infinite as a sum": ([1e308, 0, 1e308, 10], "box is not finite"),
    "a whole number beyond floats": ([10**400, 0, 5, 5], "box is not finite"),
}


@pytest.mark.parametrize("name", BOXES)
def test_boxes_outside_the_image_are_clipped_or_counted(folder, name):
    box, expected = BOXES[name]
    for content, key, read in (
        (INSTANCES, "annotations.0.bbox", lambda path: read_instances(path, folder)),
        (PANOPTIC, "annotations.0.segments_info.0.bbox", lambda path: read_panoptic(path, folder, folder)),
    ):
        dataset = read(written(folder, changed(content, key, box)))
        record = dataset.records[0]
        if isinstance(expected, str):
            assert dataset.ignored[expected].count == 1 and len(record.boxes) == 1
        else:
            assert (
                expected in record.boxes
                and len(record.boxes) == 2
                and not any(reason.startswith("box") for reason in dataset.ignored)
            )
        assert len(record.boxes) == len(record.labels) == len(record.crowd)


def test_ignored_entries_are_reported_with_the_first(folder):
    content = changed(changed(INSTANCES, "annotations.0.bbox", [99, 0, 5, 5]), "annotations.1.bbox", [0, 99, 5, 5])
    path = written(folder, content)
    assert read_instances(path, folder).ignored_lines() == [
        f"2 ignored: box is outside the image; the first: {path}: annotation 1"
    ]
    path = written(folder, changed(PANOPTIC, "annotations.0.segments_info.0.bbox", [99, 0, 5, 5]))
    first, second = read_panoptic(path, folder, folder).ignored_lines()
    assert first.endswith(f"{path}: annotation of image 7: segment 513") and second.endswith("image 3")


# ---------------------------------------------------------------------------------------------------- what is refused

BROKEN_FILES = {  # name: (file content, part of the message)
    "not json": ("{", "JSON"),
    "empty": ("", "JSON"),
    "a list": ([{"bbox": []}], "got a list"),
    "a number": ("3", "got a int"),
    "no images": ({"annotations": [], "categories": []}, "no `images`; its keys are"),
    "captions": ({"images": [], "annotations": []}, "no `categories`"),
    "images is an object": ({"images": {}, "annotations": [], "categories": []}, "`images` as {}"),
    "nested too deep": ("[" * 100_000 + "]" * 100_000, "JSON"),
    "a number of 5000 digits": ('{"images": ' + "9" * 5000 + "}", "JSON"),
    "bytes that are no text": ("\0\1\2\3", "JSON"),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_file_that_is_not_coco_is_refused(folder, name):
    content, reason = BROKEN_FILES[name]
    path = written(folder, content)
    for read in (lambda: read_instances(path, folder), lambda: read_panoptic(path, folder, folder)):
        with pytest.raises(InputError) as caught:
            read()
        assert reason in str(caught.value) and str(path) in str(caught.value)


def test_a_repeated_key_is_refused(folder):
    path = folder.parent / "twice.json"
    path.write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat", "name": "dog"}]}')
    with pytest.raises(InputError, match=r"twice.json: need unique keys in each object; got 'name' 2 times. Correct"):
        read_instances(path, folder)


def test_a_file_without_permission_is_not_called_damaged(folder, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)  # root may read everything
    with pytest.raises(InputError, match="need a COCO instances file; permission denied"):
        read_instances(folder / "a.json", folder)


def test_a_missing_file_is_refused(folder):
    with pytest.raises(InputError, match="not found"):
        read_instances(folder / "gone.json", folder)
    with pytest.raises(InputError, match="directory"):
        read_instances(folder, folder)


BROKEN_ENTRIES = {  # name: (changed entry, value, part of the message)
    "image is no object": ("images.0", 5, "image: need an object"),
    "image without id": ("images.0.id", DELETED, "image: need an `id`"),
    "image id is true": ("images.0.id", True, "image: need an `id`"),
    "image id is a fraction": ("images.0.id", 7.5, "image: need an `id`"),
    "image id twice": ("images.1.id", 7, "image 7: need a unique `id` per image"),
    "image id as number and text": ("images.1.id", "7", "ids that differ as text"),
    "no file name": ("images.0.file_name", DELETED, "image 7: need `file_name`"),
    "empty file name": ("images.0.file_name", "", "image 7: need `file_name`"),
    "file name is a number": ("images.0.file_name", 5, "image 7: need `file_name`"),
    "no height": ("images.0.height", DELETED, "image 7: need `height`"),
    "height is text": ("images.0.height", "480", "image 7: need `height`"),
    "height is a fraction": ("images.0.height", 40.5, "image 7: need `height`"),
    "no width at all": ("images.0.width", 0, "image 7: need `width` of at least 1"),
    "negative width": ("images.0.width", -60, "image 7: need `width` of at least 1"),
    "category without name": ("categories.0.name", DELETED, "category 90: need `name`"),
    "category id twice": ("categories.0.id", 1, "category 1: need a unique `id` per category"),
    "category id is text": ("categories.0.id", "90", "need `id`, an integer"),
    "annotation is no object": ("annotations.0", [1], "annotation: need an object"),
    "annotation without id": ("annotations.0.id", DELETED, "annotation: need an `id`"),
    "annotation id twice": ("annotations.0.id", 2, "annotation 2: need a unique `id` per annotation"),
    "unknown image": ("annotations.0.image_id", 8, "annotation 1: need `image_id`"),
    "image id of another type": ("annotations.0.image_id", "7", "annotation 1: need `image_id`"),
    "image id is a list": ("annotations.0.image_id", [7], "annotation 1: need `image_id`"),
    "unknown category": ("annotations.0.category_id", 5, "annotation 1: need `category_id`"),
    "category id is true": ("annotations.0.category_id", True, "annotation 1: need `category_id`"),
    "box is an object": ("annotations.0.bbox", {}, "annotation 1: need `bbox`"),
    "box of three numbers": ("annotations.0.bbox", [1, 2, 3], "annotation 1: need `bbox`"),
    "box of text": ("annotations.0.bbox", ["1", 2, 3, 4], "annotation 1: need `bbox` of four numbers"),
    "crowd is text": ("annotations.0.iscrowd", "no", "annotation 1: need `iscrowd`, 0 or 1"),
    "crowd is 2": ("annotations.0.iscrowd", 2, "annotation 1: need `iscrowd`, 0 or 1"),
    "panoptic entries": ("annotations.0.segments_info", [], "a panoptic file"),
}


@pytest.mark.parametrize("name", BROKEN_ENTRIES)
def test_a_malformed_entry_is_refused_with_its_id(folder, name):
    key, value, reason = BROKEN_ENTRIES[name]
    path = written(folder, changed(INSTANCES, key, value))
    with pytest.raises(InputError) as caught:
        read_instances(path, folder)
    assert reason in str(caught.value) and str(path) in str(caught.value)


BROKEN_PANOPTIC = {
    "instances entries": ("annotations.0.segments_info", DELETED, "Is this an instances file?"),
    "entry is no object": ("annotations.0", 3, "`segments_info`"),
    "segment is no object": ("annotations.0.segments_info.0", 3, "segment: need an object"),
    "unknown image": ("annotations.0.image_id", 8, "annotation of image 8: need `image_id`"),
    "no PNG": ("annotations.0.file_name", DELETED, "annotation of image 7: need `file_name`"),
    "segment id twice": ("annotations.0.segments_info.0.id", 1, "segment 1: need a unique `id` per segment"),
    "segment id 0 is unlabelled": ("annotations.0.segments_info.0.id", 0, "in 1..16777215"),
    "segment id is no colour": ("annotations.0.segments_info.0.id", 2**24, "in 1..16777215"),
    "segment id is text": ("annotations.0.segments_info.0.id", "1", "in 1..16777215"),
    "unknown category": ("annotations.0.segments_info.0.category_id", 2, "segment 513: need `category_id`"),
    "category without isthing": ("categories.0.isthing", DELETED, "category 200: need `isthing`"),
    "image annotated twice": ("annotations", PANOPTIC["annotations"] * 2, "one annotation per image"),
}


@pytest.mark.parametrize("name", BROKEN_PANOPTIC)
def test_a_malformed_panoptic_entry_is_refused_with_its_id(folder, name):
    key, value, reason = BROKEN_PANOPTIC[name]
    path = written(folder, changed(PANOPTIC, key, value))
    with pytest.raises(InputError) as caught:
        read_panoptic(path, folder, folder)
    assert reason in str(caught.value) and str(path) in str(caught.value)


# ---------------------------------------------------------------------------------------- file names, links and folders

ESCAPES = [
    "../a.jpg",
    "deep/../../a.jpg",
    "/etc/passwd",
    "..",
    "C:\\a.jpg",
    "..\\a.jpg",
    "\\\\host\\a.jpg",
    "a.jpg\0.png",
    "deep/..",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_a_file_name_that_leaves_its_folder_is_refused(folder, name):
    for content, key, read in (
        (INSTANCES, "images.0.file_name", lambda path: read_instances(path, folder)),
        (PANOPTIC, "images.0.file_name", lambda path: read_panoptic(path, folder, folder)),
        (PANOPTIC, "annotations.0.file_name", lambda path: read_panoptic(path, folder, folder)),
    ):
        with pytest.raises(InputError, match="image 7: need `file_name` inside"):
            read(written(folder, changed(content, key, name)))


def test_a_link_that_leaves_the_folder_is_refused(folder):
    path = written(folder, INSTANCES)
    secret = folder.parent / "secret.jpg"
    secret.touch()
    (folder / "a.jpg").unlink()
    (folder / "a.jpg").symlink_to(secret)
    with pytest.raises(InputError, match=r"a\.jpg: need a file inside .* link to"):
        read_instances(path, folder)
    (folder / "a.jpg").unlink()
    (folder / "a.jpg").symlink_to(folder / "deep" / "b.jpg")  # within the folder: fine
    assert len(read_instances(path, folder).records) == 2


def test_a_linked_folder_that_leaves_the_folder_is_refused(folder):
    (folder / "deep" / "b.jpg").unlink()
    (folder / "deep").rmdir()
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "b.jpg").touch()
    (folder / "deep").symlink_to(folder.parent / "elsewhere")
    with pytest.raises(InputError, match="link to"):
        read_instances(written(folder, INSTANCES), folder)


def test_the_image_folder_itself_may_be_a_link(folder):
    alias = folder.parent / "alias"
    alias.symlink_to(folder)
    assert len(read_instances(written(folder, INSTANCES), alias).records) == 2


def test_one_missing_image_is_accepted_but_not_all(folder):
    path = written(folder, INSTANCES)
    (folder / "a.jpg").unlink()
    assert len(read_instances(path, folder).records) == 2  # it is an unreadable image when it is read
    (folder / "deep" / "b.jpg").unlink()
    with pytest.raises(InputError, match="none of 2 exists"):
        read_instances(path, folder)
    with pytest.raises(InputError, match="not found"):
        read_instances(path, folder / "gone")


def test_names_that_mean_files_of_the_folder_are_accepted_with_a_note(folder):
    content = changed(changed(INSTANCES, "images.0.file_name", "images\\a.jpg"), "images.1.file_name", "deep\\b.jpg")
    dataset = read_instances(written(folder, content), folder)
    assert [record.path for record in dataset.records] == [folder / "a.jpg", folder / "deep/b.jpg"]
    (line,) = dataset.ignored_lines()
    assert line.startswith(f"{folder.parent}/notes.json: none of its 2 names of images exists as written; 2 were found")
    # absolute names within the folder, also through a link, are names
    alias = folder.parent / "alias"
    alias.symlink_to(folder)
    for root in (folder, alias):
        content = changed(INSTANCES, "images.0.file_name", str(root / "a.jpg"))
        dataset = read_instances(written(folder, content), alias)
        assert [record.path for record in dataset.records] == [alias / "a.jpg", alias / "deep/b.jpg"]
        assert dataset.ignored_lines() == []
    # a name read otherwise may not lead out either
    (folder / "a.jpg").unlink()
    (folder.parent / "secret.jpg").touch()
    (folder / "a.jpg").symlink_to(folder.parent / "secret.jpg")
    content = changed(changed(INSTANCES, "images.0.file_name", "x\\a.jpg"), "images.1.file_name", "deep\\b.jpg")
    with pytest.raises(InputError, match=r"a\.jpg: need a file inside .* link to"):
        read_instances(written(folder, content), folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/home/me/deep/b.jpg", r"leads out of it. Name the images relative to the folder: deep/b\.jpg exists"),
        ("D:\\me\\a.jpg", r"leads out of it. Name the images relative to the folder: a\.jpg exists"),
        ("%2e%2e/images/../x.jpg", "leads out of it. Correct the file; do not trust"),
        ("x" * 300, "leads out of it"),
        ("notes.jpg", r"none of 1 exists \(the first: 'notes.jpg'\). They exist in .*: give that folder"),
        ("c.jpg", r"It has 3 images, such as a\.jpg"),
        ("b.png", r"They cannot be taken for others: .* but these may be other files, such as label maps"),
    ],
)
def test_the_refusal_says_what_is_known(folder, name, message):
    (folder.parent / "notes.jpg").touch()
    content = {**INSTANCES, "images": [{**INSTANCES["images"][0], "file_name": name}], "annotations": []}
    with pytest.raises(InputError, match=message):
        read_instances(written(folder, content), folder)


def test_a_png_in_place_of_a_jpeg_is_an_image_if_it_has_colours(folder):
    for name in ("a.jpg", "a.png", "deep/b.jpg"):
        (folder / name).unlink()
    for mode in ("RGB", "P", "L"):
        for name in ("a.png", "deep/b.png"):
            Image.new(mode, (60, 40)).save(folder / name)
        if mode == "RGB":
            assert [record.path.suffix for record in read_instances(written(folder, INSTANCES), folder).records]
        else:
            with pytest.raises(InputError, match="but these may be label maps"):
                read_instances(written(folder, INSTANCES), folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            gzip.compress(b"{}", mtime=0),
            "in JSON; it is a file compressed with gzip. Unpack it first, or give another file",
        ),
        (b"PK\x03\x04....", "it is a zip archive. Unpack it first"),
        (b"BZh91AY", "compressed with bzip2"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS.*git lfs pull"),
        (b"\n<!DOCTYPE html><p>404", "a page of HTML, as after a failed download. Fetch it again"),
        (b"\xff\xd8\xff\xe0", "it is a JPEG image"),
        (b"", "it has 0 bytes"),
        (b"{}\n{}\n", "one object per line"),
        (b"{", "JSONDecodeError"),
    ],
)
def test_what_is_no_json_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        parse(tmp_path / "a.json", kind="an annotation")


def test_json_in_utf_16_is_read(tmp_path):
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        (tmp_path / "a.json").write_bytes('{"a": "é"}'.encode(encoding))
        assert parse(tmp_path / "a.json", kind="an annotation") == {"a": "é"}


# ------------------------------------------------------------------------------------------------------------ real COCO


@pytest.mark.skipif("FOVEATE_COCO_MINI" not in os.environ, reason="FOVEATE_COCO_MINI names no folder of COCO images")
def test_real_coco_is_read_completely():
    root = Path(os.environ["FOVEATE_COCO_MINI"])
    for split in ("train", "val"):
        files = find_coco(root, split)
        assert files.instances
        things = read_instances(files.instances, files.images)
        raw = json.loads(files.instances.read_text())
        assert len(things.categories) == 80 and len(things.records) == len(raw["images"])
        ignored = sum(entries.count for entries in things.ignored.values())
        assert sum(len(r.boxes) for r in things.records) + ignored == len(raw["annotations"])
        both = open_panoptic(root, split)
        assert sum(category.is_thing for category in both.categories) == 80 and len(both.categories) == 133
        assert both.records and not both.ignored
