"""Panoptic parts against golden numbers of the public systems, and ODISE's published layout through the importer."""

import json
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from original_mask2former import Odise
from published import TOLERANCE, draw_state, gap, golden, normal, uniform
from torch import Tensor, nn

from foveate.clip.model import Clip
from foveate.errors import InputError
from foveate.heads.common.text import ClassEmbeddings
from foveate.heads.panoptic.decoder import build_decoder
from foveate.heads.panoptic.fusion import PRESETS, clip_logits, fuse
from foveate.heads.panoptic.mask2former import ClassHead, MaskGenerator
from foveate.heads.panoptic.merge import instances, panoptic_map, semantic_map
from foveate.heads.panoptic.odise import ImplicitCaptioner, OdiseEncoder
from foveate.heads.panoptic.odise_file import PREDICTOR, is_odise, network_of, put_odise, rename_odise
from foveate.heads.panoptic.product import Network


@pytest.fixture(scope="module")
def numbers():
    return golden("pan")


def test_odises_mask_head_through_its_key_table(numbers):
    theirs = draw_state(json.loads(str(numbers["shapes_head"])))
    small = {"feedforward": 32, "pixel_feedforward": 32, "pixel_layers": 1, "layers": 1}
    head = ClassHead(build_decoder((32,) * 4, width=256, **small), text_dim=768, joint=256, no_object=None).eval()
    renamed = rename_odise(
        {f"{PREDICTOR}post_mask_embed.{name}": one for name, one in theirs.items()}, source="file"
    ).state
    own = {name.removeprefix("head."): one for name, one in renamed.items()}
    left = head.load_state_dict(own, strict=False)
    assert not left.unexpected_keys and {*left.missing_keys} == {"nothing", "text.weight", "text.bias"}
    with torch.no_grad():
        found = head(normal("oh.s", 1, 100, 256), normal("oh.m", 1, 100, 32, 32), normal("oh.p", 1, 256, 32, 32))
    assert gap(found, numbers["head"]) < TOLERANCE


@pytest.mark.parametrize("preset", ["odise-label", "odise-caption", "fc-clip", "clip"])
def test_the_fusion_of_odise_and_fc_clip(numbers, preset):
    labels = [[f"c{place}_{word}" for word in range(1 + place % 3)] for place in range(133)]
    trained = {labels[place][0] for place in range(0, 133, 2)}
    owner = torch.tensor([place for place, words in enumerate(labels) for _ in words])
    rows = F.normalize(normal("fus.te", len(owner), 64), dim=1)
    said = clip_logits(normal("fus.me", 100, 64), ClassEmbeddings(rows, owner, 133), scale=100.0)
    known = torch.cat([normal("fus.gl", 100, 133, scale=6.0), normal("fus.null", 100, 1, scale=6.0)], dim=1)
    seen = torch.tensor([not trained.isdisjoint(words) for words in labels])
    found = fuse(known, said, seen, PRESETS[preset]).softmax(dim=1)
    assert gap(found, numbers[f"fuse_{preset}"]) < TOLERANCE


def blobs(tag: str) -> Tensor:
    """Mask logits of 14 large segments, of 14 weaker copies, and of noise. (100, 40, 52)"""
    base = F.interpolate(normal(f"{tag}base", 14, 1, 6, 7), size=(40, 52), mode="bicubic")[:, 0] * 6
    best = base.topk(2, dim=0).values
    margin = base - torch.where(base == best[0], best[1], best[0])
    out = -4 + 2 * normal(f"{tag}noise", 100, 40, 52)
    out[:14], out[14:28] = margin, margin * 0.7 - 0.5 + normal(f"{tag}shift", 14, 1, 1)
    return out


