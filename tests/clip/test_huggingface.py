"""transformers' CLIP and SigLIP are loaded and saved with the same embeddings and the same bits."""

import json
from types import SimpleNamespace

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

from foveate.clip.io.describe import CONFIG_FILE, describe_architecture
from foveate.clip.io.hf import read as huggingface
from foveate.clip.io.hf.names import from_huggingface, to_huggingface
from foveate.clip.io.hf.read import describe_huggingface
from foveate.clip.io.weights import save_clip, save_huggingface
from foveate.clip.load import load, load_module
from foveate.errors import InputError

transformers = pytest.importorskip("transformers")

TEXT = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
        "max_position_embeddings": 10}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 2,
          "image_size": 24, "patch_size": 8}  # fmt: skip


def vit_foveatetiny_patch8_siglip_24(pretrained: bool = False, **kwargs) -> VisionTransformer:
    sizes = {"img_size": 24, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.75}
    kwargs = {key: value for key, value in kwargs.items() if key in ("num_classes", "global_pool")}
    return VisionTransformer(**{**sizes, "class_token": False, "global_pool": "map", **kwargs})


@pytest.fixture(scope="module", autouse=True)
def a_small_siglip_is_known_to_timm():
    register_model(vit_foveatetiny_patch8_siglip_24)


@pytest.fixture(autouse=True)
def its_size_is_one_of_siglips(monkeypatch):
    monkeypatch.setitem(huggingface.TRUNKS, (16, 3, 2), "foveatetiny")


def make(kind, folder, *, text=None, vision=None, seed=0, **rest):
    """A random transformers model with every parameter random, saved to `folder`."""
    torch.manual_seed(seed)
    if kind == "clip":
        config = transformers.CLIPConfig(
            text_config={**TEXT, "vocab_size": 60, "bos_token_id": 58, "eos_token_id": 59, **(text or {})},
            vision_config={**VISION, **(vision or {})}, projection_dim=12, **rest,
        )  # fmt: skip
        model = transformers.CLIPModel(config)
    else:
        config = transformers.SiglipConfig(
            text_config={**TEXT, "vocab_size": 60, "projection_size": 16, "bos_token_id": 58, "eos_token_id": 59,
                         **(text or {})},
            vision_config={**VISION, **(vision or {})},
        )  # fmt: skip
        model = transformers.SiglipModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.eval().save_pretrained(folder)
    return model


def theirs(model, images, tokens):
    """Embeddings of transformers, of length 1."""
    with torch.no_grad():
        embedded = [
            one if isinstance(one, torch.Tensor) else one.pooler_output
            for one in (model.get_image_features(images), model.get_text_features(tokens))
        ]
    return [torch.nn.functional.normalize(one, dim=1) for one in embedded]


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 57, (3, 10), generator=generator)
    tokens[0, 9] = tokens[1, 4] = tokens[2, 6] = 59  # the end, at several places
    tokens[1, 5:], tokens[2, 7:] = 0, 0
    return torch.randn(2, 3, 24, 24, generator=generator), tokens


def close(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def ours(model, images, tokens):
    with torch.no_grad():
        return [model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)]


