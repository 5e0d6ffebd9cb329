"""Masks to maps: by hand, against a slow loop, and against transformers where the rules agree."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from foveate.heads.panoptic.merge import instances, panoptic_map, semantic_map
from foveate.ops.paste import decode_masks
from foveate.types import PanopticMap

THING, STUFF = 0, 1
IS_THING = torch.tensor([True, False])


def logits_of(rows: list[list[float]]) -> torch.Tensor:
    """Of probabilities of thing, stuff, nothing."""
    return torch.tensor(rows).log()


def plane(text: str) -> torch.Tensor:
    """A row of pixels: tenths of a probability a letter."""
    return torch.tensor([[int(one) / 10 for one in text]]).clamp(0.01, 0.99).logit()


def merged(rows: list[list[float]], planes: list[str], **settings) -> PanopticMap:
    masks = torch.stack([plane(one) for one in planes])
    return panoptic_map(logits_of(rows), masks, IS_THING, size=(1, masks.shape[2]), **settings)


def test_a_panoptic_map_by_hand():
    # pixel 0, 1: a thing (.8 x .9). 2: the thing has .8 x .4, stuff .6 x .9. 3: stuff. 4: the second stuff, merged
    # with the first. 5: whoever is best has 4 tenths only
    found = merged(
        [[0.8, 0.1, 0.1], [0.1, 0.6, 0.3], [0.1, 0.7, 0.2], [0.3, 0.1, 0.6]], ["994004", "009900", "000090", "999999"]
    )
    assert found.ids.tolist() == [[1, 1, 2, 2, 2, 0]]
    assert [(one.id, one.label, one.is_thing) for one in found.segments] == [(1, THING, True), (2, STUFF, False)]
    assert found.segments[0].score == pytest.approx(0.8) and found.segments[1].score == pytest.approx(0.6)


def test_things_stay_separate_and_ids_continue_after_merged_stuff():
    rows = [[0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1]]
    found = merged(rows, ["9000", "0900", "0090", "0009"])
    assert found.ids.tolist() == [[1, 2, 1, 3]] and [one.label for one in found.segments] == [STUFF, THING, THING]


@pytest.mark.parametrize(("lost", "stays"), [(1, True), (2, False)])
def test_a_mask_that_lost_more_than_a_fifth_is_removed(lost, stays):
    # five pixels, of which a surer mask takes one (4/5 are left) or two (3/5)
    found = merged([[0.6, 0.3, 0.1], [0.9, 0.05, 0.05]], ["99999", "9" * lost + "0" * (5 - lost)])
    assert found.ids.tolist() == [[1 + stays] * lost + [int(stays)] * (5 - lost)]


def test_low_scores_are_used_and_no_object_is_not():
    rows = [[0.34, 0.33, 0.33], [0.3, 0.3, 0.4]]
    assert merged(rows, ["90", "09"]).ids.tolist() == [[1, 0]]
    assert merged(rows, ["90", "09"], min_score=0.5).segments == ()  # what transformers does unless told otherwise
    empty = panoptic_map(torch.zeros(0, 3), torch.zeros(0, 2, 2), IS_THING, size=(3, 4))
    assert empty.ids.shape == (3, 4) and not empty.ids.any() and empty.segments == ()


def slow_map(class_logits, mask_logits, is_thing, size):
    """Pixel by pixel."""
    masks = F.interpolate(mask_logits[None], size=size, mode="bilinear", align_corners=False)[0].sigmoid()
    scores, labels = class_logits.softmax(dim=1).max(dim=1)
    used = [place for place in range(len(scores)) if labels[place] != class_logits.shape[1] - 1]
    height, width = size
    owner = {}
    for y in range(height):
        for x in range(width):
            owner[y, x] = max(used, key=lambda q: (float(scores[q] * masks[q, y, x]), -q)) if used else None
    ids, segments, stuff = torch.zeros(size, dtype=torch.int64), [], {}
    for q in used:
        mine = [place for place, one in owner.items() if one == q]
        drawn = [place for place in mine if masks[q][place] >= 0.5]
        whole = int((masks[q] >= 0.5).sum())
        if not drawn or len(mine) / whole < 0.8:
            continue
        label = int(labels[q])
        number = stuff.get(label)
        if number is None:
            number = len(segments) + 1
            segments.append((number, label, bool(is_thing[label]), float(scores[q])))
            if not is_thing[label]:
                stuff[label] = number
        for place in drawn:
            ids[place] = number
    return ids, segments


def test_a_panoptic_map_equals_a_slow_loop():
    kinds = set()
    for seed in range(12):
        torch.manual_seed(seed)
        class_logits, is_thing = 2 * torch.randn(7, 4), torch.tensor([True, False, False])
        mask_logits = F.interpolate(4 * torch.randn(1, 7, 3, 4), size=(6, 8), mode="nearest")[0] - 2
        found = panoptic_map(class_logits, mask_logits, is_thing, size=(9, 11))
        ids, segments = slow_map(class_logits, mask_logits, is_thing, (9, 11))
        assert torch.equal(found.ids, ids)
        assert [(one.id, one.label, one.is_thing) for one in found.segments] == [one[:3] for one in segments]
        assert [one.score for one in found.segments] == pytest.approx([one[3] for one in segments])
        kinds |= {one.is_thing for one in found.segments}
    assert kinds == {True, False}


def library(class_logits, mask_logits):
    """transformers' processor, and what it is asked with."""
    processing = pytest.importorskip("transformers.models.mask2former.image_processing_mask2former")
    outputs = SimpleNamespace(class_queries_logits=class_logits[None], masks_queries_logits=mask_logits[None])
    return processing.Mask2FormerImageProcessor(), outputs


