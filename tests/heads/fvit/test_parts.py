"""Anchors, pyramid, levels and heads by hand, and the cache."""

from dataclasses import replace

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from foveate.clip.dense import dense_of_last
from foveate.errors import InputError
from foveate.heads.common.pyramid import Pyramid, pyramid_strides
from foveate.heads.common.tower import Tower, default_taps, tap_width
from foveate.heads.fvit.anchors import Anchors
from foveate.heads.fvit.cache import FeatureCache
from foveate.heads.fvit.heads import (
    BoxHead,
    MaskHead,
    RoiSampler,
    box_loss,
    class_logits,
    class_loss,
    decode_boxes,
    mask_targets,
    unit,
)
from foveate.heads.fvit.match import match_boxes
from foveate.heads.fvit.roi import choose_levels, pool_levels
from foveate.heads.fvit.rpn import Rpn


def test_anchors_of_patches_of_14_are_not_rounded():
    maps = [torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)]
    (found,) = Anchors((3.5, 7.0))(ImageList(torch.zeros(1, 3, 28, 28), [(28, 28)]), maps)
    assert found.shape == (3 * (64 + 16), 4)
    # side 8 * 3.5 = 28; ratio 1/2 = height / width: width 28 * sqrt 2, height 28 / sqrt 2
    wide, high = 14 * 2**0.5, 14 / 2**0.5
    assert torch.allclose(found[0], torch.tensor([-wide, -high, wide, high]))
    assert found[1].tolist() == [-14.0, -14.0, 14.0, 14.0]
    assert found[3 + 1].tolist() == [-10.5, -14.0, 17.5, 14.0]  # the next place of the row: 3.5 to the right
    assert found[3 * 8 + 1].tolist() == [-14.0, -10.5, 14.0, 17.5]  # the next row
    assert found[3 * 64 + 3 + 1].tolist() == [7.0 - 28, -28.0, 7.0 + 28, 28.0]  # the second level, second place


def test_default_taps_are_those_of_the_paper():
    assert default_taps(12) == (3, 5, 7) and default_taps(24) == (6, 10, 14) and default_taps(6) == (1, 2, 3)


@pytest.mark.parametrize("patch", [8, 14, 16])
@pytest.mark.parametrize("kind", ["taps", "fpn", "simple"])
def test_levels_have_their_strides(tiny_clip, patch, kind):
    clip = tiny_clip(patch_size=patch, image_size=4 * patch)
    tower = Tower(clip, kind=kind)
    size = 6 * patch
    maps = tower(torch.randn(2, 3, size, size), dense=True)
    levels = Pyramid(tap_width(clip), channels=16, kind=kind)(maps.taps)
    strides = pyramid_strides(patch)
    assert strides == (patch / 4, patch / 2, patch, 2 * patch, 4 * patch)
    # 6 patches: 24, 12, 6, 3 places, and every second of 3
    assert [tuple(one.shape) for one in levels] == [(2, 16, side, side) for side in (24, 12, 6, 3, 2)]
    assert tower.layers == ((1, 1, 2, 3) if kind == "taps" else (3,))


@pytest.mark.parametrize("family", ["vit", "eva", "siglip"])
def test_one_pass_gives_taps_and_the_dense_feature_map(tiny_clip, family):
    clip = tiny_clip(family)
    images = torch.randn(2, 3, 64, 64)
    maps = Tower(clip)(images, dense=True)
    assert torch.allclose(maps.dense, clip.encode_dense(images), atol=1e-6)
    assert torch.equal(maps.taps[-1], clip.features(images, layers=(-1,))[0])
    raw = dense_of_last(clip.visual, maps.taps[-1])
    assert torch.allclose(raw, clip.encode_dense(images, normalize=False), atol=1e-6)


