"""CAT-Seg of 2024 and 2023 beside numbers of its own code, which its files give once imported."""

import json
import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from hostile import FORMS, MARK, plant
from PIL import Image
from published import TOLERANCE, draw_state, gap, golden, image, normal
from timm.models import swin_transformer
from timm.models._registry import _model_entrypoints

from foveate.cli.main import main
from foveate.clip.vocabulary import Vocabulary
from foveate.convert.run import published_head
from foveate.heads.catseg import published as importer
from foveate.heads.catseg.aggregate import Aggregator
from foveate.heads.catseg.cost import cost_volume
from foveate.heads.catseg.guidance import Backbone, Guidance
from foveate.heads.catseg.keys import CLIP, is_derived, our_key, published_key
from foveate.heads.catseg.product import load_catseg, read_about
from foveate.heads.catseg.published import read_published, write_published
from foveate.types import Sample

CLASSES = Vocabulary((("wall",), ("building", "edifice"), ("sky",), ("tree",)))


def shapes(name: str, key: str = "shapes") -> dict[str, list[int]]:
    return json.loads(str(golden(name)[key]))


def sample() -> Sample:
    return Sample("a", torch.from_numpy(image(96, 128)).permute(2, 0, 1), torch.zeros(0, 4))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(
    ("version", "classes", "prompts", "guides", "padding"),
    [(2, 8, 1, (512, 256, 128), 256), (1, 5, 80, (1024, 512, 256), 0)],  # of 2024, of 2023
)
def test_the_aggregator(version, classes, prompts, guides, padding, mode):
    numbers = golden("catseg")
    network = Aggregator(prompts=prompts, text_dim=512, guides=guides, padding=padding)
    state = draw_state(json.loads(str(numbers[f"shapes_v{version}"])))
    named = {str(our_key(key)).removeprefix("aggregator."): value for key, value in state.items()}
    network.load_state_dict({key: one.flatten() if "padding" in key else one for key, one in named.items()})
    dense = normal(f"agg{version}.img", 1, 512, 24, 24)
    coarse = dense if version == 2 else normal("agg1.g0", 1, guides[0], 24, 24)
    finer = [normal(f"agg{version}.g{k}", 1, guides[k], side, side) for k, side in ((1, 48), (2, 96))]
    text = F.normalize(normal(f"agg{version}.text{classes}", 1, classes, prompts, 512), dim=3)
    with torch.no_grad():
        found = network.train(mode == "train")(
            cost_volume(dense, text[0]), F.normalize(text.mean(dim=2), dim=2), Guidance(coarse, *finer)
        )
    assert gap(found[..., ::2, ::2], numbers[f"v{version}_{mode}"]) <= TOLERANCE


@pytest.fixture(scope="module", params=["catseg_path", "catseg_path_l"])
def imported(request, tmp_path_factory):
    """Random weights in the layout of a published file, imported as a folder and opened, and CAT-Seg's own numbers."""
    folder = tmp_path_factory.mktemp("c")
    write_published(draw_state(shapes(request.param)), folder / "before", source="f.pth")
    (folder / "before").rename(folder / "after")  # the CLIP is inside
    catseg, about = load_catseg(folder / "after")
    return catseg, about, golden(request.param)


def test_texts_and_logits(imported):
    catseg, about, numbers = imported
    text = catseg.embed_classes(CLASSES)
    assert gap(text[:, 0], numbers["text"]) <= TOLERANCE
    if about.network.clip_size == 384:
        view = torch.from_numpy(image(384, 384)).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            assert gap(catseg.logits(view, text)[0][:, ::2, ::2], numbers["logits"]) <= TOLERANCE


def test_the_whole_path_at_test(imported):
    catseg, _, numbers = imported
    (found,) = catseg.predict([sample()], catseg.embed_classes(CLASSES))
    assert gap(found, numbers["probs"]) <= TOLERANCE
    assert (found.argmax(dim=0).numpy() == numbers["probs"].argmax(axis=0)).mean() > 0.999


