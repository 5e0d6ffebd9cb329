"""A class-agnostic region proposal network (Sec. 3.2 "Proposals instead of patches"; A.3).

    images --resize, pad--> pyramid --two 3x3 convs--> 3 anchors per location --> objectness, box

Two losses over 256 anchors per image, up to half of them positive: cross-entropy of the objectness, smooth L1 of the
box. It is trained on the boxes of base classes only: novel objects are background, as in the paper's RPN on OV-COCO.
Background anchors mostly in a crowd of a base class are not sampled. Anchors, matching, sampling and suppression are
torchvision's, but suppression is over all levels together.
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
from foveate.heads.common.inputs import evaluating
from foveate.heads.common.rpn import AnchorPredictions, ignore_crowds, predict_anchors
from foveate.heads.proposals.pyramid import ConvPyramid, TowerPyramid
from foveate.ops.boxes import boxes_on_image, boxes_on_input, clip_boxes
from foveate.ops.resample import square_inputs
from foveate.types import Batch, Sample, blank_sample

RATIOS = (0.5, 1.0, 2.0)  # height / width of anchors
SAMPLES = 256  # anchors per image in the losses, at most half of them positive
MIN_SIDE = 1.0  # of a proposal [pixels of the image]

Boxes = tuple[Float[Tensor, "N 4"], Float[Tensor, " N"]]


class Proposer(nn.Module):
    """The objective (`loss = objective(batch)`) and the proposal network (`propose`)."""

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
        flip: bool = True,
    ) -> None:
        """Put an RPN on a pyramid.

        Args:
            pyramid: the backbone.
            size: side of the square input [pixels]; a multiple of the pyramid's coarsest stride.
            mean: of the RGB channels, in [0, 1].
            std: likewise.
            channels: of each level of the pyramid.
            scales: sides of the square anchors of each level [its strides].
            positive_iou: anchors with at least this IoU with an object are positive, and each object's best.
            negative_iou: anchors with less IoU with every object are negative.
            flip: mirror half of the images in training, at random from torch's global stream.

        Raises:
            InputError: a size that does not fit, or scales with anchors below one pixel.
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
        if any((cell[:, 2:] - cell[:, :2]).min() < 1 for cell in anchors.cell_anchors):  # rounded to whole pixels
            raise InputError(
                f"scales: need anchors with sides of at least 1 pixel; got {', '.join(map(str, scales))} times the "
                f"finest stride, {finest} pixels. Try {2 / finest:g} or more."
            )
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=2),
            positive_iou,
            negative_iou,
            SAMPLES,
            0.5,
            {"training": 0, "testing": 0},  # this and the next two are not used; `propose` suppresses boxes
            {"training": 0, "testing": 0},
            0.7,
        )

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """The objectness loss plus the box loss, means over all sampled anchors of the batch.

        Args:
            batch: images with boxes of objects, and of crowds as labelled by `segments` (`data.splits.as_objects`). An
                image without boxes is background only.

        Returns:
            The loss; for a batch without images a zero with a gradient (of zero) for every trained parameter.
        """
        samples = batch.samples or [blank_sample()]
        if self.flip:
            mirrored = (torch.rand(len(samples)) < 0.5).tolist()
            samples = [_mirror(sample) if flip else sample for sample, flip in zip(samples, mirrored, strict=True)]
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
    ) -> list[Boxes]:
        """Propose boxes of objects.

        Args:
            samples: decoded images; their boxes are ignored.
            keep: max boxes per image.
            min_score: of a box.
            pre_nms: best boxes of each level before suppression.
            nms: IoU above which a box of a lower score, of any level, is suppressed.

        Returns:
            For each image (N, 4) xyxy, pixels of the image and inside it, at least one pixel wide and high, and
            their scores in [0, 1], highest first.
        """
        with evaluating(self):
            predictions = self._predict(samples)
        deltas, anchors = predictions.deltas, predictions.anchors
        boxes = self.rpn.box_coder.decode(deltas, anchors).view(len(samples), -1, 4)  # (B, A, 4)
        scores = predictions.objectness.view(len(samples), -1).sigmoid()  # (B, A)
        proposals = []
        for sample, on_input, image_scores in zip(samples, boxes, scores, strict=True):
            extent = {"height": sample.image.shape[1], "width": sample.image.shape[2]}
            on_image = clip_boxes(boxes_on_image(on_input, **extent, size=self.size), **extent)
            is_valid = ((on_image[:, 2:] - on_image[:, :2]) >= MIN_SIDE).all(dim=1) & (image_scores >= min_score)
            image_scores = image_scores.masked_fill(~is_valid, -1.0)
            proposals.append(
                best_boxes(on_image, image_scores, predictions.counts, keep=keep, pre_nms=pre_nms, nms=nms)
            )
        return proposals

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
) -> Boxes:
    """Suppress overlapping boxes among the best of each level.

    Args:
        boxes: xyxy, level by level.
        scores: below 0 for boxes to be ignored.
        counts: boxes per level.
        keep: max boxes.
        pre_nms: max boxes of each level before suppression.
        nms: IoU above which the lower score is suppressed.

    Returns:
        Boxes and scores, highest first.
    """
    best = [part.topk(min(pre_nms, len(part))).indices for part in scores.split(counts)]
    starts = torch.tensor([0, *counts[:-1]]).cumsum(0).tolist()
    index = torch.cat([start + part for start, part in zip(starts, best, strict=True)])  # (A',)
    index = index[scores[index] >= 0]
    index = index[suppress(boxes[index], scores[index], nms)[:keep]]
    return boxes[index], scores[index]


def _mirror(sample: Sample) -> Sample:
    """Mirror an image and its boxes."""
    right = sample.image.shape[2]
    x1, y1, x2, y2 = sample.boxes.unbind(dim=1)  # (N,) each
    return replace(sample, image=sample.image.flip(2), boxes=torch.stack([right - x2, y1, right - x1, y2], dim=1))