def test_towers_and_taps_that_do_not_fit_are_refused(tiny_clip):
    with pytest.raises(InputError, match="needs a vision transformer"):
        Tower(tiny_clip("rn"))
    with pytest.raises(InputError, match=r"need 3 blocks of tiny, 0 to 3; got \(1, 2, 4\)"):
        Tower(tiny_clip(), taps=(1, 2, 4))
    with pytest.raises(InputError, match="need 0 to 4"):
        Tower(tiny_clip(), trained=5)


def test_levels_by_size_of_box():
    # strides 4, 8, 16, 32: 56 pixels are the first box of... level floor(log2(side / 56)): 111 -> 0, 112 -> 1, 224 -> 2
    sides = torch.tensor([1.0, 56.0, 111.0, 112.0, 223.0, 224.0, 448.0, 2000.0, 0.0])
    boxes = torch.stack([sides * 0, sides * 0, sides * 2, sides / 2], dim=1)
    assert choose_levels(boxes).tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 0]


def test_boxes_are_pooled_with_exact_scales_in_order():
    torch.manual_seed(0)
    strides = pyramid_strides(14)
    levels = [torch.randn(2, 3, round(140 / s), round(140 / s)) for s in strides[:4]]
    boxes = [torch.tensor([[0.0, 0.0, 120.0, 110.0], [7.0, 3.0, 30.0, 20.0]]), torch.tensor([[1.0, 2.0, 111.0, 99.0]])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pool_levels([one.bfloat16().float() for one in levels], boxes, strides=strides, side=7)
    expected = []  # sides 114.9, 19.8, 103.3 over 56: levels 1, 0, 0
    for image, row, level in ((0, 0, 1), (0, 1, 0), (1, 0, 0)):
        source = levels[level][image : image + 1].bfloat16().float()
        expected.append(roi_align(source, [boxes[image][row : row + 1]], 7, 1 / strides[level], -1, True))
    assert torch.allclose(found, torch.cat(expected), atol=1e-6) and found.dtype == torch.float32
    # a constant map stays constant, and half precision maps pool too
    flat = [torch.ones_like(one).bfloat16() for one in levels]
    assert torch.equal(pool_levels(flat, boxes, strides=strides, side=2), torch.ones(3, 3, 2, 2))


def test_a_zero_vector_gives_no_nan_and_no_gradient():
    embeddings = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    logits = class_logits(embeddings, text, scale=torch.tensor(10.0))
    assert torch.allclose(logits, torch.tensor([[0.0, 0.0], [6.0, 8.0]]))
    logits[:, 0].sum().backward()
    assert embeddings.grad[0].tolist() == [0.0, 0.0]
    # d(x / |x|)/dx at (3, 4): (16, -12) / 125, times 10
    assert torch.allclose(embeddings.grad[1], torch.tensor([1.28, -0.96]))
    assert unit(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def test_novel_columns_are_ignored_and_background_is_weighted():
    logits = torch.tensor([[1.0, 5.0, 0.0], [0.0, 9.0, 2.0]], requires_grad=True)
    is_novel = torch.tensor([False, True])
    loss = class_loss(logits, torch.tensor([0, 2]), is_novel=is_novel, background_weight=0.6)
    # without column 1: log(1 + e^-1) of an object, .6 log(1 + e^-2) of background, over 2
    expected = (torch.tensor(-1.0).exp().log1p() + 0.6 * torch.tensor(-2.0).exp().log1p()) / 2
    assert torch.allclose(loss, expected)
    loss.backward()
    assert logits.grad[:, 1].tolist() == [0.0, 0.0] and (logits.grad[:, [0, 2]] != 0).all()


def test_only_objects_have_a_box_loss_and_codes_are_inverse():
    rois = torch.tensor([[0.0, 0.0, 10.0, 20.0], [5.0, 5.0, 9.0, 9.0]])
    targets = torch.tensor([[2.0, 0.0, 12.0, 20.0], [0.0, 0.0, 0.0, 0.0]])
    codes = torch.zeros(2, 4, requires_grad=True)
    loss = box_loss(codes, rois, targets, torch.tensor([True, False]))
    # the centre moves by 2 of 10, times 10 = 2; over both proposals
    assert torch.allclose(loss, torch.tensor(2 / 2.0))
    loss.backward()
    assert codes.grad[1].abs().sum() == 0
    assert torch.allclose(decode_boxes(torch.tensor([[2.0, 0.0, 0.0, 0.0]]), rois[:1]), targets[:1])


def test_masks_are_cropped_to_their_proposals():
    masks = torch.zeros(2, 56, 56, dtype=torch.bool)
    masks[1, :, :28] = True
    found = mask_targets(masks, torch.tensor([[0.0, 0.0, 56.0, 56.0], [28.0, 0.0, 56.0, 28.0]]), torch.tensor([1, 1]))
    assert found[0, :, :14].all() and not found[0, :, 14:].any() and found[1, :, 1:].sum() == 0


def test_proposals_are_drawn_with_their_objects():
    torch.manual_seed(0)
    objects, labels = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([3])
    proposals = torch.tensor([[0.0, 0.0, 10.0, 9.0], [40.0, 40.0, 50.0, 50.0], [20.0, 20.0, 30.0, 30.0]])
    crowds = torch.tensor([[15.0, 15.0, 35.0, 35.0]])
    boxes, found, place = RoiSampler(samples=8)(proposals, objects, labels, crowds, background=5)
    # two objects (the true box and the first proposal) and one background; the third lies in a crowd
    assert boxes.tolist() == [objects[0].tolist(), proposals[0].tolist(), proposals[1].tolist()]
    assert found.tolist() == [3, 3, 5] and place.tolist() == [0, 0, 0]
    empty = objects[:0]
    boxes, found, _ = RoiSampler(samples=2)(proposals, empty, labels[:0], empty, background=5)
    assert len(boxes) == 2 and found.tolist() == [5, 5]


def test_boxes_are_assigned_as_in_the_published_detectors():
    # objects x boxes. Box 0 overlaps object 0 most but is object 1's best; box 3 is object 2's best, at .2
    overlaps = torch.tensor([[0.8, 0.9, 0.4, 0.0, 0.1], [0.75, 0.0, 0.1, 0.0, 0.1], [0.0, 0.0, 0.1, 0.2, 0.1]])
    numbers = {"positive": 0.7, "negative": 0.3}
    assert match_boxes(overlaps, **numbers, best_from=None).tolist() == [0, 0, -2, -1, -1]
    assert match_boxes(overlaps, **numbers, best_from=0.3).tolist() == [1, 0, -2, -1, -1]  # the floor leaves box 3 out
    assert match_boxes(overlaps, **numbers, best_from=0.0).tolist() == [1, 0, -2, 2, -1]
    tie = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.1, 0.0]])  # all best ones, and of two objects the later
    assert match_boxes(tie, **numbers, best_from=0.3).tolist() == [1, 0, -1]


