"""The rendered world: the same bytes for a seed, COCO's form, and no cue by colour."""

import errno
import hashlib
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from foveate.data.panoptic import panoptic_segments
from foveate.data.records import read_record
from foveate.data.sources import open_data
from foveate.data.world.appearance import STUFF, TEXTURES, two_tones
from foveate.data.world.scenes import KINDS, MIN_VISIBLE, STUFFS, THINGS, draw_pair, draw_scene
from foveate.data.world.write import PAIR_BYTES, SCENE_BYTES, WorldSize, _draw_scenes, base_and_novel, write_world
from foveate.errors import InputError
from foveate.io import files

SIZE = WorldSize(train=6, val=3, test=3, pairs=8, seed=5)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    write_world(folder, SIZE, processes=2)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_bytes_depend_on_the_seed_and_not_on_the_processes(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "again", SIZE, processes=1)
    assert digests(tmp_path / "again") == digests(world)


def test_pairs_are_webdataset_shards(world: Path) -> None:
    dataset = open_data(world / "pairs", split="train")
    assert [record.id for record in dataset.records] == [f"pairs-000000.tar:{number:09d}" for number in range(8)]
    assert dataset.ignored == {}
    with tarfile.open(world / "pairs" / "pairs-000000.tar") as tar:
        names = [name for name in tar.getnames() if name.endswith(".jpg")]
        for record, name in zip(dataset.records, names, strict=True):
            content = tar.extractfile(name)
            assert content is not None
            expected = np.asarray(Image.open(content).convert("RGB")).transpose(2, 0, 1)
            assert np.array_equal(read_record(record).numpy(), expected)


def test_another_seed_gives_other_images(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "other", WorldSize(train=1, val=0, test=0, pairs=0, seed=6), processes=1)
    name = "train2017/000000000001.jpg"
    assert (tmp_path / "other" / name).read_bytes() != (world / name).read_bytes()


def test_more_scenes_do_not_change_the_first(world: Path, tmp_path: Path) -> None:
    # the shipped CLIP's pairs must not depend on how many scenes were drawn beside them
    write_world(tmp_path / "pairs", WorldSize(train=0, val=0, test=0, pairs=8, seed=5), processes=1)
    shard = "pairs/pairs-000000.tar"
    assert (tmp_path / "pairs" / shard).read_bytes() == (world / shard).read_bytes()


def test_a_complete_world_is_not_changed_and_another_is_refused(world: Path) -> None:
    before = digests(world)
    write_world(world, SIZE)
    assert digests(world) == before
    with pytest.raises(InputError, match="seed 5 instead of 9"):
        write_world(world, WorldSize(train=6, val=3, test=3, pairs=8, seed=9))


def test_other_files_are_refused_and_an_incomplete_world_is_completed(world: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(InputError, match="contains other files"):
        write_world(tmp_path, SIZE)
    part = tmp_path / "part"
    part.mkdir()
    (part / "world.partial").write_text(
        json.dumps({"format": 2, "train": 6, "val": 3, "test": 3, "pairs": 8, "seed": 5})
    )
    write_world(part, SIZE, processes=1)
    assert digests(part) == digests(world)


def test_a_world_that_does_not_fit_is_refused_before_it_is_drawn(world: Path, tmp_path: Path, monkeypatch) -> None:
    size = sum(path.stat().st_size for path in world.rglob("*") if path.is_file())
    need = 12 * SCENE_BYTES + 8 * PAIR_BYTES
    assert 0.9 * need < size + 4096 * 36 and size < need  # an estimate of the bytes on the disk, in blocks of 4 KiB

    def disk_usage(free: int) -> None:
        monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))

    disk_usage(need - 1)
    with pytest.raises(InputError, match=rf"need about {need:,} free bytes; the disk has {need - 1:,}. Free some"):
        write_world(tmp_path / "w", SIZE)
    assert not (tmp_path / "w").exists()
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "world.partial").write_text((world / "world.json").read_text())
    (tmp_path / "w" / "half.jpg").write_bytes(bytes(need - 5000))  # drawn by a killed process
    disk_usage(4000)
    with pytest.raises(InputError, match="need about 4,"):
        write_world(tmp_path / "w", SIZE)


def test_a_disk_that_is_full_while_a_scene_is_drawn_is_named(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "annotations").mkdir()

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"train2017/000000000001.jpg: need [\d,]+ bytes; the disk is full"):
        _draw_scenes(str(tmp_path), 5, "train", range(1))


