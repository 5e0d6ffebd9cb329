"""Every conversion is opened by the library it is for; what would not embed the same is not left behind."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.cli.main import main
from foveate.clip.io.weights import save_clip
from foveate.clip.load import load

VISION = {"image_size": 24, "patch_size": 8, "width": 16, "head_width": 8, "layers": 3, "mlp_ratio": 2.0}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}


@pytest.fixture
def source(tmp_path):
    """A small random CLIP in a folder that only Foveate knows all of."""
    folder = tmp_path / "in"
    folder.mkdir()
    config = {
        "model_cfg": {"embed_dim": 12, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
        "foveate": {"windows": {"size": 2, "blocks": [0]}},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    from foveate.clip.load import build, read_config
    from foveate.clip.model import Clip

    config = read_config(folder / "open_clip_config.json")
    save_clip(Clip(build(config, name="in", seed=0), name="in", config=config), folder)
    return folder


def fails(typed, words, capsys):
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in typed])
    error = capsys.readouterr().err
    assert done.value.code == 2 and words in error and "Traceback" not in error, error


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--clip", "x"), ("--annotations", "x"), ("--novel", "x"), ("--size", "64")],
)
def test_flags_of_published_heads_are_not_ignored(source, tmp_path, capsys, flag, value):
    fails(["convert", source, tmp_path / "out", flag, value], f"{flag}: is for a published F-ViT", capsys)


@pytest.mark.parametrize("layout", ["open_clip", "hf", "foveate"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back(source, tmp_path, capsys, layout, dtype):
    out = tmp_path / "deep" / "out"
    main(["convert", str(source), str(out), "--to", layout, "--dtype", dtype])
    told = capsys.readouterr()
    assert "embeddings of the opened result differ by" in told.out
    assert ("from the input" in told.out) == (dtype == "bfloat16")
    assert ("not saved, since" in told.err) == (layout != "foveate")
    first, second = load(source), load(out)
    assert (second.windows == first.windows) == (layout == "foveate")
    for key, value in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[key], value.to(getattr(torch, dtype)).float()), key
    assert not list(out.parent.glob(".*"))
    main(["convert", str(out), str(tmp_path / "back"), "--to", "open_clip"])
    assert torch.equal(
        load(tmp_path / "back").encode_image(torch.ones(1, 3, 24, 24)), second.encode_image(torch.ones(1, 3, 24, 24))
    )


def test_an_architecture_without_weights_is_not_converted(tmp_path, capsys):
    typed = ["convert", "ViT-S-32-alt", tmp_path / "out", "--to", "foveate"]
    fails(typed, "ViT-S-32-alt: names an architecture without weights", capsys)
    assert not (tmp_path / "out").exists()


def test_a_weights_file_with_the_name_of_its_architecture(source, tmp_path, capsys):
    loose = tmp_path / "loose.pt"
    torch.save({"state_dict": load_file(source / "open_clip_model.safetensors")}, loose)
    fails(["convert", loose, tmp_path / "out", "--to", "open_clip"], "fit no architecture", capsys)
    main(["convert", str(loose), str(tmp_path / "out"), "--to", "hf", "--model", str(source)])
    assert (tmp_path / "out" / "vocab.json").is_file()


def test_mistakes_are_found_before_the_work(source, tmp_path, capsys):
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "x").touch()
    file.touch()
    fails(["convert", "no-such-model", full, "--to", "hf"], "is not empty", capsys)
    fails(["convert", "no-such-model", file, "--to", "hf"], "is a file", capsys)
    fails(["convert", "no-such-model", file / "x", "--to", "hf"], "which is a file", capsys)
    fails(["convert", "no-such-model", tmp_path / "out", "--to", "hf"], "neither an open_clip architecture", capsys)
    fails(["convert", source, tmp_path / "out", "--to", "onnx"], "", capsys)
    assert not (tmp_path / "out").exists()


def test_a_result_that_embeds_differently_is_not_left_behind(source, tmp_path, capsys, monkeypatch):
    from foveate.clip.io import weights

    def spoil(path, state):
        key = next(key for key in state if key.endswith("visual.proj") or key == "visual_projection.weight")
        save_file({**state, key: state[key].roll(1, 0)}, path, {"format": "pt"})

    monkeypatch.setattr(weights, "write_tensors", spoil)
    for layout in ("open_clip", "hf", "foveate"):
        fails(["convert", source, tmp_path / "out", "--to", layout], "embeds differently: an image by", capsys)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_what_only_foveate_can_compute_is_not_written_for_open_clip(tmp_path, capsys, monkeypatch):
    """A SigLIP of transformers with a tanh GELU, whose trunk timm builds with the exact one."""
    transformers = pytest.importorskip("transformers")
    from timm.models import register_model
    from timm.models.vision_transformer import VisionTransformer

    from foveate.clip.io.hf import read as huggingface

    def vit_foveatetwo_patch8_siglip_24(pretrained: bool = False, **kwargs) -> VisionTransformer:
        kwargs = {key: value for key, value in kwargs.items() if key in ("num_classes", "global_pool")}
        return VisionTransformer(
            img_size=24, patch_size=8, embed_dim=16, depth=2, num_heads=2, class_token=False,
            **{"global_pool": "map", **kwargs},
        )  # fmt: skip

    register_model(vit_foveatetwo_patch8_siglip_24)
    monkeypatch.setitem(huggingface.TRUNKS, (16, 2, 2), "foveatetwo")
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = transformers.SiglipModel(
        transformers.SiglipConfig(
            text_config={**sizes, "vocab_size": 60, "projection_size": 16, "bos_token_id": 58, "eos_token_id": 59},
            vision_config={**sizes, "image_size": 24, "patch_size": 8},
        )
    )
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "in")
    fails(["convert", tmp_path / "in", tmp_path / "out", "--to", "open_clip"], "use --to foveate", capsys)
    for layout in ("foveate", "hf"):
        main(["convert", str(tmp_path / "in"), str(tmp_path / layout), "--to", layout])
        assert "the input has no tokenizer files" in capsys.readouterr().err
    assert json.loads((tmp_path / "foveate" / "open_clip_config.json").read_text())["foveate"]
