"""Label maps: the meaning of their values, and errors."""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.data.datasets import ade, coco_stuff, context
from foveate.data.datasets.voc import NAMES, read_voc_maps
from foveate.data.images import ImageError, read_values
from foveate.data.labels import Labels
from foveate.data.loader import BatchSampler, OnceSampler, SemanticSource, make_loader
from foveate.data.matlab import read_matrix
from foveate.data.records import Dataset, Record
from foveate.data.semantic import flatten, from_panoptic, read_image_and_labels, read_label_map, with_labels, write_map
from foveate.errors import InputError
from foveate.types import Category, PanopticMap, SegmentInfo


def save(path, values, dtype=np.uint8, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, dtype)).save(path, **options)


def make_image(path, height=2, width=3):
    save(path, np.zeros((height, width, 3)))


def truths(data):
    return [read_label_map(record, data).labels.tolist() for record in data.dataset.records]


def many(count, first=1):
    return Labels(tuple(range(first, first + count)), tuple((f"class {i}",) for i in range(count)))


# ------------------------------------------------------------------------------------------------------- the data sets


@pytest.mark.parametrize("homes", [("images/val2017", "annotations/val2017"), ("val2017", "stuffthingmaps/val2017")])
def test_coco_stuff(tmp_path, homes):
    names = "".join(f"{i}: c{i}\n" for i in range(183))
    (tmp_path / "labels.txt").write_text(names)
    labels = coco_stuff.read_stuff_labels(tmp_path / "labels.txt")
    assert len(labels.ids) == 171 and labels.names[:12] == (*(f"c{i}" for i in range(1, 12)), "c13")
    make_image(tmp_path / homes[0] / "1.jpg")
    # ids 1, 11, 13, 182 are numbers 0, 10, 12, 181 and places 0, 10, 11 (12 was never annotated), 170
    save(tmp_path / homes[1] / "1.png", [[0, 10, 12], [181, 255, 0]])
    data = coco_stuff.read_stuff(tmp_path, split="val", labels=labels)
    assert truths(data) == [[[0, 10, 11], [170, -1, 0]]]
    assert data.names[170] == "c182" and data.dataset.records[0].id == "1"
    save(tmp_path / homes[1] / "1.png", [[0, 11, 12], [11, 255, 0]])
    with pytest.raises(ImageError, match=r"1\.png: need values .* 171 classes.* got 11 in row 0, column 1 \(2 such"):
        truths(data)
    with pytest.raises(InputError, match="need COCO-Stuff's 171 classes"):
        coco_stuff.read_stuff(tmp_path, split="val", labels=many(171))
    with pytest.raises(InputError, match="found none of images/train2017, train2017"):
        coco_stuff.read_stuff(tmp_path, split="train", labels=labels)
    with pytest.raises(InputError, match='must be "train" or "val"'):
        coco_stuff.read_stuff(tmp_path, split="test", labels=labels)


def test_ade20k_150(tmp_path):
    make_image(tmp_path / "images/validation/a.jpg")
    save(tmp_path / "annotations/validation/a.png", [[0, 1, 150], [2, 2, 2]])
    data = ade.read_ade150(tmp_path, split="val", labels=many(150))
    assert truths(data) == [[[-1, 0, 149], [1, 1, 1]]]
    save(tmp_path / "annotations/validation/a.png", [[0, 1, 255], [2, 2, 2]])  # converted already
    with pytest.raises(ImageError, match=r"got 255 in row 0, column 2 \(1 such pixels"):
        truths(data)
    with pytest.raises(InputError, match="need ADE20K's 150 classes"):
        ade.read_ade150(tmp_path, split="val", labels=many(150, first=0))


