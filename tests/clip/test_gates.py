"""Gates of attention heads: their effect derived by hand, and that they are saved with the model."""

import json
from copy import deepcopy

import open_clip
import pytest
import torch

from foveate.clip.dense import open_gates
from foveate.clip.io.describe import CONFIG_FILE
from foveate.clip.io.weights import save_clip
from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.errors import InputError

SHAPE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 2, "heads": 1, "layers": 1},
}
GATES = [[0.5, 2.0], [1.0, 0.0], [-1.0, 0.1]]  # 4 blocks: of places 1, 2 and 3; 32 / 16 = 2 heads


def build(**vision) -> Clip:
    shape = {**SHAPE, "vision_cfg": {**SHAPE["vision_cfg"], **vision}}
    torch.manual_seed(0)
    config = {"model_cfg": shape, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3]}}
    return Clip(open_clip.CLIP(**deepcopy(shape)), name="tiny", config=config).eval()


@pytest.fixture
def clip() -> Clip:
    return build()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_gates_multiply_the_value_rows_of_their_heads(clip, images):
    """Values are linear in the rows of their projection, and head j of width 16 is rows 64 + 16 j and after. Only the
    last block may be changed in its weights: the others also make the tokens that enter it."""
    clip.gates = [[1.0, 1.0], [1.0, 1.0], GATES[0]]
    found = clip.encode_dense(images, head="values3", normalize=False)
    clip.gates = None
    last = clip.visual.transformer.resblocks[3].attn
    for head, gate in enumerate(GATES[0]):
        rows = slice(64 + 16 * head, 80 + 16 * head)
        last.in_proj_weight[rows] *= gate
        last.in_proj_bias[rows] *= gate
    torch.testing.assert_close(found, clip.encode_dense(images, head="values3", normalize=False))


@torch.no_grad()
def test_each_row_of_gates_applies_to_its_block(clip, images):
    """Where one block's gates are 0, what is left is the sum without it: made here by zeros in its output projection,
    for the last block, and told apart from each other for the two before."""
    maps = []
    for place in range(3):
        clip.gates = [[float(row != place)] * 2 for row in range(3)]
        maps.append(clip.encode_dense(images, head="values3", normalize=False))
    clip.gates = None
    out = clip.visual.transformer.resblocks[3].attn.out_proj
    bias, weight = out.bias.clone(), out.weight.clone()
    out.weight.zero_()
    torch.testing.assert_close(maps[2], clip.encode_dense(images, head="values3", normalize=False))
    out.weight.copy_(weight), out.bias.copy_(bias)
    assert all((maps[a] - maps[b]).abs().max() > 1e-2 for a, b in ((0, 1), (0, 2), (1, 2)))


@torch.no_grad()
def test_open_gates_have_no_effect_and_others_change_values3_alone(clip, images):
    def seen() -> dict[str, torch.Tensor]:
        found = {head: clip.encode_dense(images, head=head) for head in ("value", "attention", "clearclip", "values3")}
        return {**found, "image": clip.encode_image(images), "tap": clip.features(images, layers=(-1,))[0]}

    plain = seen()
    clip.gates = open_gates(clip.visual)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in seen().items())
    clip.gates = GATES
    other = seen()
    assert [name for name in plain if not torch.equal(plain[name], other[name])] == ["values3"]
    tapped = clip.features(images, layers=(0, -1), head="values3")[1]
    wanted = clip.visual.ln_post(tapped.flatten(2).mT) @ clip.visual.proj
    torch.testing.assert_close(
        wanted.mT.unflatten(2, (4, 6)), clip.encode_dense(images, head="values3", normalize=False)
    )


def test_gates_are_saved_with_the_model_as_plain_numbers(clip, images, tmp_path):
    clip.gates = torch.tensor(GATES)
    save_clip(clip, tmp_path / "one")
    described = json.loads((tmp_path / "one" / CONFIG_FILE).read_text())["foveate"]
    assert described == {"gates": [pytest.approx(row) for row in GATES]}
    again = load(tmp_path / "one")
    assert torch.equal(again.gates, clip.gates) and not any("gates" in name for name in again.model.state_dict())
    assert torch.equal(*(one.encode_dense(images, head="values3").detach() for one in (again, clip)))
    again.gates = None
    save_clip(again, tmp_path / "two")
    assert "foveate" not in json.loads((tmp_path / "two" / CONFIG_FILE).read_text())
    assert load(tmp_path / "two").gates is None


@torch.no_grad()
def test_gates_of_other_families(make_clip):
    eva = make_clip("eva")
    images = torch.randn(1, 3, 4 * eva.patch_size, 4 * eva.patch_size, generator=torch.Generator().manual_seed(0))
    plain, gates = eva.encode_dense(images, head="values3"), open_gates(eva.visual)
    eva.gates = gates
    assert torch.equal(eva.encode_dense(images, head="values3"), plain)
    gates[0, 0] = 0.0
    eva.gates = gates
    assert not torch.equal(eva.encode_dense(images, head="values3"), plain)
    for family in ("siglip", "rn"):
        with pytest.raises(InputError, match="values3 is not defined here"):
            open_gates(make_clip(family).visual)


def test_invalid_gates_are_refused(clip):
    for wrong in ([[1.0, 1.0]] * 2, [[1.0] * 3] * 3, [[1.0, "x"]] * 3, [[1.0, float("nan")]] * 3, [[1.0], [1.0, 1.0]]):
        with pytest.raises(InputError, match="gates: need"):
            clip.gates = wrong
    with pytest.raises(InputError, match="values3 is not defined here: it needs 3 attention blocks"):
        open_gates(build(layers=2).visual)
    config = {**clip.config, "foveate": {"gates": "all"}}
    with pytest.raises(InputError, match="gates: need three rows"):
        Clip(clip.model, name="tiny", config=config)


def test_loading_gates_prints_the_head_that_uses_them(clip, tmp_path, capsys):
    save_clip(clip, tmp_path / "without")
    clip.gates = torch.tensor(GATES)
    save_clip(clip, tmp_path / "with")
    for name, told in (("without", False), ("with", True)):
        load(tmp_path / name)
        assert ("which only --head values3 uses" in capsys.readouterr().err) == told
