"""Files of torch.save: tensors come out to the bit, everything else stays a placeholder, nothing runs."""

import argparse
import collections
import datetime
import functools
import io
import pathlib
import zipfile

import numpy as np
import pytest
import torch

from foveate.clip.io.checkpoint_file import read_checkpoint
from foveate.clip.io.pickle_reader import Placeholder, follow_pickle
from foveate.errors import InputError


def save(content, path, *, zipped=True, protocol=2):
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_of_a_checkpoint_equal_those_saved(tmp_path, zipped, protocol):
    base = torch.arange(24.0)
    tensors = {
        "half": torch.randn(3).half(), "bfloat16": torch.randn(2, 3).bfloat16(), "double": torch.randn(2).double(),
        "int64": torch.tensor(7), "int32": torch.tensor([1, -2], dtype=torch.int32), "bool": torch.tensor([True]),
        "int16": torch.tensor([-3], dtype=torch.int16), "int8": torch.tensor([-3], dtype=torch.int8),
        "uint8": torch.tensor([200], dtype=torch.uint8), "empty": torch.empty(0, 3), "scalar": torch.tensor(0.5),
        "whole": base, "view": base[4:16].view(3, 4), "transposed": base.view(4, 6).T, "steps": base[1::3],
        "parameter": torch.nn.Parameter(torch.randn(2, 2)), "buffer": torch.nn.Linear(2, 1).weight,
    }  # fmt: skip
    tensors["parameter"].note = "a Parameter with an attribute is saved in another way"
    save(tensors, tmp_path / "w", zipped=zipped, protocol=protocol)
    found = read_checkpoint(tmp_path / "w")
    assert found.keys() == tensors.keys()
    for key, value in tensors.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key
        assert found[key].stride() == value.stride() or value.numel() == 0
    found["whole"][4] = -1  # shared memory stays shared, and the file as it is
    assert found["view"][0, 0] == -1 and read_checkpoint(tmp_path / "w")["view"][0, 0] == 4
    save(base, tmp_path / "w", zipped=zipped, protocol=protocol)
    assert torch.equal(read_checkpoint(tmp_path / "w"), base)


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_other_objects_become_placeholders(tmp_path, protocol, zipped):
    objects = {
        "namespace": argparse.Namespace(lr=1e-5, path=pathlib.PurePosixPath("a/b")),
        "path": pathlib.PurePosixPath("a"), "time": datetime.datetime(2026, 1, 1), "size": datetime.timedelta(1),
        "defaults": collections.defaultdict(list, {"a": [1]}), "call": functools.partial(max, 1), "set": {1, 2},
        "frozen": frozenset([1]), "number": np.float64(0.5), "array": np.arange(4.0), "names": np.array(["a", None]),
        "type": torch.float32, "device": torch.device("cpu"), "module": torch.nn.Linear(1, 1), "complex": 1j,
        "random": np.random.RandomState(0), "counter": collections.Counter("ab"),
    }  # fmt: skip
    plain = {"list": [1, {"a": 2.5}], "tuple": (0.9, "b"), 3: None, "big": 2**70, "bytes": b"", "true": True}
    content = {**objects, **plain, "weight": torch.ones(2), "ordered": collections.OrderedDict(a=torch.ones(1), b=2)}
    save(content, tmp_path / "w", zipped=zipped, protocol=protocol)
    found = read_checkpoint(tmp_path / "w")
    assert all(isinstance(found[key], Placeholder) for key in objects), found
    for key, value in plain.items():
        assert found[key] == value or (key == "bytes" and protocol < 3), key  # old protocols call a codec for them
    assert torch.equal(found["weight"], torch.ones(2))
    assert torch.equal(found["ordered"]["a"], torch.ones(1)) and found["ordered"]["b"] == 2
    if protocol >= 2:
        assert found["namespace"].name == "argparse.Namespace" and found["namespace"].state["lr"] == 1e-5


def test_unsupported_tensors_become_placeholders(tmp_path):
    odd = {
        "complex": torch.ones(2, dtype=torch.complex64), "sparse": torch.eye(2).to_sparse(),
        "meta": torch.ones(2, device="meta"), "uint16": torch.ones(2, dtype=torch.uint16),
        "negative": torch._neg_view(torch.ones(2)), "float8": torch.ones(2).to(torch.float8_e4m3fn),
    }  # fmt: skip
    save({**odd, "weight": torch.ones(1)}, tmp_path / "w")
    found = read_checkpoint(tmp_path / "w")
    assert all(isinstance(found[key], Placeholder) for key in odd) and found["weight"] == 1