def full_release(tmp_path):
    home = tmp_path / "full/images/ADE"
    for split, numbers in (("training", (1, 300, 9)), ("validation", (1, 300, 8))):
        where = home / split / "urban/street"
        make_image(where / "a.jpg")
        # id = red // 10 * 256 + green: (0, 1) is 1, (10, 44) and (19, 44) are 300, (0, 9) is 9; blue is the instance
        colours = [[(0, 1, 7), (10, 44, 1), (0, 9, 0)], [(19, 44, 2), (0, 0, 0), (0, 8, 0)]]
        save(where / "a_seg.png", colours)
        save(where / "a_parts_1.png", np.zeros((2, 3, 3)))
        rows = [(number, f"thing {number}, {number}", "0") for number in numbers] + [(50, "part", 1)]
        objects = [{"name_ndx": n, "name": name, "parts": {"part_level": level}} for n, name, level in rows]
        (where / "a.json").write_text(json.dumps({"annotation": {"object": objects}}))
    return tmp_path / "full"


def test_ade20k_full_release(tmp_path):
    root = full_release(tmp_path)
    labels = ade.list_ade_full(root)
    assert labels.ids == (1, 300)  # 8 and 9 are in one split only, 50 is a part
    assert labels.classes == (("thing 1", "1"), ("thing 300", "300"))
    assert ade.convert_ade_full(root, tmp_path / "maps", split="val", labels=labels) == 1
    written = tmp_path / "maps/validation/urban/street/a.tif"
    assert read_values(written, bits=16).tolist() == [[0, 1, 65535], [1, 65535, 65535]]
    data = ade.read_ade_full(root / "images/ADE", tmp_path / "maps", split="val", labels=labels)
    assert [record.id for record in data.dataset.records] == ["urban/street/a"]  # the PNG files beside it are none
    assert truths(data) == [[[0, 1, -1], [1, -1, -1]]] and data.names == ["thing 1", "thing 300"]
    save(written, [[0, 1, 2], [1, 1, 1]], np.uint16)
    with pytest.raises(ImageError, match="need values of the data set's 2 classes, or of none; got 2"):
        truths(data)


NUMBER_0 = {"annotation": {"object": [{"name_ndx": 0, "name": "x", "parts": {"part_level": 0}}]}}


@pytest.mark.parametrize("text", ["{", "[]", '{"annotation": {"object": [{"name": "x"}]}}', json.dumps(NUMBER_0)])
def test_malformed_json_of_the_full_release_is_refused(tmp_path, text):
    root = full_release(tmp_path)
    (root / "images/ADE/training/urban/street/a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json: need"):
        ade.list_ade_full(root)
    with pytest.raises(InputError, match="found none"):
        ade.list_ade_full(tmp_path)


@pytest.mark.parametrize(
    ("background", "expected", "last"),
    [
        ("none", [[-1, 0, 19], [-1, 1, 1]], "tvmonitor"),  # numbers 0 1 20 / 255 2 2
        ("last", [[20, 0, 19], [-1, 1, 1]], "background"),
        ("first", [[0, 1, 20], [-1, 2, 2]], "tvmonitor"),
    ],
)
def test_voc(tmp_path, background, expected, last):
    for name in ("a", "b"):
        make_image(tmp_path / f"JPEGImages/{name}.jpg")
    map_ = Image.fromarray(np.array([[0, 1, 20], [255, 2, 2]], np.uint8))
    map_.putpalette([7 * i % 256 for i in range(768)])  # colours mean nothing; the places in the palette count
    (tmp_path / "SegmentationClass").mkdir()
    map_.save(tmp_path / "SegmentationClass/b.png")
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("b\n")
    data = read_voc_maps(tmp_path, split="val", background=background)
    assert truths(data) == [expected] and data.names[-1] == last
    assert set(NAMES) <= {*data.names} and len(data.names) == (20 if background == "none" else 21)
    words = Labels(tuple(range(21)), tuple((f"c{i}", "x") for i in range(21)))
    assert read_voc_maps(tmp_path, split="val", background=background, labels=words).names[0].startswith("c")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"SegmentationClass: need a label map for each of the 2 .* 1 have none: a"):
        read_voc_maps(tmp_path, split="val")


