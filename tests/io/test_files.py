"""Result files: written whole or not at all, in paths that are checked before the work."""

import os

import pytest

from foveate.errors import InputError
from foveate.io.files import bad_lines, check_target, write_whole


def test_a_file_is_written_whole_and_its_folder_created(tmp_path):
    path = tmp_path / "new" / "deep" / "a.json"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two" and [one.name for one in path.parent.iterdir()] == ["a.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a.partial").mkdir()  # in the way
    with pytest.raises(OSError):
        write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_checking_a_target_creates_nothing(tmp_path, monkeypatch):
    check_target(tmp_path / "new" / "a.json", flag="--out")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    check_target(tmp_path / "file", flag="--out")  # will be replaced
    for path in (tmp_path / "file" / "a.json", tmp_path / "file" / "deep" / "a.json"):
        with pytest.raises(InputError, match=r"--out: need a file in a folder; .*file, which is a file"):
            check_target(path, flag="--out")
    with pytest.raises(InputError, match="--out: need the name of a file; got the folder"):
        check_target(tmp_path, flag="--out")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(InputError, match="may be written"):
        check_target(tmp_path / "new" / "a.json", flag="--out")


def test_ten_unreadable_images_are_listed_and_the_rest_counted():
    bad = [{"id": str(number), "reason": "broken"} for number in range(12)]
    lines = bad_lines(bad, listed="F.json")
    assert lines[0] == "images that could not be used: 12" and lines[1:11] == [f"  {n}: broken" for n in range(10)]
    assert lines[11:] == ["  and 2 more; F.json lists all"] and bad_lines([], listed="") == []
