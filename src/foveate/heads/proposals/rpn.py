"""A region proposal network that knows objects but no classes (Sec. 3.2 "Proposals instead of patches"; A.3).

    images --resize, pad--> pyramid --two 3x3 convs--> 3 anchors a place --> objectness, box

Two losses over 256 anchors per image, up to half of them positive: cross-entropy of "is an object", smooth L1 of the
box. It is trained on the boxes of base categories only. Novel and left-out objects have no box here: what lies on them
is background, as in the paper's RPN on OV-COCO, so they are found only as far as they look like objects. Anchors that
lie mostly in a crowd of a base category and on no object are left out of the loss. Anchors, matching, sampling and
suppression are torchvision's, but suppression is over all levels together. Deliberately absent: classes, a second stage
that refines the boxes, jitter of the scale.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork, RPNHead
from torchvision.ops import nms as suppress

from foveate.data.splits import IGNORED, OBJECT
from foveate.errors import InputError
from foveate.heads.common.rpn import AnchorPredictions, ignore_crowds, predict_anchors
from foveate.heads.proposals.pyramid import ConvPyramid, TowerPyramid
from foveate.ops.boxes import boxes_on_image, boxes_on_input, clip_boxes
from foveate.ops.resample import square_inputs
from foveate.types import Batch, Sample, blank_sample

RATIOS = (0.5, 1.0, 2.0)  # height / width of anchors
SMALLEST_SIDE = 1.0  # of a proposal [pixels of the image]

Found = tuple[Float[Tensor, "N 4"], Float[Tensor, " N"]]


class Proposer(nn.Module):
    """The objective (`loss = objective(batch)`), and the proposals that it learns to make (`propose`)."""

    def __init__(
        self,
        pyramid: TowerPyramid | ConvPyramid,
        *,
        size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        channels: int = 128,
        scales: Sequence[float] = (8.0,),
        positive_iou: float = 0.7,
        negative_iou: float = 0.3,
        samples: int = 256,
        flip: bool = True,
    ) -> None:
        """Put an RPN on a pyramid.

        Args:
            pyramid: its feature maps.
            size: side of the square input [pixels]; a multiple of the pyramid's coarsest stride.
            mean: of the RGB channels, in [0, 1].
            std: likewise.
            channels: of each level of the pyramid.
            scales: sides of the square anchors of each level [its strides].
            positive_iou: anchors that overlap an object by as much are positive, and each object's best.
            negative_iou: anchors that overlap every object by less are negative.
            samples: anchors per image that the loss looks at, at most half of them positive.
            flip: mirror half of the images in training, drawn from torch's global stream.

        Raises:
            InputError: a size that does not fit, or scales that give anchors of no pixel.
        """
        super().__init__()
        coarsest = pyramid.strides[-1]
        if size < coarsest or size % coarsest:
            near = max(1, round(size / coarsest)) * coarsest
            raise InputError(f"--size: need a positive multiple of {coarsest} pixels; got {size}. Try {near}.")
        self.pyramid, self.size, self.mean, self.std, self.flip = pyramid, size, mean, std, flip
        anchors = AnchorGenerator(
            tuple(tuple(int(scale * stride) for scale in scales) for stride in pyramid.strides),
            (RATIOS,) * len(pyramid.strides),
        )
        finest = pyramid.strides[0]
        if any((one[:, 2:] - one[:, :2]).min() < 1 for one in anchors.cell_anchors):  # they are rounded to whole pixels
            raise InputError(
                f"scales: need anchors with sides of at least 1 pixel; got {', '.join(map(str, scales))} times the "
                f"finest stride, {finest} pixels. Try {2 / finest:g} or more."
            )
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=2),
            positive_iou,
            negative_iou,
            samples,
            0.5,
            {"training": 0, "testing": 0},  # suppression is `propose`'s, whose numbers are not the network's
            {"training": 0, "testing": 0},
            0.7,
        )

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """The objectness loss plus the box loss, each the mean over all sampled anchors of the batch.

        Args:
            batch: images with the boxes of objects; where `segments` are given, their labels tell objects from
                ignored crowds (`data.splits.as_objects`). An image without any is all background.

        Returns:
            The loss; where no image could be used, a zero that still reaches every trained parameter.
        """
        samples = batch.samples or [blank_sample()]
        if self.flip:
            mirrored = (torch.rand(len(samples)) < 0.5).tolist()
            samples = [_mirror(one) if is_flipped else one for one, is_flipped in zip(samples, mirrored, strict=True)]
        predictions = self._predict(samples)
        anchors = predictions.anchors
        objects, crowds = zip(*map(self._targets, samples), strict=True)
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, [{"boxes": boxes} for boxes in objects])
        labels = [ignore_crowds(*image) for image in zip(labels, anchors, crowds, strict=True)]
        targets = self.rpn.box_coder.encode(list(matched), anchors)
        losses = self.rpn.compute_loss(predictions.objectness, predictions.deltas, labels, list(targets))
        loss = losses[0] + losses[1]
        return loss if batch.samples else loss * 0

    @torch.no_grad()
    def propose(
        self, samples: list[Sample], *, keep: int, min_score: float = 0.0, pre_nms: int = 2000, nms: float = 0.7
    ) -> list[Found]:
        """Find the objects of images.

        Args:
            samples: decoded images; their boxes are not looked at.
            keep: at most so many boxes per image.
            min_score: leave out boxes of a lower score.
            pre_nms: best boxes of each level before suppression.
            nms: of two boxes that overlap by more, over all levels, the one with the lower score goes.

        Returns:
            For each image (N, 4) xyxy, pixels of the image and inside it, at least one pixel wide and high, and
            their scores in [0, 1], highest first.
        """
        was_training = self.training
        self.eval()
        predictions = self._predict(samples)
        boxes = self.rpn.box_coder.decode(predictions.deltas, predictions.anchors).view(
            len(samples), -1, 4
        )  # (B, A, 4)
        scores = predictions.objectness.view(len(samples), -1).sigmoid()  # (B, A)
        self.train(was_training)
        limits = {"keep": keep, "min_score": min_score, "pre_nms": pre_nms, "nms": nms}
        return [self._best(*image, predictions.counts, **limits) for image in zip(samples, boxes, scores, strict=True)]

    def _best(
        self,
        sample: Sample,
        boxes: Float[Tensor, "A 4"],
        scores: Float[Tensor, " A"],
        counts: list[int],
        *,
        keep: int,
        min_score: float,
        pre_nms: int,
        nms: float,
    ) -> Found:
        """The best boxes of one image, carried to its own pixels."""
        height, width = sample.image.shape[1:]
        boxes = boxes_on_image(boxes, height=height, width=width, size=self.size)
        boxes = clip_boxes(boxes, height=height, width=width)
        usable = ((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST_SIDE).all(dim=1) & (scores >= min_score)  # (A,)
        return best_boxes(boxes, scores.masked_fill(~usable, -1.0), counts, keep=keep, pre_nms=pre_nms, nms=nms)

    def _predict(self, samples: list[Sample]) -> AnchorPredictions:
        images = [sample.image.to(self._device, non_blocking=True) for sample in samples]
        inputs = square_inputs(images, size=self.size, mean=self.mean, std=self.std)  # (B, 3, H, W)
        return predict_anchors(self.rpn, self.pyramid(inputs), inputs=inputs)

    def _targets(self, sample: Sample) -> tuple[Float[Tensor, "N 4"], Float[Tensor, "M 4"]]:
        """The objects and the crowds of an image, in pixels of its input."""
        height, width = sample.image.shape[1:]
        boxes = boxes_on_input(sample.boxes, height=height, width=width, size=self.size).to(self._device)
        if sample.segments is None:
            return boxes, boxes[:0]
        labels = sample.segments.labels.to(self._device)
        return boxes[labels == OBJECT], boxes[labels == IGNORED]

    @property
    def _device(self) -> torch.device:
        return next(self.rpn.parameters()).device


def best_boxes(
    boxes: Float[Tensor, "A 4"],
    scores: Float[Tensor, " A"],
    counts: list[int],
    *,
    keep: int,
    pre_nms: int,
    nms: float,
) -> Found:
    """Take each level's best boxes, then of those that overlap the better one, over all levels.

    Args:
        boxes: xyxy, level by level.
        scores: likewise; below 0: not to be taken.
        counts: boxes of each level.
        keep: at most so many.
        pre_nms: of each level, before suppression.
        nms: IoU above which the lower score goes.

    Returns:
        Boxes and scores, highest first.
    """
    taken = [part.topk(min(pre_nms, len(part))).indices for part in scores.split(counts)]
    starts = torch.tensor([0, *counts[:-1]]).cumsum(0).tolist()
    places = torch.cat([start + one for start, one in zip(starts, taken, strict=True)])  # (A',)
    places = places[scores[places] >= 0]
    kept = places[suppress(boxes[places], scores[places], nms)[:keep]]
    return boxes[kept], scores[kept]


def _mirror(sample: Sample) -> Sample:
    """An image and its boxes, left and right exchanged."""
    right = sample.image.shape[2]
    x1, y1, x2, y2 = sample.boxes.unbind(dim=1)  # (N,) each
    return replace(sample, image=sample.image.flip(2), boxes=torch.stack([right - x2, y1, right - x1, y2], dim=1))
