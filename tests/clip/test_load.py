"""Loading by every kind of name, and the refusal of wrong ones."""

import json
import math
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch

from foveate.clip.io.describe import CONFIG_FILE, build
from foveate.clip.io.weights import WEIGHTS_FILE, save_clip
from foveate.clip.load import load, split_weights
from foveate.errors import InputError


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


def test_random_weights_are_reported(capsys):
    clip = load("ViT-S-32-alt", seed=0)
    assert "RANDOM" in capsys.readouterr().err
    assert clip.native_size == 224 and math.isclose(clip.mean[0], 0.48145466)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ViT-B-16:openai", ("ViT-B-16", "openai")),
        ("ViT-B-16:/a/b:c.pt", ("ViT-B-16", "/a/b:c.pt")),
        ("ViT-B-16", ("ViT-B-16", None)),
        ("ViT-B-16:", ("ViT-B-16:", None)),
        ("foveate-small", ("foveate-small", None)),
        ("hf-hub:org/name", ("hf-hub:org/name", None)),
        ("local-dir:runs/model", ("local-dir:runs/model", None)),
        ("C:/runs/model", ("C:/runs/model", None)),
        ("runs:1/model", ("runs:1/model", None)),
    ],
)
def test_an_architecture_may_name_its_weights(name, parts):
    assert split_weights(name) == parts


def test_weights_named_twice_must_be_the_same():
    with pytest.raises(InputError, match="ViT-B-16:openai includes its weights; got pretrained other too"):
        load("ViT-B-16:openai", "other")
    with pytest.raises(InputError, match="'nosuch' is neither a file nor a tag of ViT-B-16"):
        load("ViT-B-16:nosuch")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("EVA02-B-61", ["EVA02-B-61", "EVA02-B-16"]),
        ("vit-b-16", ["ViT-B-16"]),
        ("sacade-small", ["foveate-small"]),
        ("/no/such/folder", ["/no/such/folder", "folder"]),
        ("openai/clip-vit-base-patch16", ["Write hf-hub:openai/clip-vit-base-patch16 if"]),
        ("https://huggingface.co/timm/ViT-B-16-SigLIP", ["Write hf-hub:timm/ViT-B-16-SigLIP if"]),
        ("coca_ViT-B-32", ["CoCa"]),
        ("roberta-ViT-B-32", ["Hugging Face"]),
    ],
)
def test_unknown_names_are_refused(name, words):
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


def test_tags_are_checked_before_a_download():
    with pytest.raises(InputError, match=r"neither a file nor a tag of ViT-B-16\. Tags: .*laion400m_e31"):
        load("ViT-B-16", pretrained="laion400m_e99")
    with pytest.raises(InputError, match="use the model 'ViT-B-16-quickgelu'"):
        load("ViT-B-16", pretrained="dfn2b")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not json", "could not read"),
        ("[]", "a dictionary; got a list"),
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
def test_a_broken_config_is_refused(tmp_path, content, words):
    (tmp_path / CONFIG_FILE).write_text(content)
    with pytest.raises(InputError, match=words):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("vision_cfg", {"timm_model_name": "hf-hub:someone/something"}, "would be downloaded"),
        ("text_cfg", {"hf_model_name": "someone/something"}, "would be downloaded"),
        ("text_cfg", {"tokenizer_kwargs": {"trust_remote_code": True}}, "trust_remote_code"),
        ("text_cfg", {"tokenizer_kwargs": [1]}, "settings that are not open_clip's"),
        ("vision_cfg", {"layers": [1, 2]}, "can build"),
        ("vision_cfg", {"_target_": "os.system"}, "cannot|can build"),
    ],
)
def test_names_in_a_config_are_neither_downloaded_nor_imported(make_clip, tmp_path, kind, change, words):
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


