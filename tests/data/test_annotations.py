"""Annotation files read in parts, their arrays, and the cache that all processes of a machine share."""

import json
import os
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.data import annotation_file, annotations
from foveate.data.annotations import REMOVED, AnnotatedRecords, RelabelledRecords, objects_of
from foveate.data.datasets.coco import read_instances, read_panoptic
from foveate.data.datasets.lvis import read_lvis
from foveate.data.records import Dataset, IgnoredEntries, Record
from foveate.data.sources import open_data
from foveate.errors import InputError

COUNT = 30  # images
HARD = ['a "b"', "\\", "}]{[,", '\\\\"', "é\u2028\U0001f600", "\ud800", ""]  # texts that look like structure


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "annotations"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a few bytes, also of small files."""
    monkeypatch.setattr(annotation_file, "WHOLE_BYTES", 0)
    monkeypatch.setattr(annotation_file, "PART_BYTES", 37)


def instances() -> dict[str, Any]:
    """Thirty images; the objects are not in their order, and each third box is outside its image."""
    dice = random.Random(0)
    images = [{"id": 100 - i, "file_name": f"{i}.jpg", "height": 40, "width": 60} for i in range(COUNT)]
    objects = [
        {"id": i, "image_id": dice.randint(71, 95), "category_id": dice.choice([3, 8]), "iscrowd": i % 5 == 0,
         "bbox": [dice.uniform(0, 30), 100 if i % 3 == 0 else 5.5, dice.uniform(1, 40), 20.1],
         "segmentation": [[1, 1, 9.5, 1, 9.5, 8]], "note": HARD[i % len(HARD)]}
        for i in range(90)
    ]  # fmt: skip
    objects = [{**thing, "iscrowd": int(thing["iscrowd"])} for thing in objects]
    categories = [{"id": 8, "name": "cat"}, {"id": 3, "name": "dog", "supercategory": HARD[2]}]
    return {"info": {"a": [1, {}]}, "annotations": objects, "images": images, "x": "]", "categories": categories}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "3.jpg").touch()
    (tmp_path / "notes.json").write_text(json.dumps(instances()))
    return tmp_path / "notes.json"


def opened(path: Path, **arguments: Any) -> Dataset:
    return read_instances(path, path.parent / "images", **arguments)


def refuse_to_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the annotation file is parsed")

    for name in ("parse", "_find_members", "_parse_parts"):
        monkeypatch.setattr(annotation_file, name, parse)


# ---------------------------------------------------------------------------------------------------- read in parts


@pytest.mark.parametrize("part", [1, 2, 37, 500, 100_000])
@pytest.mark.parametrize("form", [{}, {"ensure_ascii": False}, {"indent": 3}, {"separators": (",", ":")}])
def test_a_file_read_in_parts_is_the_file_read_at_once(tmp_path, monkeypatch, part, form):
    content = instances()
    if part < 3:  # of which each comma begins a part
        content |= {"images": content["images"][:3], "annotations": content["annotations"][:7]}
    path = tmp_path / "notes.json"
    path.write_bytes(json.dumps(content, **form).encode(errors="surrogatepass"))
    monkeypatch.setenv("FOVEATE_CACHE", "")
    monkeypatch.setattr(annotation_file, "WHOLE_BYTES", 0)
    monkeypatch.setattr(annotation_file, "PART_BYTES", part)
    read = annotation_file.load(path, kind="a COCO instances")
    monkeypatch.setattr(annotation_file, "parse", None)  # never called
    assert isinstance(read["annotations"], annotation_file.Entries)
    assert {key: [*read[key]] for key in annotation_file.LISTS} == {key: content[key] for key in annotation_file.LISTS}
    assert [*read["images"]] == content["images"]  # again


MALFORMED: dict[str, Callable[[str], str]] = {
    "truncated": lambda text: text[:-300],
    "truncated in a string": lambda text: text[: text.index("supercategory") + 4],
    "a comma without an entry": lambda text: text.replace('}], "images"', '},], "images"'),
    "two commas": lambda text: text.replace('"id": 50,', '"id": 50,,'),
    "another bracket": lambda text: text.replace('}], "images"', '}}, "images"'),
    "two lists": lambda text: text.replace('}], "images"', '}] [{}], "images"'),
    "no comma between entries": lambda text: text.replace('}, {"id": 60', '} {"id": 60'),
    "no key": lambda text: text.replace('"x": "]"', '"]"'),
    "no value": lambda text: text.replace('"x": "]"', '"x":'),
    "another member is malformed": lambda text: text.replace("[1, {}]", "[1 {}]"),
    "two objects": lambda text: text + "{}",
    "text after the object": lambda text: text + "x",
    "text before the object": lambda text: "x" + text,
    "a list": lambda text: f"[{text}]",
    "a number": lambda text: "12",
    "nothing": lambda text: "",
    "an empty object": lambda text: "{}",
    "no list": lambda text: text.replace('"images"', '"image"'),
    "an object for a list": lambda text: json.dumps({**json.loads(text), "images": {"a": [1, 2]}}),
    "a string for a list": lambda text: json.dumps({**json.loads(text), "annotations": "[]"}),
    "a key twice": lambda text: text.replace('"id": 50,', '"id": 50, "id": 50,'),
    "a list twice": lambda text: text.replace('"x": "]"', '"images": []'),
    "an entry that is no object": lambda text: text.replace('}], "images"', '}, 7], "images"'),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_file_is_refused_alike_in_parts(written, monkeypatch, fault):
    monkeypatch.setenv("FOVEATE_CACHE", "")
    written.write_text(MALFORMED[fault](written.read_text()))
    with pytest.raises(InputError) as whole:
        opened(written)
    monkeypatch.setattr(annotation_file, "WHOLE_BYTES", -1)
    monkeypatch.setattr(annotation_file, "PART_BYTES", 37)
    with pytest.raises(InputError) as parts:
        opened(written)
    assert str(parts.value) == str(whole.value)


def test_other_encodings_are_read_at_once(written, small_parts, cache):
    expected = opened(written)
    for encoding in ("utf-8-sig", "utf-16"):
        written.write_bytes(json.dumps(instances()).encode(encoding))
        assert opened(written) == expected


# ---------------------------------------------------------------------------------------------------------- the records


def test_records_are_in_the_order_of_images_and_objects_in_that_of_the_file(written, cache):
    content = instances()
    records = opened(written, with_masks=True).records
    assert [record.id for record in records] == [image["id"] for image in content["images"]]
    for record in records:
        used = [thing for thing in content["annotations"] if thing["image_id"] == record.id and thing["id"] % 3]
        corners = [(x, y, min(x + w, 60.0), y + h) for x, y, w, h in (thing["bbox"] for thing in used)]
        assert record.boxes == tuple(corners)  # as float64, like in the file
        assert record.labels == tuple(int(thing["category_id"] == 8) for thing in used)
        assert record.crowd == tuple(bool(thing["iscrowd"]) for thing in used)
        assert len(record.masks) == len(used) and len({*record.masks}) < 2
    assert records[3].path == written.parent / "images" / "3.jpg" and records[-1] == records[COUNT - 1]


def test_labels_are_changed_on_arrays_as_on_records(written, cache):
    for records in (opened(written, with_masks=True).records, tuple(opened(written, with_masks=True).records)):
        objects = objects_of(records)
        labels = np.where(objects.crowd, REMOVED, objects.labels + 5)
        images = np.array([20, 9, 10, 29])
        changed = RelabelledRecords(records, labels, images=images)
        expected = []
        for image in images:
            record = records[image]
            used = [i for i, crowd in enumerate(record.crowd) if not crowd]
            parts = {key: tuple(getattr(record, key)[i] for i in used) for key in ("boxes", "crowd", "masks")}
            expected.append(replace(record, **parts, labels=tuple(record.labels[i] + 5 for i in used)))
        assert changed == tuple(expected)
        for own, other in zip(objects_of(changed), objects_of(tuple(expected)), strict=True):
            assert own.tolist() == other.tolist()
        found = objects_of(changed).any_per_image(objects_of(changed).labels == 6)
        assert found.tolist() == [6 in record.labels for record in expected]


# ------------------------------------------------------------------------------------------------------------ the cache


@pytest.mark.parametrize("masks", [False, True])
def test_the_second_start_parses_nothing_and_tells_the_same(written, cache, small_parts, monkeypatch, masks):
    first = opened(written, with_masks=masks)
    assert list(first.ignored.values()) == [IgnoredEntries(30, f"{written}: annotation 0")]
    refuse_to_parse(monkeypatch)
    assert opened(written, with_masks=masks) == first
    monkeypatch.chdir(written.parent)
    relative = opened(Path(written.name), with_masks=masks)  # another name of the file is in the lines
    assert list(relative.ignored.values()) == [IgnoredEntries(30, f"{written.name}: annotation 0")]
    assert [record.boxes for record in relative.records] == [record.boxes for record in first.records]


def test_the_second_start_of_lvis_and_panoptic_parses_nothing(written, cache, monkeypatch):
    content = instances()
    for image in content["images"]:
        image["coco_url"] = f"http://x/images/{image.pop('file_name')}"
    content["categories"] = [{**item, "frequency": "r", "synonyms": ["a"]} for item in content["categories"]]
    lvis, panoptic = written.with_name("lvis.json"), written.with_name("panoptic.json")
    lvis.write_text(json.dumps(content))
    segments = {"segments_info": [{"id": 9, "category_id": 3, "bbox": [0, 0, 9, 9]}], "file_name": "3.jpg"}
    categories = [{**item, "isthing": 1} for item in content["categories"]]
    content = {**instances(), "annotations": [{**segments, "image_id": 97}], "categories": categories}
    panoptic.write_text(json.dumps(content))
    images = written.parent / "images"
    first = read_lvis(lvis, written.parent), read_panoptic(panoptic, images, images)
    assert first[0].records[3].path == images / "3.jpg" and first[0].categories[0].synonyms == ("a",)
    expected = Record(97, images / "3.jpg", 40, 60, ((0, 0, 9, 9),), (0,), (False,), (9,), images / "3.jpg")
    assert first[1].records == (expected,) and next(iter(first[1].ignored.values())).count == COUNT - 1
    refuse_to_parse(monkeypatch)
    assert (read_lvis(lvis, written.parent), read_panoptic(panoptic, images, images)) == first


def test_a_changed_file_is_read_again_and_its_former_cache_removed(written, cache):
    former, status = opened(written), written.stat()
    opened(written, with_masks=True)
    assert len(list(cache.iterdir())) == 3
    written.write_text(written.read_text().replace('"dog"', '"cow"').replace("[1, {}]", "[2, {}]"))
    os.utime(written, ns=(status.st_atime_ns, status.st_mtime_ns))  # the size and the time are the former ones
    assert opened(written).categories[0].name == "cow" and former.categories[0].name == "dog"
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_or_foreign_cache_is_ignored(written, cache):
    expected = opened(written)
    expected = replace(expected, records=tuple(expected.records))  # not of the file that is damaged below
    arrays, outline = sorted(cache.iterdir(), key=lambda path: path.suffix, reverse=True)
    for path in (arrays, outline):
        whole, dice = path.read_bytes(), random.Random(0)
        for position in [*dice.sample(range(len(whole)), 20), 0, len(whole) - 1]:
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
            assert opened(written) == expected
        for damaged in (b"", whole[:-9], whole + b" "):
            path.write_bytes(damaged)
            assert opened(written) == expected
    other = written.with_name("other.json")
    other.write_text(json.dumps({**instances(), "annotations": []}))
    assert not any(record.boxes for record in opened(other).records)
    for path in cache.iterdir():  # the objects of the other file under the name of this one
        if path.suffix == arrays.suffix and path != arrays:
            arrays.write_bytes(path.read_bytes())
    assert opened(written) == expected


def test_without_a_cache_everything_is_read_again(written, tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))
    expected = opened(written)
    monkeypatch.setenv("FOVEATE_CACHE", "")
    records = opened(written).records
    assert records == expected.records and pickle.loads(pickle.dumps(records)) == records
    monkeypatch.setenv("FOVEATE_CACHE", str(written / "below a file"))  # cannot be written
    assert opened(written).records == expected.records


def test_a_worker_receives_the_path_of_the_arrays(written, cache):
    records = opened(written, with_masks=True).records
    assert isinstance(records, AnnotatedRecords) and not records.arrays["boxes"].flags.owndata
    sent = pickle.dumps(RelabelledRecords(records, objects_of(records).labels))
    assert pickle.loads(sent) == records and len(pickle.dumps(records)) < 1_000
    assert records.stored is not None
    records.stored.path.unlink()
    with pytest.raises(InputError, match="need the cached list that the run started with"):
        pickle.loads(sent)
    assert annotations.objects_of(records).labels.sum()  # those that are open remain


def test_boxes_that_contradict_their_images_are_refused_from_the_cache_too(written, cache, monkeypatch):
    content = instances()
    for thing in content["annotations"]:
        thing["bbox"] = [0.1, 0.2, 0.5, 0.25]  # parts of the sides
    written.write_text(json.dumps(content))
    with pytest.raises(InputError, match="normalised") as first:
        open_data(written.parent / "images", split="train", annotation_file=written)
    refuse_to_parse(monkeypatch)
    with pytest.raises(InputError) as second:
        open_data(written.parent / "images", split="train", annotation_file=written)
    assert str(second.value) == str(first.value)
    dataset = open_data(written.parent / "images", split="train", annotation_file=written, accept=True)
    assert dataset.consistency.doubt == str(first.value)