def test_what_learns_and_what_was_read_from_the_shapes(imported):
    catseg, about, numbers = imported
    public = {str(name) for name in numbers["trained"]}
    fused = {name.replace(f".{part}_proj_weight", ".in_proj_weight") for name in public for part in "qv"}
    ours = {name for name, one in catseg.clip.model.named_parameters() if one.requires_grad}
    assert ours == {name for name in fused if name.endswith("in_proj_weight")}
    network = about.network
    assert (network.version, network.residual, network.size, network.test_size) == ("2024", "cls", 384, 640)
    assert (network.longest, network.stride, network.window, network.most) == (2560, 256, 12, 256)
    assert (network.hidden, network.guidance, network.layers, network.tower_guidance) == (128, 128, 2, (256, 128))
    assert (network.decoder, network.decoder_guidance) == ((64, 32), (32, 16))
    assert network.clip_size == {16: 384, 14: 336}[catseg.clip.patch_size]
    assert len(about.classes) == 171 and about.classes[0] == ("person",) and about.classes[-1] == ("wood",)


@pytest.mark.parametrize(
    ("architecture", "golden_name", "clip_size"),
    [("ViT-B-16-quickgelu", "catseg_path", 384), ("ViT-L-14-336-quickgelu", "catseg_path_l", 336)],
)
def test_the_clip_of_a_file_is_openai_s(architecture, golden_name, clip_size):
    described = open_clip.get_model_config(architecture)
    with torch.device("meta"):
        whole = open_clip.CLIP(**json.loads(json.dumps(described))).state_dict()
        head = {key: torch.empty(shape) for key, shape in shapes(golden_name).items() if not key.startswith(CLIP)}
    found = read_published({**{f"{CLIP}{key}": one for key, one in whole.items()}, **head}, source="f.pth")
    model = found.clip_config["model_cfg"]
    assert model["quick_gelu"] and model["embed_dim"] == described["embed_dim"]
    assert described["vision_cfg"].items() <= model["vision_cfg"].items()
    assert described["text_cfg"].items() <= model["text_cfg"].items()
    assert found.network.clip_size == clip_size


# ------------------------------------------------------------------------------------------------ files, as users do it


def write_file(path: Path, state: dict[str, torch.Tensor], **beside: object) -> Path:
    """What detectron2's trainer writes: the weights, an optimizer with a schedule of numpy's numbers, the iteration."""
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4)
    parameters[0].grad = torch.ones(3)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = np.float64(1e-4)
    scheduler = {"base_lrs": [np.float64(2e-4)], "last_epoch": 80_000, "_last_lr": [np.float64(0)]}
    whole = {"model": state, "optimizer": optimizer.state_dict(), "scheduler": scheduler, "iteration": 79_999, **beside}
    torch.save(whole, path)
    return path


@pytest.fixture(scope="module")
def tiny() -> dict[str, torch.Tensor]:
    """A whole file's tensors, with the two derived ones that real files have beside these."""
    masks = {f"{LAYER.format(layer)}attn_mask": torch.zeros(4, 144, 144) for layer in (0, 1)}
    return {**draw_state(shapes("catseg_path")), **masks}


def test_names_there_and_back(tiny):
    ours = {key: our_key(key) for key in tiny if not key.startswith(CLIP) and not is_derived(key)}
    assert len({*ours.values()}) == len(ours) and None not in ours.values()
    assert all(published_key(str(found)) == key for key, found in ours.items())


LAYER = "sem_seg_head.predictor.transformer.layers.{}.swin_block.block_2."


def fails(capsys, *words: object) -> str:
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    error = capsys.readouterr().err
    assert done.value.code == 2 and "Traceback" not in error
    return error


