"""One image from proposals to maps: fusion weights, both embeddings of a mask, and an image without proposals."""

from dataclasses import replace

import pytest
import torch

from foveate.clip.vocabulary import Vocabulary
from foveate.errors import InputError
from foveate.heads.common.text import ClassEmbeddings
from foveate.heads.panoptic.decoder import TowerEncoder
from foveate.heads.panoptic.fusion import PRESETS, clip_logits, seen_classes
from foveate.heads.panoptic.mask2former import MaskGenerator, Proposals
from foveate.heads.panoptic.segment import PanopticSegmenter, Query
from foveate.types import Batch

K = 3


@pytest.fixture
def make(tiny_clip, tiny_decoder):
    """Build a segmenter of three classes, with another CLIP than its generator's."""

    def build(*, words: bool = True, **settings) -> PanopticSegmenter:
        torch.manual_seed(0)
        rows = torch.nn.functional.normalize(torch.randn(2 * K, 16), dim=1)
        asked = ClassEmbeddings(rows, torch.tensor([0, 1, 2, 0, 1, 2]), K)
        learned = asked if words else None
        encoder = TowerEncoder(tiny_clip(), channels=16)
        novel = torch.zeros(K) > 0
        generator = MaskGenerator(encoder, tiny_decoder(), is_novel=novel, size=64, classes=learned, joint=16)
        is_thing, is_seen = torch.tensor([True, True, False]), torch.tensor([True, False, False])
        return PanopticSegmenter(generator, tiny_clip(), Query(asked, asked, is_thing, is_seen), **settings)

    return build


@pytest.mark.parametrize("region", ["dense", "masked"])
@pytest.mark.parametrize("squash", [True, False])
def test_all_three_maps_of_an_image(make, scenes, region, squash):
    segmenter, (sample,) = make(region=region, size=40, squash=squash), scenes(1)
    scored = segmenter.score(sample)
    height, width = sample.image.shape[1:]
    assert scored.size == (height, width) and scored.class_logits.shape == (8, K + 1)
    assert torch.allclose(scored.class_logits.exp().sum(dim=1), torch.ones(8), atol=1e-5)
    found = segmenter.panoptic(scored)
    assert found.ids.shape == (height, width)
    assert set(found.ids.unique().tolist()) - {0} == {one.id for one in found.segments}
    assert segmenter.semantic(scored).shape == (K, height, width)
    assert all(label < 2 for label in segmenter.instances(scored).labels.tolist())


def test_fusion_weights_of_zero_and_one(make, scenes):
    (sample,) = scenes(1)
    only_generator, only_clip = make(weights=PRESETS["generator"]), make(weights=PRESETS["clip"])
    (proposals,) = only_generator.mask_generator.propose([sample])
    known = only_generator.mask_generator.class_logits(proposals, only_generator.query.generator_classes)
    assert torch.allclose(only_generator.score(sample).class_logits.exp(), known.softmax(dim=1), atol=1e-5)
    scored = only_clip.score(sample).class_logits.exp()
    said = clip_logits(only_clip.embed(sample, proposals.masks), only_clip.query.classes, scale=only_clip.scale)
    nothing = known.softmax(dim=1)[:, -1:]
    assert torch.allclose(scored, torch.cat([(1 - nothing) * said.softmax(dim=1), nothing], dim=1), atol=1e-5)
    only_clip.clip.encode_dense = None  # without a share it is not asked
    only_generator.clip.encode_dense = None
    only_generator.score(sample)
    with pytest.raises(TypeError):
        only_clip.score(sample)


@pytest.mark.parametrize(
    ("preset", "expected", "best"),
    [
        ("odise-label", [0.300718, 0.298923, 0.150359, 0.25], 0),
        ("fc-clip", [0.268771, 0.31382, 0.167408, 0.25], 1),
        ("clip", [0.15, 0.375, 0.225, 0.25], 1),
    ],
)
def test_golden_values_from_embeddings_to_the_map(make, scenes, preset, expected, best):
    # p = .6 .3 .1, nothing 1/3 of their sum, q = .2 .5 .3: logits of the better word of each class, the other one has
    # 1 less. Words lie along the axes, so that a mask at (l0, l1, ...) has the logits l where the scale is its length
    segmenter, axes = make(weights=PRESETS[preset]), torch.eye(16)
    words = ClassEmbeddings(axes[:6], torch.tensor([0, 1, 2, 0, 1, 2]), K)
    named = Vocabulary((("cat", "kitty"), ("dog", "hound"), ("sky", "heaven")))
    is_seen = seen_classes(named, Vocabulary((("Kitty", "tom"), ("sea",))))  # by its second word
    segmenter.query = replace(segmenter.query, classes=words, generator_classes=words, is_seen=is_seen)
    p, q, nothing = (
        torch.tensor([0.6, 0.3, 0.1]).log(),
        torch.tensor([0.2, 0.5, 0.3]).log(),
        torch.tensor([1 / 3]).log(),
    )
    known = torch.cat([p[:1] - 1, p[1:], p[:1], p[1:] - 1, nothing]) @ axes[:7]
    said = torch.cat([q[:2], q[2:] - 1, q[:2] - 1, q[2:]]) @ axes[:6]
    head = segmenter.mask_generator.head
    for parameter, value in ((head.text.weight, axes), (head.text.bias, 0 * axes[0]), (head.nothing, axes[6])):
        parameter.data.copy_(value)
    head.log_scale.data.copy_(known.norm().log())
    segmenter.scale, segmenter.embed = said.norm().item(), lambda sample, masks: said[None]
    (sample,) = scenes(1)
    height, width = sample.image.shape[1:]
    proposals = Proposals("0", height, width, torch.full((1, 4, 4), 9.0), known[None], None)
    scored = segmenter.score_proposals(sample, proposals)
    assert torch.allclose(scored.class_logits.softmax(dim=1), torch.tensor([expected]), rtol=0, atol=1e-6)
    (segment,) = segmenter.panoptic(scored).segments
    assert segment.label == best and segment.score == pytest.approx(expected[best], abs=1e-6)


