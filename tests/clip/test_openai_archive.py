"""TorchScript archives of OpenAI: their tensors are read, and nothing is run."""

import io
import os
import pickle
import warnings
import zipfile
from contextlib import suppress

import open_clip
import pytest
import torch

from foveate.clip.io.states import file_kind, read_state
from foveate.clip.load import load, load_module, read_named
from foveate.errors import InputError

CONFIG = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 2, "layers": 1},
}


class Published(open_clip.CLIP):
    """OpenAI's files have three numbers among the tensors, and the causal mask."""

    def __init__(self) -> None:
        super().__init__(**CONFIG)
        self.register_buffer("input_resolution", torch.tensor(16))
        for name in ("context_length", "vocab_size"):
            value = getattr(self, name)
            delattr(self, name)
            self.register_buffer(name, torch.tensor(value))


def write(path, how="trace", module=None):
    torch.manual_seed(0)
    model = (module or Published)().eval().half()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "trace":
            inputs = (torch.zeros(1, 3, 16, 16).half(), torch.zeros(1, 8, dtype=torch.long))
            compiled = torch.jit.trace(model, inputs, check_trace=False)
        else:
            compiled = torch.jit.script(model)
        compiled.save(str(path))
    return dict(model.state_dict())


@pytest.mark.parametrize("how", ["trace", "script"])
def test_tensors_of_an_archive_equal_those_of_the_module(tmp_path, how):
    module = None if how == "trace" else lambda: open_clip.CLIP(**CONFIG)
    wanted = write(tmp_path / "w.bin", how, module)
    assert file_kind(tmp_path / "w.bin") == "torchscript"
    state = read_named(tmp_path / "w.bin")
    for key in ("input_resolution", "context_length", "vocab_size"):
        assert key not in state
        wanted.pop(key, None)
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], value) and value.dtype == torch.half for key, value in wanted.items())


def test_torch_jit_is_never_called(tmp_path, monkeypatch):
    write(tmp_path / "w.pt")
    for module, name in ((torch.jit, "load"), (torch, "load")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("it was asked"))
    read_state(tmp_path / "w.pt")


def test_openai_files_are_recognised_as_quick_gelu(tmp_path, monkeypatch, capsys):
    """Of two configs with the same shapes, OpenAI's files belong to the one with quick_gelu."""
    from foveate.clip import load as room

    write(tmp_path / "w.pt")
    plain = {key: value for key, value in CONFIG.items() if key != "quick_gelu"}
    statistics = {"mean": [0.5] * 3, "std": [0.5] * 3}
    described = {"Tiny": {"model_cfg": plain, "preprocess_cfg": statistics}}
    described["Tiny-quickgelu"] = {"model_cfg": CONFIG, "preprocess_cfg": statistics}
    monkeypatch.setattr(room, "describe_architecture", described.get)
    monkeypatch.setattr(room.open_clip, "list_models", lambda: list(described))
    found, model = load_module(tmp_path / "w.pt")
    assert found.name == "Tiny-quickgelu" and model.visual.conv1.weight.dtype == torch.float32
    assert "quick_gelu" not in capsys.readouterr().err
    with pytest.raises(InputError, match="OpenAI's files need quick_gelu, which Tiny lacks"):
        load("Tiny", pretrained=tmp_path / "w.pt")
    torch.save(read_state(tmp_path / "w.pt"), tmp_path / "theirs.pt")  # the three numbers tell that it is OpenAI's
    assert load_module(tmp_path / "theirs.pt")[0].name == "Tiny-quickgelu"
    with pytest.raises(InputError, match="OpenAI's files need quick_gelu, which Tiny lacks"):
        load("Tiny", pretrained=tmp_path / "theirs.pt")
    torch.save(read_named(tmp_path / "w.pt"), tmp_path / "bare.pt")
    with pytest.raises(InputError, match=r"several architectures, Tiny, Tiny-quickgelu.*load\('Tiny', pretrained="):
        load(tmp_path / "bare.pt")
    capsys.readouterr()
    load("Tiny", pretrained=tmp_path / "bare.pt")
    assert "would fit Tiny-quickgelu as well, and do not show which activation" in capsys.readouterr().err
    load("Tiny-quickgelu", pretrained=tmp_path / "bare.pt")
    assert "activation" not in capsys.readouterr().err


