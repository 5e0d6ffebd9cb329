"""Weights files: what is read, what is refused, and that nothing in them runs."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.models.eva import checkpoint_filter_fn

from foveate.clip.io.layouts import drop_derived, rename_eva
from foveate.clip.io.states import file_kind, mix_states, put_state, read_state
from foveate.errors import InputError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)}


class Payload:
    """A pickle that touches a file when it is loaded carelessly."""

    def __init__(self, touched: Path):
        self.touched = touched

    def __reduce__(self):
        return os.system, (f"touch {self.touched}",)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.bin", "w.index.json", "w"])
def test_weights_are_read_whatever_the_file_name(tmp_path, kind, name):
    if kind == "safetensors":
        save_file(STATE, tmp_path / name)
    else:
        torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=kind == "zip")
    assert file_kind(tmp_path / name) == ("safetensors" if kind == "safetensors" else "torch")
    state = read_state(tmp_path / name)
    assert state.keys() == STATE.keys() and all(torch.equal(state[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("nested", ["state_dict", "model", "module"])
def test_weights_inside_a_training_checkpoint_are_found(tmp_path, nested):
    inner = {f"module.{key}": value for key, value in STATE.items()}
    torch.save({nested: inner, "epoch": 3, "optimizer": {"lr": 1.0}}, tmp_path / "w.pt")
    assert read_state(tmp_path / "w.pt").keys() == STATE.keys()


def test_checkpoints_of_the_public_training_code(tmp_path):
    """What the public training code of CLIPSelf writes: an epoch, a name, the weights, an optimizer and a scaler."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 6, "name": "run", "state_dict": {f"module.visual.{key}": value for key, value in STATE.items()},
        "optimizer": optimizer.state_dict(), "scaler": {"scale": 65536.0, "growth_factor": 2.0},
    }  # fmt: skip
    torch.save(content, tmp_path / "epoch_6.pt")
    assert read_state(tmp_path / "epoch_6.pt").keys() == {f"visual.{key}" for key in STATE}


