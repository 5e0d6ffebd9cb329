"""The detector's first stage: proposals of no class from all five levels (A.3).

torchvision's region proposal network with two convolutions (with BatchNorm in the published detectors of OV-LVIS) and
anchors that are not rounded; its anchors are assigned and its boxes learned as mmdet does it. What it learns from is
the caller's matter: the boxes of base classes. Suppression is level by level, as torchvision's and the paper's are.
Deliberately absent: what `foveate.heads.proposals` has of its own: a pyramid, files of proposals.
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


class Rpn(nn.Module):
    """Objectness and boxes of anchors, their loss, and the proposals they make."""

    def __init__(
        self,
        strides: Sequence[float],
        *,
        channels: int,
        norm: bool = False,
        samples: int = 256,
        positive_iou: float = 0.7,
        negative_iou: float = 0.3,
        best_iou: float = 0.3,
        pre_nms: int = 2000,
        nms: float = 0.7,
        keep: int = 1000,
    ) -> None:
        """Make the layers.

        Args:
            strides: of the levels [pixels].
            channels: of the levels.
            norm: BatchNorm after each convolution, which then has no bias; published for OV-LVIS.
            samples: anchors a picture that the loss looks at, at most half of them positive.
            positive_iou: anchors that overlap an object by as much are positive.
            negative_iou: anchors that overlap every object by less are negative.
            best_iou: each object's best anchor is positive too, where it overlaps the object by as much.
            pre_nms: best boxes of each level before suppression.
            nms: of two boxes of a level that overlap by more, the one with the lower score goes.
            keep: proposals a picture.
        """
        super().__init__()
        anchors = Anchors(strides)
        self.matching = {"positive": positive_iou, "negative": negative_iou, "best_from": best_iou}
        self.network = RegionProposalNetwork(
            anchors,
            _head(channels, anchors.num_anchors_per_location()[0], norm=norm),
            positive_iou,
            negative_iou,
            samples,
            0.5,
            {"training": pre_nms, "testing": pre_nms},
            {"training": keep, "testing": keep},
            nms,
        )

    def forward(self, levels: list[Float[Tensor, "B C _ _"]]) -> AnchorPredictions:
        """Predict objectness and boxes of every anchor."""
        return predict_anchors(self.network, levels, inputs=levels[0])  # our anchors do not ask for the input's size

    def losses(
        self, found: AnchorPredictions, objects: list[Float[Tensor, "_ 4"]], crowds: list[Float[Tensor, "_ 4"]]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The losses of objectness (binary cross-entropy) and box (L1), each the mean over the batch's sampled anchors.

        Args:
            found: of `forward`.
            objects: xyxy, pixels of the input; one tensor a picture.
            crowds: likewise; background mostly inside one of these is not sampled.
        """
        targets = zip(found.anchors, objects, crowds, strict=True)
        labels, matched = (list(part) for part in zip(*(self._assign(*one) for one in targets), strict=True))
        chosen = [torch.cat(one).nonzero()[:, 0] for one in self.network.fg_bg_sampler(labels)]
        positive, sampled = chosen[0], torch.cat(chosen)  # (S+,), (S,)
        codes = torch.cat(list(self.network.box_coder.encode(matched, found.anchors)))  # (R, 4)
        box = F.l1_loss(found.deltas[positive], codes[positive], reduction="sum") / sampled.numel()
        known = torch.cat(labels)[sampled]
        return F.binary_cross_entropy_with_logits(found.objectness[sampled, 0], known), box

    def _assign(
        self, anchors: Float[Tensor, "A 4"], objects: Float[Tensor, "N 4"], crowds: Float[Tensor, "M 4"]
    ) -> tuple[Float[Tensor, " A"], Float[Tensor, "A 4"]]:
        """Labels of a picture's anchors, below 0 for those not to be sampled, and the object of each."""
        if not len(objects):
            labels, matched = anchors.new_zeros(len(anchors)), torch.zeros_like(anchors)
        else:
            places = match_boxes(box_iou(objects, anchors), **self.matching)  # (A,)
            labels = torch.where(places >= 0, 1.0, torch.where(places == BACKGROUND, 0.0, float(NOT_SAMPLED)))
            matched = objects[places.clamp(min=0)]
        return ignore_crowds(labels, anchors, crowds), matched

    @torch.no_grad()
    def propose(
        self, found: AnchorPredictions, fitted: list[tuple[int, int]]
    ) -> tuple[list[Float[Tensor, "_ 4"]], list[Float[Tensor, " _"]]]:
        """The best boxes of each picture; where there is none, the whole picture with score 0.

        Args:
            found: of `forward`.
            fitted: (height, width) of what each input holds of its picture [pixels]; boxes are cut to it.

        Returns:
            Boxes and their scores in [0, 1], highest first.
        """
        boxes = self.network.box_coder.decode(found.deltas.detach(), found.anchors).view(len(fitted), -1, 4)
        found_boxes, scores = self.network.filter_proposals(boxes, found.objectness, fitted, found.counts)
        for place, (height, width) in enumerate(fitted):
            if not len(found_boxes[place]):
                found_boxes[place] = boxes.new_tensor([[0.0, 0.0, width, height]])
                scores[place] = boxes.new_zeros(1)
        return found_boxes, scores


def _head(channels: int, anchors: int, *, norm: bool) -> RPNHead:
    """torchvision's layers, or the same with BatchNorm."""
    head = RPNHead(channels, anchors, conv_depth=2)
    if norm:
        head.conv = nn.Sequential(*(Conv2dNormActivation(channels, channels) for _ in range(2)))
        for module in head.conv.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)  # as RPNHead's own
    return head
