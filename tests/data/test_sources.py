"""Recognition of data sets by their files."""

import json
from pathlib import Path

import pytest
from PIL import Image

from foveate.data.sources import open_annotations, open_data
from foveate.data.splits import split_of, split_of_root
from foveate.errors import InputError


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(path)


def note(path: Path, name: str = "1.png", field: str = "file_name", **category: object) -> Path:
    """An annotation file of one image with one box, (1, 2, 11, 22)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": 9, field: name, "height": 30, "width": 40}]
    notes = [{"id": 1, "image_id": 9, "category_id": 1, "bbox": [1, 2, 10, 20]}]
    categories = [{"id": 1, "name": "cat", **category}]
    path.write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))
    return path


def coco(root: Path) -> Path:
    put(root / "train2017/1.png")
    note(root / "annotations/instances_train2017.json")
    return root


def lvis(root: Path) -> Path:
    put(root / "train2017/1.png")
    path = root / "annotations/lvis_v1_train.json"
    note(path, "http://host/train2017/1.png", "coco_url", synonyms=["cat"], frequency="f")
    return root


def objects365(root: Path) -> Path:
    put(root / "train/patch0/objects365_v1_1.png")
    note(root / "annotations/zhiyuan_objv2_train.json", "images/v1/patch0/objects365_v1_1.png")
    return root


def voc(root: Path) -> Path:
    year = root / "VOC2007"
    put(year / "JPEGImages/1.jpg")
    for name in ("Annotations/1.xml", "ImageSets/Main/train.txt"):
        (year / name).parent.mkdir(parents=True)
    (year / "ImageSets/Main/train.txt").write_text("1\n")
    box = "<xmin>2</xmin><ymin>3</ymin><xmax>11</xmax><ymax>22</ymax>"
    (year / "Annotations/1.xml").write_text(
        "<annotation><size><width>40</width><height>30</height></size>"
        f"<object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
    )
    return root


@pytest.mark.parametrize("make", [coco, lvis, voc, objects365])
def test_each_layout_is_recognised(tmp_path, make):
    root = make(tmp_path)
    (record,) = open_data(root, split="train").records
    assert record.boxes == ((1, 2, 11, 22),) and record.size == (30, 40) and record.path.is_file()
    (bare,) = open_data(root, split="train", annotations="none").records
    assert bare.path == record.path and bare.boxes == ()


def test_base_and_novel_names_do_not_make_a_root_cocos(tmp_path):
    root = voc(tmp_path)
    (root / "annotations").mkdir()
    (root / "annotations/splits.json").write_text('{"base": ["cat"], "novel": ["dog"]}')
    dataset = open_data(root, split="train")
    split = split_of(dataset, root)
    assert dataset.records[0].boxes == ((1, 2, 11, 22),) and split is not None and split.novel == ("dog",)


@pytest.mark.parametrize("make", [coco, lvis, objects365])
def test_an_annotation_file_is_recognised_by_its_content(tmp_path, make):
    root = make(tmp_path / "root")
    (path,) = (root / "annotations").iterdir()
    path = path.rename(tmp_path / "mine.json")
    for annotations in ("instances", "none"):
        (record,) = open_data(root, split="train", annotations=annotations, annotation_file=path).records
        assert record.id == 9 and record.boxes == ((1, 2, 11, 22),) and record.path.is_file()


def both_names(root: Path, *, url: bool, image: str) -> Path:
    """Copies of LVIS's file, such as minival: `file_name`, with or without the URL."""
    put(root / image)
    file = note(root / "mine.json", synonyms=["cat"], frequency="r")
    content = json.loads(file.read_text())
    content["images"][0] |= {"coco_url": "http://host/val2017/1.png"} if url else {"neg_category_ids": []}
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("url", [True, False])
@pytest.mark.parametrize("image", ["1.png", "val2017/1.png"])
def test_lvis_images_with_file_names(tmp_path, url, image):
    file = both_names(tmp_path, url=url, image=image)
    dataset = open_data(tmp_path, split="val", annotation_file=file)
    assert [record.path for record in dataset.records] == [tmp_path / image]
    split = split_of(dataset, tmp_path)
    assert split is not None and split.novel == ("cat",)  # rare: never learned from
    again = split_of_root(tmp_path, split="val", annotations=file)
    assert again is not None and again.novel == ("cat",)
    if image != "1.png":  # and under COCO's name, in its place
        file.rename(tmp_path / "instances_val2017.json")
        (tmp_path / "annotations").mkdir()
        (tmp_path / "instances_val2017.json").rename(tmp_path / "annotations/instances_val2017.json")
        assert open_data(tmp_path, split="val").categories[0].frequency == "r"


@pytest.mark.parametrize("make", [coco, lvis, voc, objects365])
def test_annotations_can_be_read_without_the_images(tmp_path, make):
    root = make(tmp_path)
    whole = open_data(root, split="train")
    for path in root.rglob("*.??g"):
        path.unlink()
    annotated = open_annotations(root, split="train")
    assert annotated.categories == whole.categories and annotated.records[0].boxes == whole.records[0].boxes
    with pytest.raises(InputError, match=r"need one of .* got none|split: must be"):
        open_annotations(root, split="other")


def test_file_names_may_contain_their_folder(tmp_path):
    path = note(coco(tmp_path) / "mine.json", "train2017/1.png")
    (record,) = open_data(tmp_path, split="train", annotation_file=path).records
    assert record.path == tmp_path / "train2017/1.png"


def test_ambiguous_folders_are_refused(tmp_path):
    lvis(coco(tmp_path / "both"))
    with pytest.raises(InputError, match=r"found .*instances_train2017.json and .*lvis_v1_train.json.*--annotations"):
        open_data(tmp_path / "both", split="train")
    assert len(open_data(tmp_path / "both", split="train", annotations="none").records) == 1
    file = tmp_path / "both/annotations/lvis_v1_train.json"
    assert open_data(tmp_path / "both", split="train", annotation_file=file).categories[0].frequency == "f"
    voc(coco(tmp_path / "mixed"))
    with pytest.raises(InputError, match="may be COCO or Pascal VOC"):
        open_data(tmp_path / "mixed", split="train")
    (tmp_path / "years/VOC2007/ImageSets/Main").mkdir(parents=True)
    (tmp_path / "years/VOC2007/JPEGImages").mkdir()
    voc(tmp_path / "years/VOCdevkit")
    with pytest.raises(InputError, match=r"need one year of Pascal VOC; found 2. Give .*VOC2007 or .*VOCdevkit"):
        open_data(tmp_path / "years", split="train")
    put(tmp_path / "side/1.png")
    (tmp_path / "side/a.tar").touch()
    with pytest.raises(InputError, match="need shards or images; the folder has both"):
        open_data(tmp_path / "side", split="train")


def test_shards_have_no_annotations(tmp_path):
    (tmp_path / "a.tar").touch()
    for arguments in ({"annotations": "panoptic"}, {"annotation_file": tmp_path / "x.json"}):
        with pytest.raises(InputError, match="got tar shards"):
            open_data(tmp_path, split="train", **arguments)


def test_anything_else_is_a_folder_of_images(tmp_path):
    put(tmp_path / "deep/1.png")
    assert [record.id for record in open_data(tmp_path, split="any").records] == ["deep/1.png"]
    with pytest.raises(InputError, match="not found"):
        open_data(tmp_path / "gone", split="train")
