"""F-ViT: it learns, frozen weights do not change, empty images have finite losses, and resuming is exact."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import masks_to_boxes

from foveate.clip.load import load
from foveate.data.world.scenes import THINGS, draw_scene
from foveate.engine.checkpoint import collect, restore
from foveate.engine.optim import take_step
from foveate.errors import InputError
from foveate.heads.common.groups import synchronise
from foveate.heads.fvit.cache import FeatureCache
from foveate.heads.fvit.detector import FViT, Network
from foveate.heads.fvit.inputs import IMAGENET
from foveate.ops.resample import resize_longest, resize_longest_bilinear
from foveate.types import BadSample, Batch, Sample, Segments

NOVEL = torch.tensor([False, False, True])
PLAIN = {"jitter": None, "flip": False}
NETWORK = Network(
    size=64, taps=None, pyramid="taps", channels=8, width=8, masks=False, proposals=50, trained_layers=0, norm=False,
    relu_embedding=True, statistics="imagenet", resize="bilinear",
)  # fmt: skip


def detector(clip, **settings) -> FViT:
    torch.manual_seed(0)
    text = torch.randn(len(settings.get("is_novel", NOVEL)) + 1, clip.embed_dim)
    network = replace(NETWORK, size=8 * clip.patch_size)
    network = replace(network, **{name: settings.pop(name) for name in asdict(network) if name in settings})
    return FViT(clip, network, **{"text": text, "is_novel": NOVEL, "rois": 16, **settings}).train()


def optimizer_of(model: FViT) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameter_groups(weight_decay=0.1), lr=0.0, fused=True)


def steps(model: FViT, optimizer: torch.optim.Optimizer, samples: list[Sample], numbers: range, lr=1e-3) -> list[float]:
    losses = []
    for step in numbers:
        torch.manual_seed(step)
        loss = model(Batch(samples, []))
        loss.backward()
        take_step(optimizer, lr=lr, weight_decay=0.1, partly=model.tower.partly)
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def scenes(count: int) -> list[Sample]:
    """Scenes of the world with their things, whose labels are places in THINGS."""
    found = []
    for number in range(count):
        scene = draw_scene(np.random.default_rng([0, number]))
        image, owner = torch.from_numpy(scene.image).permute(2, 0, 1), torch.from_numpy(scene.segments)
        things = [(place, THINGS.index(kind)) for place, kind in enumerate(scene.kinds) if kind in THINGS]
        things = [(place, label) for place, label in things if (owner == place).any()]
        masks = torch.stack([owner == place for place, _ in things])
        boxes = masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0])
        labels = torch.tensor([label for _, label in things])
        found.append(Sample(str(number), image, boxes, Segments(boxes, masks, labels, torch.ones(len(things)) > 0)))
    return found


def test_the_loss_falls_by_half_on_two_scenes():
    clip, samples = load("foveate-small"), scenes(2)
    is_novel = torch.tensor([kind.is_novel for kind in THINGS])
    with torch.no_grad():
        text = clip.encode_text(clip.tokenize([*(f"a photo of a {kind.name}." for kind in THINGS), "background"]))
    model = detector(clip, text=text, is_novel=is_novel, size=96, channels=16, width=16, rois=32, masks=True, **PLAIN)
    losses = steps(model, optimizer_of(model), samples, range(25), lr=1e-3)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert set(model.parts) == {"objectness", "anchor_box", "class", "box", "mask"}
    assert math.isclose(sum(one.item() for one in model.parts.values()), losses[-1], rel_tol=1e-5)
    assert model.parts["mask"] < 0.69 and model.parts["objectness"] < 0.6  # both begin at log 2, .693


@pytest.mark.parametrize("trained_layers", [0, 2])
@pytest.mark.parametrize("family", ["vit", "eva"])
def test_only_trained_parameters_get_gradients(tiny_clip, squares, family, trained_layers):
    clip = tiny_clip(family)
    model = detector(clip, masks=True, trained_layers=trained_layers)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    steps(model, optimizer_of(model), squares(2), range(1))
    model(Batch(squares(2), [])).backward()
    assert [name for name, one in trained(model).items() if one.grad is None] == []
    moved = {name for name, one in model.state_dict().items() if not torch.equal(one, before[name])}
    in_tower = {name for name in moved if ".clip." in name}
    assert not clip.training and bool(in_tower) == (trained_layers > 0)
    blocks = "resblocks" if family == "vit" else "blocks"
    assert all(f"{blocks}.2." in name or f"{blocks}.3." in name for name in in_tower)
    grouped = [one for group in optimizer_of(model).param_groups for one in group["params"]]
    assert len(grouped) == len({id(one) for one in grouped}) == len(trained(model))
    if family == "vit" and trained_layers:  # the last block is used by its values alone
        name = "tower.clip.model.visual.transformer.resblocks.3.attn.in_proj_weight"
        now, width = model.state_dict()[name], clip.visual.transformer.width
        assert torch.equal(now[: 2 * width], before[name][: 2 * width])
        assert not torch.equal(now[2 * width :], before[name][2 * width :])


def test_the_learning_rate_decays_block_by_block(tiny_clip):
    model = detector(tiny_clip(), trained_layers=2)
    groups = model.parameter_groups(weight_decay=0.1, ladder=0.5)
    # all that learns in a group decays, vectors too; a group of its own for the temperature, another for the last
    # block's matrix of which only some rows learn
    assert [group["lr_scale"] for group in groups] == [1.0, 1.0, 0.25, 0.5, 0.5]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.1, 0.1, 0.0]
    assert any(one.ndim == 1 for one in groups[0]["params"]) and len(groups[4]["params"]) == len(model.tower.partly)
    (scale,) = groups[1]["params"]
    assert scale is model.log_scale and math.isclose(model.scale.item(), 50.0, rel_tol=1e-5)


def test_only_base_objects_are_learned_from(tiny_clip, squares):
    model, (sample,) = detector(tiny_clip(), masks=True, **PLAIN), squares(1)
    segments = sample.segments
    boxes = torch.cat([segments.boxes, torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 3)])
    masks = torch.cat([segments.masks, torch.zeros(3, 64, 64, dtype=torch.bool)])
    # base, base, novel, crowd (K = 3), stuff
    labels, is_thing = torch.tensor([0, 1, 2, 3, 1]), torch.tensor([True, True, True, True, False])
    seen = model._targets(replace(sample, segments=Segments(boxes, masks, labels, is_thing)))
    assert seen.labels.tolist() == [0, 1] and torch.equal(seen.boxes, segments.boxes)
    assert torch.equal(seen.masks, segments.masks) and seen.crowds.tolist() == [[0.0, 0.0, 9.0, 9.0]]


def test_images_without_boxes_and_degenerate_ones_give_finite_losses(tiny_clip, squares):
    model, (sample,) = detector(tiny_clip(), masks=True), squares(1)
    bare = Sample("bare", sample.image, torch.zeros(0, 4))
    segments = sample.segments
    flat = replace(sample, segments=replace(segments, boxes=torch.tensor([[5.0, 5.0, 5.0, 9.0], [1.0, 1.0, 1.2, 1.2]])))
    crowd = replace(
        sample,
        segments=Segments(
            torch.tensor([[0.0, 0.0, 64.0, 64.0]]), segments.masks[:1], torch.tensor([3]), torch.ones(1) > 0
        ),
    )
    for samples in ([bare], [flat], [crowd], [bare, sample]):
        model.zero_grad(set_to_none=True)
        loss = model(Batch(samples, []))
        loss.backward()
        assert loss.isfinite() and all(one.grad.isfinite().all() for one in trained(model).values())
    empty = Batch([], [BadSample("a", "broken")])
    model.zero_grad(set_to_none=True)
    loss = model(empty)
    loss.backward()
    assert loss.item() == 0
    assert all(one.grad is not None and not one.grad.any() for one in trained(model).values())


def test_without_proposals_the_whole_image_is_one(tiny_clip, squares):
    model, samples = detector(tiny_clip(), **PLAIN), squares(2)
    with torch.no_grad():
        bias = model.rpn.network.head.bbox_pred.bias
        bias[0::4] = 1000.0  # every box is moved out of the image
    assert model(Batch(samples, [])).isfinite()
    for one in model.candidates(samples):
        assert one.proposals.tolist() == [[0.0, 0.0, 64.0, 64.0]] and one.objectness.tolist() == [0.0]


def test_candidates_do_not_depend_on_the_batch_and_are_inside_the_image(tiny_clip, squares):
    model, samples = detector(tiny_clip(), masks=True), squares(3)
    samples[1] = replace(samples[1], image=samples[1].image[:, :40])
    model.eval()
    together = model.candidates(samples)
    assert not model.training
    for sample, one in zip(samples, together, strict=True):
        (alone,) = model.candidates([sample])
        count = len(one.proposals)
        assert (one.id, one.height, one.width) == (sample.id, *sample.image.shape[1:]) and 0 < count <= 50
        assert torch.allclose(alone.proposals, one.proposals, atol=1e-3)
        assert torch.allclose(alone.boxes, one.boxes, atol=1e-3)
        assert torch.allclose(alone.clip.float(), one.clip.float(), atol=2e-3)
        assert torch.allclose(alone.detector.float(), one.detector.float(), atol=2e-3)
        assert (alone.masks.int() - one.masks.int()).abs().max() <= 1 and one.masks.shape == (count, 28, 28)
        for boxes in (one.proposals, one.boxes):
            assert (boxes >= 0).all() and (boxes[:, 2] <= one.width).all() and (boxes[:, 3] <= one.height).all()
        assert (one.objectness.diff() <= 0).all() and one.detector.dtype == one.clip.dtype == torch.float16
        assert torch.allclose(one.clip.float().norm(dim=1), torch.ones(count), atol=2e-3)
    assert model.candidates([]) == []


def test_the_towers_score_is_pooled_at_the_proposal(tiny_clip, squares):
    clip = tiny_clip()
    model, (sample,) = detector(clip), squares(1)  # 64 pixels are the input's too, so pixels are the same
    (found,) = model.candidates([sample])
    images = model._inputs([sample], [model.eval()._targets(replace(sample, boxes=sample.boxes[:0], segments=None))])
    expected = clip.encode_boxes(images, [found.proposals])
    assert torch.allclose(found.clip.float(), expected, atol=2e-3)


def test_a_resumed_run_has_the_same_bits(tiny_clip, squares):
    samples = squares(2)
    whole = detector(tiny_clip(), masks=True)
    whole_optimizer = optimizer_of(whole)
    steps(whole, whole_optimizer, samples, range(4))
    first = detector(tiny_clip(), masks=True)
    first_optimizer = optimizer_of(first)
    steps(first, first_optimizer, samples, range(2))
    saved = collect(first, first_optimizer)
    assert any(name.startswith("buffer/box_head") for name in saved) and not any("buffer/tower" in one for one in saved)
    second = detector(tiny_clip(), masks=True)
    with torch.no_grad():
        for one in trained(second).values():
            one.add_(1)
    second_optimizer = optimizer_of(second)
    restore(second, second_optimizer, saved)
    steps(second, second_optimizer, samples, range(2, 4))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


def test_training_under_autocast(tiny_clip, squares):
    model = detector(tiny_clip(), masks=True)
    exact = steps(model, optimizer_of(model), squares(2), range(1), lr=0.0)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(0)
        loss = model(Batch(squares(2), []))
        (found, _) = model.candidates(squares(2))
    loss.backward()
    assert abs(loss.item() - exact) < 0.3 * exact and found.boxes.dtype == torch.float32
    assert all(one.grad.isfinite().all() for one in trained(model).values())


def test_patches_of_14_pixels(tiny_clip, squares):
    clip = tiny_clip(patch_size=14, image_size=56)
    model = detector(clip, size=84, masks=True)  # 6 patches
    assert model.strides == (3.5, 7.0, 14.0, 28.0, 56.0)
    assert all(math.isfinite(one) for one in steps(model, optimizer_of(model), squares(2), range(2)))
    assert len(model.candidates(squares(1))[0].boxes) > 0


@pytest.mark.parametrize("pyramid", ["fpn", "simple"])
def test_the_other_pyramids_learn_too(tiny_clip, squares, pyramid):
    model = detector(tiny_clip(), pyramid=pyramid)
    steps(model, optimizer_of(model), squares(1), range(1))
    model(Batch(squares(1), [])).backward()
    assert [name for name, one in trained(model).items() if one.grad is None] == []


def test_the_cache_gives_the_same_losses_written_and_read(tiny_clip, squares, tmp_path, monkeypatch):
    clip, samples = tiny_clip(), squares(2)
    plain = detector(clip, **PLAIN)
    expected = steps(plain, optimizer_of(plain), samples, range(2))
    found = []
    for _ in range(2):
        cache = FeatureCache(tmp_path / "c", clip, size=64, layers=plain.tower.layers)
        model = detector(clip, cache=cache, **PLAIN)
        found.append(steps(model, optimizer_of(model), samples, range(2)))
        monkeypatch.setattr(type(clip), "features", None)  # the second time nothing may run the tower
        monkeypatch.setattr("foveate.heads.fvit.detector.tap_width", lambda _: 32)
    assert found[0] == found[1]
    assert abs(expected[0] - found[0][0]) < 0.02 * expected[0]  # float16; later steps draw from other proposals
    with pytest.raises(InputError, match="leave out jitter and flip"):
        detector(clip, cache=cache, jitter=None, flip=True)


def test_one_process_has_no_sync_batch_norm(tiny_clip):
    model = detector(tiny_clip())
    assert synchronise(model) is model
    assert not any(isinstance(one, nn.SyncBatchNorm) for one in model.modules())


@pytest.mark.parametrize("norm", [False, True])
def test_a_mask_head_without_objects_keeps_its_statistics_and_has_gradients(tiny_clip, squares, norm):
    model, (sample,) = detector(tiny_clip(), masks=True, norm=norm), squares(1)
    before = {name: one.clone() for name, one in model.mask_head.named_buffers()}
    assert bool(before) == norm
    loss = model(Batch([Sample("bare", sample.image, torch.zeros(0, 4))], []))
    loss.backward()
    assert loss.isfinite() and all(one.grad is not None and not one.grad.any() for one in model.mask_head.parameters())
    assert all(torch.equal(one, before[name]) for name, one in model.mask_head.named_buffers())
    model(Batch([sample], []))
    assert not any(torch.equal(one, before[name]) for name, one in model.mask_head.named_buffers())


def test_a_process_without_objects_runs_its_synchronised_layers(tiny_clip, squares):
    seen = []

    class Synchronised(nn.SyncBatchNorm):  # which waits for all processes, and needs GPUs
        def forward(self, input):
            seen.append(len(input))
            return nn.functional.batch_norm(input, None, None, self.weight, self.bias, training=True)

    model, (one,) = detector(tiny_clip(), masks=True, norm=True), squares(1)
    for part in model.mask_head.convs:
        part[1] = Synchronised(8)
    loss = model(Batch([Sample(name, one.image, torch.zeros(0, 4)) for name in "ab"], []))
    loss.backward()
    assert seen == [1] * 4 and loss.isfinite()
    assert all(one.grad is not None and not one.grad.any() for one in model.mask_head.parameters())


def test_statistics_and_resize_of_the_input(tiny_clip, squares):
    clip, (sample,) = tiny_clip(), squares(1, size=50)  # resized to 64
    bare = replace(sample, boxes=sample.boxes[:0], segments=None)
    found = {}
    for settings in ({}, {"statistics": "clip"}, {"resize": "bicubic"}):
        model = detector(clip, **settings, **PLAIN).eval()
        found[tuple(settings)] = model._inputs([bare], [model._targets(bare)])[0]
    mean, std = (torch.tensor(one)[:, None, None] for one in IMAGENET)
    grey = resize_longest_bilinear(sample.image, size=64)
    torch.testing.assert_close(found[()], (grey / 255 - mean) / std)
    torch.testing.assert_close(found["statistics",], (grey / 255 - 0.5) / 0.25)  # of CONFIG
    torch.testing.assert_close(found["resize",], (resize_longest(sample.image, size=64) / 255 - mean) / std)


def test_arguments_that_do_not_fit_are_refused(tiny_clip):
    clip = tiny_clip()
    with pytest.raises(InputError, match=r"multiple of 16, two patches; got 72\. Try 64"):
        detector(clip, size=72)
    with pytest.raises(InputError, match=r"text: need \(4, 16\), .* got \(3, 16\)"):
        detector(clip, text=torch.zeros(3, 16))
    with pytest.raises(InputError, match="at least one base class"):
        detector(clip, is_novel=torch.ones(3) > 0)


def test_only_chosen_candidates_get_masks(tiny_clip, squares):
    model = detector(tiny_clip(), masks=True).eval()
    [everything] = model.candidates(squares(1))
    rows = torch.tensor([4, 1])
    [some] = model.candidates(squares(1), masked=lambda one: rows[: len(one.boxes)])
    assert everything.masks is not None and some.masks is not None
    assert torch.equal(some.masks[rows], everything.masks[rows])
    others = torch.ones(len(some.boxes), dtype=torch.bool)
    others[rows] = False
    assert not some.masks[others].any() and everything.masks[others].any()
    [none] = model.candidates(squares(1), masked=lambda one: rows[:0])
    assert none.masks is not None and not none.masks.any()
