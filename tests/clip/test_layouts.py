"""Every layout in which CLIPs are published opens, the same weights to the bit; what is refused says what to do."""

import argparse
import collections
import datetime
import functools
import json
import pathlib
import zipfile

import numpy as np
import pytest
import torch
from hostile import FORMS, MARK, plant

import foveate
from foveate.cli.main import main
from foveate.clip.io.states import read_state
from foveate.clip.io.weights import save_clip, save_huggingface
from foveate.errors import InputError


@pytest.fixture(scope="module")
def weights():
    return foveate.load("foveate-small").model.state_dict()


@pytest.fixture(scope="module")
def beside():
    """The content of a training checkpoint with mixed precision and a cosine schedule in numpy."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW(
        [{"params": [parameter], "weight_decay": np.float64(0.1)}], lr=1e-5, betas=(0.9, 0.98)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(parameter.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    for group in optimizer.param_groups:
        group["lr"] = 0.5 * (1 + np.cos(np.pi * 0.4)) * 1e-5
    assert type(optimizer.param_groups[0]["lr"]) is np.float64
    return {
        "epoch": 6, "name": "run", "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
        "args": argparse.Namespace(lr=np.float32(1e-5), logs=pathlib.Path("logs"), precision="amp"),
        "best": np.float64(0.5), "history": np.arange(4.0), "seen": np.int64(7), "random": np.random.get_state(),
        "generator": torch.get_rng_state(), "at": datetime.datetime(2024, 1, 16), "took": datetime.timedelta(1),
        "metrics": collections.defaultdict(list, top1=[np.float64(1.0)]), "schedule": functools.partial(max, 0.0),
    }  # fmt: skip


def as_numpy_1(path):
    """Use the module name of numpy 1.x."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    key = next(entry for entry in entries if entry.endswith("/data.pkl"))
    assert b"cnumpy._core.multiarray\nscalar\n" in entries[key]
    entries[key] = entries[key].replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(zipfile.ZipInfo(entry), content)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


LAYOUTS = {
    "bare": lambda state, beside: state,
    "open_clip": lambda state, beside: {**beside, "state_dict": state},
    "open_clip, data parallel": lambda state, beside: {**beside, "state_dict": prefixed(state, "module.")},
    "model and args": lambda state, beside: {"model": state, "args": beside["args"]},
    "model_state_dict": lambda state, beside: {"model_state_dict": state, "epoch": 1},
    "compiled": lambda state, beside: {**beside, "state_dict": prefixed(state, "_orig_mod.")},
    "compiled, parallel": lambda state, beside: {"state_dict": prefixed(state, "module._orig_mod.")},
    "parallel, compiled": lambda state, beside: {"state_dict": prefixed(state, "_orig_mod.module.")},
    "wrapped": lambda state, beside: {"state_dict": prefixed(state, "model."), "optimizer": beside["optimizer"]},
    "DeepSpeed": lambda state, beside: {"module": prefixed(state, "module."), "optimizer": beside["optimizer"]},
    "twice": lambda state, beside: {"model": {"state_dict": state}},
    "scale of the text tower": lambda state, beside: {
        "text.logit_scale" if key == "logit_scale" else key: value for key, value in state.items()
    },
    "scale twice": lambda state, beside: {**state, "text.logit_scale": state["logit_scale"]},
    "text.": lambda state, beside: {
        key if key.startswith("visual.") else f"text.{key}": value for key, value in state.items()
    },
    "with tables": lambda state, beside: {**state, "attn_mask": torch.zeros(32, 32)},
}


FORMS_OF_LAYOUTS = [(layout, form) for layout in LAYOUTS for form in ("numpy 2", "legacy")]
FORMS_OF_LAYOUTS += [(layout, "numpy 1") for layout in ("open_clip", "open_clip, data parallel", "compiled")]


@pytest.mark.parametrize(("layout", "form"), FORMS_OF_LAYOUTS)
def test_a_training_checkpoint_opens(tmp_path, weights, beside, layout, form):
    content = LAYOUTS[layout](weights, beside)
    path = tmp_path / "epoch_6.pt"
    torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    if form == "numpy 1":
        as_numpy_1(path)
    found = foveate.load(path)
    assert found.name == "foveate-small"
    state = found.model.state_dict()
    assert state.keys() == weights.keys() and all(torch.equal(state[key], value) for key, value in weights.items())
    if form != "legacy":
        named = foveate.load("foveate-small", pretrained=path).model.state_dict()
        assert all(torch.equal(named[key], value) for key, value in weights.items())


WRAPPED = {
    "compiled tower": lambda state, beside: {
        key.replace("visual.", "visual._orig_mod.").replace("ln_1.", "_checkpoint_wrapped_module.ln_1."): value
        for key, value in state.items()
    },
    "averaged": lambda state, beside: {**prefixed(state, "module."), "n_averaged": torch.tensor(3)},
    "average": lambda state, beside: {"ema": state, "epoch": 1},
    "student": lambda state, beside: {"state_dict": prefixed(state, "student.")},
    "student and teacher": lambda state, beside: {"student": state, "teacher": prefixed(state, "teacher.")},
}


