"""The correlation term: against loops over pairs of locations, and which parameters it trains."""

import math
from copy import deepcopy

import open_clip
import pytest
import torch
import torch.nn.functional as F

from foveate.clip.model import Clip
from foveate.objectives.clipself import ClipSelf, train_layers
from foveate.objectives.correlation import Correlation, correlation_losses
from foveate.objectives.student import Execution
from foveate.ops.resample import square_input
from foveate.types import Batch, Sample

SHAPE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 512, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture
def pair() -> tuple[Clip, Clip]:
    """A student that has moved from its teacher."""
    torch.manual_seed(0)
    config = {"model_cfg": SHAPE, "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}}
    teacher = Clip(open_clip.CLIP(**deepcopy(SHAPE)), name="tiny", config=config).eval()
    student, generator = deepcopy(teacher), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return student, teacher


def sample(seed: int, regions: int, *, height: int, width: int) -> Sample:
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 5, generator=draw) * 255
    image = F.interpolate(coarse, size=(height, width), mode="bilinear").round().to(torch.uint8)[0]
    corners = (torch.rand(regions, 2, generator=draw) * 20).floor()
    return Sample(str(seed), image, torch.cat([corners, corners + 16], dim=1))


def batch() -> Batch:
    """At 64 pixels: 43 x 64, of which 6 of 8 rows of patches hold some, and 64 x 40, of which 5 of 8 columns do."""
    return Batch([sample(0, 3, height=40, width=60), sample(1, 1, height=64, width=40)], [])


def slow(student: torch.Tensor, teacher: torch.Tensor, *, temperature: float) -> float:
    """The KL divergence of (D, h, w) maps, place by place and pair by pair."""
    total, places = 0.0, [one.flatten(1).T.tolist() for one in (student, teacher)]
    for i in range(len(places[0])):
        ours, theirs = (
            [
                math.exp(F.cosine_similarity(torch.tensor(one[i]), torch.tensor(other), dim=0) / temperature)
                for other in one
            ]
            for one in places
        )
        for p, q in zip(theirs, ours, strict=True):
            p, q = p / sum(theirs), q / sum(ours)
            total += p * (math.log(p) - math.log(q))
    return total / len(places[0])


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_losses_are_a_loop_over_pairs(temperature):
    draw = torch.Generator().manual_seed(0)
    student, teacher = (F.normalize(torch.randn(2, 6, 4, 5, generator=draw), dim=1) for _ in range(2))
    grids = [(4, 5), (2, 3)]
    losses = correlation_losses(student, teacher, grids=grids, temperature=temperature)
    pairs = zip(student, teacher, grids, strict=True)
    expected = [slow(a[:, :h, :w], b[:, :h, :w], temperature=temperature) for a, b, (h, w) in pairs]
    assert losses.tolist() == pytest.approx(expected, rel=1e-3) and min(expected) > 0.01
    assert correlation_losses(teacher, teacher, grids=grids, temperature=temperature).abs().max() < 1e-6


def test_many_locations_are_averaged_over_cells():
    """28 x 3 tokens are 14 x 3 cells of two tokens each, so a map of doubled rows is the map of single ones."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 6, 14, 3, generator=draw) for _ in range(2))
    double = [one.repeat_interleave(2, dim=2) for one in (student, teacher)]
    losses = correlation_losses(*double, grids=[(28, 3)], temperature=0.1)
    torch.testing.assert_close(losses, correlation_losses(student, teacher, grids=[(14, 3)], temperature=0.1))


@pytest.mark.parametrize("tokens", ["all", "valid"])
@torch.no_grad()
def test_images_are_weighted_by_their_regions_and_padding_is_ignored(pair, tokens):
    """3 regions and 1 region: 3/4 of the one image's loss and 1/4 of the other's."""
    settings = {"student_size": 64, "tokens": tokens}
    plain = ClipSelf(*pair, **settings)(batch()).item()
    both = ClipSelf(*pair, **settings, correlation=Correlation(2.0, temperature=0.2))(batch()).item()
    expected = 0.0
    for one, share, (h, w) in zip(batch().samples, (0.75, 0.25), ((6, 8), (8, 5)), strict=True):
        square = square_input(one.image, size=64, mean=pair[0].mean, std=pair[0].std)[None]
        seen = square[:, :, : 8 * h, : 8 * w] if tokens == "valid" else square
        frame = (64, 64) if tokens == "valid" else None
        ours, theirs = (
            clip.encode_dense(seen, head=head, frame=frame)[0, :, :h, :w]
            for clip, head in zip(pair, ("value", "naclip"), strict=True)
        )
        expected += share * slow(ours, theirs, temperature=0.2)
    assert expected > 0.01 and both - plain == pytest.approx(2 * expected, rel=1e-3)


@pytest.mark.parametrize("low_precision", [False, True])
def test_the_term_trains_the_same_parameters(pair, low_precision):
    partly = train_layers(pair[0])
    assert len(partly) == 1
    gradients = []
    execution = Execution(low_precision=low_precision)
    for correlation in (None, Correlation(1.0)):
        objective = ClipSelf(*pair, student_size=64, correlation=correlation, execution=execution)
        objective.zero_grad()
        objective(batch()).backward()
        gradients.append({name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None})
    plain, both = gradients
    assert plain.keys() == both.keys() and all(name.startswith("student.") for name in both)
    assert any(not torch.equal(plain[name], both[name]) for name in both)
    weight = both["student.model.visual.transformer.resblocks.2.attn.in_proj_weight"]
    assert weight[64:].any() and not weight[:64].any()  # width 32: queries and keys are 64 rows
    objective.zero_grad()
    loss = objective(Batch([], []))
    loss.backward()
    assert loss.item() == 0 and all((p.grad is not None) == p.requires_grad for p in objective.parameters())