@pytest.mark.parametrize(
    ("kind", "text", "vision"),
    [
        ("clip", {}, {}),
        ("clip", {"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
        ("clip", {"hidden_act": "gelu", "layer_norm_eps": 0.01}, {"hidden_act": "gelu_pytorch_tanh"}),
        ("clip", {"eos_token_id": 2}, {"layer_norm_eps": 0.01}),
        ("clip", {"eos_token_id": 30}, {}),
        ("siglip", {}, {}),
        ("siglip", {"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    ],
)
def test_embeddings_equal_transformers_and_weights_round_trip_to_the_bit(tmp_path, kind, text, vision):
    model = make(kind, tmp_path / "theirs", text=text, vision=vision)
    images, tokens = inputs()
    if text.get("eos_token_id") == 30:  # an end that is not the highest token
        tokens[tokens == 59], tokens[:, 3] = 31, 30
    clip = load(tmp_path / "theirs")
    close(ours(clip.model, images, tokens), theirs(model, images, tokens))
    close([clip.encode_image(images)], theirs(model, images, tokens)[:1])
    save_huggingface(clip, tmp_path / "back")
    again = transformers.AutoModel.from_pretrained(tmp_path / "back")
    assert type(again) is type(model)
    close(theirs(again.eval(), images, tokens), theirs(model, images, tokens))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "back"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    save_clip(clip, tmp_path / "open_clip")  # and through open_clip's own layout
    _, third = load_module(tmp_path / "open_clip")
    close(ours(third, images, tokens), theirs(model, images, tokens))


@pytest.mark.parametrize("form", ["bin", "sharded", "file"])
def test_other_files_of_a_transformers_folder(tmp_path, form):
    model = make("clip", tmp_path)
    images, tokens = inputs()
    name = tmp_path
    match form:
        case "bin":
            torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
            (tmp_path / "model.safetensors").unlink()
        case "sharded":
            (tmp_path / "model.safetensors").unlink()
            model.save_pretrained(tmp_path, max_shard_size="20KB")
            assert len(list(tmp_path.glob("*.safetensors"))) > 2
        case "file":
            name = tmp_path / "model.safetensors"
    close(ours(load(name).model, images, tokens), theirs(model, images, tokens))


def test_position_ids_of_old_files_are_ignored(tmp_path):
    make("clip", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state |= {f"{tower}_model.embeddings.position_ids": torch.arange(10)[None] for tower in ("text", "vision")}
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    load(tmp_path)


def test_statistics_come_from_the_preprocessor(tmp_path):
    make("clip", tmp_path)
    assert load(tmp_path).mean == open_clip.OPENAI_DATASET_MEAN
    stated = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    clip = load(tmp_path)
    assert clip.mean == (0.1, 0.2, 0.3) and clip.std == (0.4, 0.5, 0.6)
    save_huggingface(clip, tmp_path / "back")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "back")
    assert tuple(processor.image_mean) == clip.mean and tuple(processor.image_std) == clip.std
    assert processor.resample == 2
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, "x", 0.3]}))
    with pytest.raises(InputError, match="mean must be three numbers"):
        load(tmp_path)
    make("siglip", tmp_path / "siglip")
    assert load(tmp_path / "siglip").mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("clip", {"model_type": "blip"}, "clip or siglip; got 'blip'"),
        ("clip", {"vision_config": {"hidden_act": "gelu"}}, "'gelu' for images and 'quick_gelu' for texts"),
        ("clip", {"vision_config": {"hidden_act": "relu"}, "text_config": {"hidden_act": "relu"}}, "'relu' for images"),
        ("clip", {"vision_config": {"hidden_size": 17}}, "its heads divide"),
        ("clip", {"vision_config": {"hidden_size": "wide"}}, "hidden_size must be a number"),
        ("clip", {"vision_config": {"num_channels": 4}}, "3 channels; got 4"),
        ("clip", {"text_config": [1]}, "must be a dictionary"),
        ("clip", {"projection_dim": 10**12}, "of another shape"),
        ("clip", {"vision_config": {"num_hidden_layers": 10**9}}, "1 to 1000 layers"),
        ("siglip", {"vision_config": {"layer_norm_eps": 1e-5}}, "layer_norm_eps 1e-06"),
        ("siglip", {"vision_config": {"hidden_act": "relu"}}, "gelu_pytorch_tanh"),
        ("siglip", {"vision_config": {"vision_use_head": False}}, "vision_use_head"),
        ("siglip", {"vision_config": {"num_hidden_layers": 4}}, "it has none of width 16, 4 layers"),
        ("siglip", {"vision_config": {"image_size": 32}}, "images of 32 pixels"),
        ("siglip", {"text_config": {"projection_size": 20}}, "in 16 numbers"),
    ],
)
def test_models_that_open_clip_cannot_express_are_refused(tmp_path, kind, change, words):
    make(kind, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=words):
        load(tmp_path)


def test_published_sizes_of_siglip_find_their_tower(tmp_path):
    """Configs of published checkpoints, written by hand; transformers writes only what differs from its defaults."""
    sizes = {
        "ViT-B-16-SigLIP": ({}, {}),
        "ViT-L-16-SigLIP2-384": (
            {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
             "image_size": 384},
            {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
             "projection_size": 1024, "vocab_size": 256000},
        ),
        "ViT-SO400M-14-SigLIP-384": (
            {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304,
             "image_size": 384, "patch_size": 14},
            {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304},
        ),
    }  # fmt: skip
    from foveate.clip.io.describe import build_empty

    for name, (vision, text) in sizes.items():
        text = {**text, "projection_size": vision.get("hidden_size", 768)}
        config = {"model_type": "siglip", "vision_config": vision, "text_config": text}
        (tmp_path / "config.json").write_text(json.dumps(config))
        found = build_empty(describe_huggingface(tmp_path), name=name).state_dict()
        wanted = build_empty(describe_architecture(name), name=name).state_dict()
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}