@pytest.mark.parametrize("case", range(4))
def test_mask2formers_three_maps(numbers, case):
    tag, things = f"pan{case}", torch.arange(133) < 80
    logits = normal(f"{tag}cl", 100, 134)
    logits[:, -1] += 5
    labels = torch.from_numpy((uniform(f"{tag}lab", 28) * 50).astype(int) + 60)
    logits[torch.arange(14), labels[:14]] += 9
    logits[torch.arange(14, 28), labels[14:]] += 5
    masks, size = blobs(tag), (160, 208)
    found = panoptic_map(logits, masks, things, size=size)
    assert np.array_equal(found.ids.numpy(), numbers[f"ids{case}"])
    assert [one.label for one in found.segments] == numbers[f"lab{case}"].tolist()
    assert gap(semantic_map(logits, masks, size=size)[::9, ::8, ::8], numbers[f"sem{case}"]) < TOLERANCE
    assert gap(instances(logits, masks, things, size=size).scores, numbers[f"inst{case}"]) < TOLERANCE


# ------------------------------------------------------------------------- ODISE's layout, from modules under its names

FEATURES = [8, 128, 16, 16, 8, 8, 128, 8]  # widths of the bottlenecks' inputs


@pytest.fixture
def odise() -> Odise:
    torch.manual_seed(0)
    model = Odise(FEATURES, channels=128, width=32, hidden=64, layers=4, queries=6, joint=16, text=24, clip=24,
                  caption=(5, 12), time=10).eval()  # fmt: skip
    with torch.no_grad():
        for one in model.parameters():  # else one LayerNorm is like another
            one += 0.2 * torch.randn_like(one)
    return model


