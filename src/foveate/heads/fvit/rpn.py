"""F-ViT's first stage: class-agnostic proposals from all five levels (A.3).

torchvision's region proposal network with two convolutions (with BatchNorm in the published detectors of OV-LVIS) and
unrounded anchors. Assignment and box regression are mmdet's; suppression is level by level, as in torchvision and the
paper. The caller passes the boxes of base classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import Conv2dNormActivation, box_iou

from foveate.heads.common.rpn import NOT_SAMPLED, AnchorPredictions, ignore_crowds, predict_anchors
from foveate.heads.fvit.anchors import Anchors
from foveate.heads.fvit.match import BACKGROUND, match_boxes

MATCHING = {"negative": 0.3, "best_from": 0.3}  # see `match_boxes`
PRE_NMS = 2000  # best boxes of each level before suppression
MAX_IOU = 0.7  # of two proposals of a level


class Rpn(nn.Module):
    """Objectness and boxes of anchors, their losses, and proposals."""

    def __init__(
        self,
        strides: Sequence[float],
        *,
        channels: int,
        norm: bool = False,
        samples: int = 256,
        positive_iou: float = 0.7,
        keep: int = 1000,
    ) -> None:
        """Make the layers.

        Args:
            strides: of the levels [pixels].
            channels: of the levels.
            norm: BatchNorm after each convolution, which then has no bias; published for OV-LVIS.
            samples: anchors per image in the losses, at most half of them positive.
            positive_iou: see `match_boxes`.
            keep: proposals per image.
        """
        super().__init__()
        anchors = Anchors(strides)
        self.positive_iou = positive_iou
        self.network = RegionProposalNetwork(
            anchors,
            _head(channels, anchors.num_anchors_per_location()[0], norm=norm),
            positive_iou,
            MATCHING["negative"],
            samples,
            0.5,
            {"training": PRE_NMS, "testing": PRE_NMS},
            {"training": keep, "testing": keep},
            MAX_IOU,
        )

    def forward(self, levels: list[Float[Tensor, "B C _ _"]]) -> AnchorPredictions:
        """Predict objectness and boxes of every anchor."""
        return predict_anchors(self.network, levels, inputs=levels[0])  # `Anchors` does not use the input's size

    def losses(
        self, predictions: AnchorPredictions, objects: list[Float[Tensor, "_ 4"]], crowds: list[Float[Tensor, "_ 4"]]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The losses of objectness (binary cross-entropy) and box (L1), means over the batch's sampled anchors.

        Args:
            predictions: of `forward`.
            objects: xyxy, pixels of the input; one tensor per image.
            crowds: likewise; background mostly inside one of these is not sampled.
        """
        # assign and sample anchors
        images = zip(predictions.anchors, objects, crowds, strict=True)
        labels, matched = (list(part) for part in zip(*(self._assign(*image) for image in images), strict=True))
        positive, negative = (torch.cat(part).nonzero()[:, 0] for part in self.network.fg_bg_sampler(labels))
        sampled = torch.cat([positive, negative])  # (S,)

        # losses
        codes = torch.cat(list(self.network.box_coder.encode(matched, predictions.anchors)))  # (R, 4)
        box = F.l1_loss(predictions.deltas[positive], codes[positive], reduction="sum") / sampled.numel()
        is_object = torch.cat(labels)[sampled]
        return F.binary_cross_entropy_with_logits(predictions.objectness[sampled, 0], is_object), box

    def _assign(
        self, anchors: Float[Tensor, "A 4"], objects: Float[Tensor, "N 4"], crowds: Float[Tensor, "M 4"]
    ) -> tuple[Float[Tensor, " A"], Float[Tensor, "A 4"]]:
        """Labels of an image's anchors, below 0 if not to be sampled, and the object of each."""
        if not len(objects):
            labels, matched = anchors.new_zeros(len(anchors)), torch.zeros_like(anchors)
        else:
            index = match_boxes(box_iou(objects, anchors), positive=self.positive_iou, **MATCHING)  # (A,)
            labels = torch.where(index >= 0, 1.0, torch.where(index == BACKGROUND, 0.0, float(NOT_SAMPLED)))
            matched = objects[index.clamp(min=0)]
        return ignore_crowds(labels, anchors, crowds), matched

    @torch.no_grad()
    def propose(
        self, predictions: AnchorPredictions, fitted: list[tuple[int, int]]
    ) -> tuple[list[Float[Tensor, "_ 4"]], list[Float[Tensor, " _"]]]:
        """The best boxes of each image; the whole image with score 0 if there are none.

        Args:
            predictions: of `forward`.
            fitted: (height, width) of the image in each input [pixels]; boxes are clipped to it.

        Returns:
            Boxes and their scores in [0, 1], highest first.
        """
        deltas, anchors = predictions.deltas.detach(), predictions.anchors
        boxes = self.network.box_coder.decode(deltas, anchors).view(len(fitted), -1, 4)  # (B, A, 4)
        proposals, scores = self.network.filter_proposals(boxes, predictions.objectness, fitted, predictions.counts)
        for index, (height, width) in enumerate(fitted):
            if not len(proposals[index]):
                proposals[index] = boxes.new_tensor([[0.0, 0.0, width, height]])
                scores[index] = boxes.new_zeros(1)
        return proposals, scores


def _head(channels: int, anchors: int, *, norm: bool) -> RPNHead:
    """Torchvision's layers, with BatchNorm if `norm`."""
    head = RPNHead(channels, anchors, conv_depth=2)
    if norm:
        head.conv = nn.Sequential(*(Conv2dNormActivation(channels, channels) for _ in range(2)))
        for module in head.conv.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)  # as in RPNHead
    return head