@pytest.mark.parametrize("layout", WRAPPED)
def test_wrappers_in_names_and_keys_of_averages_are_removed(tmp_path, weights, beside, layout):
    torch.save(WRAPPED[layout](weights, beside), tmp_path / "w.pt")
    state = read_state(tmp_path / "w.pt")
    assert state.keys() == weights.keys() and torch.equal(state["logit_scale"], weights["logit_scale"])


def test_ignored_keys_of_a_checkpoint_are_printed(tmp_path, weights, beside, capsys):
    torch.save({**beside, "state_dict": weights}, tmp_path / "w.pt")
    read_state(tmp_path / "w.pt")
    told = capsys.readouterr().err
    assert f"{tmp_path / 'w.pt'}: weights are read from 'state_dict'; ignored: 'epoch', 'name', 'optimizer'" in told


@pytest.mark.parametrize("form", FORMS)
def test_a_payload_in_a_checkpoint_never_runs(tmp_path, weights, form):
    path, touched = tmp_path / "w.pt", tmp_path / "touched"
    state = {key: value for key, value in weights.items() if "resblocks.0" in key}
    torch.save({"state_dict": state, "args": MARK}, path)
    plant(path, form, touched)
    if form in ("extension", "persistent"):
        with pytest.raises(InputError, match="it was not run"):
            read_state(path)
    else:
        assert read_state(path).keys() == state.keys()
    for content in ({"state_dict": {**state, "x": MARK}}, {**state, "x": MARK}, {"state_dict": MARK}, MARK):
        torch.save(content, path)
        plant(path, form, touched)
        with pytest.raises(InputError):
            read_state(path)
    torch.save({"b": torch.ones(2), "x": MARK}, path)
    plant(path, form, touched)
    (tmp_path / "index").write_text(json.dumps({"weight_map": {"b": "w.pt"}}))
    with pytest.raises(InputError):
        foveate.load(tmp_path / "index")
    assert not touched.exists()


def as_eva_clip(state):
    """Rename an EVA tower to EVA-CLIP's names, with the tables of its files."""
    back = [("q_proj.bias", "q_bias"), ("v_proj.bias", "v_bias"), ("attn.norm.", "attn.inner_attn_ln.")]
    back += [("fc1_g.", "w1."), ("fc1_x.", "w2."), ("fc2.", "w3."), ("mlp.norm.", "mlp.ffn_ln.")]
    theirs = {"visual.rope.freqs_cos": torch.zeros(3), "visual.blocks.0.attn.rope.freqs_sin": torch.zeros(3)}
    for key, value in state.items():
        if key.startswith("visual.trunk."):
            key = key.replace("visual.trunk.", "visual.")
            for ours, old in back:
                key = key.replace(ours, old)
        theirs[key] = value
    return theirs


