"""Tar shards: images are read in place; nothing is extracted or executed."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.data.datasets.folder import read_folder
from foveate.data.datasets.shards import FURTHER, NO_FILE, NO_IMAGE, index_shard, read_pairs, read_shards, split_name
from foveate.data.images import ImageError, read_image
from foveate.data.loader import BatchSampler, ImageSource, make_loader
from foveate.data.records import Dataset, IgnoredEntries, Record, read_record
from foveate.errors import InputError
from foveate.types import BadSample


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


def test_pairs_are_in_the_order_of_the_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "b.tar", {"2.png": jpeg((0, 0, 255)), "2.txt": b"blue"})
    write_tar(tmp_path / "a.tar", {"1.txt": b" red\n", "1.png": jpeg((255, 0, 0)), "1.json": b"{}", "x.pyd": b"never"})
    images, captions, names = read_pairs(tmp_path, side=8)
    assert captions == ["red", "blue"] and names == ["a.tar:1", "b.tar:2"]
    assert images.shape == (2, 3, 8, 8)
    assert images[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]


def test_names_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("../../evil", "/evil", "a/../evil", "C:\\evil"):
        write_tar(folder / "a.tar", {f"{name}.png": jpeg((1, 2, 3)), f"{name}.txt": b"a"})
        with pytest.raises(InputError, match=r"a\.tar: member .*evil\.png': need a name inside the shard"):
            read_pairs(folder, side=8)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "in"]


BROKEN_CHUNK = bytearray(jpeg((1, 2, 3), 64))
BROKEN_CHUNK[BROKEN_CHUNK.index(b"IDAT") + 10] ^= 0xFF  # the checksum no longer fits: Pillow raises SyntaxError


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.png": b""}, "1: .*caption .* is missing"),
        ({"1.txt": b"a"}, "1: .*image is missing"),
        ({"1.png": b"not an image", "1.txt": b"a"}, "s.tar:1: need a JPEG, PNG"),
        ({"1.png": jpeg((1, 2, 3))[:60], "1.txt": b"a"}, "s.tar:1: need a whole image"),
        ({"1.png": BROKEN_CHUNK, "1.txt": b"a"}, "s.tar:1: need a whole image"),
        ({"1.png": jpeg((1, 2, 3)), "1.txt": b"caf\xe9"}, "1: need a caption in UTF-8"),
    ],
)
def test_an_unusable_pair_is_refused_with_its_key(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    write_tar(tmp_path / "s.tar", members)
    with pytest.raises(InputError, match=message) as caught:
        read_pairs(tmp_path, side=8)
    assert "s.tar" in str(caught.value)


def test_shards_without_pairs_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", {"1.json": b"{}"})
    write_tar(tmp_path / "t.tar", {})
    with pytest.raises(InputError, match="got none in 2"):
        read_pairs(tmp_path, side=8)


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="foveate world"):
        read_pairs(tmp_path, side=8)


@pytest.mark.parametrize("length", [100, 700, 1500, 2500])
def test_a_truncated_shard_is_refused(tmp_path: Path, length: int) -> None:
    write_tar(tmp_path / "s.tar", {"1.png": jpeg((1, 2, 3), 64), "1.txt": b"a" * 3000})
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:length])
    with pytest.raises(InputError, match=r"s\.tar"):
        read_pairs(tmp_path, side=8)


# ----------------------------------------------------------------------------------------- shards as a training source


def shards(*paths: Path, cache: Path | None = None) -> Dataset:
    return read_shards(paths, name="shards", cache=cache)


def ids(dataset: Dataset) -> list[int | str]:
    return [record.id for record in dataset.records]


def test_an_image_in_a_shard_equals_the_file(tmp_path):
    draw = np.random.default_rng(0)
    (tmp_path / "folder").mkdir()
    contents = {}
    for name in ("a/1.png", "a/2.jpg", "3.webp"):
        buffer = io.BytesIO()
        noise = draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[name.rpartition(".")[2]])
        contents[name] = buffer.getvalue()
        (tmp_path / "folder" / name.replace("/", "_")).write_bytes(buffer.getvalue())
    write_tar(tmp_path / "s.tar", {"a/1.txt": b"one", **contents})
    dataset = shards(tmp_path / "s.tar")
    assert ids(dataset) == ["s.tar:a/1", "s.tar:a/2", "s.tar:3"] and dataset.ignored == {}
    for record, name in zip(dataset.records, contents, strict=True):
        expected = read_image(tmp_path / "folder" / name.replace("/", "_"))
        assert read_record(record).tolist() == expected.tolist()


def test_shards_give_the_same_batches_as_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    members = {f"{number}.png": jpeg((number, 0, 0), side=10 + number) for number in range(7)}
    for name, content in members.items():
        (tmp_path / "folder" / name).write_bytes(content)
    names = sorted(members)
    write_tar(tmp_path / "a.tar", {name: members[name] for name in names[:3]})
    write_tar(tmp_path / "b.tar", {name: members[name] for name in names[3:]})

    def stream(dataset: Dataset, workers: int) -> list[object]:
        source = ImageSource(dataset, seed=4)
        sampler = BatchSampler(7, batch=2, seed=4, rank=1, world_size=2, start=3, batches=5)
        loader = make_loader(source, sampler, workers=workers)
        return [[(sample.image.tolist(), sample.boxes.tolist()) for sample in batch.samples] for batch in loader]

    expected = stream(read_folder(tmp_path / "folder"), 0)
    for workers in (0, 2):
        assert stream(shards(tmp_path / "a.tar", tmp_path / "b.tar"), workers) == expected


def test_interleaved_keys_are_read_completely(tmp_path):
    members = {"a.jpg": jpeg((1, 0, 0)), "b.jpg": jpeg((2, 0, 0)), "a.txt": b"one", "b.txt": b"two"}
    write_tar(tmp_path / "s.tar", members)
    assert ids(shards(tmp_path / "s.tar")) == ["s.tar:a", "s.tar:b"]
    assert read_pairs(tmp_path, side=16)[1] == ["one", "two"]


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.mark}",))


def test_pickles_are_never_opened(tmp_path):
    content = pickle.dumps(Payload(tmp_path / "ran"))
    pickle.loads(content)
    assert (tmp_path / "ran").exists()  # the payload works
    (tmp_path / "ran").unlink()
    kinds = ("pyd", "pkl", "pickle", "pth", "cls", "npy", "png.pkl")
    write_tar(tmp_path / "s.tar", {"1.png": jpeg((1, 2, 3)), "2.png": content} | {f"1.{k}": content for k in kinds})
    loader = make_loader(ImageSource(shards(tmp_path / "s.tar")), [[(0, 0), (0, 1)]], workers=1)
    (batch,) = loader
    assert [sample.id for sample in batch.samples] == ["s.tar:1"] and [bad.id for bad in batch.bad] == ["s.tar:2"]
    assert not (tmp_path / "ran").exists()


def test_two_images_with_one_key_are_refused(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for _ in range(2):
            info = tarfile.TarInfo("1.png")
            info.size = len(jpeg((1, 2, 3)))
            tar.addfile(info, io.BytesIO(jpeg((1, 2, 3))))
    with pytest.raises(InputError, match=r"s\.tar: member '1\.png': need one image and one text per key"):
        shards(tmp_path / "s.tar")
    write_tar(tmp_path / "s.tar", {"1.png": jpeg((1, 2, 3)), "1.jpg": jpeg((1, 2, 3))})
    with pytest.raises(InputError, match=r"member '1\.jpg': need one image"):
        shards(tmp_path / "s.tar")
    write_tar(tmp_path / "s.tar", {"1.png": jpeg((1, 2, 3))})
    (tmp_path / "other").mkdir()
    write_tar(tmp_path / "other/s.tar", {"1.png": jpeg((1, 2, 3))})  # the same key in another shard is another image
    assert ids(shards(tmp_path / "s.tar", tmp_path / "other/s.tar")) == [
        f"{tmp_path}/s.tar:1",
        f"{tmp_path}/other/s.tar:1",
    ]


def test_links_and_keys_without_an_image_are_counted(tmp_path):
    write_tar(tmp_path / "s.tar", {"1.png": jpeg((1, 2, 3)), "2.txt": b"no image"})
    with tarfile.open(tmp_path / "s.tar", "a") as tar:
        for name, kind in (("3.png", tarfile.SYMTYPE), ("4.png", tarfile.LNKTYPE), ("5.png", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    dataset = shards(tmp_path / "s.tar")
    assert ids(dataset) == ["s.tar:1"]
    assert {reason: (entries.count, entries.first) for reason, entries in dataset.ignored.items()} == {
        NO_IMAGE: (1, "s.tar:2"),
        NO_FILE: (3, "s.tar:3"),
    }


@pytest.mark.parametrize(
    ("names", "keys", "further"),
    [
        (("0001.jpg", "IMG_2024.01.02.jpg", "cat v1.2.jpg", "Dr. Who.JPG"),
         ("0001", "IMG_2024.01.02", "cat v1.2", "Dr. Who"), None),
        (("a/v1.0.png", "a/v1.1.png"), ("a/v1.0", "a/v1.1"), None),
        (("7.0.jpg", "7.1.jpg", "8.0.jpg"), ("7.0", "7.1", "8.0"), None),  # several images of one document
        (("1.jpg", "1.seg.png", "2.jpg", "2.seg.png", "2.2.jpg"), ("1", "2"), (3, "1.seg.png")),
        (("1.image.png", "2.image.png"), ("1", "2"), None),  # the one field
        (("1.image.png", "1.mask.png", "2.image.png", "2.mask.png", "x.jpg"), ("x",), (4, "1.image.png")),
    ],
)  # fmt: skip
def test_keys_of_names_with_dots(tmp_path, names, keys, further):
    write_tar(tmp_path / "s.tar", {name: jpeg((1, 2, 3)) for name in names})
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        dataset = shards(tmp_path / "s.tar", cache=cache)
        assert ids(dataset) == [f"s.tar:{key}" for key in keys]
        expected = {} if further is None else {FURTHER: IgnoredEntries(further[0], f"s.tar:{further[1]}")}
        assert dataset.ignored == expected


def test_texts_of_names_with_dots(tmp_path):
    members = {"a.b.c.png": jpeg((1, 2, 3)), "a.b.c.txt": b"one", "d.png": jpeg((1, 2, 3)), "d.txt": b"two"}
    write_tar(tmp_path / "s.tar", {**members, "d.short.txt": b"another field"})
    assert read_pairs(tmp_path, side=16)[1] == ["one", "two"]


def test_a_shard_without_images_is_refused(tmp_path):
    write_tar(tmp_path / "s.tar", {"1.txt": b"a", "2.pyd": b"b"})
    with pytest.raises(InputError, match=r"shards: need images .* got none in 1"):
        shards(tmp_path / "s.tar")


def test_truncation_at_any_byte_is_refused(tmp_path):
    write_tar(tmp_path / "s.tar", {f"{number}.png": jpeg((number, 0, 0), 40) for number in range(3)})
    whole = (tmp_path / "s.tar").read_bytes()
    index = index_shard(tmp_path / "s.tar")
    end = index.images[-1].sum() + -index.images[-1][1] % 512  # the end mark begins here
    second = int(index.images[1][0]) - 512  # a cut between two members, which tarfile takes for the end
    for length in (0, 1, 511, 512, second - 1, second, second + 1, second + 700, end - 512, end - 1, end, end + 511):
        (tmp_path / "s.tar").write_bytes(whole[: int(length)])
        with pytest.raises(InputError, match=r"s\.tar: need a whole tar file"):
            shards(tmp_path / "s.tar")
    (tmp_path / "s.tar").write_bytes(whole[: int(end) + 512])
    assert len(shards(tmp_path / "s.tar").records) == 3


def test_a_damaged_header_anywhere_is_refused(tmp_path):
    write_tar(tmp_path / "s.tar", {f"{number}.png": jpeg((number, 0, 0), 40) for number in range(3)})
    whole = (tmp_path / "s.tar").read_bytes()
    for first, _ in index_shard(tmp_path / "s.tar").images:
        for offset in (0, 130, 150):  # the name, the size and the checksum
            broken = bytearray(whole)
            broken[int(first) - 512 + offset] ^= 0x10
            (tmp_path / "s.tar").write_bytes(broken)
            with pytest.raises(InputError, match=r"s\.tar: need a whole tar file"):
                shards(tmp_path / "s.tar")


def test_a_compressed_shard_is_refused(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(InputError, match="need a whole tar file, not compressed"):
        shards(tmp_path / "s.tar")


def test_a_damaged_image_makes_an_unreadable_sample_with_shard_and_key(tmp_path):
    write_tar(tmp_path / "s.tar", {"good.png": jpeg((1, 2, 3), 40), "rotten.png": jpeg((4, 5, 6), 40)})
    dataset = shards(tmp_path / "s.tar")
    content = bytearray((tmp_path / "s.tar").read_bytes())
    member = dataset.records[1].member
    assert member is not None
    content[member.offset + content[member.offset :].index(b"IDAT") + 9] ^= 0xFF
    (tmp_path / "s.tar").write_bytes(content)
    bad = ImageSource(dataset)[(0, 1)]
    assert isinstance(bad, BadSample) and bad.id == "s.tar:rotten"
    assert f"{tmp_path}/s.tar:rotten: need a whole image" in bad.reason
    assert not isinstance(ImageSource(dataset)[(0, 0)], BadSample)


def test_too_large_and_missing_members_are_refused(tmp_path):
    write_tar(tmp_path / "s.tar", {"1.png": jpeg((1, 2, 3))})
    with pytest.raises(ImageError, match="k: need at most 400,000,000 bytes; it has 400,000,001"):
        read_image(tmp_path / "s.tar", part=(512, 400_000_001), name="k")
    with pytest.raises(ImageError, match="k: need an image file; it has 0 bytes"):
        read_image(tmp_path / "s.tar", part=(512, 0), name="k")
    dataset = shards(tmp_path / "s.tar")
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:520])
    with pytest.raises(ImageError, match=r"s\.tar:1: need .* the file ends after 8 of them"):
        read_record(dataset.records[0])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.jpg", ("a", "jpg")),
        ("x/a.b.JPG", ("x/a", "b.jpg")),  # webdataset: the kind begins at the first dot
        ("v1.0/a.jpg", ("v1.0/a", "jpg")),
        ("./a.txt", ("./a", "txt")),
        ("._a.jpg", ("", "_a.jpg")),
        ("a", ("a", "")),
    ],
)
def test_split_name_equals_webdataset(name, parts):
    assert split_name(name) == parts


def test_records_are_a_sequence(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.png": jpeg((1, 2, 3)), "2.txt": b"x", "schön.png": jpeg((1, 2, 3))})
    write_tar(tmp_path / "b.tar", {"3.png": jpeg((1, 2, 3))})
    records = shards(tmp_path / "a.tar", tmp_path / "b.tar").records
    listed = list(records)
    assert [record.id for record in listed] == ["a.tar:1", "a.tar:schön", "b.tar:3"] and len(records) == 3
    assert records[-1] == records[2] == listed[2] and records[1:] == tuple(listed[1:])
    assert all(isinstance(record, Record) for record in listed)
    for index in (3, -4):
        with pytest.raises(IndexError):
            records[index]


# ------------------------------------------------------------------------------------------------------ cached indices


def test_an_index_is_cached(tmp_path, monkeypatch):
    write_tar(tmp_path / "s.tar", {"schön.png": jpeg((1, 2, 3)), "2.png": jpeg((1, 2, 3)), "3.txt": b"x"})
    first = shards(tmp_path / "s.tar", cache=tmp_path / "cache")
    monkeypatch.setattr("foveate.data.datasets.shards._scan", lambda path: pytest.fail("scanned again"))
    again = shards(tmp_path / "s.tar", cache=tmp_path / "cache")
    assert list(again.records) == list(first.records) and again.ignored == first.ignored
    assert not list(tmp_path.glob("*.npz")) and not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("change", ["content", "time", "head", "kept", "kept pickle"])
def test_a_changed_shard_or_a_damaged_index_is_scanned_again(tmp_path, change):
    write_tar(tmp_path / "s.tar", {"0.bin": b"z" * 5000, "1.png": jpeg((1, 2, 3))})
    old = (tmp_path / "s.tar").stat()
    shards(tmp_path / "s.tar", cache=tmp_path)
    (index_path,) = tmp_path.rglob("*.npz")
    times = (old.st_atime_ns, old.st_mtime_ns)
    if change == "content":
        write_tar(tmp_path / "s.tar", {f"{name}.png": jpeg((1, 2, 3)) for name in "789"} | {"z.bin": b"z" * 9999})
        os.utime(tmp_path / "s.tar", ns=times)
    elif change in ("time", "head"):
        first = "0.bin" if change == "time" else "0.bim"  # else the first bytes are the same
        write_tar(tmp_path / "s.tar", {first: b"z" * 5000, "7.png": jpeg((1, 2, 3))})
        os.utime(tmp_path / "s.tar", ns=times if change == "head" else (times[0], times[1] + 1))
        assert (tmp_path / "s.tar").stat().st_size == old.st_size
    else:
        index_path.write_bytes(b"damaged" if change == "kept" else pickle.dumps(Payload(tmp_path / "ran")))
    again = shards(tmp_path / "s.tar", cache=tmp_path)
    assert ids(again) == ids(shards(tmp_path / "s.tar")) and not (tmp_path / "ran").exists()


def test_without_a_writable_cache_shards_are_scanned(tmp_path):
    write_tar(tmp_path / "s.tar", {"1.png": jpeg((1, 2, 3))})
    (tmp_path / "file").touch()
    assert ids(shards(tmp_path / "s.tar", cache=tmp_path / "file")) == ["s.tar:1"]
