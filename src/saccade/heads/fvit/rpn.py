"""The detector's first stage: proposals of no class from all five levels (A.3).

torchvision's region proposal network with two convolutions and anchors that are not rounded. What it learns from is
the caller's matter: the boxes of base classes. Suppression is level by level, as torchvision's and the paper's are.
Deliberately absent: what `saccade.heads.proposals` has of its own: a pyramid, files of proposals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers

from saccade.heads.fvit.anchors import Anchors
from saccade.heads.proposals.rpn import leave_out_crowds


@dataclass(frozen=True)
class Predicted:
    """What the network says of every anchor of a batch of B pictures, A anchors each."""

    objectness: Float[Tensor, "R 1"]  # R = B * A, logits
    deltas: Float[Tensor, "R 4"]
    anchors: list[Tensor]  # (A, 4) of each picture
    counts: list[int]  # anchors of each level


class Rpn(nn.Module):
    """Objectness and boxes of anchors, their loss, and the proposals they make."""

    def __init__(
        self,
        strides: Sequence[float],
        *,
        channels: int,
        samples: int = 256,
        positive_iou: float = 0.7,
        negative_iou: float = 0.3,
        pre_nms: int = 2000,
        nms: float = 0.7,
        keep: int = 1000,
    ) -> None:
        """Make the layers.

        Args:
            strides: of the levels [pixels].
            channels: of the levels.
            samples: anchors a picture that the loss looks at, at most half of them positive.
            positive_iou: anchors that overlap an object by as much are positive, and each object's best.
            negative_iou: anchors that overlap every object by less are negative.
            pre_nms: best boxes of each level before suppression.
            nms: of two boxes of a level that overlap by more, the one with the lower score goes.
            keep: proposals a picture.
        """
        super().__init__()
        anchors = Anchors(strides)
        self.network = RegionProposalNetwork(
            anchors,
            RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=2),
            positive_iou,
            negative_iou,
            samples,
            0.5,
            {"training": pre_nms, "testing": pre_nms},
            {"training": keep, "testing": keep},
            nms,
        )

    def forward(self, levels: list[Float[Tensor, "B C _ _"]]) -> Predicted:
        """Say of every anchor whether it is an object, and where."""
        objectness, deltas = self.network.head(levels)
        count = len(levels[0])
        anchors = self.network.anchor_generator(ImageList(levels[0], [(0, 0)] * count), levels)
        counts = [int(one[0].numel()) for one in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        return Predicted(objectness.float(), deltas.float(), anchors, counts)

    def losses(
        self, found: Predicted, objects: list[Float[Tensor, "_ 4"]], crowds: list[Float[Tensor, "_ 4"]]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The losses of objectness and box, each the mean over the sampled anchors of the batch.

        Args:
            found: of `forward`.
            objects: xyxy, pixels of the input; one tensor a picture.
            crowds: likewise; background mostly inside one of these is not sampled.
        """
        labels, matched = self.network.assign_targets_to_anchors(found.anchors, [{"boxes": one} for one in objects])
        labels = [leave_out_crowds(*three) for three in zip(labels, found.anchors, crowds, strict=True)]
        targets = self.network.box_coder.encode(list(matched), found.anchors)
        return self.network.compute_loss(found.objectness, found.deltas, labels, list(targets))

    @torch.no_grad()
    def propose(
        self, found: Predicted, fitted: list[tuple[int, int]]
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