def test_the_name_of_a_published_tokenizer_is_saved_and_a_relative_folder_is_not(make_clip, tmp_path, monkeypatch):
    clip = make_clip("siglip")
    clip.config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "timm/ViT-B-16-SigLIP"
    save_clip(clip, tmp_path / "org" / "name")
    again = load(tmp_path / "org" / "name")
    assert again.config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "timm/ViT-B-16-SigLIP"

    class Fetched:
        def save_pretrained(self, folder):
            (Path(folder) / "tokenizer.json").write_text("{}")

    vars(clip)["tokenizer"] = Fetched()  # by now a text was asked for
    save_clip(clip, tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    again = load("org/name")
    assert again.config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == str(tmp_path / "org" / "name")
    monkeypatch.chdir("/")
    with pytest.raises(InputError, match=r"its tokenizer .*org/name.* could not be loaded"):
        again.tokenize(["a cat"])  # from the folder, not from a hub's org/name


def test_a_tokenizer_name_in_a_config_is_replaced_by_its_folder(make_clip, tmp_path):
    save_clip(make_clip("vit"), tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "someone/something"
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    clip = load(str(tmp_path))
    assert clip.config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == str(tmp_path)
    with pytest.raises(InputError, match="tokenizer"):
        clip.tokenize(["a cat"])


def test_local_dir_prefix_and_paths(make_clip, tmp_path):
    save_clip(make_clip("vit"), tmp_path / "m")
    for name in (f"local-dir:{tmp_path / 'm'}", tmp_path / "m", tmp_path / "m" / WEIGHTS_FILE):
        clip = load(name)
        assert clip.name == str(name) and clip.native_size == 24


def test_a_file_of_the_small_clip_is_recognised(tmp_path):
    from foveate.clip.load import SMALL

    small = load(SMALL)
    torch.save({"module": {f"module.{k}": v for k, v in small.model.state_dict().items()}}, tmp_path / "loose")
    clip = load(tmp_path / "loose")
    assert clip.name == SMALL
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(clip.encode_image(images), small.encode_image(images))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_precision_applies_to_every_weight(precision):
    clip = load("foveate-small", precision=precision)
    dtype = getattr(torch, precision)
    assert {value.dtype for value in clip.state_dict().values() if value.is_floating_point()} == {dtype}
    with pytest.raises(InputError, match="precision: must be one of float32, bfloat16, float16; got 'fp16'"):
        load("foveate-small", precision="fp16")


def test_missing_and_extra_weights_can_be_allowed(make_clip, tmp_path, capsys):
    clip = make_clip("vit")
    state = {key: value for key, value in clip.model.state_dict().items() if key.startswith("visual.")}
    torch.save({**state, "head.weight": torch.zeros(2)}, tmp_path / "w.pt")
    save_clip(clip, tmp_path / "m")
    with pytest.raises(InputError, match="pass allow_missing=True and allow_extra=True"):
        load(tmp_path / "m", pretrained=tmp_path / "w.pt")
    one, two = (
        load(tmp_path / "m", pretrained=tmp_path / "w.pt", allow_missing=True, allow_extra=True, seed=seed)
        for seed in (0, 1)
    )
    assert "1 extra (head.weight)" in capsys.readouterr().err
    assert torch.equal(one.visual.conv1.weight, clip.visual.conv1.weight)
    assert not torch.equal(one.model.text_projection, two.model.text_projection)  # drawn from the seed


def test_settings_of_foveate_are_saved(make_clip, tmp_path):
    clip = make_clip("vit")
    clip.config = {**clip.config, "foveate": {"windows": {"size": 2, "blocks": [0]}, "note": "kept"}}
    save_clip(clip, tmp_path / "m")
    open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'm'}")  # reads past it
    assert load(tmp_path / "m").config["foveate"] == clip.config["foveate"]


def test_old_eva_names_and_a_training_checkpoint(make_clip, tmp_path):
    """EVA-CLIP's names, nested and prefixed as in training checkpoints, with their tables."""
    clip = make_clip("eva")
    save_clip(clip, tmp_path / "m")
    back = [("q_proj.bias", "q_bias"), ("v_proj.bias", "v_bias"), ("attn.norm.", "attn.inner_attn_ln.")]
    back += [("fc1_g.", "w1."), ("fc1_x.", "w2."), ("fc2.", "w3."), ("mlp.norm.", "mlp.ffn_ln.")]
    old = {"module.visual.rope.freqs_cos": torch.zeros(3), "module.text.attn_mask": torch.zeros(2, 2)}
    for key, value in clip.model.state_dict().items():
        if key.startswith("visual.trunk."):
            key = key.replace("visual.trunk.", "visual.")
            for ours, theirs in back:
                key = key.replace(ours, theirs)
        old[f"module.{key}"] = value
    torch.save({"epoch": 6, "name": "run", "state_dict": old, "optimizer": {}}, tmp_path / "epoch_6.pt")
    again = load(tmp_path / "m", pretrained=tmp_path / "epoch_6.pt")
    assert all(torch.equal(again.model.state_dict()[k], v) for k, v in clip.model.state_dict().items())


def test_text_weights_are_renamed_for_a_custom_text_tower(make_clip, tmp_path):
    clip = make_clip("vit")
    save_clip(clip, tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    config["model_cfg"]["custom_text"] = True
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    again = load(tmp_path)
    assert isinstance(again.model, open_clip.CustomTextCLIP)
    tokens = clip.tokenize(["a cat"])
    with torch.no_grad():
        torch.testing.assert_close(again.encode_text(tokens), clip.encode_text(tokens))


def test_statistics_are_those_of_the_published_weights_if_they_agree():
    from foveate.clip.io.describe import describe_architecture

    siglip = describe_architecture("ViT-B-16-SigLIP")["preprocess_cfg"]
    assert siglip["mean"] == siglip["std"] == [0.5] * 3 and siglip["resize_mode"] == "squash"
    assert tuple(describe_architecture("ViT-B-16")["preprocess_cfg"]["mean"]) == open_clip.OPENAI_DATASET_MEAN
    assert tuple(describe_architecture("RN50")["preprocess_cfg"]["mean"]) == open_clip.OPENAI_DATASET_MEAN


def test_a_model_of_the_hub_is_downloaded_as_a_folder(make_clip, tmp_path, monkeypatch):
    import huggingface_hub

    save_clip(make_clip("vit"), tmp_path / "m")
    asked = []

    def download(repository, allow_patterns):
        asked.append((repository, "*.bin" in allow_patterns))
        return str(tmp_path / "m")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load("hf-hub:someone/something").native_size == 24
    (tmp_path / "m" / WEIGHTS_FILE).unlink()
    with pytest.raises(InputError, match="need weights in this folder"):
        load("hf-hub:someone/something")
    assert asked == [("someone/something", False)] * 2 + [("someone/something", True)]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("away")))
    with pytest.raises(InputError, match=r"could not download 'someone/something'.*away"):
        load("hf-hub:someone/something")


