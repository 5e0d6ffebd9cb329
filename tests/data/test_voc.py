"""Pascal VOC: one-based corners, difficult objects, and hostile XML."""

from pathlib import Path

import pytest
from PIL import Image

from foveate.data.datasets.voc import NO_BOX, SIZE_OF_IMAGE, find_voc, read_voc
from foveate.data.sources import open_data
from foveate.data.validation import NOT_FINITE, OUTSIDE
from foveate.errors import InputError

OBJECT = """<object><name>{name}</name><pose>Left</pose><difficult>{difficult}</difficult>
  <bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
  <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part></object>"""


def thing(name="cat", box=(1, 1, 10, 20), difficult=0) -> str:
    return OBJECT.format(name=name, box=box, difficult=difficult)


def xml(*objects: str, size=(40, 30)) -> str:
    sizes = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>any.jpg</filename>{sizes}{''.join(objects)}</annotation>"


def year(root: Path, content: str | bytes | None = None, names: str = "2007_000027\n") -> Path:
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main/train.txt").write_text(names)
    (root / "JPEGImages/2007_000027.jpg").touch()
    content = xml(thing()) if content is None else content
    (root / "Annotations/2007_000027.xml").write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def test_one_based_corners_become_zero_based_pixels(tmp_path):
    # the 40 x 30 image's first pixel is (1, 1) to VOC and its last (40, 30), both inside the box
    objects = thing("person", (1, 1, 40, 30)), thing("cat", (5, 6, 5, 6), difficult=1), thing("dog", ("2.5", 2, 9, 9))
    dataset = read_voc(year(tmp_path / "VOC2012", xml(*objects)), split="train")
    (record,) = dataset.records
    assert record.id == "2007_000027" and record.size == (30, 40) and record.path.name == "2007_000027.jpg"
    assert record.boxes == ((0, 0, 40, 30), (4, 5, 5, 6), (1.5, 1, 9, 9))
    assert [dataset.categories[label].name for label in record.labels] == ["person", "cat", "dog"]
    assert record.crowd == (False, True, False)
    assert len(dataset.categories) == 20 and dataset.name == "VOC2012 train" and dataset.ignored == {}


def test_unusable_boxes_are_counted(tmp_path):
    objects = thing(box=(41, 1, 50, 9)), thing(box=("nan", 1, 5, 5)), thing(box=(30, 20, 99, 99))
    dataset = read_voc(year(tmp_path, xml(*objects)), split="train")
    assert dataset.records[0].boxes == ((29, 19, 40, 30),)
    assert {reason: entries.count for reason, entries in dataset.ignored.items()} == {OUTSIDE: 1, NOT_FINITE: 1}
    assert "2007_000027.xml: object 0" in dataset.ignored[OUTSIDE].first


def test_an_object_without_a_box_is_counted(tmp_path):
    dataset = read_voc(year(tmp_path, xml("<object><name>cat</name></object>", thing())), split="train")
    assert len(dataset.records[0].boxes) == 1 and dataset.ignored[NO_BOX].first.endswith("object 0")


@pytest.mark.parametrize("size", [(0, 0), None])
def test_an_unknown_size_is_that_of_the_image_as_shown(tmp_path, size):
    content = xml(thing(box=(1, 1, 10, 20)), size=size or (40, 30))
    year(tmp_path, content if size else content.replace("<size>", "<other>").replace("</size>", "</other>"))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown 12 wide, 16 high
    Image.new("RGB", (16, 12)).save(tmp_path / "JPEGImages/2007_000027.jpg", exif=exif)
    dataset = read_voc(tmp_path, split="train")
    assert dataset.records[0].size == (16, 12) and dataset.records[0].boxes == ((0, 0, 10, 16),)
    assert dataset.consistency.kinds[SIZE_OF_IMAGE].first.endswith("2007_000027.xml")


def test_sides_written_as_corners_are_refused(tmp_path):
    boxes = [(20 + i, 15, 10, 8) for i in range(4)]  # x, y, width, height
    root = year(tmp_path / "VOC2012", xml(*(thing(box=box) for box in boxes)))
    with pytest.raises(InputError, match=r"4 of 4 contradict .* are these \[x, y, width, height\]\?"):
        open_data(root, split="train")
    assert open_data(root, split="train", accept=True).ignored


LAUGHS = """<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><annotation>&b;</annotation>"""
OUTER = """<?xml version="1.0"?><!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>"""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (LAUGHS, "need XML without a DOCTYPE"),
        (OUTER, "need XML without a DOCTYPE"),
        (LAUGHS.encode("utf-16"), "need an annotation in XML in UTF-8"),
        ("<annotation>", "need an annotation in XML in UTF-8"),
        ("", "need an annotation in XML in UTF-8"),
        ("<annotation>&b;</annotation>", "undefined entity"),
        ("<annotation>" + " " * 1_000_000 + "</annotation>", "at most 1,000,000 bytes"),
        ("<annotation></annotation>", "need `size/height`, a number of pixels; got no such field"),
        (xml(size=(0, 30)), "need a size in integer pixels, at least 1; got 30 x 0"),
        (xml(size=("inf", 30)), "need a size in integer pixels"),
        (xml(size=("4.5", 30)), "need a size in integer pixels"),
        (xml(thing("unicorn")), "object 0: need `name`, one of VOC's 20 categories; got 'unicorn'"),
        (xml(thing(), thing(difficult=2)), "object 1: need `difficult`, 0 or 1; got '2'"),
        (xml(thing(box=("x", 1, 2, 3))), "object 0: need `bndbox/xmin`, a number of pixels; got 'x'"),
        (xml("<object><name>cat</name><bndbox></bndbox></object>"), "object 0: need `bndbox/xmin`"),
    ],
)
def test_a_malformed_annotation_is_refused_with_its_path(tmp_path, content, reason):
    with pytest.raises(InputError) as caught:
        read_voc(year(tmp_path, content), split="train")
    assert reason in str(caught.value) and "2007_000027.xml" in str(caught.value)
    assert len(read_voc(tmp_path, split="train", boxes=False).records) == 1  # opens no XML


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("../x\n", "need the name of one image inside JPEGImages"),
        ("2007_000027 -1\n", "need the name of one image"),
        ("2007_000027\n2007_000027\n", "need every image once"),
        ("other\n", "none of 1 exists"),
    ],
)
def test_a_malformed_list_is_refused(tmp_path, names, reason):
    with pytest.raises(InputError, match=reason):
        read_voc(year(tmp_path, names=names), split="train")


def test_missing_files_are_refused(tmp_path):
    root = year(tmp_path)
    with pytest.raises(InputError, match=r"val\.txt: need the list of the split's images; not found"):
        read_voc(root, split="val")
    with pytest.raises(InputError, match='must be train, val, trainval, test for Pascal VOC; got "test2007"'):
        read_voc(root, split="test2007")
    (root / "Annotations/2007_000027.xml").unlink()
    with pytest.raises(InputError, match=r"2007_000027\.xml: need an annotation in XML; not found"):
        read_voc(root, split="train")


def test_years_are_found(tmp_path):
    first, second = year(tmp_path / "VOCdevkit/VOC2007"), year(tmp_path / "VOCdevkit/VOC2012")
    assert find_voc(tmp_path) == find_voc(tmp_path / "VOCdevkit") == [first, second]
    assert find_voc(first) == [first] and find_voc(first / "JPEGImages") == []
