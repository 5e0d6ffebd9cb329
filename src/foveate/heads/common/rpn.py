"""Shared by both region proposal networks (`heads.proposals`, `heads.fvit.rpn`): predictions, and crowds (A.3).

Their losses and suppression differ: torchvision's there, mmdet's in the detector.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers

MAX_CROWD_IOF = 0.5  # a box with more of its area in a crowd is not background
NOT_SAMPLED = -1  # torchvision's label of anchors that are not sampled


@dataclass(frozen=True)
class AnchorPredictions:
    """Predictions for a batch of B images with A anchors each."""

    objectness: Float[Tensor, "R 1"]  # R = B * A, logits
    deltas: Float[Tensor, "R 4"]
    anchors: list[Tensor]  # (A, 4) per image
    counts: list[int]  # anchors per level


def predict_anchors(
    network: RegionProposalNetwork,
    levels: list[Float[Tensor, "B C _ _"]],
    *,
    inputs: Float[Tensor, "B _ _ _"],
) -> AnchorPredictions:
    """Predict objectness and box deltas of every anchor.

    Args:
        levels: of the feature pyramid, finest first.
        inputs: torchvision's anchor generator reads the size of the padded images.
    """
    objectness, deltas = network.head(levels)
    sizes = [(inputs.shape[2], inputs.shape[3])] * len(inputs)
    anchors = network.anchor_generator(ImageList(inputs, sizes), levels)
    counts = [int(level[0].numel()) for level in objectness]
    objectness, deltas = concat_box_prediction_layers(objectness, deltas)
    return AnchorPredictions(objectness.float(), deltas.float(), anchors, counts)


def ignore_crowds(
    labels: Shaped[Tensor, " A"], boxes: Float[Tensor, "A 4"], crowds: Float[Tensor, "M 4"]
) -> Shaped[Tensor, " A"]:
    """Exclude boxes that are mostly in one crowd from the background: anchors, or proposals of a second stage.

    Args:
        labels: 0 is background, above 0 an object, below 0 not sampled.
        boxes: xyxy, x1 < x2.
        crowds: xyxy, in the same pixels.

    Returns:
        The labels, with -1 for background of which more than half is in a single crowd.
    """
    if not len(crowds):
        return labels
    corners = torch.maximum(boxes[:, None, :2], crowds[None, :, :2])  # (A, M, 2)
    sides = (torch.minimum(boxes[:, None, 2:], crowds[None, :, 2:]) - corners).clamp(min=0)  # (A, M, 2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)  # (A,)
    iof = sides.prod(dim=2).amax(dim=1) / area  # (A,), intersection over the box's area
    return labels.masked_fill((labels == 0) & (iof > MAX_CROWD_IOF), NOT_SAMPLED)
