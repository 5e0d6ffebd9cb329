"""A plain folder of images is a data set without annotations."""

import pytest
from PIL import Image

from foveate.data.datasets.folder import read_folder
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
