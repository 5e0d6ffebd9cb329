"""Result files: written whole or not at all, in paths that are checked before the work."""

import errno
import fcntl
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from foveate.errors import InputError
from foveate.io import files
from foveate.io.files import (
    DiskFullError,
    bad_lines,
    check_target,
    folder_written_whole,
    full_disk_named,
    require_free,
    write_whole,
    written_whole,
)
from foveate.io.json_text import RepeatedKeyError, parse_json


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


def test_a_full_disk_is_named_with_its_bytes_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DiskFullError, match=r"a: need 1,234 bytes; the disk is full \(ENOSPC.* Free some space"):
            write_whole(path, bytes(1234))
    with pytest.raises(DiskFullError, match="a: need more than 70 bytes"), written_whole(path) as partial:
        partial.write_bytes(bytes(70))
        raise RuntimeError("write failed") from OSError(errno.ENOSPC, "No space left on device")
    assert path.read_bytes() == b"old" and [one.name for one in tmp_path.iterdir()] == ["a"]
    assert issubclass(DiskFullError, OSError) and issubclass(DiskFullError, InputError)


def test_a_librarys_error_without_a_reason_means_a_full_disk_only_on_one(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="unexpected pos"), full_disk_named(tmp_path / "a.pt2"):
        raise RuntimeError("unexpected pos 64 vs 0")  # what torch's writer says
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=4096))
    with pytest.raises(DiskFullError, match="4,096 are free"), full_disk_named(tmp_path / "new" / "a.pt2"):
        raise RuntimeError("unexpected pos 64 vs 0")
    with pytest.raises(InputError, match=r"^bad class$"), full_disk_named(tmp_path / "a.pt2"):
        raise InputError("bad class")
    with pytest.raises(InputError, match="need about 5,000 free bytes; the disk has 4,096"):
        require_free(tmp_path / "new" / "a", need=5000)


def test_folders_of_killed_writers_are_removed_and_no_others(tmp_path):
    names = [".out.0123abcd.partial", ".out.89abcdef.partial", ".other.0123abcd.partial", ".out.partial", "out.partial"]
    for name in names:
        (tmp_path / name).mkdir()
    lock = os.open(tmp_path / names[1], os.O_RDONLY)  # of a running process
    fcntl.flock(lock, fcntl.LOCK_EX)
    with folder_written_whole(tmp_path / "out") as partial:
        (partial / "a").write_bytes(b"new")
        with pytest.raises(KeyError), folder_written_whole(tmp_path / "out") as second:  # at the same time
            assert partial.is_dir() and second != partial
            raise KeyError
    os.close(lock)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:], "out"])


def test_a_repeated_key_is_an_error_at_any_depth():
    assert parse_json(b'[{"a": 1, "b": {"a": 2}}]') == [{"a": 1, "b": {"a": 2}}]
    with pytest.raises(RepeatedKeyError, match="unique keys in each object; got 'a' 3 times"):
        parse_json('[{"b": {"a": 1, "c": 2, "a": 1, "a": 3}}]')


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