@pytest.mark.parametrize("family", ["vit", "eva"])
@pytest.mark.parametrize("layout", ["backbone.visual.", "visual.", "", "module.visual."])
def test_an_image_tower_gets_the_text_tower_of_another_clip(make_clip, tmp_path, capsys, family, layout):
    """In a detector of F-ViT, and alone; the text tower is that of the CLIP it was trained with."""
    trained, before = make_clip(family, seed=1), make_clip(family, seed=2)
    save_clip(before, tmp_path / "before")
    state = trained.model.state_dict()
    state = as_eva_clip(state) if family == "eva" else state
    tower = {layout + key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    if layout == "backbone.visual.":
        tower |= {"neck.fpn_convs.0.conv.weight": torch.zeros(2), "roi_head.bbox_head.fc_cls.bias": torch.zeros(1)}
    torch.save(
        {"state_dict": tower, "meta": {"epoch": 3}, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "w"
    )
    with pytest.raises(InputError, match=r"only an image tower, .*text_from=CLIP\), foveate convert FILE OUT --text-"):
        foveate.load(tmp_path / "w")
    with pytest.raises(InputError, match="only an image tower"):
        foveate.load(tmp_path / "before", pretrained=tmp_path / "w")
    capsys.readouterr()
    clip = foveate.load(tmp_path / "w", text_from=tmp_path / "before")
    told = capsys.readouterr().err
    if layout == "backbone.visual.":
        assert "the other 2 are ignored (neck, roi_head)" in told
    for key, value in clip.model.state_dict().items():
        whose = trained if key.startswith("visual.") else before
        assert torch.equal(value, whose.model.state_dict()[key]), key
    again = foveate.load(tmp_path / "before", pretrained=tmp_path / "w", text_from=tmp_path / "before")
    assert all(torch.equal(again.model.state_dict()[k], v) for k, v in clip.model.state_dict().items())
    main(
        [
            "convert",
            str(tmp_path / "w"),
            str(tmp_path / "out"),
            "--to",
            "foveate",
            "--text-from",
            str(tmp_path / "before"),
        ]
    )
    written = foveate.load(tmp_path / "out").model.state_dict()
    assert all(torch.equal(written[key], value) for key, value in clip.model.state_dict().items())


def test_a_text_tower_is_not_replaced_silently(make_clip, tmp_path):
    save_clip(make_clip("vit", seed=1), tmp_path / "one")
    save_clip(make_clip("vit", seed=2), tmp_path / "two")
    with pytest.raises(InputError, match=r"has its own, \d+ tensors.*without text_from"):
        foveate.load(tmp_path / "one", text_from=tmp_path / "two")
    with pytest.raises(InputError, match=r"ViT-B-32 names an architecture\. Give a file of it"):
        foveate.load(tmp_path / "one", text_from="ViT-B-32")
    with pytest.raises(InputError, match="not found"):
        foveate.load(tmp_path / "none", text_from=tmp_path / "two")


@pytest.mark.parametrize("projected", [True, False])
def test_clip_image_towers_of_transformers(make_clip, tmp_path, projected):
    transformers = pytest.importorskip("transformers")
    whole, out = make_clip("vit-quickgelu"), tmp_path / "tower"
    save_huggingface(whole, tmp_path / "hf")
    kind = transformers.CLIPVisionModelWithProjection if projected else transformers.CLIPVisionModel
    kind.from_pretrained(tmp_path / "hf").save_pretrained(out)
    with pytest.raises(InputError, match=r"got 'clip_vision_model'. This is an image tower alone.*--text-from CLIP"):
        foveate.load(out)
    if not projected:
        with pytest.raises(InputError, match=r"1 missing \(visual\.proj\)"):
            foveate.load(out, text_from=tmp_path / "hf")
        return
    clip = foveate.load(out, text_from=tmp_path / "hf")
    assert all(torch.equal(clip.model.state_dict()[k], v) for k, v in whole.model.state_dict().items())
    save_clip(make_clip("vit"), tmp_path / "gelu")
    with pytest.raises(InputError, match="this image tower has quick_gelu, the CLIP another"):
        foveate.load(out, text_from=tmp_path / "gelu")
    with pytest.raises(InputError, match=r"need an image tower alone.*got 'clip'"):
        foveate.load(tmp_path / "hf", text_from=tmp_path / "gelu")


def test_siglip_image_towers_of_transformers(make_clip, tmp_path):
    transformers = pytest.importorskip("transformers")
    whole = make_clip("siglip")
    save_clip(whole, tmp_path / "whole")
    save_huggingface(whole, tmp_path / "hf")
    transformers.SiglipVisionModel.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "tower")
    with pytest.raises(InputError, match=r"got 'siglip_vision_model'\. This is an image tower alone.*--text-from CLIP"):
        foveate.load(tmp_path / "tower")
    clip = foveate.load(tmp_path / "tower", text_from=tmp_path / "whole")
    assert all(torch.equal(clip.model.state_dict()[k], v) for k, v in whole.model.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "siglip2",
            "SigLIP 2 NaFlex, whose image tower is not supported.*siglip2-base-patch16-256",
        ),
        ("clip_text_model", "its image tower is missing"),
        ("blip", "of another model"),
        (None, "got None"),
    ],
)
def test_other_models_of_transformers_are_refused_with_a_reason(tmp_path, kind, words):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(InputError, match=words):
        foveate.load(tmp_path)


def test_refused_files_are_described_with_a_remedy(tmp_path, weights):
    torch.save({"weights": weights, "epoch": 1, "ema": weights}, tmp_path / "w.pt")
    with pytest.raises(InputError) as caught:
        foveate.load(tmp_path / "w.pt")
    for words in ("under state_dict, model, module, model_state_dict", "begins with 'weights', 'epoch', 'ema'", "Save"):
        assert words in str(caught.value), caught.value
    torch.save({"state_dict": {f"net.{key}": value for key, value in weights.items()}}, tmp_path / "w.pt")
    with pytest.raises(InputError) as caught:
        foveate.load(tmp_path / "w.pt")
    for words in ("begin with 'net.positional_embedding'", "expected are 'logit_scale'", "--model NAME"):
        assert words in str(caught.value), caught.value
    torch.save(torch.nn.Linear(2, 1), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"got 'torch.nn.modules.linear.Linear'; it was not run.*state_dict\(\)"):
        foveate.load(tmp_path / "w.pt")
    torch.save({"model": torch.nn.Linear(2, 1), "epoch": 1}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"first 'model' \('torch.nn.modules.linear.Linear'; it was not run"):
        foveate.load(tmp_path / "w.pt")


def test_two_different_scales_are_refused(tmp_path, weights):
    torch.save({**weights, "text.logit_scale": torch.tensor(1.0)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"1 extra \(text.logit_scale\)|fit no architecture"):
        foveate.load("foveate-small", pretrained=tmp_path / "w.pt")