@pytest.mark.parametrize("form", ["entry", "whole", "nested", "plain", "legacy"])
def test_a_pickle_that_would_run_something_is_refused_and_does_not_run(tmp_path, form):
    touched, path = tmp_path / "touched", tmp_path / "w.pt"
    payload = Payload(touched)
    content = {"entry": {**STATE, "x": payload}, "whole": payload, "nested": {"state_dict": {"x": payload}}}
    if form == "plain":
        path.write_bytes(pickle.dumps({"x": payload}, protocol=2))
    elif form == "legacy":
        torch.save({**STATE, "x": payload}, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(content[form], path)
    with pytest.raises(InputError, match="it was not run"):
        read_state(path)
    assert not touched.exists()


def test_tampering_with_the_pickle_inside_a_good_file_does_not_run(tmp_path):
    touched = tmp_path / "touched"
    torch.save(STATE, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for entry in good.namelist():
            content = pickle.dumps(Payload(touched), protocol=2) if entry.endswith("data.pkl") else good.read(entry)
            bad.writestr(entry, content)
    with pytest.raises(InputError, match="it was not run"):
        read_state(tmp_path / "bad.pt")
    assert not touched.exists()


def test_damaged_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="not found"):
        read_state(tmp_path / "none.pt")
    with pytest.raises(InputError, match="this is a folder"):
        read_state(tmp_path)
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(InputError, match="empty"):
        read_state(tmp_path / "empty.safetensors")
    (tmp_path / "text.safetensors").write_text("hello there, this is not a header")
    with pytest.raises(InputError, match="damaged"):
        read_state(tmp_path / "text.safetensors")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError, match="damaged"):
        read_state(tmp_path / "text.pt")
    torch.save({"a": torch.zeros(1), "b": 3}, tmp_path / "mixed.pt")
    with pytest.raises(InputError, match="first 'b'"):
        read_state(tmp_path / "mixed.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="got a list"):
        read_state(tmp_path / "list.pt")
    torch.save({}, tmp_path / "nothing.pt")
    with pytest.raises(InputError, match="without entries"):
        read_state(tmp_path / "nothing.pt")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_every_truncation_is_refused(tmp_path, kind):
    name = "w.safetensors"
    if kind == "safetensors":
        save_file(STATE, tmp_path / name)
    else:
        torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=kind == "zip")
    content = (tmp_path / name).read_bytes()
    for length in range(0, len(content) - 1, max(1, len(content) // 40)):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(InputError):
            read_state(tmp_path / name)


def test_tensors_that_state_wrong_sizes_are_refused_without_reading(tmp_path):
    header = json.dumps({"weight": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(InputError, match="not a readable safetensors"):
        read_state(tmp_path / "w.safetensors")
    torch.save({"weight": torch.zeros(1).expand(10**6, 10**6), "bias": torch.zeros(2)}, tmp_path / "w.pt")
    assert (tmp_path / "w.pt").stat().st_size < 5000
    with pytest.raises(InputError, match="a tensor of 1,000,000,000,000 numbers; its storage has 1"):
        read_state(tmp_path / "w.pt")


def test_mixing_derived_by_hand():
    student = {"w": torch.tensor([2.0, 4.0]), "half": torch.tensor([1.0], dtype=torch.bfloat16), "n": torch.tensor(5)}
    teacher = {"w": torch.tensor([0.0, 8.0]), "half": torch.tensor([3.0], dtype=torch.bfloat16), "n": torch.tensor(9)}
    mixed = mix_states(student, teacher, alpha=0.75)
    assert mixed["w"].tolist() == [1.5, 5.0]  # .75 * 2 + .25 * 0, .75 * 4 + .25 * 8
    assert mixed["half"].dtype == torch.bfloat16 and mixed["half"].item() == 1.5
    assert mixed["n"].item() == 5
    for alpha, wanted in ((1.0, student), (0.0, teacher)):
        assert torch.equal(mix_states(student, teacher, alpha=alpha)["w"], wanted["w"])


def test_mixed_weights_share_no_memory():
    student = {"w": torch.ones(2), "n": torch.tensor([5])}
    mixed = mix_states(student, {"w": torch.zeros(2), "n": torch.tensor([9])}, alpha=1.0)
    mixed["w"].zero_(), mixed["n"].zero_()
    assert student["w"].sum() == 2 and student["n"].item() == 5


def test_mixing_refuses_other_names_and_shapes():
    with pytest.raises(InputError, match=r"1 missing \(b\)"):
        mix_states({"a": torch.zeros(1)}, {"a": torch.zeros(1), "b": torch.zeros(1)}, alpha=0.5)
    with pytest.raises(InputError, match="another shape"):
        mix_states({"a": torch.zeros(2)}, {"a": torch.zeros(1)}, alpha=0.5)
    with pytest.raises(InputError, match=r"in \[0, 1\].*1.5"):
        mix_states({}, {}, alpha=1.5)


def test_put_state_loads_all_weights_or_none():
    model = torch.nn.Linear(3, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wrong = [
        ({"weight": torch.zeros(2, 3)}, r"1 missing \(bias\)"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, r"weight is \(2, 4\) instead of \(2, 3\)"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "z": torch.zeros(1)}, r"1 extra \(z\)"),
        ({"weight": torch.zeros(2, 3), "bias": torch.tensor([0.0, float("nan")])}, "1 of 2 tensors hold NaN"),
    ]
    for state, words in wrong:
        with pytest.raises(InputError, match=words) as caught:
            put_state(model, state, source="file.pt", name="linear")
        assert "file.pt" in str(caught.value)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    put_state(model, {"weight": torch.ones(2, 3).half(), "bias": torch.ones(2)}, source="f", name="n")
    assert model.weight.dtype == torch.float32 and model.weight.sum() == 6


@pytest.mark.parametrize(
    "odd",
    [
        torch.eye(3).to_sparse(),
        torch.ones(2, 3, dtype=torch.complex64),
        torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.quint8),
    ],
    ids=["sparse", "complex", "quantised"],
)
def test_complex_and_broken_tensors_are_refused(tmp_path, odd):
    torch.save({"weight": odd, "bias": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"first 'weight'"):
        read_state(tmp_path / "w.pt")


def test_integers_are_refused_as_weights():
    with pytest.raises(InputError, match=r"have another dtype, first weight: torch.int64 instead of torch.float32"):
        put_state(
            torch.nn.Linear(3, 2),
            {"weight": torch.ones(2, 3, dtype=torch.int64), "bias": torch.ones(2)},
            source="f",
            name="n",
        )


def test_long_lists_of_names_are_truncated_and_counted():
    state = {f"layer{i}": torch.zeros(1) for i in range(23)}
    with pytest.raises(InputError, match=r"23 extra \(layer0, layer1, .*, layer19 and 3 more\)"):
        put_state(torch.nn.Linear(1, 1), {**torch.nn.Linear(1, 1).state_dict(), **state}, source="f", name="n")


def test_eva_names_agree_with_timm(make_clip):
    model = make_clip("eva").model
    original = {"visual.rope.freqs_cos": torch.zeros(3), "visual.blocks.0.attn.rope.freqs_sin": torch.zeros(3)}
    original |= {"text.attn_mask": torch.zeros(3, 3)}
    back = [("q_proj.bias", "q_bias"), ("v_proj.bias", "v_bias"), ("attn.norm.", "attn.inner_attn_ln.")]
    back += [("fc1_g.", "w1."), ("fc1_x.", "w2."), ("fc2.", "w3."), ("mlp.norm.", "mlp.ffn_ln.")]
    for key, value in model.state_dict().items():
        if key.startswith("visual.trunk."):
            key = key.replace("visual.trunk.", "visual.")
            for ours, theirs in back:
                key = key.replace(ours, theirs)
        original[key] = value
    original = drop_derived(original)
    renamed = rename_eva(original)
    assert renamed.keys() == model.state_dict().keys()
    for key, value in checkpoint_filter_fn(original, model.visual.trunk).items():
        assert torch.equal(renamed[f"visual.trunk.{key}"], value), key
    assert rename_eva(STATE) is STATE


def test_wrong_header_lengths_are_refused(tmp_path):
    for length in (2**62, 2**26, 10**8):
        (tmp_path / "w").write_bytes(length.to_bytes(8, "little") + b'{"a":1}')
        with pytest.raises(InputError, match="not a readable safetensors"):
            read_state(tmp_path / "w")


def test_a_git_lfs_pointer_is_explained(tmp_path):
    (tmp_path / "w").write_text("version https://git-lfs.example/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(InputError, match="git lfs pull"):
        read_state(tmp_path / "w")


def test_shards_are_joined(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    torch.save({"b": torch.zeros(3)}, tmp_path / "two.bin")
    index = {"metadata": {"total_size": 20}, "weight_map": {"a": "one.safetensors", "b": "two.bin"}}
    (tmp_path / "index").write_text(json.dumps(index, indent=2))
    state = read_state(tmp_path / "index")
    assert state["a"].tolist() == [1, 1] and state["b"].tolist() == [0, 0, 0]
    (tmp_path / "index").write_text(json.dumps(index, separators=(",", ":")))
    assert file_kind(tmp_path / "index") == "index" and read_state(tmp_path / "index").keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {"a": "none.safetensors"}}, "1 of 1 files are missing: none.safetensors"),
        ({"weight_map": {"a": "../outside"}}, r"files in its folder; it names '\.\./outside'"),
        ({"weight_map": {"a": "{outside}"}}, "files in its folder"),
        ({"weight_map": {"a": ".."}}, "files in its folder"),
        ({"weight_map": {"a": ""}}, "files in its folder"),
        ({"weight_map": {"a": "index"}}, "this is an index too"),
        ({"weight_map": {"a": 3}}, 'need a "weight_map"'),
        ({"weight_map": {}}, 'need a "weight_map"'),
        ({"a": 1}, 'need a "weight_map"'),
        ({"weight_map": {"a": "one", "b": "one"}}, "1 tensors are not in its files: b"),
        ({"weight_map": {"a": "payload"}}, "it was not run"),
        ({"weight_map": {"a": "list"}}, "need a dictionary of tensors; got a list"),
    ],
)
def test_an_index_with_invalid_files_is_refused(tmp_path, index, words):
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "outside")
    save_file({"a": torch.ones(2)}, folder / "one")
    torch.save({"a": Payload(tmp_path / "touched")}, folder / "payload")
    torch.save([torch.ones(2)], folder / "list")
    (folder / "index").write_text(json.dumps(index).replace("{outside}", str(tmp_path / "outside")))
    with pytest.raises(InputError, match=words):
        read_state(folder / "index")
    assert not (tmp_path / "touched").exists()


def test_a_broken_index_is_refused(tmp_path):
    (tmp_path / "w").write_text('{"weight_map": {"a": ')
    with pytest.raises(InputError, match="the index of a sharded model"):
        read_state(tmp_path / "w")


def test_missing_and_extra_weights_can_be_allowed_and_are_printed(capsys):
    model = torch.nn.Linear(3, 2)
    bias = model.bias.detach().clone()
    settings = {"source": "file.pt", "name": "linear"}
    with pytest.raises(InputError, match="or pass allow_missing=True and allow_extra=True"):
        put_state(model, {"weight": torch.ones(2, 3), "z": torch.zeros(1)}, **settings)
    with pytest.raises(InputError, match=r"1 extra \(z\)\..* or pass allow_extra=True\."):
        put_state(model, {"weight": torch.ones(2, 3), "z": torch.zeros(1)}, **settings, allow_missing=True)
    assert capsys.readouterr().err == ""
    odd = torch.full((1,), float("nan"))  # what is passed over need not be finite
    put_state(model, {"weight": torch.ones(2, 3), "z": odd}, **settings, allow_missing=True, allow_extra=True)
    assert capsys.readouterr().err == "file.pt: as allowed, 1 missing (bias); 1 extra (z).\n"
    assert model.weight.sum() == 6 and torch.equal(model.bias, bias)
    allowed = {"allow_missing": True, "allow_extra": True}
    with pytest.raises(InputError, match=r"weight is \(2, 4\)"):  # another shape is never allowed
        put_state(model, {"weight": torch.ones(2, 4)}, **settings, **allowed)
    with pytest.raises(InputError, match="2 missing"):  # nor is nothing at all
        put_state(model, {"z": torch.ones(2)}, **settings, **allowed)
