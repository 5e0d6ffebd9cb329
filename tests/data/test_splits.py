"""Base and novel categories of each data set."""

import json
from pathlib import Path

import pytest

from foveate.data.records import Dataset, Record
from foveate.data.splits import (
    IGNORED,
    OBJECT,
    OV_COCO_EXCLUDED,
    OV_COCO_NOVEL,
    as_objects,
    classes_of_annotations,
    classes_of_ov_coco,
    only_with_objects,
    split_of,
    split_of_root,
)
from foveate.data.world.write import base_and_novel
from foveate.errors import InputError
from foveate.types import Category

# COCO's 80, in the order of their ids
COCO = """person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign parking_meter
bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis
snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass cup fork
knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch potted_plant bed
dining_table toilet tv laptop mouse remote keyboard cell_phone microwave oven toaster sink refrigerator book clock vase
scissors teddy_bear hair_drier toothbrush"""


def named(*names: str, frequencies: str = "") -> Dataset:
    marks = frequencies or [None] * len(names)
    categories = [Category(i, name, True, (), mark) for i, (name, mark) in enumerate(zip(names, marks, strict=True), 1)]
    return Dataset("some", tuple(categories), (), {})


def test_ov_coco_is_recognised_by_its_names(tmp_path):
    split = split_of(named(*(name.replace("_", " ") for name in COCO.split())), tmp_path)
    assert split is not None
    assert (len(split.base), len(split.novel), len(split.excluded)) == (48, 17, 15)
    # the first and the last of each part, read off the list above
    assert split.base[:4] == ("person", "bicycle", "car", "motorcycle") and split.base[-1] == "toothbrush"
    assert {"airplane", "scissors"} <= set(split.novel) and {"traffic light", "hair drier"} <= set(split.excluded)
    assert len({*split.base, *split.novel, *split.excluded}) == 80
    other = split_of(named(*COCO.split()), tmp_path)  # the same names, written with "_"
    assert other is not None and (len(other.base), len(other.novel)) == (48, 17) and "stop_sign" in other.excluded
    assert split_of(named(*COCO.split()[:-1], "brush"), tmp_path) is not None  # of base classes the names do not count
    assert split_of(named(*COCO.replace("cat", "kitten").split()), tmp_path) is None  # another data set
    assert split_of(named(*OV_COCO_NOVEL, *OV_COCO_EXCLUDED), tmp_path) is None


def test_rare_categories_of_lvis_are_novel(tmp_path):
    split = split_of(named("a", "b", "c", "d", frequencies="rfcr"), tmp_path)
    assert split is not None and (split.base, split.novel, split.excluded) == (("b", "c"), ("a", "d"), ())


def test_custom_files_and_splits_json_come_first(tmp_path):
    (tmp_path / "annotations").mkdir()
    world = base_and_novel()
    (tmp_path / "annotations/splits.json").write_text(json.dumps(world))
    dataset = named(*world["base"], *world["novel"])
    split = split_of(dataset, tmp_path)
    assert split is not None and [list(split.base), list(split.novel)] == [world["base"], world["novel"]]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"base": world["novel"], "novel": world["base"][:1]}))
    split = split_of(dataset, tmp_path, file=path)
    assert split is not None and split.base == tuple(world["novel"]) and split.excluded == tuple(world["base"][1:])
    assert split.rule == "as in mine.json"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"base": ["a"], "novel": ["z"]}', r"1 are not, such as 'z'\..* such as 'a'"),
        (
            '{"base": ["a", "b"], "novel": ["b"]}',
            "every name once; got 'b' twice. Write every name once, in base or in novel",
        ),
        ('{"base": [], "novel": ["b"]}', 'at least one name in "base"'),
        ('{"base": ["a"]}', r'need \{"base": \[names\], "novel": \[names\]\}'),
        ('["a"]', r'need \{"base": \[names\], "novel": \[names\]\}'),
        ("{", "need a base and novel names file in JSON"),
        (None, "not found"),
    ],
)
def test_a_malformed_split_file_is_refused(tmp_path, content, reason):
    path = tmp_path / "s.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=reason):
        split_of(named("a", "b"), tmp_path, file=path)


def write_notes(path: Path, *names: str) -> None:
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))