@pytest.mark.parametrize(("family", "words"), [("eva", "only ViT and SigLIP"), ("vit-scaled", "no ls_init_value 0.5")])
def test_models_that_transformers_cannot_express_are_refused(make_clip, tmp_path, family, words):
    with pytest.raises(InputError, match=words):
        save_huggingface(make_clip(family), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_vits_of_open_clip_open_in_transformers(make_clip, tmp_path):
    for family in ("vit", "vit-quickgelu"):
        clip = make_clip(family)
        save_huggingface(clip, tmp_path / family)
        model = transformers.CLIPModel.from_pretrained(tmp_path / family).eval()
        tokens = clip.tokenize(["a cat", "two dogs on a lawn"])
        images = torch.randn(2, 3, 24, 24)
        close(theirs(model, images, tokens), ours(clip.model, images, tokens))


def test_the_saved_clip_tokenizer_gives_the_same_tokens(make_clip, tmp_path):
    save_huggingface(make_clip("vit"), tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    clip = load(tmp_path)
    texts = ["a photo of a cat.", "It's TWO dogs, isn't it?  3 of 12!", "", "naïve café, über"]
    for text in texts:
        numbers = tokenizer(text)["input_ids"]
        assert clip.tokenizer.encode(text) == numbers[1:-1]
        row = clip.tokenize([text])[0].tolist()  # cut at 12, which is not the question here
        assert row[: len(numbers)] == numbers[: len(row)] or len(numbers) > len(row)
    assert tokenizer("x")["input_ids"][0] == 49406 and tokenizer("x")["input_ids"][-1] == 49407


def write_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "</s>", "<unk>", "a", "cat", "dog"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def test_the_tokenizer_of_a_folder_is_saved_with_the_model(tmp_path):
    make("siglip", tmp_path / "in")
    write_tokenizer(tmp_path / "in")
    clip = load(tmp_path / "in")
    wanted = clip.tokenize(["A cat!", "a dog"])
    assert wanted.tolist() == [[3, 4] + [0] * 8, [3, 5] + [0] * 8]  # canonicalized: no capitals, no punctuation
    save_clip(clip, tmp_path / "out")
    stated = json.loads((tmp_path / "out" / CONFIG_FILE).read_text())["model_cfg"]["text_cfg"]
    assert stated["hf_tokenizer_name"] == "."  # no path of this machine
    (tmp_path / "out").rename(tmp_path / "moved")
    assert torch.equal(load(tmp_path / "moved").tokenize(["A cat!", "a dog"]), wanted)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'moved'}")
    assert torch.equal(tokenizer(["A cat!", "a dog"]), wanted)
    save_huggingface(load(tmp_path / "moved"), tmp_path / "hf")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")("a dog")["input_ids"][:2] == [3, 5]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_names_map_one_to_one(tmp_path, kind):
    make(kind, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    back = to_huggingface(from_huggingface(state))
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    assert from_huggingface({**state, "strange.weight": torch.zeros(1)})["strange.weight"].shape == (1,)


def test_half_precision_is_kept_in_the_file(tmp_path):
    make("clip", tmp_path / "in")
    clip = load(tmp_path / "in")
    save_huggingface(
        SimpleNamespace(config=clip.config, model=clip.model, name="x"), tmp_path / "out", dtype=torch.half
    )
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.half}


def test_the_tokenizer_beside_the_weights_is_used(tmp_path):
    make("siglip", tmp_path / "one")
    make("siglip", tmp_path / "two", seed=1)
    write_tokenizer(tmp_path / "two")
    clip = load(tmp_path / "one", pretrained=tmp_path / "two")
    assert clip.tokenize(["a dog"])[0, :2].tolist() == [3, 5]
    save_clip(load(tmp_path / "one"), tmp_path / "out")  # without one: no path of this machine either
    assert str(tmp_path) not in (tmp_path / "out" / CONFIG_FILE).read_text()
    with pytest.raises(InputError, match="tokenizer"):
        load(tmp_path / "out").tokenize(["a dog"])


def test_weights_without_a_name_in_transformers_are_refused(tmp_path):
    """A SigLIP tower with a projection behind it."""
    make("siglip", tmp_path / "in")
    clip = load(tmp_path / "in")
    clip.visual.head = torch.nn.Sequential(torch.nn.Linear(16, 16))
    with pytest.raises(InputError, match=r"no name for 2 of its weights, first visual\.head\.0\.weight"):
        save_huggingface(clip, tmp_path / "out")
    assert not (tmp_path / "out").exists()
