"""Recall of proposals, on boxes whose overlaps are counted by hand."""

import torch

from foveate.evaluate.proposals import best_overlaps, recall_of

OBJECTS = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [50.0, 50.0, 60.0, 60.0]])
# 10 x 8 inside the first: IoU 80 / 100 = 0.8; 10 x 5 of the second's 100: 0.5; the third is not met
PROPOSALS = torch.tensor([[0.0, 0.0, 10.0, 8.0], [20.0, 0.0, 30.0, 5.0]])


def test_overlaps_with_the_first_proposals():
    assert torch.allclose(best_overlaps(OBJECTS, PROPOSALS, top=100), torch.tensor([0.8, 0.5, 0.0]))
    assert torch.allclose(best_overlaps(OBJECTS, PROPOSALS, top=1), torch.tensor([0.8, 0.0, 0.0]))
    assert best_overlaps(OBJECTS, PROPOSALS[:0], top=10).tolist() == [0, 0, 0]
    assert best_overlaps(OBJECTS[:0], PROPOSALS, top=10).shape == (0,)


def test_recall_of_each_group():
    images = [(OBJECTS, ["a", "b", "a"], PROPOSALS), (OBJECTS[:1], ["b"], PROPOSALS[:0])]
    found = recall_of(images, {"base": ("a",), "novel": ("b",), "none": ()}, tops=(1, 100))
    # base: overlaps 0.8 and 0: half at 0.5; of the ten IoUs 0.5 ... 0.95, seven (to 0.8) find one of two: 35 %
    assert found["base"] == {"objects": 2, "recall50": 50.0, "AR@1": 35.0, "AR@100": 35.0}
    # novel: 0.5 (0 with one proposal) and 0: half at 0.5, which is one of ten IoUs: 5 %
    assert found["novel"] == {"objects": 2, "recall50": 50.0, "AR@1": 0.0, "AR@100": 5.0}
    assert found["none"] == {"objects": 0, "recall50": None, "AR@1": None, "AR@100": None}
