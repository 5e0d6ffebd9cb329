"""Padding: black by default, stored in a product, used by every evaluation, and overridden by --pad."""

import json
from copy import deepcopy

import pytest
import torch

from foveate.clip.io.weights import save_clip
from foveate.clip.load import load
from foveate.data.sources import open_data
from foveate.errors import InputError
from foveate.evaluate.commands.clip import run_regions
from foveate.evaluate.flags import Regions
from foveate.evaluate.regions import evaluate_regions
from foveate.evaluate.report import load_model
from foveate.ops.resample import square_input


def test_black_padding_is_applied_before_the_normalisation():
    image = torch.full((3, 2, 4), 255, dtype=torch.uint8)
    statistics = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.4, 0.3)}
    assert square_input(image, size=4, **statistics)[:, 3, 0].tolist() == [-1, -1, -1]  # (0 - mean) / std
    assert square_input(image, size=4, pad="zero", **statistics)[:, 3, 0].tolist() == [0, 0, 0]


def test_a_saved_model_stores_its_padding_and_opens_in_open_clip(clip, tmp_path):
    import open_clip

    clip = deepcopy(clip)  # shared by all tests
    clip.pad = "zero"
    save_clip(clip, tmp_path / "zero")
    clip.pad = "black"
    save_clip(clip, tmp_path / "black")
    assert load(tmp_path / "zero").pad == "zero" and load(tmp_path / "black").pad == "black"
    assert load("foveate-small").pad == "black", "a CLIP that does not say is padded black"
    assert load_model(str(tmp_path / "zero"), None, "cpu", pad="black").pad == "black", "the flag wins"
    open_clip.create_model(f"local-dir:{tmp_path / 'zero'}")
    content = json.loads((tmp_path / "zero" / "open_clip_config.json").read_text())
    content["foveate"]["pad"] = "white"
    (tmp_path / "zero" / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="black, zero; got 'white'"):
        load(tmp_path / "zero")


def test_evaluation_uses_the_models_padding(clip, coco, tmp_path):
    clip, dataset = deepcopy(clip), open_data(coco, split="val", annotations="panoptic")
    results = {}
    for pad in ("black", "zero"):
        clip.pad = pad
        results[pad] = evaluate_regions(clip, dataset, sizes=[64], crops=False)
        assert results[pad]["pad"] == pad
    assert results["black"]["dense"] != results["zero"]["dense"]
    save_clip(clip, tmp_path / "clip")  # zero
    common = {"data": coco, "model": str(tmp_path / "clip"), "size": (64,), "crops": False, "workers": 0}
    assert run_regions(Regions(**common))["dense"] == results["zero"]["dense"]
    assert run_regions(Regions(**common, pad="black"))["dense"] == results["black"]["dense"]