def test_seen_and_unseen_classes_have_separate_fusion_weights(make, scenes):
    (sample,) = scenes(1)
    segmenter = make(weights=PRESETS["odise-label"])
    (proposals,) = segmenter.mask_generator.propose([sample])
    known = segmenter.mask_generator.class_logits(proposals, segmenter.query.generator_classes)
    said = clip_logits(segmenter.embed(sample, proposals.masks), segmenter.query.classes, scale=segmenter.scale)
    p, q = known[:, :-1].softmax(dim=1), said.softmax(dim=1)
    mixed = torch.stack([p[:, 0] ** 0.7 * q[:, 0] ** 0.3, *(p[:, k] ** 0.3 * q[:, k] ** 0.7 for k in (1, 2))], dim=1)
    found = segmenter.score(sample).class_logits.exp()[:, :-1]
    assert torch.allclose(found / found.sum(dim=1, keepdim=True), mixed / mixed.sum(dim=1, keepdim=True), atol=1e-4)


@pytest.mark.parametrize("region", ["dense", "masked"])
def test_an_image_without_proposals(make, scenes, region):
    segmenter, (sample,) = make(region=region), scenes(1)
    (some,) = segmenter.mask_generator.propose([sample])
    none = replace(some, masks=some.masks[:0], embeddings=some.embeddings[:0])
    scored = segmenter.score_proposals(sample, none)
    found = segmenter.panoptic(scored)
    assert not found.ids.any() and found.segments == () and found.ids.shape == sample.image.shape[1:]
    assert not segmenter.semantic(scored).any() and len(segmenter.instances(scored).boxes) == 0
    # masks that are nowhere above 0 are embedded at their largest place, or as the class token alone, and draw nothing
    empty = replace(some, masks=some.masks - some.masks.max() - 9)
    scored = segmenter.score_proposals(sample, empty)
    assert scored.class_logits.isfinite().all() and segmenter.panoptic(scored).segments == ()


def test_without_class_embeddings_clip_classifies_alone(make, scenes):
    with pytest.raises(InputError, match="trained without class names"):
        make(words=False)
    segmenter = make(words=False, weights=PRESETS["clip"])
    assert segmenter.score(scenes(1)[0]).class_logits.isfinite().all()


def test_learned_scenes_are_segmented(make, scenes):
    # one scene, learned by heart: its ground is found where it lies
    (sample,) = scenes(1)
    segments = sample.segments
    place = int(segments.masks.flatten(1).sum(dim=1).argmax())
    one = replace(segments, **{name: getattr(segments, name)[place : place + 1] for name in ("boxes", "masks")})
    one = replace(one, labels=torch.tensor([2]), is_thing=torch.tensor([False]))
    segmenter = make(weights=PRESETS["generator"])
    model = segmenter.mask_generator.train()
    model.jitter, model.flip = None, False
    model.weights = replace(model.weights, points=256)
    optimizer = torch.optim.AdamW(model.parameter_groups(weight_decay=0.0), lr=3e-3)
    for step in range(60):
        torch.manual_seed(step)
        loss = model(Batch([replace(sample, segments=one)], []))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    found = segmenter.panoptic(segmenter.score(sample))
    drawn, truth = found.ids > 0, one.masks[0]
    assert {info.label for info in found.segments} == {2} and len(found.segments) == 1
    assert (drawn & truth).sum() / (drawn | truth).sum() > 0.7


def test_arguments_that_do_not_fit_are_refused(make):
    with pytest.raises(InputError, match=r"multiple of the patch size 8; got 36"):
        make(size=36)
    words = ClassEmbeddings(torch.eye(2), torch.tensor([0, 1]), 2)
    with pytest.raises(InputError, match=r"one number of classes; got \(2, 2, 3, 3\)"):
        Query(words, words, torch.ones(3) > 0, torch.ones(3) > 0)
