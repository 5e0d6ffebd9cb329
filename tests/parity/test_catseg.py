"""CAT-Seg of 2024 and 2023 beside numbers of its own code: published names are imported, and the import computes them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import TOLERANCE, draw, draw_state, gap, golden, image, normal

from saccade.clip.vocabulary import Vocabulary
from saccade.heads.catseg.aggregate import Aggregator
from saccade.heads.catseg.cost import cost_volume
from saccade.heads.catseg.guidance import Guidance
from saccade.heads.catseg.keys import head_key
from saccade.heads.catseg.product import load_catseg
from saccade.heads.catseg.published import build_published, read_published, write_published
from saccade.types import InputError, Sample

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
    named = {str(head_key(key)).removeprefix("aggregator."): value for key, value in state.items()}
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
