"""Every way of naming a CLIP, and every way of naming the wrong thing."""

import json
import math

import pytest
import torch

from saccade.clip.load import CONFIG_FILE, WEIGHTS_FILE, build, load
from saccade.clip.weights import save_clip
from saccade.types import InputError


def test_random_numbers_come_from_the_seed():
    config = {
        "embed_dim": 8,
        "vision_cfg": {"layers": 1, "width": 8, "head_width": 8, "patch_size": 8, "image_size": 16},
    }
    config["text_cfg"] = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two = (build({"model_cfg": config}, name="tiny", seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(before, torch.random.get_rng_state())  # the global generator is left alone
    other = build({"model_cfg": config}, name="tiny", seed=4).state_dict()
    assert not torch.equal(one["visual.conv1.weight"], other["visual.conv1.weight"])


def test_an_architecture_without_weights_says_that_it_is_random(capsys):
    clip = load("ViT-S-32-alt", seed=0)
    assert "RANDOM" in capsys.readouterr().err
    assert clip.native_size == 224 and math.isclose(clip.mean[0], 0.48145466)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("EVA02-B-61", ["EVA02-B-61", "EVA02-B-16"]),
        ("vit-b-16", ["ViT-B-16"]),
        ("sacade-small", ["saccade-small"]),
        ("/no/such/folder", ["/no/such/folder", "folder"]),
        ("coca_ViT-B-32", ["CoCa"]),
        ("roberta-ViT-B-32", ["Hugging Face"]),
    ],
)
def test_names_that_cannot_be_loaded(name, words):
    with pytest.raises(InputError) as caught:
        load(name)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_weights_of_another_architecture_are_listed(make_clip, tmp_path):
    save_clip(make_clip("vit"), tmp_path / "vit")
    save_clip(make_clip("eva"), tmp_path / "eva")
    with pytest.raises(InputError) as caught:
        load(str(tmp_path / "vit"), pretrained=tmp_path / "eva" / WEIGHTS_FILE)
    assert all(word in str(caught.value) for word in ["missing", "extra", "visual.class_embedding", str(tmp_path)])


def test_pretrained_replaces_the_weights_of_a_folder(make_clip, tmp_path):
    save_clip(make_clip("vit", seed=1), tmp_path / "one")
    save_clip(make_clip("vit", seed=2), tmp_path / "two")
    two = load(str(tmp_path / "two")).model.state_dict()
    for source in (tmp_path / "two" / WEIGHTS_FILE, tmp_path / "two"):
        replaced = load(str(tmp_path / "one"), pretrained=source).model.state_dict()
        assert all(torch.equal(replaced[key], value) for key, value in two.items())


def test_tags_are_checked_before_anything_is_fetched():
    with pytest.raises(InputError, match=r"neither a file nor a tag of ViT-B-16\. Tags: .*laion400m_e31"):
        load("ViT-B-16", pretrained="laion400m_e99")
    with pytest.raises(InputError, match="use the model 'ViT-B-16-quickgelu'"):
        load("ViT-B-16", pretrained="dfn2b")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not json", "could not read"),
        ("[]", "need model_cfg"),
        ('{"model_cfg": {"embed_dim": 8}}', "vision_cfg"),
        ('{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}, "preprocess_cfg": [1]}', "must be a dictionary"),
        ('{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}, "preprocess_cfg": {"mean": "abc"}}', "mean must be three"),
        (
            '{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}, "preprocess_cfg": {"mean": [0.5, 0.5]}}',
            "mean must be three",
        ),
        (
            '{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}, "preprocess_cfg": {"std": [1, 0, 1]}}',
            "std must be three",
        ),
        ('{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}', "can build"),
        ('{"model_cfg": {"embed_dim": 8, "vision_cfg": {"head_width": 0}, "text_cfg": {}}}', "can build"),
    ],
)
def test_a_broken_description_is_refused(tmp_path, content, words):
    (tmp_path / CONFIG_FILE).write_text(content)
    with pytest.raises(InputError, match=words):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("vision_cfg", {"timm_model_name": "hf-hub:someone/something"}, "would be fetched"),
        ("text_cfg", {"hf_model_name": "someone/something"}, "would be fetched"),
        ("text_cfg", {"tokenizer_kwargs": {"trust_remote_code": True}}, "trust_remote_code"),
        ("vision_cfg", {"_target_": "os.system"}, "cannot|can build"),
    ],
)
def test_names_in_a_description_are_neither_fetched_nor_imported(make_clip, tmp_path, kind, change, words):
    save_clip(make_clip("vit"), tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    config["model_cfg"][kind].update(change)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(InputError, match=words):
        load(str(tmp_path))


def test_a_folder_without_weights_is_refused(make_clip, tmp_path):
    save_clip(make_clip("vit"), tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(InputError, match=WEIGHTS_FILE):
        load(str(tmp_path))


def test_a_tokenizer_is_looked_for_in_the_folder_whatever_name_a_description_gives(make_clip, tmp_path):
    save_clip(make_clip("vit"), tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "someone/something"
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    clip = load(str(tmp_path))
    assert clip.config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == str(tmp_path)
    with pytest.raises(InputError, match="tokenizer"):
        clip.tokenize(["a cat"])
