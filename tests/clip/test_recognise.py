"""Architectures are recognised by names and shapes, the real ones without memory."""

import open_clip
import pytest
import torch

from foveate.clip.io.describe import build_empty, describe_architecture, refusal
from foveate.clip.io.recognise import recognise, stated_sizes, weights_sizes
from foveate.errors import InputError


@pytest.fixture(scope="module")
def described():
    return {name: describe_architecture(name) for name in open_clip.list_models()}


def state_of(name, described):
    return build_empty(described[name], name=name).state_dict()


@pytest.mark.parametrize(
    "name",
    ["EVA02-B-16", "ViT-B-16-SigLIP", "ViT-B-16-SigLIP2-384", "ViT-SO400M-14-SigLIP", "ViT-L-14-CLIPA", "RN50x4"],
)  # fmt: skip
def test_one_architecture_fits(described, name):
    state = state_of(name, described)
    quick = True if name == "RN50x4" else None  # as OpenAI's files are
    found = recognise(state, described, source="w.pt", quick_gelu=quick)
    assert found == (f"{name}-quickgelu" if quick else name)
    state["logit_scale"] = state["logit_scale"].reshape(1)  # a number or a vector of one
    assert recognise(state, described, source="w.pt", quick_gelu=quick) == found


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-H-14", "RN50"])
def test_several_fitting_architectures_are_listed(described, name):
    state = state_of(name, described)
    with pytest.raises(InputError) as caught:
        recognise(state, described, source="w.pt")
    assert f"several architectures, {name}, {name}-quickgelu" in str(caught.value)
    assert f"load('{name}', pretrained=\"w.pt\")" in str(caught.value)
    assert recognise(state, described, source="w.pt", quick_gelu=True) == f"{name}-quickgelu"


def test_if_none_fits_the_message_lists_the_sizes(described):
    state = state_of("ViT-B-16", described)
    odd = {**state, "visual.positional_embedding": torch.empty(10, 768, device="meta")}
    with pytest.raises(InputError) as caught:
        recognise(odd, described, source="w.pt")
    for words in ("width 768, patch 16, layers 12", "vocabulary 49408", "text width 512", "Nearest: ViT-B-16"):
        assert words in str(caught.value), str(caught.value)
    for strange in ({"fc.weight": torch.zeros(1)}, {}):
        with pytest.raises(InputError, match="found nothing of a CLIP"):
            recognise(strange, described, source="w.pt")


def test_sizes_of_weights_equal_those_of_the_config(described):
    for name in ("ViT-L-14-336", "RN101", "ViT-B-32-SigLIP2-256", "EVA02-B-16", "convnext_base"):
        stated = stated_sizes(described[name]["model_cfg"])
        found = weights_sizes(state_of(name, described))
        assert stated and stated.items() <= found.items(), name


def test_every_architecture_of_open_clip_is_accepted_or_refused_with_a_reason(described):
    reasons = {name: refusal(config["model_cfg"]) for name, config in described.items()}
    assert len(reasons) > 140
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    for name, reason in refused.items():
        text = described[name]["model_cfg"]["text_cfg"]
        assert ("downloaded" in reason) == ("hf_model_name" in text) and reason[0].islower(), name
        assert "hf_model_name" in text or name.startswith("coca"), name
    assert len(refused) == 13  # 3 of RoBERTa, 2 of mT5, 4 of NLLB; 4 CoCa, one of which of RoBERTa too