class Payload:
    """A pickle that touches a file when it is loaded carelessly."""

    def __init__(self, touched):
        self.touched = touched

    def __reduce__(self):
        return os.system, (f"touch {self.touched}",)


def replace(good, bad, change):
    """Copy an archive; `change` maps an entry's name (without the root) and content to its new content, or None."""
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for entry in source.infolist():
            content = change(entry.filename.split("/", 1)[1], source.read(entry))
            if content is not None:
                target.writestr(zipfile.ZipInfo(entry.filename), content)


def refused(path, words="it was not run"):
    with pytest.raises(InputError, match=words):
        read_state(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_payload_is_refused_and_does_not_run(tmp_path, protocol):
    write(tmp_path / "good.pt")
    touched = tmp_path / "touched"
    payload = pickle.dumps(Payload(touched), protocol=protocol)
    pickle.loads(payload)
    assert touched.exists()  # it would have run
    touched.unlink()
    replace(tmp_path / "good.pt", tmp_path / "bad.pt", lambda name, old: payload if name == "data.pkl" else old)
    refused(tmp_path / "bad.pt")
    assert not touched.exists()


def make(path, content, blocks=(("0", bytes(16)),)):
    """An archive with this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/constants.pkl", b"")
        for key, numbers in blocks:
            archive.writestr(f"x/data/{key}", numbers)


def module(attributes: bytes) -> bytes:
    """The pickle of a module whose state is a dictionary made by these opcodes."""
    return b"\x80\x02c__torch__.M\nM\n)\x81}(" + attributes + b"ub."


def word(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def number(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def tensor(*, count=4, offset=0, size=(2, 2), stride=(2, 1), key="0", kind="FloatStorage", module_of_kind="torch"):
    storage = b"(" + word("storage") + f"c{module_of_kind}\n{kind}\n".encode() + word(key) + word("cpu")
    shape = b"".join(b"(" + b"".join(number(n) for n in numbers) + b"t" for numbers in (size, stride))
    rest = b"\x89" + b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(count)
        + b"tQ"
        + number(offset)
        + shape
        + rest
        + b"tR"
    )


def test_a_tensor_with_its_strides_derived_by_hand(tmp_path):
    numbers = torch.arange(4.0).numpy().tobytes()
    make(tmp_path / "w", module(word("weight") + tensor(stride=(1, 2))), [("0", numbers)])
    assert read_state(tmp_path / "w")["weight"].tolist() == [[0, 2], [1, 3]]
    empty = tensor(count=0, size=(0, 3), stride=(3, 1))
    make(tmp_path / "w", module(word("weight") + empty), [("0", b"")])
    assert read_state(tmp_path / "w")["weight"].shape == (0, 3)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"size": (2, 3), "stride": (3, 1)}, "needs 6 numbers; its storage has 4"),
        ({"offset": 1}, "needs 5 numbers"),
        ({"stride": (3, 1)}, "needs 5 numbers"),
        ({"offset": -1}, "offset -1"),
        ({"stride": (-2, 1)}, "stride"),
        ({"stride": (1,)}, "without its size and stride"),
        ({"count": 5}, "has 16 bytes, not 5 numbers"),
        ({"count": 2**30, "size": (2**15, 2**15), "stride": (2**15, 1)}, "has 16 bytes"),
        ({"kind": "DoubleStorage"}, "has 16 bytes"),
        ({"size": (2**30, 2**30), "stride": (0, 0)}, "numbers; its storage has 4"),
        ({"key": "7"}, "x/data/7"),
        ({"key": "../data.pkl"}, r"x/data/\.\./data\.pkl is missing"),
        ({"kind": "QInt8Storage"}, "it has no tensors"),
        ({"kind": "system", "module_of_kind": "os"}, "it has no tensors"),
    ],
)
def test_tensors_with_wrong_sizes_are_refused(tmp_path, wrong, words):
    make(tmp_path / "w", module(word("weight") + tensor(**wrong)))
    refused(tmp_path / "w", words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (module(word("x") + b"cbuiltins\neval\n"), "it has no tensors"),
        (module(word("x") + b"ctorch.jit\nload\n"), "it has no tensors"),
        (module(word("x") + b"ctorch._utils\n_rebuild_tensor_v2\n)R"), "it has no tensors"),
        (module(word("x") + b"ctorch._utils\n_rebuild_tensor_v2\n}b"), "it has no tensors"),  # a state for a function
        (b"\x80\x02K\x01.", "it holds a int"),
        (b"\x80\x02}.", "it holds a dict"),
        (module(word("x") + b"K\x01"), "it has no tensors"),
        (b"\x80\x02c__torch__.M\nM\n)\x81](K\x01eb.", "not a dictionary by name"),
        (b"\x80\x02c__torch__.M\nM\n}b.", "not a dictionary by name"),  # a state for the class itself
        (b"\x80\x02r\xff\xff\xff\x7f.", "."),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "it holds a dict"),  # a memo entry that would take 16 GB
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "it holds <'os.system', not built>"),
        (b"cos\nsystem\n(S'echo'\ntR.", "it holds <'os.system', not built>"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02K\x01K\x02a.", "items for a int"),
        (b"\x80\x02K\x01K\x02K\x03s.", "entries for a int"),
        (b"\x80\x02K\x01)R.", "a call of a int"),
        (b"\x80\x02K\x01Q.", "not a storage"),
        (b"\x80\x022.", "."),
        (b"\x80\x02t.", "."),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "."),
        (b"", "."),
        (b"\x80\x02", "."),
    ],
)
def test_other_pickles_are_refused(tmp_path, content, words):
    make(tmp_path / "w", content)
    refused(tmp_path / "w", f"it was not run .*{words}")


def test_modules_that_are_not_a_tree_are_refused(tmp_path):
    """A module in itself, and 2 ** 60 modules in a few hundred bytes."""
    itself = b"\x80\x02c__torch__.M\nM\n)\x81q\x00}(" + word("me") + b"h\x00ub."
    make(tmp_path / "w", itself)
    refused(tmp_path / "w", "not a tree")
    content = b"\x80\x02c__torch__.M\nM\n)\x81}(" + word("w") + tensor() + b"ubq\x00"
    for _ in range(20):
        content += b"0c__torch__.M\nM\n)\x81}(" + word("a") + b"h\x00" + word("b") + b"h\x00ubq\x00"
    content = content.replace(b"q\x000c", b"q\x00c")  # what is left on the stack does no harm
    make(tmp_path / "w", content + b".")
    refused(tmp_path / "w", "not a tree, or too many")


def test_damaged_archives_are_refused(tmp_path):
    write(tmp_path / "good.pt")
    content = (tmp_path / "good.pt").read_bytes()
    for length in range(1, len(content) - 1, len(content) // 25):
        (tmp_path / "cut.pt").write_bytes(content[:length])
        refused(tmp_path / "cut.pt", "cut.pt")
    flipped = bytearray(content)
    place = content.index(b"data/7") + 200
    flipped[place] ^= 255  # within the numbers of a tensor: the zip's checksum tells
    (tmp_path / "flipped.pt").write_bytes(flipped)
    refused(tmp_path / "flipped.pt")
    replace(tmp_path / "good.pt", tmp_path / "less.pt", lambda name, old: None if name == "data/3" else old)
    refused(tmp_path / "less.pt", "data/3")
    replace(tmp_path / "good.pt", tmp_path / "none.pt", lambda name, old: None if name == "data.pkl" else old)
    refused(tmp_path / "none.pt", "need one data.pkl; got 0")


@pytest.mark.parametrize("form", ["torchscript", "torch"])
def test_a_damaged_zip_directory_is_refused_or_read(tmp_path, form):
    write(tmp_path / "w") if form == "torchscript" else torch.save({"a": torch.ones(2)}, tmp_path / "w")
    content = (tmp_path / "w").read_bytes()
    start = content.index(b"PK\x01\x02")
    for place in range(start, len(content), (len(content) - start) // 150 or 1):
        changed = bytearray(content)
        changed[place] ^= 0xB5
        (tmp_path / "w").write_bytes(changed)
        with suppress(InputError):  # what the change does not concern is still read
            read_state(tmp_path / "w")


def test_compressed_tensors_are_refused_without_reading(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", module(word("w") + tensor(count=2**22)))
        archive.writestr("x/constants.pkl", b"")
        archive.writestr("x/data/0", bytes(2**24))
    assert len(packed.getvalue()) < 2**16
    (tmp_path / "w").write_bytes(packed.getvalue())
    refused(tmp_path / "w", "compressed")