def blocks() -> torch.Tensor:
    """Six masks of 48 x 48, enlarged 8 times by the library: overlapping rectangles with hard edges."""
    masks = torch.full((6, 384, 384), -9.0)
    for mask, (y1, x1, y2, x2) in zip(
        masks,
        [
            (0, 0, 200, 200),
            (180, 180, 384, 384),
            (0, 210, 170, 384),
            (205, 0, 384, 170),
            (0, 0, 60, 60),
            (50, 50, 90, 90),
        ],
        strict=True,
    ):
        mask[y1:y2, x1:x2] = 9.0
    return masks


def test_panoptic_maps_equal_those_of_transformers_at_high_scores():
    # sure scores (1 - 1e-4): the library thresholds score x probability; stuff last: it numbers wrongly after merging
    labels = torch.tensor([0, 3, 1, 1, 2, 2])  # 2 and 3: stuff of masks 4, 5 (overlapping), 1
    class_logits = torch.full((6, 5), -10.0)
    class_logits[range(6), labels] = torch.tensor([6.0, 5.5, 5.0, 4.5, 6.5, 7.0])
    masks, is_thing = blocks(), torch.tensor([True, True, False, False])
    processor, outputs = library(class_logits, masks)
    asked = {"threshold": 0.0, "label_ids_to_fuse": {2, 3}}
    (expected,) = processor.post_process_panoptic_segmentation(outputs, **asked)
    found = panoptic_map(class_logits, masks, is_thing, size=(384, 384))
    covered = (masks > 0).any(dim=0)  # the library gives away what nobody finds probable
    assert torch.equal(found.ids[covered], expected["segmentation"].long()[covered]) and not found.ids[~covered].any()
    unique = {one["id"]: one for one in reversed(expected["segments_info"])}  # it lists merged ones again
    assert [(one.id, one.label) for one in found.segments] == [(i, unique[i]["label_id"]) for i in sorted(unique)]
    assert len(found.segments) < 6  # something was merged


def test_the_default_threshold_of_transformers_loses_segments():
    class_logits = logits_of([[0.4, 0.3, 0.3], [0.9, 0.05, 0.05]])
    masks = blocks()[:2]
    processor, outputs = library(class_logits, masks)
    (default,) = processor.post_process_panoptic_segmentation(outputs, label_ids_to_fuse=set())
    assert len(default["segments_info"]) == 1
    assert len(panoptic_map(class_logits, masks, IS_THING, size=(384, 384)).segments) == 2


def test_semantic_maps_equal_those_of_transformers():
    torch.manual_seed(0)
    class_logits, masks = torch.randn(20, 5), torch.randn(20, 12, 12)  # more masks than are enlarged at once
    found = semantic_map(class_logits, masks, size=(384, 384))
    processor, outputs = library(class_logits, masks)
    (expected,) = processor.post_process_semantic_segmentation(outputs)
    assert torch.equal(found.argmax(dim=0), expected)
    # 1/2 x 1 + 1/4 x 1/2 of the first class, and 1/4 x 1 + 1/4 x 1/2 of the second
    small = semantic_map(
        logits_of([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]), torch.tensor([[[99.0]], [[0.0]]]), size=(1, 1)
    )
    assert torch.allclose(small.flatten(), torch.tensor([0.625, 0.375]))
    assert not semantic_map(torch.zeros(0, 3), torch.zeros(0, 2, 2), size=(2, 2)).any()


def test_instances_by_hand():
    masks = torch.stack([plane("990"), plane("0089"[:3]), plane("111")])
    rows = [[0.5, 0.1, 0.4], [0.3, 0.6, 0.1], [0.9, 0.05, 0.05]]
    found = instances(logits_of(rows), masks, IS_THING, size=(1, 3))
    # thing pairs: mask 2 is empty; mask 0: .5 x .9; mask 1: .3 x .8 (its one pixel)
    assert found.scores.tolist() == pytest.approx([0.45, 0.24], abs=1e-4) and found.labels.tolist() == [0, 0]
    assert found.boxes.tolist() == [[0, 0, 2, 1], [2, 0, 3, 1]]
    assert decode_masks(found.masks, height=1, width=3).int().tolist() == [[[1, 1, 0]], [[0, 0, 1]]]
    # of the two best pairs (.9 of the empty mask, .6 of stuff) nothing is left
    assert len(instances(logits_of(rows), masks, IS_THING, size=(1, 3), keep=2).scores) == 0
    assert len(instances(torch.zeros(0, 3), torch.zeros(0, 2, 2), IS_THING, size=(2, 2)).boxes) == 0


def test_instances_equal_those_of_transformers():
    torch.manual_seed(1)
    class_logits, masks = torch.randn(6, 4), 3 * torch.randn(6, 384, 384)
    processor, outputs = library(class_logits, masks)
    (expected,) = processor.post_process_instance_segmentation(outputs, threshold=0.0)
    ours = instances(class_logits, masks, torch.ones(3) > 0, size=(384, 384), keep=6)
    theirs = sorted(((one["score"], one["label_id"]) for one in expected["segments_info"]), reverse=True)
    assert ours.scores.tolist() == pytest.approx([one[0] for one in theirs], abs=1e-5)
    assert ours.labels.tolist() == [one[1] for one in theirs]