def mat(path, values, *, name="LabelMap", kind=4, dtype="<u2", compressed=True):
    """A MATLAB file by its specification: flags, sizes, name, numbers (column by column), each padded to 8 bytes."""

    def element(number, content):
        return struct.pack("<II", number, len(content)) + content + b"\0" * (-len(content) % 8)

    values = np.array(values)
    title = (
        struct.pack("<HH", 1, len(name)) + name.encode().ljust(4, b"\0")
        if len(name) <= 4
        else element(1, name.encode())
    )
    body = element(6, struct.pack("<II", 11, 0)) + element(5, struct.pack("<ii", *values.shape)) + title
    matrix = element(14, body + element(kind, values.astype(dtype).tobytes(order="F")))
    other = element(
        14, element(6, struct.pack("<II", 1, 0)) + element(5, struct.pack("<ii", 1, 1)) + element(1, b"cells")
    )
    content = other + matrix
    if compressed:
        packed = zlib.compress(matrix)
        content = other + struct.pack("<II", 15, len(packed)) + packed
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + content)


@pytest.mark.parametrize("compressed", [True, False])
def test_pascal_context_459_and_59(tmp_path, compressed):
    numbers = [[0, 1, 459], [2, 300, 300]]
    mat(tmp_path / "mat/b.mat", numbers, compressed=compressed)
    make_image(tmp_path / "VOC2010/JPEGImages/b.jpg")
    make_image(tmp_path / "VOC2010/JPEGImages/other.jpg")
    (tmp_path / "labels.txt").write_text("0: void\n" + "".join(f"{i}: name {i}\n" for i in range(1, 460)))
    few = [300, 459, *range(3, 60)]  # 59 of the 459 names
    (tmp_path / "59_labels.txt").write_text("".join(f"{i}: name {number}\n" for i, number in enumerate(few, start=1)))
    labels, only = (context.read_context_labels(tmp_path / name) for name in ("labels.txt", "59_labels.txt"))
    assert context.convert_context(tmp_path / "mat", tmp_path / "m459", labels=labels) == 1
    data = context.read_context(tmp_path / "VOC2010", tmp_path / "m459", count=459, names=None, labels=labels)
    assert truths(data) == [[[-1, 0, 458], [1, 299, 299]]] and data.names[299] == "name 300"
    assert read_values(tmp_path / "m459/b.tif", bits=16).tolist() == [[65535, 0, 458], [1, 299, 299]]
    context.convert_context(tmp_path / "mat", tmp_path / "m59", labels=labels, only=only)
    assert read_values(tmp_path / "m59/b.png", bits=8).tolist() == [[0, 0, 2], [0, 1, 1]]
    (tmp_path / "val.txt").write_text("b\n")
    names = tmp_path / "val.txt"
    data = context.read_context(tmp_path / "VOC2010", tmp_path / "m59", count=59, names=names, labels=only)
    assert truths(data) == [[[-1, -1, 1], [-1, 0, 0]]] and data.names[:2] == ["name 300", "name 459"]
    mat(tmp_path / "mat/b.mat", [[460]])
    with pytest.raises(InputError, match=r"b\.mat: need values of the 459 classes; got 460"):
        context.convert_context(tmp_path / "mat", tmp_path / "m459", labels=labels)
    (tmp_path / "59_labels.txt").write_text("1: unicorn\n")
    with pytest.raises(InputError, match="'unicorn' is not"):
        context.convert_context(tmp_path / "mat", tmp_path / "m59", labels=labels,
                                only=context.read_context_labels(tmp_path / "59_labels.txt"))  # fmt: skip
    with pytest.raises(InputError, match="need PASCAL Context's 459 classes"):
        context.read_context(tmp_path / "VOC2010", tmp_path / "m459", count=459, names=None, labels=only)
    with pytest.raises(InputError, match="found none"):
        context.convert_context(tmp_path, tmp_path / "m59", labels=labels)