def test_match_low_quality_gives_an_object_its_best_proposal():
    torch.manual_seed(0)
    objects, labels = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 16.0]]), torch.tensor([3, 4])
    proposals = torch.tensor([[0.0, 0.0, 10.0, 12.0]])  # IoU 10/12 and 12/16: most of object 0, the best of object 1
    for told, label in ((False, 3), (True, 4)):
        sampler = RoiSampler(samples=12, match_low_quality=told)
        _, found, place = sampler(proposals, objects, labels, objects[:0], background=5)
        assert found.tolist() == [3, 4, label] and place.tolist() == [0, 1, label - 3]


def test_the_box_loss_of_the_first_stage_and_small_objects():
    torch.manual_seed(0)
    rpn = Rpn((8.0, 16.0), channels=4, samples=8, positive_iou=0.9)
    levels = [torch.randn(1, 4, 4, 4), torch.randn(1, 4, 2, 2)]
    found = rpn(levels)
    anchors, nothing = found.anchors[0], torch.zeros(0, 4)
    codes = torch.tensor([0.02, -0.03, 0.0, 0.0])  # of the centre [sides of the anchor]
    sides = anchors[1, 2:] - anchors[1, :2]
    moved = (anchors[1] + (codes[:2] * sides).repeat(2))[None]
    _, box = rpn.losses(replace(found, deltas=torch.zeros_like(found.deltas)), [moved], [nothing])
    assert torch.allclose(box, torch.tensor(0.05 / 8), atol=1e-6)  # one of 8 is positive; smooth L1 gives less
    small = anchors[1, :2].repeat(2) + torch.tensor([0.0, 0.0, 8.0, 8.0])  # IoU 1/64 at most: no anchor is its own
    labels, _ = rpn._assign(anchors, small[None], nothing)
    assert not (labels > 0).any()