def change(path, edit):
    """Write a zip again, each entry's content as `edit` of its name and content gives it, or without it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w") as target:
        for entry in source.infolist():
            content = edit(entry.filename.split("/", 1)[1], source.read(entry))
            if content is not None:
                target.writestr(zipfile.ZipInfo(entry.filename), content)
    path.write_bytes(packed.getvalue())


def refused(path, words):
    with pytest.raises(InputError, match=f"it was not run .*{words}"):
        read_checkpoint(path)


def test_an_optimizer_is_not_read(tmp_path):
    """Its moments may be damaged; a weight may not."""
    weight = torch.nn.Parameter(torch.full((64,), 3.0))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    weight.grad = torch.full((64,), 5.0)
    optimizer.step()
    save({"model": {"weight": torch.full((64,), 7.0)}, "optimizer": optimizer.state_dict()}, tmp_path / "w")
    content = (tmp_path / "w").read_bytes()
    moment = torch.full((64,), 0.5).numpy().tobytes()  # .1 * 5
    assert content.count(moment) == 1
    (tmp_path / "w").write_bytes(content.replace(moment, bytes(256)))
    found = read_checkpoint(tmp_path / "w")
    assert torch.equal(found["model"]["weight"], torch.full((64,), 7.0))
    assert isinstance(found["optimizer"]["state"][0]["exp_avg"], Placeholder)
    assert found["optimizer"]["param_groups"][0]["lr"] == 1e-3
    (tmp_path / "w").write_bytes(content.replace(torch.full((64,), 7.0).numpy().tobytes(), bytes(256)))
    refused(tmp_path / "w", "checksum")


def test_weights_take_memory_when_they_are_used(tmp_path):
    big = 2**26  # bytes
    save({"model": {"a": torch.zeros(big // 4)}, "other": {"b": torch.ones(big // 4)}}, tmp_path / "w")

    def private() -> int:
        words = pathlib.Path("/proc/self/status").read_text().split()
        return int(words[words.index("RssAnon:") + 1]) * 1024

    if not pathlib.Path("/proc/self/status").exists():
        pytest.skip("needs /proc, to measure")
    before = private()
    found = read_checkpoint(tmp_path / "w")
    assert private() - before < big // 8
    found["model"]["a"] += 1
    assert big // 2 < private() - before < big * 3 // 2


def test_checksums_may_be_absent(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        save({"a": torch.ones(2)}, tmp_path / "w")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / "w")["a"].tolist() == [1, 1]


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "w"

    def fresh(edit, words):
        save({"a": torch.arange(6.0).view(2, 3)}, path)
        change(path, edit)
        refused(path, words)

    fresh(lambda name, old: None if name == "data/0" else old, "data/0 is missing")
    fresh(lambda name, old: old[:-4] if name == "data/0" else old, "has 20 bytes, not 6 numbers")
    fresh(lambda name, old: None if name == "data.pkl" else old, "need one data.pkl; got 0")
    fresh(lambda name, old: b"big" if name == "byteorder" else old, "not little endian")
    fresh(lambda name, old: old.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86"), "needs 7 numbers; its storage has 6")
    fresh(lambda name, old: old.replace(b"K\x03K\x01\x86", b"K\x07K\x01\x86"), "needs 10 numbers")
    fresh(lambda name, old: old.replace(b"FloatStorage", b"LongStorage"), "bytes, not 6 numbers")
    fresh(lambda name, old: old[:-10] if name == "data.pkl" else old, "")
    save({"a": torch.ones(2)}, path)
    content = path.read_bytes()
    for length in range(0, len(content) - 1, len(content) // 40):
        path.write_bytes(content[:length])
        refused(path, "")
    save({"a": torch.ones(6), "b": torch.ones(2)}, path, zipped=False)
    content = path.read_bytes()
    for length in range(0, len(content), len(content) // 40):
        path.write_bytes(content[:length])
        refused(path, "")
    save({"b": torch.ones(2)}, path, zipped=False)  # ends with the count of numbers and the numbers
    content = path.read_bytes()
    path.write_bytes(content[:-16] + bytes([9]) + content[-15:])
    refused(path, "has another size than the file says")
    np.savez(tmp_path / "w.npz", a=np.ones(2))
    refused(tmp_path / "w.npz", "need one data.pkl; got 0")


def test_pickles_that_would_exhaust_memory_are_harmless(tmp_path):
    """Containers 100,000 deep, doubled sixty times, or in themselves; missing marks and memo entries."""
    deep = b"\x80\x02" + b"(" * 10**5 + b"t" * 10**5 + b"."
    assert isinstance(follow_pickle(io.BytesIO(deep)), tuple)
    assert follow_pickle(io.BytesIO(b"\x80\x02}" + deep[2:-1] + b"K\x01s.")) == {}  # as a key: it would be hashed
    laughs = b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(60)) + b"."
    save({"a": torch.ones(1)}, tmp_path / "w")
    change(tmp_path / "w", lambda name, old: laughs if name == "data.pkl" else old)
    assert len(read_checkpoint(tmp_path / "w")) == 2
    itself = b"\x80\x02}q\x00X\x02\x00\x00\x00meh\x00s."
    change(tmp_path / "w", lambda name, old: itself if name == "data.pkl" else old)
    found = read_checkpoint(tmp_path / "w")
    assert found["me"] is found
    for content in (b"\x80\x02t.", b"\x80\x02h\x07.", b"\x80\x02u.", b"\x80\x02.", b"\x80\x020.", b"\x80\x02]", b"R."):
        change(tmp_path / "w", lambda name, old, content=content: content if name == "data.pkl" else old)
        refused(tmp_path / "w", "")
