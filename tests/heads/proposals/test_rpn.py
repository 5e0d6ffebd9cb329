"""The RPN: pyramids, targets, crowds, suppression against a slow loop, mirrored images, learning."""

from copy import deepcopy

import open_clip
import pytest
import torch

from foveate.clip.model import Clip
from foveate.data.splits import IGNORED, OBJECT
from foveate.engine.optim import build_optimizer, take_step
from foveate.errors import InputError
from foveate.heads.common.rpn import ignore_crowds
from foveate.heads.proposals.pyramid import ConvPyramid, TowerPyramid
from foveate.heads.proposals.rpn import Proposer, _mirror, best_boxes
from foveate.ops.boxes import boxes_on_image, boxes_on_input
from foveate.types import BadSample, Batch, Sample, Segments

STATISTICS = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 2, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}


def tiny_clip(**vision) -> Clip:
    torch.manual_seed(0)
    described = deepcopy(CONFIG)
    described["model_cfg"]["vision_cfg"] |= vision
    return Clip(open_clip.CLIP(**deepcopy(described["model_cfg"])), name="tiny", config=described)


def proposer(pyramid: TowerPyramid | ConvPyramid | None = None, **settings) -> Proposer:
    torch.manual_seed(0)
    pyramid = ConvPyramid(channels=16) if pyramid is None else pyramid
    return Proposer(pyramid, **{"size": 64, "channels": 16, "scales": (4.0,), **STATISTICS, **settings})


