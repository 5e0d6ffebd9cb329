"""Held-out images that are training images too, by file or by content."""

import io
import tarfile

import numpy as np
from PIL import Image

from foveate.data.datasets.folder import read_folder
from foveate.data.datasets.shards import read_shards
from foveate.data.overlap import shared_images


def write_images(folder, *colours):
    folder.mkdir(parents=True, exist_ok=True)
    for colour in colours:
        Image.fromarray(np.full((4, 4, 3), colour, np.uint8)).save(folder / f"{colour}.bmp")  # all of one size


def pairs(training, held_out):
    return [(found.id, trained.id) for found, trained in shared_images(training.records, held_out.records)]


def test_the_same_files_are_found_through_links(tmp_path):
    write_images(tmp_path / "data", 1, 2, 3)
    (tmp_path / "alias").symlink_to(tmp_path / "data")
    training, held_out = read_folder(tmp_path / "data"), read_folder(tmp_path / "alias")
    assert pairs(training, held_out) == [("1.bmp", "1.bmp"), ("2.bmp", "2.bmp"), ("3.bmp", "3.bmp")]


def test_copies_are_found_by_content_and_other_images_are_not(tmp_path):
    write_images(tmp_path / "train", 1, 2, 3)
    write_images(tmp_path / "val", 4, 5)
    (tmp_path / "val/copy.bmp").write_bytes((tmp_path / "train/2.bmp").read_bytes())
    (tmp_path / "val/empty.bmp").touch()
    training, held_out = read_folder(tmp_path / "train"), read_folder(tmp_path / "val")
    assert pairs(training, held_out) == [("copy.bmp", "2.bmp")]
    assert pairs(training, read_folder(tmp_path / "train")) != []
    content = (tmp_path / "val/4.bmp").read_bytes()
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, member in (("a.bmp", content), ("b.bmp", (tmp_path / "train/1.bmp").read_bytes())):
            info = tarfile.TarInfo(name)
            info.size = len(member)
            tar.addfile(info, io.BytesIO(member))
    shards = read_shards([tmp_path / "s.tar"], name="s", cache=None)
    assert pairs(shards, held_out) == [("4.bmp", "s.tar:a")] and pairs(shards, shards) == [
        ("s.tar:a", "s.tar:a"),
        ("s.tar:b", "s.tar:b"),
    ]