def test_a_failed_download_names_alternatives(monkeypatch):
    def away(_):
        raise OSError("away")

    monkeypatch.setattr("foveate.clip.load.download_pretrained", away)
    with pytest.raises(InputError, match=r"could not download 'openai'.*away.*Give a weights file.*--pretrained None"):
        load("ViT-B-16-quickgelu", pretrained="openai")


def test_empty_folders_and_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="found neither"):
        load(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="this one is empty"):
        load(tmp_path / "empty")
    with pytest.raises(InputError, match="this one is empty"):
        load("foveate-small", pretrained=tmp_path / "empty")


def test_importing_foveate_is_light():
    code = (
        "import sys, foveate\n"
        "assert not {'torch', 'open_clip', 'numpy'} & set(sys.modules)\n"
        "assert 'load' in dir(foveate)\n"
        "assert foveate.load('foveate-small').embed_dim == 128\n"
        "from foveate import Clip, save_clip, save_huggingface\n"
        "try: foveate.laod\n"
        "except AttributeError as error: assert 'load' in str(error)\n"
        "else: raise SystemExit('no error')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_unknown_activation_is_refused(make_clip, tmp_path):
    for act in ("relu", [], None, 3):
        clip = make_clip("eva")
        clip.config = {**clip.config, "foveate": {"trunk_act": act}}
        save_clip(clip, tmp_path)
        if act is None:  # states nothing
            load(tmp_path)
            continue
        with pytest.raises(InputError, match='"trunk_act" must be one of gelu, gelu_pytorch_tanh'):
            load(tmp_path)
