"""Fused scores against published values, and suppression against a slow loop per class."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from foveate.errors import InputError
from foveate.heads.fvit import fusion as module
from foveate.heads.fvit.candidates import Candidates
from foveate.heads.fvit.fusion import PRESETS, Fusion, detect, fuse_scores, keep_best, shift_classes


def slow_keep(boxes: Tensor, scores: Tensor, *, min_score: float, overlap: float, keep: int) -> list[tuple[int, int]]:
    """One class after the other, one pair after the other, all of them."""
    corners = boxes.double().tolist()

    def iou(one: int, other: int) -> float:
        (a, b, c, d), (e, f, g, h) = corners[one], corners[other]
        across, down = max(0.0, min(c, g) - max(a, e)), max(0.0, min(d, h) - max(b, f))
        return across * down / ((c - a) * (d - b) + (g - e) * (h - f) - across * down)

    kept = []
    for label in range(scores.shape[1]):
        column = scores[:, label].tolist()
        mine: list[int] = []
        for row in sorted((row for row in range(len(column)) if column[row] > min_score), key=lambda row: -column[row]):
            if all(iou(row, better) <= overlap for better in mine):
                mine.append(row)
        kept += [(-column[row], row, label) for row in mine]
    return [(row, label) for _, row, label in sorted(kept)[:keep]]


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    corner = torch.rand(count, 2, generator=generator) * 60
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 40], dim=1)


def test_golden_values():
    # p = [.6 .3 .1], q = [.2 .5 .3], class 1 base with weight .35, others .65: .6^.35 .2^.65 is class 0's, and so on
    p, q = torch.tensor([[0.6, 0.3, 0.1, 0.25]]), torch.tensor([[0.2, 0.5, 0.3, 0.1]])
    is_base = torch.tensor([True, False, False])
    fused = fuse_scores(p.double(), q.double(), is_base, base=0.35, novel=0.65)[0]
    assert torch.allclose(fused[:3], torch.tensor([0.408469, 0.418141, 0.204234]).double(), atol=1e-6, rtol=0)
    assert float(fused[3]) == pytest.approx(0.25**0.65 * 0.1**0.35, abs=1e-6)  # background counts as base


def test_golden_values_of_f_vlm():
    # its own rule on top: background is the detector's p, then the row is divided by its sum
    p, q = torch.tensor([[0.45, 0.225, 0.075, 0.25]]), torch.tensor([[0.18, 0.45, 0.27, 0.1]])
    fused = fuse_scores(p.double(), q.double(), torch.tensor([True, False, False]), base=0.35, novel=0.65)[0]
    row = torch.cat([p[0, 3:].double(), fused[:3]])
    expected = torch.tensor([0.22685, 0.296301, 0.32037, 0.156479]).double()
    assert torch.allclose(row / row.sum(), expected, atol=1e-6, rtol=0)


def test_every_class_is_novel_without_base():
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.1, 0.6, 0.3]])
    fused = fuse_scores(p, q, torch.tensor([False, False]), base=0.0, novel=1.0)
    assert torch.allclose(fused, torch.tensor([[0.1, 0.6, 0.2]]))  # q of the classes, p of background


@pytest.mark.parametrize(
    ("count", "classes", "levels"), [(60, 7, 0), (50, 5, 4), (12, 1203, 0), (6, 1300, 3), (40, 1, 2)]
)
@pytest.mark.parametrize("keep", [1, 10, 10_000])
def test_suppression_equals_a_loop_over_classes(count: int, classes: int, levels: int, keep: int):
    generator = torch.Generator().manual_seed(count + classes + keep)
    boxes = random_boxes(count, generator)
    if levels:  # ties, and overlaps of exactly one half and the like
        boxes = boxes.round()
    scores = torch.rand(count, classes, generator=generator)
    if levels:
        scores = (scores * levels).round() / levels
    for overlap in (0.0, 0.5, 1.0):
        wanted = {"min_score": 0.25, "overlap": overlap, "keep": keep}
        rows, labels = keep_best(boxes, scores, **wanted)
        assert list(zip(rows.tolist(), labels.tolist(), strict=True)) == slow_keep(boxes, scores, **wanted)


def test_the_prefix_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(1)
    boxes = random_boxes(200, generator) * torch.tensor([0.2, 0.2, 1.0, 1.0])  # nearly all overlap: the prefix grows
    scores = torch.rand(200, 3, generator=generator).mul(50).round() / 50
    found = {}
    for first in (1, 3, 10_000):
        monkeypatch.setattr(module, "PREFIX_FACTOR", first)
        rows, labels = keep_best(boxes, scores, min_score=0.0, overlap=0.3, keep=9)
        found[first] = (rows.tolist(), labels.tolist())
    assert found[1] == found[3] == found[10_000]
    assert len(found[1][0]) == 9


def test_shifted_boxes_keep_fractions_of_a_pixel():
    boxes = torch.tensor([[0.3, 0.0, 1999.7, 1500.0], [0.3, 0.0, 1999.7, 1500.0]])
    moved = shift_classes(boxes, torch.tensor([0, 1202]))
    assert torch.equal(moved[0], boxes[0].double())
    assert float((moved[1] - moved[1, 0] - (boxes[1].double() - boxes[1, 0].double())).abs().max()) < 1e-8
    assert float(moved[1, 0]) > 1202 * 1999.7


# ------------------------------------------------------------------------------------------------------ whole images


def candidates_of(boxes: Tensor, detector: Tensor, clip: Tensor, masks: Tensor | None = None) -> Candidates:
    count = len(boxes)
    return Candidates("7", 50, 60, boxes, torch.ones(count), boxes, detector.half(), clip.half(), masks)


BOXES = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [30.0, 30.0, 40.0, 40.0], [5.0, 5.0, 5.0, 20.0]])
TEXT = torch.eye(3)  # two classes and background
FUSION = Fusion(base=0.25, novel=0.5, temperature=2.0, min_score=0.2, nms=0.5, keep=10)


def test_detect_by_hand():
    detector = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0]])
    found = detect(candidates_of(BOXES, detector, detector.roll(1, 0)), TEXT, torch.tensor([True, False]), 3.0, FUSION)
    # p = e^3 / (e^3 + 2) = .909443 of its class, .045279 of others; q likewise from e^2: .786986 and .106507.
    # box 0: q is [.787 ..] (rolled in from box 3): base .909443^.75 .786986^.25 = .877145
    # box 1: the same, overlaps 0.9 of box 0: suppressed; box 3 has no area
    # box 2, q from box 1 is of class 0: class 1, novel, (.909443 .106507)^.5 = .311226; class 0: .092
    # box 3 would be class 0; box 0 of class 1: (.045279 .106507)^.5 = .0694, under .2
    assert found.labels.tolist() == [0, 1]
    assert torch.equal(found.boxes, BOXES[[0, 2]])
    assert torch.allclose(found.scores, torch.tensor([0.877145, 0.311226]), atol=1e-5)
    assert found.masks is None


def test_detect_without_candidates_or_classes():
    none = candidates_of(
        torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 28, 28, dtype=torch.uint8)
    )
    found = detect(none, TEXT, torch.tensor([True, False]), 50.0, FUSION)
    assert (found.boxes.shape, found.scores.shape, found.labels.dtype, found.masks) == ((0, 4), (0,), torch.int64, ())
    zero = candidates_of(BOXES, torch.zeros(4, 3), torch.zeros(4, 3))  # cosine 0 with all: one third each, no NaN
    found = detect(zero, TEXT, torch.tensor([False, False]), 50.0, FUSION)
    assert torch.allclose(found.scores, torch.full((4,), 1 / 3))
    high = Fusion(0.25, 0.5, 2.0, 0.999, 0.5, 10)
    assert len(detect(zero, TEXT, torch.tensor([False, False]), 50.0, high).scores) == 0


def test_detect_one_class_and_masks_of_a_box_once():
    masks = torch.zeros(4, 28, 28, dtype=torch.uint8)
    masks[:2] = 255
    embedding = torch.tensor([[1.0, 1.0, 0]]).expand(4, 3)
    found = detect(candidates_of(BOXES, embedding, embedding, masks), TEXT[[0, 2]], torch.tensor([False]), 9.0, FUSION)
    assert found.labels.tolist() == [0, 0]
    assert found.masks is not None
    assert [one["size"] for one in found.masks] == [[50, 60]] * 2
    two = detect(
        candidates_of(BOXES[:1], embedding[:1], embedding[:1], masks[:1]), TEXT, torch.tensor([True, True]), 9.0, FUSION
    )
    assert two.labels.tolist() == [0, 1]
    assert two.masks is not None and two.masks[0] == two.masks[1]
    assert (
        detect(
            candidates_of(BOXES, embedding, embedding, masks),
            TEXT,
            torch.tensor([True, True]),
            9.0,
            FUSION,
            masks=False,
        ).masks
        is None
    )


def test_bad_inputs_are_refused():
    detector = torch.ones(4, 3)
    whole = candidates_of(BOXES, detector, detector)
    with pytest.raises(InputError, match="need 3 classes and background; got 3"):
        detect(whole, TEXT, torch.tensor([True, False, True]), 9.0, FUSION)
    with pytest.raises(InputError, match=r"need embeddings of 3 numbers.*got 5"):
        detect(whole, torch.ones(3, 5), torch.tensor([True, False]), 9.0, FUSION)
    with pytest.raises(InputError, match="image 7: need finite embeddings"):
        detect(candidates_of(BOXES, detector * float("nan"), detector), TEXT, torch.tensor([True, False]), 9.0, FUSION)
    with pytest.raises(InputError, match=r"`novel` in \[0, 1\]; got 1.5"):
        Fusion(0.1, 1.5, 50.0, 0.1, 0.5, 10)
    with pytest.raises(InputError, match="at least 1 to keep; got 0"):
        Fusion(0.1, 0.5, 50.0, 0.1, 0.5, 0)
    with pytest.raises(InputError, match="positive `detector_temperature`; got 0"):
        Fusion(0.1, 0.5, 50.0, 0.1, 0.5, 10, 0.0)


def test_a_fusion_can_fix_the_detectors_temperature():
    candidates = candidates_of(BOXES, torch.tensor([[1.0, 0.2, 0.0]] * len(BOXES)), torch.ones(len(BOXES), 3))
    base, fixed = torch.tensor([True, False]), replace(FUSION, detector_temperature=9.0, min_score=0.0)
    free = replace(FUSION, min_score=0.0)
    found = [detect(candidates, TEXT, base, scale, fixed).scores for scale in (9.0, 2.0)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], detect(candidates, TEXT, base, 9.0, free).scores)
    assert not torch.equal(found[0], detect(candidates, TEXT, base, 2.0, free).scores)


def test_presets_are_the_published_ones():
    # A.3: a, b, Tv, score, NMS, most, T where it is fixed
    assert {name: tuple(vars(one).values()) for name, one in PRESETS.items()} == {
        "ov-coco": (0.1, 0.8, 75.0, 0.01, 0.4, 100, None),
        "ov-lvis-b": (0.1, 0.6, 50.0, 1e-4, 0.5, 300, None),
        "ov-lvis-l": (0.1, 0.4, 50.0, 1e-4, 0.5, 300, None),
        "transfer-coco": (0.2, 0.2, 120.0, 1e-4, 0.5, 300, 50.0),
        "transfer-objects365": (0.3, 0.3, 120.0, 1e-4, 0.5, 300, 50.0),
        "transfer-voc": (0.3, 0.3, 120.0, 1e-4, 0.5, 300, 50.0),
    }