def test_pycocotools_reads_consistent_masks_boxes_and_areas(world: Path) -> None:
    api = COCO(str(world / "annotations" / "instances_train2017.json"))
    panoptic = json.loads((world / "annotations" / "panoptic_train2017.json").read_text())
    pngs = {entry["image_id"]: entry for entry in panoptic["annotations"]}
    assert len(api.getImgIds()) == 6 and len(api.getCatIds()) == 32 and len(panoptic["categories"]) == 42
    for annotation in api.loadAnns(api.getAnnIds()):
        mask = api.annToMask(annotation).astype(bool)
        y, x = np.nonzero(mask)
        # the box is the extent of the visible mask, xywh
        assert annotation["bbox"] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
        assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
        png = np.asarray(Image.open(world / f"annotations/panoptic_train2017/{annotation['image_id']:012d}.png"), int)
        ids = png @ [1, 256, 65536]
        same = [s for s in pngs[annotation["image_id"]]["segments_info"] if (mask == (ids == s["id"])).all()]
        assert [s["category_id"] for s in same] == [annotation["category_id"]]
        assert rle.area(api.annToRLE(annotation)) == annotation["area"]


def test_the_coco_readers_read_a_world(world: Path) -> None:
    dataset = open_data(world, split="val", annotations="panoptic")
    assert len(dataset.records) == 3 and not dataset.ignored
    assert [category.name for category in dataset.categories] == [kind.name for kind in KINDS]
    for record in dataset.records:
        segments = panoptic_segments(record, dataset.categories)
        assert segments.masks.any(dim=(1, 2)).all() and segments.masks.sum(dim=0).max() == 1
        assert (~segments.is_thing).any(), "every scene lies on stuff"


def test_categories_differ_by_texture_and_every_shape_has_a_novel_one() -> None:
    assert len(THINGS) == 32 and len(STUFFS) == 10 == len(STUFF)
    assert len({kind.texture for kind in THINGS}) == 32 == len(TEXTURES)
    split = base_and_novel()
    assert len(split["base"]) == 24 and len(split["novel"]) == 8
    shapes = [kind.shape for kind in THINGS if kind.is_novel]
    assert len(set(shapes)) == 8  # each shares its shape with three base categories


def test_textures_differ() -> None:
    v, u = np.mgrid[0:4:64j, 0:4:64j].astype(np.float32)
    tones = np.stack([texture(u, v).astype(np.float32).ravel() for texture in TEXTURES.values()])
    assert tones.min() >= 0 and tones.max() <= 1
    assert (tones.std(axis=1) > 0.15).all(), "every texture shows"
    likeness = np.abs(np.corrcoef(tones)) - np.eye(len(tones))
    assert likeness.max() < 0.9


def test_colours_do_not_depend_on_the_category() -> None:
    rng = np.random.default_rng(0)
    tones = [two_tones(rng, contrast=(0.4, 0.8)) for _ in range(2000)]
    luminance = np.array([[colour @ [0.299, 0.587, 0.114] for colour in pair] for pair in tones]) / 255
    gap = np.abs(luminance[:, 0] - luminance[:, 1])
    assert gap.min() > 0.39 and gap.max() < 0.81
    assert abs((luminance[:, 0] > luminance[:, 1]).mean() - 0.5) < 0.05, "which tone is darker is random"
    assert all(colour.min() >= 0 and colour.max() <= 255 for pair in tones for colour in pair)


def test_things_stay_visible_and_masks_cover_the_image() -> None:
    for seed in range(20):
        scene = draw_scene(np.random.default_rng(seed))
        assert scene.image.shape[:2] == scene.segments.shape and scene.image.dtype == np.uint8
        assert scene.segments.min() >= 0 and scene.segments.max() < len(scene.kinds)
        for index, kind in enumerate(scene.kinds):
            if kind.is_thing:  # the smallest is 28 px across, a kite or a tent fills about a third of that
                assert (scene.segments == index).sum() > MIN_VISIBLE * 28 * 28 / 4


def test_captions_name_the_content() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        image, caption = draw_pair(rng)
        assert image.shape == (64, 64, 3)
        assert any(kind.name in caption for kind in KINDS), caption
        assert " a eyed" not in caption and " a argyle" not in caption