def test_from_the_file_to_a_segmented_image(tiny, tmp_path, capsys):
    file = write_file(tmp_path / "model_final.pth", tiny)
    main(["convert", str(file), str(tmp_path / "c")])
    assert (
        "CAT-Seg of 2024 on a ViT of 12 blocks, 64 wide, patches of 16 pixels; residual cls" in capsys.readouterr().out
    )
    file.unlink()
    numbers = golden("catseg_path")
    (tmp_path / "c").rename(tmp_path / "moved")
    catseg, _ = load_catseg(tmp_path / "moved")
    (found,) = catseg.predict([sample()], catseg.embed_classes(CLASSES))
    assert gap(found, numbers["probs"]) <= TOLERANCE

    Image.fromarray(image(96, 128)).save(tmp_path / "a.png")
    names = tmp_path / "names.json"  # as CAT-Seg's own lists
    names.write_text(json.dumps(["wall", "building, edifice", "sky", "tree"]))
    main(["segment", str(tmp_path / "a.png"), "--model", str(tmp_path / "moved"), "--vocab", str(names), "--out",
          str(tmp_path / "s"), "--workers", "0", "--device", "cpu"])  # fmt: skip
    labels = np.array(Image.open(tmp_path / "s/a.png"))
    assert (labels == numbers["probs"].argmax(axis=0)).mean() > 0.999


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("upsample2.bias"), "1 missing (upsample2.bias)"),
        (lambda state: state.pop("upsample1.weight"), "no upsample1 and no backbone"),
        (lambda state: state.pop(f"{LAYER.format(1)}attn.q.weight"), "block_2.attn.q.weight"),
        (lambda state: state.update({"sem_seg_head.extra.weight": torch.zeros(1)}), "sem_seg_head.extra.weight"),
        (lambda state: state.update({f"{LAYER.format(2)}mlp.fc1.weight": torch.zeros(1)}), " missing ("),
        (lambda state: state.update({f"{LAYER.format(0)}attn.q.weight": torch.zeros(64, 256)}),
         "block_2.attn.q.weight is (64, 256) instead of (128, 256)"),
        (lambda state: state.update({"upsample1.bias": torch.full((256,), torch.nan)}), "not finite (upsample1.bias)"),
        (lambda state: state.pop(f"{CLIP}visual.ln_post.bias"), "visual.ln_post.bias"),
        (lambda state: state.update({f"{CLIP}visual.proj": torch.zeros(64)}),
         "clip_model.visual.proj has the shape (64,)"),
        (lambda state: state.update({f"{CLIP}ln_final.bias": torch.zeros(9)}),
         "ln_final.bias is (9,) instead of (64,)"),
        (lambda state: state.update({f"{CLIP}visual.conv1.weight": torch.zeros(1280, 3, 14, 14)}),
         "its image tower is 1280 wide"),
        (lambda state: state.update({"upsample1.weight": 3.0}), "1 entries are something else, such as 'upsample1."),
    ],
)  # fmt: skip
def test_what_is_not_whole_or_of_another_size_is_refused(tiny, tmp_path, capsys, change, told):
    state = dict(tiny)
    change(state)
    file = write_file(tmp_path / "f.pth", state)
    assert told in fails(capsys, "convert", file, tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["f.pth"]


@pytest.mark.parametrize("form", FORMS)
def test_nothing_in_a_file_is_run(tiny, tmp_path, form):
    file, touched = write_file(tmp_path / "f.pth", tiny, trainer=MARK), tmp_path / "touched"
    plant(file, form, touched)
    found = published_head(file)
    assert not touched.exists()
    assert (found is None) == (form in ("extension", "persistent"))  # which no torch.save writes: refused as damaged
    if found is not None:
        kind, state = found
        assert kind == "CAT-Seg" and state.keys() == tiny.keys()
        assert torch.equal(state["upsample1.bias"], tiny["upsample1.bias"])


def test_flags_that_say_nothing_to_a_file_are_refused(tiny, tmp_path, capsys):
    file = write_file(tmp_path / "f.pth", tiny)
    for flag, value in (("--to", "hf"), ("--model", "ViT-B-16"), ("--text-from", "x"), ("--dtype", "float16")):
        told = fails(capsys, "convert", file, tmp_path / "c", flag, value)
        assert f"{flag}: is for a CLIP; {file} is a published CAT-Seg. Remove it." in told
    for flag, value in (("--residual", "cls"), ("--vocab", "cat, dog")):
        told = fails(capsys, "convert", "foveate-small", tmp_path / "c", flag, value)
        assert f"{flag}: is for a published CAT-Seg; foveate-small is a CLIP. Remove it." in told
    main(["convert", str(file), str(tmp_path / "c"), "--residual", "token", "--vocab", "cat, dog"])
    about = read_about(tmp_path / "c")
    assert about.network.residual == "token" and about.classes == (("cat",), ("dog",))


# ---------------------------------------------------------------------------------------------- of 2023, and its guides


def resnet_shapes(blocks: tuple[int, ...]) -> dict[str, list[int]]:
    """The names of a residual network of detectron2 up to res4, with frozen BatchNorm, and their shapes."""
    found = {"stem.conv1.weight": [64, 3, 7, 7]}
    norms = {"stem.conv1.norm": 64}
    before = 64
    for stage, count in enumerate(blocks):
        inner, out = 64 << stage, 256 << stage
        for block in range(count):
            name = f"res{stage + 2}.{block}"
            found |= {f"{name}.conv1.weight": [inner, before, 1, 1], f"{name}.conv2.weight": [inner, inner, 3, 3]}
            found[f"{name}.conv3.weight"] = [out, inner, 1, 1]
            norms |= {f"{name}.conv1.norm": inner, f"{name}.conv2.norm": inner, f"{name}.conv3.norm": out}
            if block == 0:
                found[f"{name}.shortcut.weight"], norms[f"{name}.shortcut.norm"] = [out, before, 1, 1], out
            before = out
    for name, width in norms.items():
        found |= {f"{name}.{part}": [width] for part in ("weight", "bias", "running_mean", "running_var")}
    return {f"backbone.{name}": shape for name, shape in found.items()}


def slow_resnet(state: dict[str, torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """The maps of res2, res3 and res4 by detectron2's names; strides are in the 3x3 convolutions."""

    def conv(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = state[f"backbone.{name}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        norm = [state[f"backbone.{name}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *norm, eps=1e-5)

    x = F.max_pool2d(F.relu(conv("stem.conv1", x, 2)), 3, stride=2, padding=1)
    maps = []
    for stage in (2, 3, 4):
        block = 0
        while f"backbone.res{stage}.{block}.conv1.weight" in state:
            name, stride = f"res{stage}.{block}", 2 if stage > 2 and block == 0 else 1
            y = F.relu(conv(f"{name}.conv2", F.relu(conv(f"{name}.conv1", x)), stride))
            x = F.relu(conv(f"{name}.conv3", y) + (conv(f"{name}.shortcut", x, stride) if block == 0 else x))
            block += 1
        maps.append(x)
    return maps


def of_2023(backbone: dict[str, torch.Tensor], guides: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """A whole file of 2023: attention of the CLIP in one matrix, an aggregator of 80 prompts."""
    found = {}
    for key, shape in shapes("catseg_path").items():
        if ".k_proj_weight" in key:
            found[key.replace("k_proj_weight", "in_proj_weight")] = [3 * shape[0], shape[1]]
        elif "clip_model" in key and "_proj_weight" not in key:
            found[key] = [shape[0], 512] if key.endswith((".proj", "text_projection")) else shape
    found |= shapes("catseg", "shapes_v1")
    for name, channels in zip(("guidance_projection.0", "decoder_guidance_projection.0.0",
                               "decoder_guidance_projection.1.0"), guides, strict=True):  # fmt: skip
        key = f"sem_seg_head.predictor.transformer.{name}.weight"
        found[key] = [found[key][0], channels, 3, 3]
    return {**draw_state(found), **backbone}


def test_a_file_of_2023_on_b(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(importer.BACKBONES, "resnet", "resnet50")  # a quarter as large
    backbone = draw_state(resnet_shapes((3, 4, 6)))
    unused = {"backbone.res5.0.conv1.weight": torch.zeros(1)}
    state = of_2023({**backbone, **unused}, (1024, 512, 256))
    main(["convert", str(write_file(tmp_path / "f.pth", state)), str(tmp_path / "c")])
    told = capsys.readouterr()
    assert "CAT-Seg of 2023" in told.out and "guided by resnet50; residual token" in told.out
    assert "--residual cls" in told.err and "ignored 1 tensors of an unused stage" in told.err
    catseg, about = load_catseg(tmp_path / "c")
    assert about.network.version == "2023" and catseg.backbone is not None and catseg.backbone.is_trained

    view = torch.from_numpy(image(64, 64)).permute(2, 0, 1)[None].float()
    mean, std = (
        torch.tensor([123.675, 116.28, 103.53]),
        torch.tensor([58.395, 57.12, 57.375]),
    )  # detectron2's of torchvision
    wanted = slow_resnet(backbone, (view - mean[:, None, None]) / std[:, None, None])
    with torch.no_grad():
        found = catseg.backbone(view)
    for ours, theirs in zip(found, reversed(wanted), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)

    own = catseg.clip.model.state_dict()
    name = "transformer.resblocks.1.attn.in_proj_weight"
    assert torch.equal(own[name], state[f"sem_seg_head.predictor.clip_model.{name}"])
    trained = {key for key, one in catseg.clip.model.named_parameters() if one.requires_grad}
    assert all(key.startswith("visual.") and (".attn." in key or "position" in key) for key in trained)


def swin_shapes(width: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int) -> dict[str, list[int]]:
    """The names of Swin's own code for detection, whose last stage merges no patches, and their shapes."""
    found: dict[str, list[int]] = {"patch_embed.proj.weight": [width, 3, 4, 4]}
    linears, norms = {}, {"patch_embed.norm": width}
    found["patch_embed.proj.bias"] = [width]
    for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
        wide = width << stage
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            linears |= {f"{name}.attn.qkv": (3 * wide, wide), f"{name}.attn.proj": (wide, wide)}
            linears |= {f"{name}.mlp.fc1": (4 * wide, wide), f"{name}.mlp.fc2": (wide, 4 * wide)}
            norms |= {f"{name}.norm1": wide, f"{name}.norm2": wide}
            found[f"{name}.attn.relative_position_bias_table"] = [(2 * window - 1) ** 2, count]
        if stage < len(depths) - 1:
            found[f"layers.{stage}.downsample.reduction.weight"] = [2 * wide, 4 * wide]
            norms[f"layers.{stage}.downsample.norm"] = 4 * wide
        norms[f"norm{stage}"] = wide
    for name, (out, into) in linears.items():
        found |= {f"{name}.weight": [out, into], f"{name}.bias": [out]}
    for name, wide in norms.items():
        found |= {f"{name}.weight": [wide], f"{name}.bias": [wide]}
    return {f"backbone.{name}": shape for name, shape in found.items()}


@pytest.mark.parametrize("kind", ["resnet", "swin"])
def test_every_tensor_of_a_backbone_has_its_place(kind):
    """Of the ResNet-101 and the Swin-B of the published files."""
    theirs = resnet_shapes((3, 4, 23)) if kind == "resnet" else swin_shapes(128, (2, 2, 18), (4, 8, 16), 12)
    with torch.device("meta"):
        network = Backbone(importer.BACKBONES[kind], is_trained=False, pretrained=False)
    ours = {f"backbone.{key}": list(value.shape) for key, value in network.state_dict().items()}
    counts = {key for key in ours if key.endswith("num_batches_tracked")}  # which a frozen BatchNorm lacks
    assert {str(our_key(key)): shape for key, shape in theirs.items()} == {
        key: shape for key, shape in ours.items() if key not in counts
    }
    assert is_derived("backbone.layers.0.blocks.1.attn.relative_position_index")


def test_a_file_of_2023_on_l(tmp_path, monkeypatch):
    """The maps of a small Swin, which timm itself renames, each layer-normalised."""

    def test_swin_small(pretrained: bool = False, **settings):
        sizes = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 12}
        return swin_transformer._create_swin_transformer("test_swin_small", pretrained, **{**sizes, **settings})

    monkeypatch.setitem(_model_entrypoints, "test_swin_small", test_swin_small)
    monkeypatch.setitem(importer.BACKBONES, "swin", "test_swin_small")
    backbone = draw_state(swin_shapes(16, (2, 2, 2), (1, 2, 4), 12))
    state = of_2023(backbone, (64, 32, 16))
    write_published(state, tmp_path, source="f.pth")
    catseg, about = load_catseg(tmp_path)
    assert (
        about.network.backbone == "test_swin_small" and catseg.backbone is not None and not catseg.backbone.is_trained
    )
    plain = timm.create_model("test_swin_small", features_only=True, out_indices=[0, 1, 2], img_size=384).eval()
    named = {key.removeprefix("backbone."): value for key, value in backbone.items()}
    by_timm = swin_transformer.checkpoint_filter_fn(named, timm.create_model("test_swin_small", img_size=384))
    plain.load_state_dict({re.sub(r"^layers\.(\d)", r"layers_\1", key): value for key, value in by_timm.items()
                           if not key.startswith("norm")})  # fmt: skip
    view = torch.from_numpy(image(384, 384)).permute(2, 0, 1)[None].float()
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    with torch.no_grad():
        maps = plain((view - mean[:, None, None]) / std[:, None, None])
        found = catseg.backbone(view)
    for place, (ours, theirs) in enumerate(zip(reversed(found), maps, strict=True)):
        norm = [named[f"norm{place}.{part}"] for part in ("weight", "bias")]
        wanted = F.layer_norm(theirs, theirs.shape[3:], *norm).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)