def generator_for(network: Network) -> MaskGenerator:
    """One on a Stable Diffusion without layers and a tiny CLIP, which are not in the file."""
    torch.manual_seed(1)
    vae, unet = nn.Module(), nn.Module()
    vae.config = SimpleNamespace(block_out_channels=(4, 4, 8, 128))
    unet.config, unet.up_blocks = SimpleNamespace(block_out_channels=(8, 8, 16, 16)), nn.ModuleList([nn.Identity()] * 4)
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    sizes = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": {"vocab_size": 64, "width": 2, "heads": 1, "layers": 1}}
    described = {"model_cfg": sizes, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    clip = Clip(open_clip.CLIP(**deepcopy(sizes)), name="tiny", config=described)
    captioner = ImplicitCaptioner(clip, empty=torch.zeros(5, 12), time_width=10)
    encoder = OdiseEncoder(vae, unet, captioner, alpha=0.99, channels=network.channels)
    decoder = build_decoder(encoder.widths, queries=network.queries, width=network.width,
                            feedforward=network.feedforward, pixel_feedforward=network.feedforward // 2,
                            pixel_layers=network.pixel_layers, layers=network.layers)  # fmt: skip
    words = ClassEmbeddings(torch.randn(2, 24), torch.arange(2), 2)
    return MaskGenerator(encoder, decoder, is_novel=torch.zeros(2) > 0, size=network.size, classes=words,
                         joint=network.joint, longest=network.longest).eval()  # fmt: skip


def test_a_published_file_finds_the_same_masks_and_classes(odise):
    state = odise.state_dict()
    assert is_odise(state) and not is_odise({"backbone.conv1.weight": torch.zeros(1)})
    renamed = rename_odise(state, source="odise.pth")
    assert renamed.ignored == ("criterion.empty_weight",)
    network = network_of(renamed, encoder="sd", source="odise.pth")
    assert (network.channels, network.width, network.feedforward, network.queries) == (128, 32, 64, 6)
    assert (network.layers, network.pixel_layers, network.joint) == (4, 1, 16)
    assert (network.size, network.longest) == (1024, 2560)
    model = generator_for(network)
    put_odise(model, renamed, source="odise.pth")
    maps = [torch.randn(2, 128, 64 // 2**place, 48 // 2**place) for place in range(4)]
    words = ClassEmbeddings(torch.randn(7, 24), torch.arange(7), 7)
    with torch.no_grad():
        masks, logits = odise.find(maps, words.embeddings)
        found = model.decoder(maps)
        embeddings = model.head(found.states[-1], found.masks[-1], found.pixels)
        assert gap(found.masks[-1], masks) < TOLERANCE
        assert gap(model.head.compare(embeddings, words), logits) < TOLERANCE
        for place, width in enumerate(FEATURES):
            x = torch.randn(1, width, 4, 4)
            assert gap(model.encoder.bottlenecks[place](x), odise.backbone.feature_projections[place](x)) < TOLERANCE
        captioner, theirs, seen = model.encoder.captioner, odise.backbone.feature_extractor, torch.randn(2, 24)
        expected = theirs.alpha_cond.tanh() * theirs.clip_project(seen)
        assert gap(captioner.gate.tanh() * (captioner.project(seen)[:, None] + captioner.places), expected) < TOLERANCE
        expected = theirs.alpha_cond_time_embed.tanh() * theirs.time_embed_project(seen)[:, 0]
        assert gap(captioner.time_gate.tanh() * (captioner.time(seen) + captioner.time_place), expected) < TOLERANCE


def test_the_full_size_has_a_place_for_every_tensor():
    with torch.device("meta"):
        theirs = Odise([512, 512, 1280, 1280, 640, 320, 512, 512], channels=512, width=256, hidden=2048, layers=9,
                       queries=100, joint=256, text=768, clip=768, caption=(77, 768), time=1280,
                       pixel_layers=6)  # fmt: skip
        decoder = build_decoder((512,) * 4).state_dict()
    renamed = rename_odise(theirs.state_dict(), source="file")
    assert len(renamed.state) == len(theirs.state_dict()) - 1 + 2 * 9 * 2  # criterion; q, k, v of 9 layers apart
    network = network_of(renamed, encoder="sd", source="file")
    assert (network.channels, network.pixel_layers, network.layers, network.feedforward) == (512, 6, 9, 2048)
    found = {name: one.shape for name, one in renamed.state.items() if name.startswith("decoder.")}
    assert found == {f"decoder.{name}": one.shape for name, one in decoder.items()}
    assert len([name for name in renamed.state if name.startswith("head.")]) == 16


def test_files_that_are_not_whole_are_refused(odise):
    state = odise.state_dict()
    with pytest.raises(InputError, match=r"2 of its tensors are unknown: word_head\.a, word_head\.b"):
        rename_odise({**state, "word_head.a": torch.zeros(1), "word_head.b": torch.zeros(1)}, source="file")
    network = network_of(rename_odise(state, source="file"), encoder="sd", source="file")

    def said(change: dict[str, Tensor | None]) -> str:
        changed = {name: one for name, one in {**state, **change}.items() if one is not None}
        with pytest.raises(InputError) as error:
            put_odise(generator_for(network), rename_odise(changed, source="file"), source="file")
        return str(error.value)

    assert "1 missing (our head.log_scale)" in said({f"{PREDICTOR}post_mask_embed.logit_scale": None})
    assert "1 extra (backbone.feature_projections.9.conv1.weight)" in said(
        {"backbone.feature_projections.9.conv1.weight": torch.zeros(1)}
    )
    assert "category_head.null_embed is (2, 24) instead of (24,)" in said(
        {"category_head.null_embed": torch.zeros(2, 24)}
    )
    assert "not finite (category_head.text_proj.bias)" in said(
        {"category_head.text_proj.bias": torch.full((16,), torch.nan)}
    )
    lacking = {name: one for name, one in state.items() if "query_feat" not in name}
    with pytest.raises(InputError, match="queries_features"):
        network_of(rename_odise(lacking, source="file"), encoder="sd", source="file")
    without = {name: one for name, one in state.items() if "positional" not in name and "time_embed" not in name}
    model = generator_for(network)
    put_odise(
        model, rename_odise(without, source="file"), source="file"
    )  # of a model that has none: as if they were zero
    assert model.encoder.captioner.places.abs().max() == 0 and model.encoder.captioner.time_gate.abs().max() == 0