def test_the_split_of_a_root_is_read_from_its_annotation_file(tmp_path):
    notes = tmp_path / "annotations"
    notes.mkdir()
    write_notes(notes / "instances_train2017.json", *(name.replace("_", " ") for name in COCO.split()))
    write_notes(notes / "instances_mini2017.json", "a", "b")  # of another split
    split = split_of_root(tmp_path, split="train")
    assert split is not None and split.novel == OV_COCO_NOVEL
    assert split_of_root(tmp_path, split="val") is None
    assert split_of_root(tmp_path, split="train", annotations=notes / "instances_mini2017.json") is None
    assert split_of_root(tmp_path / "annotations", split="train") is None  # a plain folder
    assert split_of_root("http://host/{0..3}.tar", split="train") is None
    write_notes(notes / "lvis_v1_train.json", "a")
    with pytest.raises(
        InputError, match=r"found .*instances_train2017\.json and .*lvis_v1_train\.json\. .*--annotations"
    ):
        split_of_root(tmp_path, split="train")


def test_a_split_file_may_write_names_in_another_form(tmp_path):
    path = tmp_path / "s.json"
    path.write_text('{"base": ["Traffic_Light"], "novel": ["cafe\\u0301"]}')
    split = split_of(named("caf\u00e9", "traffic light", "dog"), tmp_path, file=path)
    assert split is not None and (split.base, split.novel) == (("traffic light",), ("caf\u00e9",))  # as in the data
    assert split.excluded == ("dog",)
    path.write_text('{"base": ["dog"], "novel": ["DOG"]}')
    with pytest.raises(InputError, match="need every name once; got 'dog' and 'DOG', which are compared as the same"):
        split_of(named("dog", "cat"), tmp_path, file=path)
    path.write_text('{"base": ["dog"], "novel": []}')
    with pytest.raises(InputError, match="the categories of the data: need every name once"):
        split_of(named("dog", "Dog"), tmp_path, file=path)


def test_splits_json_of_a_root_comes_first(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "JPEGImages").mkdir()  # as VOC, whose annotations are one file an image
    path = tmp_path / "annotations/splits.json"
    path.write_text('{"base": ["sheep"], "novel": ["sofa"]}')
    (tmp_path / "annotations/instances_train2017.json").write_text("not JSON")
    split = split_of_root(tmp_path, split="train")
    assert split is not None and (split.base, split.novel, split.excluded) == (("sheep",), ("sofa",), ())
    path.write_text('{"base": ["sheep"], "novel": ["sheep"]}')
    with pytest.raises(InputError, match="got 'sheep' twice"):
        split_of_root(tmp_path, split="train")


def test_as_objects_keeps_base_boxes_and_crowds():
    boxes = tuple((float(i), 0.0, i + 5.0, 5.0) for i in range(5))
    # base, novel, novel crowd, excluded crowd, base crowd
    record = Record(1, Path("x"), 9, 9, boxes, (0, 1, 1, 2, 0), (False, False, True, True, True))
    dataset = Dataset("some", named("a", "b", "c").categories, (record, Record(2, Path("y"), 9, 9)), {})
    first, second = as_objects(dataset, ("a",)).records
    assert (first.boxes, first.labels) == ((boxes[0], boxes[4]), (OBJECT, IGNORED))
    assert (second.boxes, second.labels, second.crowd) == ((), (), ())


def test_images_without_an_object_are_removed_and_counted():
    box = ((0.0, 0.0, 5.0, 5.0),)
    marks = ((1, 0, False), (2, 1, False), (3, 0, True))  # base, novel, crowd of the base
    records = [Record(i, Path("x"), 9, 9, box, (label,), (crowd,)) for i, label, crowd in marks]
    dataset = Dataset("some", named("a", "b").categories, (*records, Record(4, Path("y"), 9, 9)), {})
    selected = only_with_objects(as_objects(dataset, ("a",)))
    assert [record.id for record in selected.records] == [1]
    assert selected.notes == ("3 of 4 images ignored: no object of a base category",)
    assert only_with_objects(selected) is selected


def test_classes_of_annotations_are_in_the_order_of_the_categories(tmp_path):
    names = [name.replace("_", " ") for name in COCO.split()]
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "f.json"
    categories = [{"id": 2 * i + 1, "name": name} for i, name in enumerate(names)]
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    classes, split = classes_of_annotations(path)
    assert classes == tuple(name for name in names if name not in OV_COCO_EXCLUDED) and len(classes) == 65
    assert (classes, split) == classes_of_ov_coco() and split.novel == OV_COCO_NOVEL
    (tmp_path / "novel.json").write_text(json.dumps({"base": ["cat"], "novel": ["bus"]}))
    assert classes_of_annotations(path, file=tmp_path / "novel.json")[0] == ("bus", "cat")
    lvis = [{"id": 1, "name": "a", "synonyms": ["a"], "frequency": "r"}]
    lvis.append({"id": 2, "name": "b", "synonyms": ["b"], "frequency": "f"})
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": lvis}))
    assert classes_of_annotations(path)[1].novel == ("a",)
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories[:3]}))
    assert classes_of_annotations(path)[1].base == tuple(names[:3])  # without a split all are base