def test_malformed_matlab_files_are_refused(tmp_path):
    path = tmp_path / "x.mat"
    mat(path, [[1, 2], [3, 4]], name="Map", kind=9, dtype="<f8")
    assert read_matrix(path, "Map").tolist() == [[1, 2], [3, 4]]
    with pytest.raises(InputError, match=r"x\.mat: need a matrix `LabelMap`; got none"):
        read_matrix(path, "LabelMap")
    mat(path, [[1.5]], kind=9, dtype="<f8")
    with pytest.raises(InputError, match="values that are not integers"):
        read_matrix(path, "LabelMap")
    mat(path, np.zeros((9, 9)))
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-9], whole[:140], whole[:200] + b"\xff" * (len(whole) - 200)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.mat: need"):
            read_matrix(path, "LabelMap")
    with pytest.raises(InputError, match=r"gone\.mat"):
        read_matrix(tmp_path / "gone.mat", "LabelMap")


# ------------------------------------------------------------------------------------------------------------ the files


def test_values_are_unchanged(tmp_path):
    grid = torch.arange(256).reshape(16, 16)
    write_map(tmp_path / "a/x.png", grid, bits=8)
    assert torch.equal(read_values(tmp_path / "a/x.png", bits=8), grid)
    deep = torch.arange(65536).reshape(256, 256)
    write_map(tmp_path / "a/x.tif", deep, bits=16)
    assert torch.equal(read_values(tmp_path / "a/x.tif", bits=16), deep)
    save(tmp_path / "deep.png", deep.numpy(), np.uint16)
    assert torch.equal(read_values(tmp_path / "deep.png", bits=16), deep)
    assert [path.name for path in (tmp_path / "a").iterdir() if "partial" in path.name] == []


def test_other_formats_are_refused(tmp_path):
    path = tmp_path / "x.png"
    save(path, [[1, 300]], np.uint16)
    with pytest.raises(ImageError, match=r"x\.png: need one integer of 8 bits per pixel; got 16 bits"):
        read_values(path, bits=8)
    save(path, [[1, 30]])
    with pytest.raises(ImageError, match="need one integer of 16 bits per pixel; got 8 bits"):
        read_values(path, bits=16)
    save(path, np.zeros((2, 2, 3)))
    with pytest.raises(ImageError, match="got colours"):
        read_values(path, bits=8)
    Image.fromarray(np.array([[True, False]])).save(path)
    with pytest.raises(ImageError, match="need one integer of 8 bits"):
        read_values(path, bits=8)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(path, format="JPEG")  # whose numbers are not those written
    with pytest.raises(ImageError, match="need a PNG or TIFF image"):
        read_values(path, bits=8)
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ImageError, match=r"x\.png"):
        read_values(path, bits=8)


