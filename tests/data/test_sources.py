"""Recognition of data sets by their files."""

import json
import tarfile
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


def cvat(root: Path) -> Path:
    put(root / "images/default/1.png")
    note(root / "annotations/instances_default.json")
    return root


def cvat_splits(root: Path) -> Path:
    put(root / "images/Train/1.png")
    put(root / "images/Validation/2.png")
    note(root / "annotations/instances_Train.json")
    note(root / "annotations/instances_Validation.json", "2.png")
    return root


def fiftyone(root: Path) -> Path:
    put(root / "data/1.png")
    note(root / "labels.json")
    return root


def roboflow(root: Path) -> Path:
    for split, name in (("train", "1.png"), ("valid", "2.png")):
        put(root / split / name)
        note(root / split / "_annotations.coco.json", name)
    return root


def roboflow_split(root: Path) -> Path:
    return roboflow(root) / "train"


def yolo(root: Path, images: str = "images/train", labels: str = "labels/train") -> Path:
    put(root / images / "deep/1.png")
    (root / labels / "deep").mkdir(parents=True)
    (root / labels / "deep/1.txt").write_text(f"0 {6 / 40} {12 / 30} {10 / 40} {20 / 30}\n")
    (root / labels / "classes.txt").write_text("not used\n")
    (root / "data.yaml").write_text("path: /elsewhere\ntrain: ../secret\nnc: 1\nnames: ['cat']\n")
    return root


def yolo_by_split(root: Path) -> Path:
    return yolo(root, "train/images", "train/labels")


def yolo_without_splits(root: Path) -> Path:
    return yolo(root, "images", "labels")


EXPORTS = [cvat, cvat_splits, fiftyone, roboflow, roboflow_split]
YOLO = [yolo, yolo_by_split, yolo_without_splits]


@pytest.mark.parametrize("make", [coco, lvis, voc, objects365, *EXPORTS, *YOLO])
def test_each_layout_is_recognised(tmp_path, make):
    root = make(tmp_path)
    dataset = open_data(root, split="train")
    (record,) = dataset.records
    assert record.boxes == (pytest.approx((1, 2, 11, 22)),) and dataset.ignored_lines() == []
    assert record.size == (30, 40) and record.path.is_file()
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


@pytest.mark.parametrize("make", [cvat_splits, roboflow, yolo])
def test_another_split_of_an_export(tmp_path, make):
    root = make(tmp_path)
    if make is yolo:
        with pytest.raises(InputError, match="need the images of split val in the layout of YOLO; it has train"):
            open_data(root, split="val")
    else:
        assert [record.path.name for record in open_data(root, split="val").records] == ["2.png"]
        with pytest.raises(InputError, match="need the images of split test"):
            open_data(root, split="test")


def test_masks_are_those_of_cocos_form(tmp_path):
    assert open_data(cvat(tmp_path / "c"), split="train", annotations="masks").records
    with pytest.raises(InputError, match="need masks of objects, which COCO and LVIS have; this is YOLO"):
        open_data(yolo(tmp_path / "y"), split="train", annotations="masks")


def test_images_are_found_below_the_root_that_is_given(tmp_path):
    root = cvat(tmp_path)
    file = (root / "annotations/instances_default.json").rename(root / "mine.json")
    dataset = open_data(root, split="train", annotation_file=file)
    assert dataset.records[0].path == root / "images/default/1.png"
    assert "with the files in other folders, such as '1.png': images/default/1.png" in dataset.ignored_lines()[0]


@pytest.mark.parametrize("make", [coco, lvis, voc, objects365, *EXPORTS])
def test_annotations_can_be_read_without_the_images(tmp_path, make):
    root = make(tmp_path)
    whole = open_data(root, split="train")
    for path in root.rglob("*.??g"):
        path.unlink()
    annotated = open_annotations(root, split="train")
    assert annotated.categories == whole.categories and annotated.records[0].boxes == whole.records[0].boxes
    if make not in (cvat, fiftyone, roboflow_split):  # which have no splits
        with pytest.raises(InputError, match=r"need one of .* got none|split: must be|need the images of split other"):
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


def test_compressed_shards_and_what_is_beside_shards(tmp_path):
    (tmp_path / "0.tar.gz").touch()
    with pytest.raises(InputError, match=r"0\.tar\.gz: need a tar shard that is not compressed"):
        open_data(tmp_path / "0.tar.gz", split="train")
    with pytest.raises(InputError, match=r"got none, but 1 \.tar\.gz\. Compressed shards are not read"):
        open_data(tmp_path, split="train")
    put(tmp_path / "1.png")
    with tarfile.open(tmp_path / "1.tar", "w") as tar:
        tar.add(tmp_path / "1.png", "1.png")
    (tmp_path / "1.png").unlink()
    put(tmp_path / "more/2.png")
    lines = open_data(tmp_path, split="train").ignored_lines()
    assert lines == [
        "1 ignored: compressed shard, which is not read: unpack it; the first: 0.tar.gz",
        "1 ignored: folder beside shards, which is not entered; the first: more",
    ]


def test_anything_else_is_a_folder_of_images(tmp_path):
    put(tmp_path / "deep/1.png")
    assert [record.id for record in open_data(tmp_path, split="any").records] == ["deep/1.png"]
    with pytest.raises(InputError, match="not found"):
        open_data(tmp_path / "gone", split="train")