def squares(count: int) -> list[Sample]:
    """Dark images, each with one bright square of 16 to 23 pixels."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        x, y = (int(torch.randint(0, 40, (), generator=generator)) for _ in range(2))
        side = 16 + number % 8
        image = torch.randint(0, 60, (3, 64, 64), generator=generator, dtype=torch.uint8)
        image[:, y : y + side, x : x + side] = 220
        box = [float(x), float(y), float(min(x + side, 64)), float(min(y + side, 64))]
        found.append(Sample(str(number), image, torch.tensor([box])))
    return found


@pytest.mark.parametrize(
    ("vision", "strides"),
    [
        ({}, (4, 8, 16)),
        ({"patch_size": 16}, (8, 16, 32)),
        ({"patch_size": 32, "image_size": 64}, (8, 16, 32)),  # coarse patches are brought to half
        ({"layers": (1, 1, 1, 1), "width": 16, "image_size": 64}, (8, 16, 32)),  # a residual network
    ],
)
def test_a_tower_gives_three_strides_and_stays_frozen(vision, strides):
    if "layers" in vision:
        vision = {**vision, "patch_size": None}
    pyramid = TowerPyramid(tiny_clip(**vision), channels=16)
    levels = pyramid.train()(torch.zeros(2, 3, 64, 64))
    assert pyramid.strides == strides
    assert [tuple(one.shape) for one in levels] == [(2, 16, 64 // s, 64 // s) for s in strides]
    assert not pyramid.clip.training and not any(one.requires_grad for one in pyramid.clip.parameters())
    sum(one.sum() for one in levels).backward()
    assert all(one.grad is not None for name, one in pyramid.named_parameters() if not name.startswith("clip."))


def test_it_learns_eight_images_and_finds_their_squares():
    model, samples = proposer(flip=True), squares(8)
    optimizer = build_optimizer(model, weight_decay=0.0)
    losses = []
    for step in range(60):
        torch.manual_seed(step)
        loss = model(Batch(samples, []))
        loss.backward()
        take_step(optimizer, lr=3e-3, weight_decay=0.0)
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    found = model.propose(samples, keep=10)
    for sample, (boxes, scores) in zip(samples, found, strict=True):
        assert (scores[:-1] >= scores[1:]).all() and len(boxes) <= 10
        assert _iou(boxes[0].tolist(), sample.boxes[0].tolist()) > 0.5


def _iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def test_suppression_equals_a_slow_loop_over_all_levels():
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(60, 2, generator=generator) * 20
    boxes = torch.cat([corners, corners + 5 + 10 * torch.rand(60, 2, generator=generator)], dim=1)
    scores = torch.rand(60, generator=generator)
    scores[7] = -1.0  # not to be taken
    counts, pre_nms, keep = [40, 20], 15, 12
    candidates = []
    for first, count in ((0, 40), (40, 20)):
        candidates += sorted(range(first, first + count), key=lambda place: -scores[place])[:pre_nms]
    kept: list[int] = []
    for place in sorted(candidates, key=lambda place: -scores[place]):
        if scores[place] >= 0 and all(_iou(boxes[place].tolist(), boxes[one].tolist()) <= 0.5 for one in kept):
            kept.append(place)
    found, found_scores = best_boxes(boxes, scores, counts, keep=keep, pre_nms=pre_nms, nms=0.5)
    assert torch.equal(found, boxes[kept[:keep]]) and torch.equal(found_scores, scores[kept[:keep]])
    assert len(kept) > keep and {place < 40 for place in kept[:keep]} == {True, False}  # both levels, and cut


def test_boxes_are_transformed_to_the_input_and_back():
    boxes = torch.tensor([[3.0, 5.0, 40.0, 33.0], [0.0, 0.0, 50.0, 37.0]])
    there = boxes_on_input(boxes, height=37, width=50, size=64)
    assert torch.allclose(boxes_on_image(there, height=37, width=50, size=64), boxes, atol=1e-5)


def test_proposals_lie_inside_images_of_any_shape_and_do_not_depend_on_the_batch():
    model = proposer()
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 255, (3, *shape), generator=generator, dtype=torch.uint8) for shape in ((30, 90), (64, 20))
    ]
    samples = [Sample(str(number), image, torch.zeros(0, 4)) for number, image in enumerate(images)]
    together = model.propose(samples, keep=20)
    for sample, (boxes, scores) in zip(samples, together, strict=True):
        height, width = sample.image.shape[1:]
        assert len(boxes) == 20 and (boxes >= 0).all() and (scores >= 0).all() and (scores <= 1).all()
        assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert ((boxes[:, 2:] - boxes[:, :2]) >= 1).all()
        ((alone, _),) = model.propose([sample], keep=20)
        assert torch.allclose(alone, boxes, atol=1e-3)
    scores = together[0][1]
    ((boxes, few),) = model.propose(samples[:1], keep=20, min_score=scores[4].item())
    assert torch.allclose(few, scores[: len(few)], atol=1e-5) and 4 <= len(boxes) < 20


def test_a_mirrored_image_has_mirrored_boxes():
    image = torch.arange(3 * 2 * 5, dtype=torch.uint8).view(3, 2, 5)
    sample = _mirror(Sample("a", image, torch.tensor([[1.0, 0.0, 3.0, 2.0]])))
    assert sample.boxes.tolist() == [[2.0, 0.0, 4.0, 2.0]]  # 5 - 3, 5 - 1
    assert sample.image[0, 0].tolist() == [4, 3, 2, 1, 0]


def test_anchors_in_a_crowd_are_not_sampled():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [6.0, 0.0, 16.0, 10.0], [0.0, 0.0, 10.0, 10.0]])
    labels = torch.tensor([0.0, 0.0, 1.0])
    crowds = torch.tensor([[0.0, 0.0, 10.0, 100.0]])
    # the first lies in the crowd wholly, the second by 4 of 10 columns; the third is an object
    assert ignore_crowds(labels, anchors, crowds).tolist() == [-1, 0, 1]
    assert ignore_crowds(labels, anchors, crowds[:0]) is labels


def test_only_objects_are_positive():
    (sample,) = squares(1)
    boxes = torch.cat([sample.boxes, torch.tensor([[0.0, 0.0, 60.0, 60.0]])])
    segments = Segments(
        boxes, torch.zeros(2, 0, 0, dtype=torch.bool), torch.tensor([OBJECT, IGNORED]), torch.ones(2) > 0
    )
    objects, crowds = proposer()._targets(Sample("a", sample.image, boxes, segments))
    assert torch.equal(objects, sample.boxes) and torch.equal(crowds, boxes[1:])


def test_an_empty_batch_gives_a_zero_loss_with_all_gradients():
    model, empty = proposer(), Batch([], [BadSample("a", "broken")])
    loss = model(empty)
    loss.backward()
    assert loss.item() == 0
    assert all(one.grad is not None for one in model.parameters())


def test_scales_below_one_pixel_are_refused():
    # strides 4, 8, 16: a scale of 0.2 is a side of int(0.8) = 0, one of 0.25 of 1, whose halves round to 0 pixels
    for scale in (0.2, 0.25):
        with pytest.raises(InputError, match=rf"scales: .* got 4\.0, {scale} times .* 4 pixels\. Try 0\.5 or more"):
            proposer(scales=(4.0, scale))
    proposer(scales=(0.5,))


def test_a_size_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"--size: need a positive multiple of 16 pixels; got 70\. Try 64"):
        proposer(size=70)
