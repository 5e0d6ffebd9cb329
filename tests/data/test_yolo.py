"""YOLO's text files: classes, boxes, and lines that are not theirs."""

from pathlib import Path

import pytest
from PIL import Image

from foveate.data.datasets.yolo import NO_IMAGE, read_yolo
from foveate.data.records import Dataset
from foveate.errors import InputError


def read(root: Path, text: str | None = "0 0.5 0.5 0.5 0.5\n", **files: str) -> Dataset:
    """Read two images of 40 x 20 pixels, the first with this text file."""
    for name in ("images", "labels"):
        (root / name).mkdir(exist_ok=True)
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (40, 20)).save(root / "images" / name)
    if text is not None:
        (root / "labels/1.txt").write_text(text)
    for name, content in ({"data.yaml": "names: [cat, dog]"} | files).items():
        (root / name).write_text(content)
    return read_yolo(root, images=root / "images", labels=root / "labels")


def test_boxes_polygons_and_images_without_objects(tmp_path):
    # the polygon reaches from (4, 10) to (20, 16); the third is under 1 pixel wide
    dataset = read(tmp_path, "1 0.5 0.5 0.5 0.5\n\n0 0.1 0.5 0.5 0.5 0.3 0.8\n0 0.5 0.5 0.001 0.5\n0 0.95 0.5 0.2 1\n")
    first, second = dataset.records
    assert first.boxes == ((10, 5, 30, 15), (4, 10, 20, 16), (pytest.approx(34), 0, 40, 20))
    assert first.labels == (1, 0, 0) and [category.name for category in dataset.categories] == ["cat", "dog"]
    assert first.size == second.size == (20, 40) and second.boxes == ()
    tiny, note = dataset.ignored_lines()
    assert tiny.startswith("1 ignored: box is under 1 pixel") and tiny.endswith("1.txt: line 4")
    assert note.startswith("1 of 2 images have no label file") and note.endswith("the first: 2.jpg")


def test_fractions_are_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    read(tmp_path)
    Image.new("RGB", (40, 20)).save(tmp_path / "images/1.jpg", exif=exif)
    record = read(tmp_path).records[0]
    assert record.boxes == ((10, 5, 30, 15),)  # `read` writes the image again
    Image.new("RGB", (40, 20)).save(tmp_path / "images/1.jpg", exif=exif)
    record = read_yolo(tmp_path, images=tmp_path / "images", labels=tmp_path / "labels").records[0]
    assert record.size == (40, 20) and record.boxes == ((5, 10, 15, 30),)


def test_damaged_images_and_labels_without_an_image_are_counted(tmp_path):
    read(tmp_path)
    (tmp_path / "images/3.jpg").write_bytes(b"no image")
    for name in ("3.txt", "4.txt"):
        (tmp_path / "labels" / name).write_text("0 0.5 0.5 0.5 0.5")
    dataset = read_yolo(tmp_path, images=tmp_path / "images", labels=tmp_path / "labels")
    assert [record.size for record in dataset.records] == [(20, 40), (20, 40), None]
    assert dataset.ignored[NO_IMAGE].count == 1 and dataset.ignored[NO_IMAGE].first.endswith("4.txt")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "line 1: need `CLASS CX CY W H`"),
        ("cat 0.5 0.5 0.5 0.5", "line 1: need `CLASS"),
        ("0 0.5 0.5 0.5 0.5 0.9", "as of predictions with a score"),
        ("2 0.5 0.5 0.5 0.5", r"need a class in 0\.\.1; got 2"),
        ("-1 0.5 0.5 0.5 0.5", r"need a class in 0\.\.1"),
        ("0 12 30 20 20", "numbers above 1, as in pixels"),
    ],
)
def test_malformed_lines_are_refused(tmp_path, line, message):
    with pytest.raises(InputError, match=rf"1\.txt: {message}" if message.startswith("line") else message):
        read(tmp_path, line)


def test_not_finite_boxes_are_counted(tmp_path):
    assert read(tmp_path, "0 nan 0.5 0.5 0.5\n0 inf 0.5 0.5 0.5").ignored["box is not finite"].count == 2


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"data.yaml": "names:\n  0: cat\n  1: 'a, b'\n"}, ["cat", "a, b"]),
        ({"data.yaml": "names:\n- cat\n- 7\n"}, ["cat", "7"]),
        ({"data.yaml": "train: x", "classes.txt": "cat\ndog\n"}, ["cat", "dog"]),
        ({"data.yaml": "names: [a]", "other.yml": "names: [b]"}, "different ones in"),
        ({"data.yaml": "train: x"}, "got none"),
        ({"data.yaml": "names: [a"}, "need a description in YAML"),
        ({"data.yaml": "names: !!python/object/apply:os.system ['touch /tmp/ran']"}, "need a description in YAML"),
        ({"data.yaml": "names: {1: a}"}, "`names`, the names of the classes 0, 1"),
    ],
)
def test_class_names(tmp_path, files, names):
    if isinstance(names, str):
        with pytest.raises(InputError, match=names):
            read(tmp_path, **files)
    else:
        assert [category.name for category in read(tmp_path, **files).categories] == names


def test_labels_of_another_split_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"the 2 images in .* have none"):
        read(tmp_path, None)
