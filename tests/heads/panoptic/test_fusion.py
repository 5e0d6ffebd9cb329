"""Classes of masks: golden values, presets, and embeddings of masks, also of empty ones."""

import math

import pytest
import torch
import torch.nn.functional as F

from foveate.clip.load import load
from foveate.clip.vocabulary import Vocabulary
from foveate.errors import InputError
from foveate.heads.common.text import ClassEmbeddings, best_of_synonyms, embed_classes
from foveate.heads.panoptic.fusion import (
    PRESETS,
    FusionWeights,
    clip_logits,
    fuse,
    on_grid,
    pool_mask_logits,
    seen_classes,
    touched_patches,
)

P, Q, SEEN = torch.tensor([[0.6, 0.3, 0.1]]), torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([True, False, False])
# e^g of the classes adds up to 1, so a null column of log(1/3) has a quarter of 4/3
GENERATOR = torch.cat([P.log(), torch.full((1, 1), 1 / 3).log()], dim=1)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("odise-label", [0.300718, 0.298923, 0.150359, 0.25]),
        ("fc-clip", [0.268771, 0.31382, 0.167408, 0.25]),
        ("clip", [0.15, 0.375, 0.225, 0.25]),  # q * 3/4
        ("generator", [0.45, 0.225, 0.075, 0.25]),  # p * 3/4
    ],
)
def test_golden_values(preset, expected):
    found = fuse(GENERATOR, Q.log(), SEEN, PRESETS[preset]).softmax(dim=1)
    assert torch.allclose(found, torch.tensor([expected]), rtol=0, atol=1e-6)


def test_presets_and_their_limits():
    numbers = {name: (one.seen, one.unseen) for name, one in PRESETS.items()}
    assert numbers == {
        "odise-label": (0.3, 0.7), "odise-caption": (0.35, 0.65), "fc-clip": (0.4, 0.8), "clip": (1, 1),
        "generator": (0, 0),
    }  # fmt: skip
    with pytest.raises(InputError, match=r"`unseen` in \[0, 1\]; got 1.2"):
        FusionWeights(0.5, 1.2)


def test_fusion_equals_a_slow_loop():
    torch.manual_seed(0)
    generator, clip, seen = torch.randn(5, 8), 30 * torch.randn(5, 7), torch.rand(7) > 0.5
    found = fuse(generator, clip, seen, FusionWeights(0.35, 0.65))
    for row in range(5):
        g = [math.exp(one) for one in generator[row].tolist()]
        q = [math.exp(one) for one in clip[row].tolist()]
        shares = [0.35 if one else 0.65 for one in seen.tolist()]
        f = [(g[k] / sum(g[:-1])) ** (1 - a) * (q[k] / sum(q)) ** a for k, a in enumerate(shares)]
        nothing = g[-1] / sum(g)
        expected = [*(one / sum(f) * (1 - nothing) for one in f), nothing]
        assert torch.allclose(found[row], torch.tensor(expected).add(1e-8).log(), atol=2e-5)


def test_probabilities_that_underflow_give_no_nan():
    generator = torch.tensor([[500.0, -500.0, 0.0]])
    for shares in (FusionWeights(1.0, 1.0), FusionWeights(0.0, 0.0), FusionWeights(0.3, 0.7)):
        assert fuse(generator, torch.tensor([[-900.0, 900.0]]), torch.tensor([True, False]), shares).isfinite().all()
    assert fuse(torch.zeros(0, 3), torch.zeros(0, 2), torch.tensor([True, False]), FusionWeights(0.3, 0.7)).shape == (
        0,
        3,
    )
    alone = fuse(generator, None, torch.tensor([True, False]), PRESETS["generator"]).exp()
    assert torch.allclose(alone, torch.tensor([[1.0, 0.0, 0.0]]), atol=1e-6)


def test_the_best_synonym_counts():
    words = ClassEmbeddings(F.normalize(torch.eye(4)), torch.tensor([1, 0, 1, 0]), 2)
    scores = torch.tensor([[1.0, 2.0, 3.0, -4.0], [0.0, -1.0, -2.0, -3.0]])
    assert best_of_synonyms(scores, words).tolist() == [[2.0, 3.0], [-1.0, 0.0]]
    # cosines with the four axes are 3, 4, 0, 0 fifths
    assert torch.allclose(clip_logits(torch.tensor([[30.0, 40, 0, 0]]), words, scale=10.0), torch.tensor([[8.0, 6.0]]))
    with pytest.raises(InputError, match="a synonym per class"):
        ClassEmbeddings(torch.eye(4), torch.tensor([1, 0, 1, 0]), 3)


def test_a_class_is_seen_by_any_synonym():
    trained = Vocabulary((("person", "Child"), ("sky",)))
    asked = Vocabulary((("boy", "child"), ("dog",), ("Sky", "clouds"), ("child_seat",)))
    assert seen_classes(asked, trained).tolist() == [True, False, True, False]


def test_synonyms_are_embedded_separately():
    clip = load("foveate-small")
    words = embed_classes(clip, Vocabulary((("circle", "disc"), ("star",))))
    alone = clip.encode_text(clip.tokenize(["a photo of a disc."]))
    assert words.labels.tolist() == [0, 0, 1] and words.count == 2
    assert torch.allclose(words.embeddings[1], alone[0], atol=1e-5)


def test_masks_on_the_grid_and_the_location_of_an_empty_one():
    # 2 x 2 blocks of a 4 x 4 map: bilinear to 2 x 2 is the mean of each block's four
    full = torch.full((4, 4), -1.0)
    full[:2, :2] = 1.0
    thin = torch.full((4, 4), -1.0)
    thin[3, 3] = 2.0  # its block: (2 - 3) / 4 = -.25, below 0 but the largest
    even = torch.zeros(4, 4)  # 0 is not above 0, and the first place is the largest
    weak = torch.full((4, 4), -1.0)
    weak[:, 2:] = 0.1  # little above 0, on both places of the right
    masks = on_grid(torch.stack([full, thin, even, weak]), grid=(2, 2))
    assert masks.int().tolist() == [[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[1, 0], [0, 0]], [[0, 1], [0, 1]]]
    assert on_grid(torch.zeros(0, 4, 4), grid=(2, 3)).shape == (0, 2, 3)


def test_pooling_averages_normalised_embeddings():
    dense = torch.tensor([[[3.0, 0.0]], [[0.0, 0.1]]])  # (D, 1, 2): lengths 3 and .1 do not matter
    logits = torch.tensor([[[1.0, 1.0]], [[-1.0, 2.0]], [[-3.0, -2.0]]])
    half = 0.5**0.5
    assert torch.allclose(pool_mask_logits(dense, logits), torch.tensor([[half, half], [0.0, 1.0], [0.0, 1.0]]))


def test_patches_of_masked_attention():
    pixels = torch.full((2, 4, 4), -5.0)
    pixels[0, 0, 3] = 0.0  # one pixel of one half is enough
    assert touched_patches(pixels, grid=(2, 2), patch=2).int().tolist() == [[[0, 1], [0, 0]], [[0, 0], [0, 0]]]
    assert touched_patches(pixels[:0], grid=(2, 2), patch=2).shape == (0, 2, 2)
