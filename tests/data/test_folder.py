"""A plain folder of images is a data set without annotations."""

import os
import pickle
from pathlib import Path

import pytest
from PIL import Image

from foveate.data.datasets import folder as folder_module
from foveate.data.datasets.folder import read_folder
from foveate.data.images import ONE_COLOUR
from foveate.data.loader import EvaluationSource, make_loader
from foveate.errors import InputError


def test_records_are_named_by_their_path_within_the_folder(tmp_path):
    folder = tmp_path / "holiday"
    for name in ("b.png", "a/1.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(folder / name)
    dataset = read_folder(folder)
    assert dataset.name == "holiday" and dataset.categories == () and dataset.ignored == {}
    assert [(record.id, record.path) for record in dataset.records] == [
        ("a/1.jpg", folder / "a/1.jpg"),
        ("b.png", folder / "b.png"),
    ]
    assert dataset.records[0].size is None and dataset.records[0].boxes == ()


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="got none"):
        read_folder(tmp_path)


def test_splits_that_are_used_together_are_noted(tmp_path):
    names = ("images/train/1.png", "images/val/cats/2.png", "images/test/3.png", "maps/Train/4.png", "valley/5.png")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(tmp_path / name)
    dataset = read_folder(tmp_path)
    (line,) = dataset.ignored_lines()
    assert line.startswith(f"{tmp_path}/images: holds test/, train/, val/: all are used.")
    assert read_folder(tmp_path / "images/train").ignored_lines() == []


def test_ignored_files_and_remarks_are_lines(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    (tmp_path / "b.gif").touch()
    dataset = read_folder(tmp_path)
    loader = make_loader(EvaluationSource(dataset, masks=False), [[0]], workers=1)
    assert [sample.remark for batch in loader for sample in batch.samples] == [ONE_COLOUR]
    assert dataset.ignored_lines() == [
        "1 ignored: image in a format that is not read (1 .gif): convert it; the first: b.gif",
        "1 used: image of one colour; the first: a.png",
    ]


@pytest.mark.parametrize("is_cached", [True, False])
def test_the_list_of_a_large_folder_is_cached_until_it_changes(tmp_path, monkeypatch, is_cached):
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache") if is_cached else "")
    monkeypatch.setattr(folder_module, "MIN_CACHED", 3)
    root = tmp_path / "images"
    for name in ("train/a.jpg", "val/b.jpg", "c.jpg", "empty/notes.txt", "d.gif"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    settle(root)
    first = read_folder(root)
    assert [record.id for record in first.records] == ["c.jpg", "train/a.jpg", "val/b.jpg"] and first.notes
    assert pickle.loads(pickle.dumps(first.records)) == first.records
    with monkeypatch.context() as patch:
        if is_cached:
            patch.setattr(folder_module, "list_images", None)  # not called
        assert read_folder(root) == first
    (root / "empty" / "e.jpg").touch()  # in a folder that had no image
    assert len(read_folder(root).records) == 4
    settle(root)
    assert len(read_folder(root).records) == 4 == len(read_folder(root).records)
    (root / "c.jpg").unlink()
    assert [record.id for record in read_folder(root).records] == ["empty/e.jpg", "train/a.jpg", "val/b.jpg"]


def settle(root: Path) -> None:
    """Folders that were changed a while ago, unlike those that a test has just made."""
    for folder in (root, *filter(Path.is_dir, root.rglob("*"))):
        os.utime(folder, (1e9, folder.stat().st_mtime - 60))
