"""Picture-caption pairs from tar shards: complete pairs only, nothing extracted, nothing executed."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from saccade.data.shards import read_pairs
from saccade.types import InputError


def jpeg(colour: tuple[int, int, int], side: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_pairs_come_in_the_order_of_the_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "b.tar", {"2.png": jpeg((0, 0, 255)), "2.txt": b"blue"})
    write_tar(tmp_path / "a.tar", {"1.txt": b" red\n", "1.png": jpeg((255, 0, 0)), "1.json": b"{}", "x.pyd": b"never"})
    images, captions = read_pairs(tmp_path, side=8)
    assert captions == ["red", "blue"]
    assert images.shape == (2, 3, 8, 8)
    assert images[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]


def test_members_are_never_written_to_disk(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_tar(folder / "a.tar", {"../../evil.png": jpeg((1, 2, 3)), "../../evil.txt": b"a"})
    read_pairs(folder, side=8)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "in"]


BROKEN_CHUNK = bytearray(jpeg((1, 2, 3), 64))
BROKEN_CHUNK[BROKEN_CHUNK.index(b"IDAT") + 10] ^= 0xFF  # the checksum no longer fits: Pillow raises SyntaxError


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.png": b""}, "1 has no caption"),
        ({"1.txt": b"a"}, "1 has no picture"),
        ({"1.png": b"not a picture", "1.txt": b"a"}, "need a JPEG or PNG"),
        ({"1.png": jpeg((1, 2, 3))[:60], "1.txt": b"a"}, "need a JPEG or PNG"),
        ({"1.png": BROKEN_CHUNK, "1.txt": b"a"}, "need a JPEG or PNG"),
        ({"1.png": jpeg((1, 2, 3)), "1.txt": b"caf\xe9"}, "1: need a caption in UTF-8"),
    ],
)
def test_a_pair_that_cannot_be_used_is_named(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    write_tar(tmp_path / "s.tar", members)
    with pytest.raises(InputError, match=message) as caught:
        read_pairs(tmp_path, side=8)
    assert "s.tar" in str(caught.value)


def test_shards_without_a_pair_are_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", {"1.json": b"{}"})
    write_tar(tmp_path / "t.tar", {})
    with pytest.raises(InputError, match="the 2 hold none"):
        read_pairs(tmp_path, side=8)


def test_a_folder_without_shards_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="saccade world"):
        read_pairs(tmp_path, side=8)


@pytest.mark.parametrize("length", [100, 700, 1500, 2500])
def test_a_cut_shard_is_an_error(tmp_path: Path, length: int) -> None:
    write_tar(tmp_path / "s.tar", {"1.png": jpeg((1, 2, 3), 64), "1.txt": b"a" * 3000})
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:length])
    with pytest.raises(InputError, match=r"s\.tar"):
        read_pairs(tmp_path, side=8)
