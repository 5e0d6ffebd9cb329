"""Recognition of semantic data, its lists of classes, and errors."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.data.datasets import coco_stuff as stuff
from foveate.data.datasets.voc import NAMES
from foveate.data.images import ImageError
from foveate.data.label_maps import open_semantic
from foveate.data.semantic import only_classes, read_label_map
from foveate.data.splits import OV_COCO_EXCLUDED, OV_COCO_NOVEL, split_semantic
from foveate.data.world.write import WorldSize, write_world
from foveate.errors import InputError


def save(path, values, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, dtype)).save(path)


def image(path, height=2, width=3):
    save(path, np.zeros((height, width, 3)))


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def truths(data):
    return [read_label_map(record, data).labels.tolist() for record in data.dataset.records]


def ade150(root, values=((0, 1, 150), (2, 2, 2)), home="annotations"):
    image(root / "images/validation/a.jpg")
    save(root / home / "validation/a.png", values)
    rows = [f"{i}\t{int(i > 100)}\tc{i}, d{i}" for i in range(1, 151)]
    write(root / "objectInfo150.txt", "Idx\tStuff\tName", *rows)
    return root


def coco_stuff(root, values=((0, 10, 12), (181, 255, 0)), home="stuffthingmaps"):
    image(root / "val2017/1.jpg")
    save(root / home / "val2017/1.png", values)
    write(root / "labels.txt", *(f"{i}: c{i}" for i in range(183)))
    return root


def voc(root, values=((0, 1, 20), (255, 2, 2)), year="VOC2012"):
    image(root / year / "JPEGImages/a.jpg")
    save(root / year / "SegmentationClass/a.png", values)
    write(root / year / "ImageSets/Segmentation/val.txt", "a")
    return root


def context(root, values, home="59_context_labels", count=59, dtype=np.uint8, suffix="png"):
    image(root / "VOC2010/JPEGImages/a.jpg")
    image(root / "VOC2010/JPEGImages/of_training.jpg")
    for stem in ("a", "of_training"):
        save(root / "VOC2010" / home / f"{stem}.{suffix}", values, dtype)
    write(root / "VOC2010/ImageSets/Main/val.txt", "a")
    name = "59_labels.txt" if count == 59 else "labels.txt"
    write(root / "VOC2010" / name, *(f"{i}: c{i}" for i in range(1, count + 1)))
    return root


def full_release(root):
    """One image with the numbers 0 1 and nothing, converted."""
    image(root / "images/ADE/validation/street/a.jpg", 1, 3)
    save(root.parent / "maps/validation/street/a.tif", [[0, 1, 65535]], np.uint16)
    write(root.parent / "maps/labels.txt", "7:door,gate", "1234:door")
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    write_world(folder, WorldSize(train=0, val=3, test=0, pairs=0, seed=5), processes=1)
    return folder


# ---------------------------------------------------------------------------------------------------------- recognition


def test_ade20k_is_recognised_with_its_classes(tmp_path):
    data = open_semantic(ade150(tmp_path), split="val")
    assert data.dataset.name == "ADE20K-150 val" and truths(data) == [[[-1, 0, 149], [1, 1, 1]]]
    assert data.dataset.categories[149].synonyms == ("d150",) and not data.dataset.categories[149].is_thing
    path = write(tmp_path / "other.txt", "0:invalid_class_id", *(f"{i}:c{i},e{i}" for i in range(1, 151)))
    given = open_semantic(tmp_path, split="val", labels=path)
    assert given.dataset.categories[149].synonyms == ("e150",) and not given.dataset.categories[149].is_thing
    (tmp_path / "objectInfo150.txt").rename(tmp_path / "table.txt")
    with pytest.raises(
        InputError, match=r"ade150: need the list .* found none of \S+objectInfo150.txt. .*with --labels"
    ):
        open_semantic(tmp_path, split="val")
    assert truths(open_semantic(tmp_path, split="val", labels=tmp_path / "table.txt")) == truths(data)


def test_coco_stuff_is_recognised_with_things_and_stuff(tmp_path):
    data = open_semantic(coco_stuff(tmp_path), split="val")
    assert truths(data) == [[[0, 10, 11], [170, -1, 0]]]
    things = [item.name for item in data.dataset.categories if item.is_thing]
    assert len(things) == 80 and things[-1] == "c90"  # 91 ids less the 11 never annotated, 91 among them
    with pytest.raises(InputError, match=r"it contains labels.txt, stuffthingmaps, val2017"):
        open_semantic(tmp_path, split="train")


@pytest.mark.parametrize(
    ("make", "values", "expected"),
    [
        (coco_stuff, [[0, 10, 11], [170, 255, 0]], [[0, 10, 11], [170, -1, 0]]),  # 11: the twelfth class, id 13
        (ade150, [[255, 0, 149], [1, 1, 1]], [[-1, 0, 149], [1, 1, 1]]),
    ],
)
def test_prepared_maps_are_recognised_by_their_folder(tmp_path, make, values, expected):
    data = open_semantic(make(tmp_path, values, home="annotations_detectron2"), split="val")
    assert truths(data) == [expected]
    make(tmp_path, [[*values[0][:2], len(data.names)], values[1]], home="annotations_detectron2")
    with pytest.raises(ImageError, match=rf"got {len(data.names)} in row 0, column 2"):
        truths(data)
    home = "annotations" if make is ade150 else "stuffthingmaps"
    make(tmp_path, [[1, 1, 1], [1, 1, 1]], home=home)  # where both lie, the data set's own are read
    assert truths(open_semantic(tmp_path, split="val"))[0][0][0] == (0 if make is ade150 else 1)
    named = open_semantic(tmp_path, split="val", maps=tmp_path / home)
    assert named.dataset.records[0].semantic == tmp_path / home / "val2017/1.png" or make is ade150


@pytest.mark.parametrize(
    ("kind", "row"),
    [("voc20", [-1, 0, 19]), ("voc20b", [20, 0, 19]), ("voc21", [0, 1, 20])],
)
def test_voc_needs_a_kind(tmp_path, kind, row):
    voc(tmp_path)
    with pytest.raises(InputError, match=r"may be voc20 or voc20b or voc21. .*--kind"):
        open_semantic(tmp_path, split="val")
    (tmp_path / "VOC2007/JPEGImages").mkdir(parents=True)  # has no maps
    data = open_semantic(tmp_path, split="val", kind=kind)
    assert truths(data) == [[row, [-1, row[1] + 1, row[1] + 1]]]
    assert {*NAMES} <= {*data.names}
    assert any("39 names" in note for note in data.dataset.notes) == (kind == "voc20b")
    words = ["0:background,sky,wall", *(f"{i}:{name},x{i}" for i, name in enumerate(NAMES, start=1))]
    given = open_semantic(tmp_path, split="val", kind=kind, labels=write(tmp_path / "words.txt", *words))
    assert given.dataset.notes == () and truths(given) == truths(data)
    listed = write(tmp_path / "catseg.json", json.dumps([*NAMES, "wall", "sky"] if kind == "voc20b" else NAMES))
    listed = open_semantic(tmp_path, split="val", kind=kind, labels=listed) if kind != "voc21" else None
    if listed is not None:
        assert truths(listed) == truths(data) and tuple(listed.names[:20]) == NAMES
        assert (listed.dataset.categories[-1].synonyms == ("sky",)) == (kind == "voc20b")
        assert any("use --all-synonyms" in note for note in listed.dataset.notes) == (kind == "voc20b")
    turned = [f"{21 - i}:{name}" for i, name in enumerate(NAMES, start=1)]
    with pytest.raises(InputError, match=r"ids of VOC; 20 of 20 .*20 is 'aeroplane', not 'tvmonitor'"):
        open_semantic(tmp_path, split="val", kind=kind, labels=write(tmp_path / "turned.txt", *turned))
    voc(tmp_path, year="VOC2011")
    with pytest.raises(InputError, match=r"need one year of Pascal VOC; found 2"):
        open_semantic(tmp_path, split="val", kind=kind)
    save(tmp_path / "VOC2011/more/a.png", [[3, 3, 3], [3, 3, 3]])
    more = open_semantic(tmp_path / "VOC2011", split="val", kind=kind, maps=tmp_path / "VOC2011/more")
    assert truths(more)[0][0][0] == row[1] + 2
    with pytest.raises(InputError, match=r"were prepared for CAT-Seg"):
        open_semantic(tmp_path / "VOC2011", split="val", kind=kind, maps=tmp_path / "annotations_detectron2/val")


def test_pascal_context_59(tmp_path):
    data = open_semantic(context(tmp_path, [[0, 1, 59], [2, 2, 2]]), split="val")
    assert truths(data) == [[[-1, 0, 58], [1, 1, 1]]] and data.names[0] == "c1"
    assert [record.id for record in data.dataset.records] == ["a"]  # of the split's list, not all images
    assert data.dataset.records[0].path == tmp_path / "VOC2010/JPEGImages/a.jpg"
    (tmp_path / "VOC2010/ImageSets/Main/val.txt").unlink()
    with pytest.raises(InputError, match=r"pascalcontext_val\.txt, \S+val\.txt. .* with --image-list"):
        open_semantic(tmp_path, split="val")
    assert len(open_semantic(tmp_path, split="val", names=write(tmp_path / "n.txt", "a")).dataset.records) == 1


def test_prepared_maps_of_context_59_need_their_own_list(tmp_path):
    context(tmp_path, [[255, 0, 58], [1, 1, 1]], home="annotations_detectron2/pc59_val")
    with pytest.raises(InputError, match=r"context59: need the list of its classes"):
        open_semantic(tmp_path, split="val")
    listed = write(tmp_path / "l.txt", *(f"{i}: c{60 - i}" for i in range(1, 60)))
    data = open_semantic(tmp_path, split="val", labels=listed)
    assert truths(data) == [[[-1, 0, 58], [1, 1, 1]]] and data.names[0] == "c59"


def test_pascal_context_459(tmp_path):
    root = context(tmp_path, [[0, 458, 459], [65535, 1, 1]], "m459", 459, np.uint16, "tif")
    with pytest.raises(InputError, match=r"may be context59 or context459"):
        open_semantic(root, split="val", maps=root / "VOC2010/m459")
    data = open_semantic(root, split="val", kind="context459", maps=root / "VOC2010/m459")
    assert truths(data) == [[[0, 458, -1], [-1, 1, 1]]]
    with pytest.raises(InputError, match=r"found none of \S+pc459_val. .* `foveate convert-maps context"):
        open_semantic(root, split="val", kind="context459")


def test_converted_ade20k_full_release(tmp_path):
    root = full_release(tmp_path / "full")
    data = open_semantic(root, split="val", maps=tmp_path / "maps")
    assert truths(data) == [[[0, 1, -1]]] and data.dataset.categories[0].synonyms == ("gate",)
    with pytest.raises(InputError, match=r"does not have; .*`foveate convert-maps ade-full .*give --maps DIR"):
        open_semantic(root, split="val")
    with pytest.raises(InputError, match=r"unique names of the 2 classes of ADE20K-2 val, such as 'door'"):
        only_classes(data, ["door"])  # two classes are called so
    (tmp_path / "maps").rename(root / "annotations_detectron2")
    assert truths(open_semantic(root, split="val")) == [[[0, 1, -1]]]


@pytest.mark.parametrize(
    ("make", "kind"), [(ade150, None), (coco_stuff, None), (voc, "voc21"), (context, None), (full_release, "ade-full")]
)
def test_images_need_not_exist(tmp_path, make, kind):
    root = tmp_path / "root"
    maps = tmp_path / "maps" if make is full_release else None
    make(root, *([[[0, 1, 59], [2, 2, 2]]] if make is context else []))
    whole = open_semantic(root, split="val", kind=kind, maps=maps)
    expected = truths(whole)
    for path in [*root.rglob("*.jpg")]:
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    with pytest.raises(InputError):
        open_semantic(root, split="val", kind=kind, maps=maps)
    data = open_semantic(root, split="val", kind=kind, maps=maps, with_images=False)
    assert truths(data) == expected and data.names == whole.names
    assert [record.id for record in data.dataset.records] == [record.id for record in whole.dataset.records]


def test_the_world_is_panoptic(world):
    data = open_semantic(world, split="val")
    assert data.coding is None and len(data.dataset.records) == 3
    assert max(value for row in truths(data)[0] for value in row) < len(data.names)
    path = world.parent / "words.txt"
    lines = [f"{item.id}:{item.name},word {item.id}" for item in data.dataset.categories]
    given = open_semantic(world, split="val", labels=write(path, *lines))
    assert given.dataset.categories[3].synonyms == (f"word {data.dataset.categories[3].id}",)
    with pytest.raises(InputError, match=r"need none for panoptic annotations"):
        open_semantic(world, split="val", maps=path)
    with pytest.raises(InputError, match=r"need none for panoptic, whose"):
        open_semantic(world, split="val", names=path)


def test_two_kinds_in_one_root_are_refused(tmp_path, world):
    coco_stuff(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/panoptic_val2017.json").touch()
    with pytest.raises(InputError, match=r"may be panoptic or stuff"):
        open_semantic(tmp_path, split="val")
    assert open_semantic(tmp_path, split="val", kind="stuff").names[0] == "c1"


def test_missing_and_unknown_kinds_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"not found. Check the path"):
        open_semantic(tmp_path / "gone", split="val")
    with pytest.raises(InputError, match=r"it contains nothing"):
        open_semantic(tmp_path, split="val")
    with pytest.raises(InputError, match=r"got 'voc'"):
        open_semantic(tmp_path, split="val", kind="voc")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"need a year of Pascal VOC"):
        open_semantic(tmp_path, split="val", kind="voc21")


def test_a_list_in_another_order_is_refused(tmp_path):
    ade150(tmp_path)
    turned = write(tmp_path / "turned.txt", *(f"{i}:c{151 - i}" for i in range(1, 151)))
    with pytest.raises(InputError, match=r"150 of 150 have another class's, such as 1 is 'c150', not 'c1'"):
        open_semantic(tmp_path, split="val", labels=turned)
    # 75 of 150 with another class's name are accepted; unknown names are ignored
    half = [f"{i}:c{i % 75 + 1}" if i <= 75 else f"{i}:Wort {i}" for i in range(1, 151)]
    assert open_semantic(tmp_path, split="val", labels=write(tmp_path / "half.txt", *half)).names[74] == "c1"


# --------------------------------------------------------------------------------------------- files that are not right


def test_malformed_maps_are_refused(tmp_path):
    data = open_semantic(ade150(tmp_path), split="val")
    path = tmp_path / "annotations/validation/a.png"
    save(path, [[0, 1, 151], [2, 2, 2]])  # an id outside the list
    with pytest.raises(ImageError, match=r"need values of the data set's 150 classes.* got 151 in row 0, column 2"):
        truths(data)
    save(path, [[0, 1, 2], [2, 2, 2]], np.uint16)
    with pytest.raises(ImageError, match=r"need one integer of 8 bits per pixel; got 16 bits"):
        truths(data)
    save(path, [[0, 1], [2, 2]])  # of another size than its image
    with pytest.raises(ImageError, match=r"a\.jpg: need 2 x 2"):
        truths(data)
    path.unlink()
    (tmp_path / "annotations/validation/b.png").touch()
    with pytest.raises(InputError, match=r"need a label map for each of the 1 images .*; 1 have none: a"):
        open_semantic(tmp_path, split="val")
    root = full_release(tmp_path / "full")
    save(tmp_path / "maps/validation/street/a.tif", [[0, 1, 1]])
    with pytest.raises(ImageError, match=r"need one integer of 16 bits per pixel; got 8 bits"):
        truths(open_semantic(root, split="val", maps=tmp_path / "maps"))


# ------------------------------------------------------------------------------------------------------- fewer classes


@pytest.mark.parametrize("coded", [True, False])
def test_only_classes(tmp_path, world, coded):
    data = open_semantic(ade150(tmp_path) if coded else world, split="val")
    names = ["c150", "c2"] if coded else [data.names[label] for label in (40, 3, 35)]
    few = only_classes(data, names)
    assert few.names == names and len(few.dataset.records) == len(data.dataset.records)
    new_labels = {data.names.index(name): label for label, name in enumerate(names)}
    expected = [[[new_labels.get(value, -1) for value in row] for row in rows] for rows in truths(data)]
    assert truths(few) == expected  # by the maps of all classes, pixel by pixel
    assert (
        few.dataset.notes[-1]
        == f"{len(names)} of {len(data.names)} classes are used; pixels of the others have no class"
    )
    assert only_classes(data, data.names) == data
    for wrong in (["unicorn"], [names[0]] * 2):
        with pytest.raises(InputError, match=rf"got {wrong[0]!r}"):
            only_classes(data, wrong)
    with pytest.raises(InputError, match=r"got none"):
        only_classes(data, [])


def test_base_classes_of_the_world_are_its_base_things_and_all_stuff(world):
    data = open_semantic(world, split="val")
    split = split_semantic(data.dataset, world)
    assert split is not None
    kinds = json.loads((world / "annotations/splits.json").read_text())
    stuffs = [item.name for item in data.dataset.categories if not item.is_thing]
    assert stuffs and split.base == (*kinds["base"], *stuffs)
    assert split.novel == tuple(kinds["novel"]) and split.excluded == ()
    assert split.rule == f"as in splits.json; {len(stuffs)} of stuff are base"
    base = only_classes(data, split.base)
    assert not {*split.novel} & {*base.names} and len(base.names) + len(split.novel) == len(data.names)
    # a file may name stuff too, and exclude things
    content = {"base": [kinds["base"][0]], "novel": [stuffs[0]]}
    custom = split_semantic(data.dataset, world, file=write(world.parent / "mine.json", json.dumps(content)))
    assert custom is not None and custom.base == (kinds["base"][0], *stuffs[1:]) and custom.novel == (stuffs[0],)
    assert {*custom.excluded} == {*kinds["base"][1:], *kinds["novel"]}


def test_all_classes_of_coco_stuff_are_base_without_a_file(tmp_path):
    coco = [*OV_COCO_NOVEL, *OV_COCO_EXCLUDED, *(f"other {i}" for i in range(48))]
    ids = [number for number in stuff.IDS if number <= 91]
    names = {**dict(zip(ids, coco, strict=True)), **{number: f"stuff {number}" for number in range(92, 183)}}
    coco_stuff(tmp_path)
    write(tmp_path / "labels.txt", *(f"{number}: {name}" for number, name in names.items()))
    dataset = open_semantic(tmp_path, split="val").dataset
    assert split_semantic(dataset, tmp_path) is None  # OV-COCO's 48 and 17 are a split of boxes
    path = write(tmp_path / "own.json", json.dumps({"base": [], "novel": ["cat"]}))
    with pytest.raises(InputError, match='at least one name in "base"'):
        split_semantic(dataset, tmp_path, file=path)
    write(path, json.dumps({"base": [name for name in coco if name != "cat"], "novel": ["cat"]}))
    split = split_semantic(dataset, tmp_path, file=path)
    assert split is not None and split.novel == ("cat",) and len(split.base) == 170 and not split.excluded