def test_batch_norm_as_in_the_published_lvis_detectors():
    plain, normed = (Rpn((4.0, 8.0), channels=4, norm=norm).state_dict() for norm in (False, True))
    assert "network.head.conv.1.0.bias" in plain and "network.head.conv.1.0.bias" not in normed
    assert "network.head.conv.1.1.running_mean" in normed
    head = MaskHead(4, width=4, norm=True).eval()
    assert "convs.3.1.running_var" in head.state_dict() and head(torch.randn(2, 4, 14, 14)).shape == (2, 28, 28)


def test_the_relu_of_embeddings_is_optional():
    torch.manual_seed(0)
    head = BoxHead(4, width=4, embed_dim=8).eval()
    pooled = torch.randn(6, 4, 7, 7)
    published = head(pooled)[0]
    head.relu_embedding = False
    assert torch.equal(head(pooled)[0].relu(), published) and (head(pooled)[0] < 0).any()


def test_the_cache_depends_on_the_tower_and_on_pixels(tiny_clip, squares, tmp_path):
    clip, (one, two) = tiny_clip(), squares(2)
    tower = Tower(clip)
    cache = FeatureCache(tmp_path / "c", clip, size=64, layers=tower.layers)
    assert cache.read(one, device=torch.device("cpu")) is None
    given = cache.write(one, tower(torch.randn(1, 3, 64, 64), dense=False).taps)
    again = FeatureCache(tmp_path / "c", clip, size=64, layers=tower.layers).read(one, device=torch.device("cpu"))
    assert again is not None
    for a, b in zip(given, again, strict=True):
        assert a.dtype == b.dtype == torch.float32 and torch.equal(a, b)
    assert cache.read(two, device=torch.device("cpu")) is None
    (file,) = tmp_path.rglob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert cache.read(one, device=torch.device("cpu")) is None  # computed again
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"another command. Differing:\n  size: stored 64, now 80\n"):
        FeatureCache(tmp_path / "c", clip, size=80, layers=tower.layers)
    with pytest.raises(InputError, match="Differing:\n  resize: stored"):
        FeatureCache(tmp_path / "c", clip, size=64, layers=tower.layers, resize="bicubic")
    with pytest.raises(InputError, match="Differing:\n  statistics: stored"):
        FeatureCache(tmp_path / "c", clip, size=64, layers=tower.layers, statistics="clip")
    with torch.no_grad():
        clip.visual.conv1.weight += 1
    with pytest.raises(InputError, match="Differing:\n  tower: stored"):
        FeatureCache(tmp_path / "c", clip, size=64, layers=tower.layers)
    (tmp_path / "c" / "manifest.json").unlink()
    with pytest.raises(InputError, match="need the manifest of files by foveate maps"):
        FeatureCache(tmp_path / "c", clip, size=64, layers=tower.layers)
    cache.digest = "another"  # a file that strayed in from another folder
    assert cache.read(one, device=torch.device("cpu")) is None
    file.write_bytes(file.read_bytes()[:50])
    assert cache.read(one, device=torch.device("cpu")) is None