def test_grey_of_four_bits_is_refused(tmp_path):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)  # 2 x 1 pixels, 4 bits, grey
    body = zlib.compress(b"\0" + bytes([0x12]))  # the numbers 1 and 2, which Pillow shows as 17 and 34
    (tmp_path / "x.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )
    with pytest.raises(ImageError, match="got grey of less than 8 bits"):
        read_values(tmp_path / "x.png", bits=8)


def test_a_map_of_another_size_than_its_image_is_refused(tmp_path):
    make_image(tmp_path / "images/validation/a.jpg", 3, 2)
    save(tmp_path / "annotations/validation/a.png", [[0, 1, 150], [2, 2, 2]])
    data = ade.read_ade150(tmp_path, split="val", labels=many(150))
    for read in (read_label_map, read_image_and_labels):
        with pytest.raises(ImageError, match=r"a\.jpg: need 2 x 3"):
            read(data.dataset.records[0], data)


def test_exif_rotation_is_applied_to_fit_the_map(tmp_path):
    path = tmp_path / "images/validation/a.jpg"
    path.parent.mkdir(parents=True)
    image = Image.new("RGB", (3, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # shown, it is 3 high and 2 wide
    image.save(path, exif=exif)
    for values, size in (([[0, 1, 2], [2, 2, 2]], (2, 3)), ([[0, 1], [2, 2], [3, 3]], (3, 2))):
        save(tmp_path / "annotations/validation/a.png", values)
        data = ade.read_ade150(tmp_path, split="val", labels=many(150))
        image, label_map = read_image_and_labels(data.dataset.records[0], data)
        assert image.shape[1:] == label_map.labels.shape == size


def test_missing_maps_are_refused_and_extra_ones_noted(tmp_path):
    for name in "abc":
        make_image(tmp_path / f"images/validation/{name}.jpg")
    with pytest.raises(InputError, match=r"annotations/validation: need the folder of the label maps"):
        ade.read_ade150(tmp_path, split="val", labels=many(150))
    save(tmp_path / "annotations/validation/b.png", [[1]])
    with pytest.raises(InputError, match=r"need a label map for each of the 3 images .*; 2 have none: a, c"):
        ade.read_ade150(tmp_path, split="val", labels=many(150))
    for name in "acd":
        save(tmp_path / f"annotations/validation/{name}.png", [[1]])
    data = ade.read_ade150(tmp_path, split="val", labels=many(150))
    assert len(data.dataset.records) == 3 and data.dataset.notes == ("1 label maps ignored: no image with that name",)


# ------------------------------------------------------------------------------------------------------------- panoptic


def test_segments_become_labels():
    ids = torch.tensor([[0, 9, 4], [4, 70000, 9]])
    segments = (SegmentInfo(9, 2, True), SegmentInfo(4, 0, False), SegmentInfo(70000, 2, True, is_crowd=True))
    assert flatten(PanopticMap(ids, segments)).labels.tolist() == [[-1, 2, 0], [0, 2, 2]]
    assert flatten(PanopticMap(torch.zeros(1, 2, dtype=torch.int64), ())).labels.tolist() == [[-1, -1]]


def test_panoptic_records_are_semantic(tmp_path):
    colours = np.zeros((2, 3, 3), np.uint8)
    colours[0, 0] = (5, 0, 0)
    colours[1, 1:] = (3, 2, 1)  # 3 + 2 * 256 + 65536
    colours[0, 2] = (77, 0, 0)  # no segment of the record
    save(tmp_path / "p.png", colours)
    record = Record(
        1, tmp_path / "p.jpg", 2, 3, ((0, 0, 1, 1),) * 2, (1, 0), (False,) * 2, (5, 66051), tmp_path / "p.png"
    )
    dataset = Dataset("x", (Category(1, "sky", False), Category(2, "cat", True)), (record,), {})
    data = from_panoptic(dataset)
    assert truths(data) == [[[1, -1, -1], [-1, 0, 0]]]
    words = Labels((2, 1, 7), (("cat", "kitty"), ("sky", "clouds"), ("x",)))
    assert [item.synonyms for item in with_labels(data, words).dataset.categories] == [("clouds",), ("kitty",)]
    assert [item.is_thing for item in with_labels(data, words).dataset.categories] == [False, True]
    with pytest.raises(InputError, match="need panoptic annotations"):
        from_panoptic(Dataset("x", (), (Record(1, tmp_path),), {}))


# --------------------------------------------------------------------------------------------------------- the batches


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_images_and_maps(tmp_path, workers):
    for name, values in (
        ("a", [[0, 1, 150], [2, 2, 2]]),
        ("b", [[7]]),
        ("c", [[151]]),
    ):  # 151 is no class: a bad image
        make_image(tmp_path / f"images/training/{name}.jpg", *np.shape(values))
        save(tmp_path / f"annotations/training/{name}.png", values)
    source = SemanticSource(ade.read_ade150(tmp_path, split="train", labels=many(150)))
    (batch,) = make_loader(source, OnceSampler(3, batch=3), workers=workers)
    assert [sample.id for sample in batch.samples] == ["a", "b"] and [sample.id for sample in batch.bad] == ["c"]
    maps = [sample.label_map.labels for sample in batch.samples]
    assert [labels.tolist() for labels in maps] == [[[-1, 0, 149], [1, 1, 1]], [[6]]] and maps[0].dtype == torch.int64
    assert [tuple(sample.image.shape) for sample in batch.samples] == [(3, 2, 3), (3, 1, 1)]
    if not workers:
        first = next(iter(make_loader(source, BatchSampler(3, batch=2, seed=0, batches=4), workers=0)))
        assert len(first.samples) + len(first.bad) == 2  # a training order's (epoch, index) too
