"""F-ViT: a two-stage detector of any vocabulary on a frozen CLIP ViT (Sec. 3.3, A.3).

    images --jitter, pad--> frozen tower --taps--> pyramid --> RPN --> proposals
    proposals --RoIAlign--> embedding . texts * T | box | mask

It learns from the boxes of base classes; of novel classes and those left out there is no box and no column. What it
finds (`candidates`) knows no vocabulary: scores are made from embeddings, the detector's and the frozen tower's, by
`fusion`. Deliberately absent: that fusion, the texts' templates, epochs, files.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float16, Int64
from torch import Tensor, nn

from foveate.clip.model import Clip
from foveate.errors import InputError
from foveate.heads.common.groups import parameter_groups
from foveate.heads.common.inputs import check_masks, choose_jitter
from foveate.heads.common.names import PyramidKind
from foveate.heads.common.pyramid import Pyramid, pyramid_strides
from foveate.heads.common.tower import Tower, TowerMaps, tap_width
from foveate.heads.fvit.cache import FeatureCache
from foveate.heads.fvit.candidates import Candidates
from foveate.heads.fvit.heads import (
    BOX_SIDE,
    MASK_SIDE,
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
from foveate.heads.fvit.inputs import input_statistics
from foveate.heads.fvit.names import Resize, Statistics
from foveate.heads.fvit.roi import pool_levels
from foveate.heads.fvit.rpn import Rpn
from foveate.ops.boxes import boxes_on_image, clip_boxes
from foveate.ops.jitter import Jitter, jitter_boxes, jitter_image, jitter_masks, no_jitter
from foveate.ops.pool import pool_boxes
from foveate.types import Batch, Sample, blank_sample

Choice = Callable[[Candidates], Int64[Tensor, " M"]]
MASK_SHAPE = (28, 28)
MASK_CHUNK = 256  # proposals per pass of the mask head


@dataclass(frozen=True)
class Network:
    """Hyperparameters of a detector."""

    size: int  # side of the square input [pixels]; a multiple of twice the patch size
    taps: tuple[int, ...] | None  # see `Tower`
    pyramid: PyramidKind  # "taps" is the paper's
    channels: int  # of the pyramid
    width: int  # of the heads' convolutions
    masks: bool
    proposals: int  # of the first stage, per image
    trained_layers: int  # last blocks of the tower that are trained; 0 is the paper's
    norm: bool  # BatchNorm in the convolutions of RPN and mask head; published for OV-LVIS
    relu_embedding: bool  # see `BoxHead`; True is published
    statistics: Statistics  # that the input is normalised with; "imagenet" is published
    resize: Resize  # see `foveate.ops.jitter.jitter_image`; "bilinear" is published


@dataclass(frozen=True)
class Targets:
    """Training targets of an image; boxes are xyxy, pixels of the input."""

    boxes: Float[Tensor, "N 4"]  # of base objects
    labels: Int64[Tensor, " N"]
    masks: Bool[Tensor, "N H W"] | None  # of the input
    crowds: Float[Tensor, "M 4"]
    jitter: Jitter


class FViT(nn.Module):
    """The objective (`loss = detector(batch)`), and what it finds (`candidates`).

    Attributes:
        parts: the losses of the last batch by name, detached, for the log.
        strides: of the pyramid's levels [pixels].
    """

    def __init__(
        self,
        clip: Clip,
        network: Network,
        *,
        text: Float[Tensor, "V D"],
        is_novel: Bool[Tensor, " K"],
        background_weight: float = 0.9,
        scale: float = 50.0,
        rois: int = 512,
        match_low_quality: bool = False,
        jitter: tuple[float, float] | None = (0.1, 2.0),
        flip: bool = True,
        cache: FeatureCache | None = None,
    ) -> None:
        """Put a detector on a CLIP, which is frozen here.

        Args:
            clip: its image tower is used, with its attention windows.
            network: hyperparameters.
            text: embeddings of the K classes of the data and, last, of "background"; V = K + 1.
            is_novel: classes not to be learned from: novel ones, and those a split leaves out.
            background_weight: of background proposals in the class loss; 0.6 on COCO, 0.9 on LVIS.
            scale: T at the start.
            rois: proposals per image that the second stage learns from, at most a quarter of them objects.
            match_low_quality: see `RoiSampler`; True is published for OV-LVIS.
            jitter: least and greatest scale of the large-scale jitter in training; None: images as they are.
            flip: mirror half of the images in training.
            cache: of the frozen tower's maps; asks for no jitter and no flip.

        Raises:
            InputError: a size that does not fit, texts of another number or size, no base class, a cache with
                augmentation or a trained tower, or what `Tower` refuses.
        """
        super().__init__()
        _check(clip, text, is_novel, size=network.size)
        if cache is not None and (jitter is not None or flip or network.trained_layers):
            raise InputError("cache: maps are those of whole images in a frozen tower; leave out jitter and flip.")
        kind, channels, width = network.pyramid, network.channels, network.width
        self.tower = Tower(clip, kind=kind, taps=network.taps, trained=network.trained_layers)
        self.size, self.resize, self.jitter, self.flip, self.cache = network.size, network.resize, jitter, flip, cache
        self.background_weight = background_weight
        self.mean, self.std = input_statistics(clip, network.statistics)
        self.strides = pyramid_strides(clip.patch_size)
        self.pyramid = Pyramid(tap_width(clip), channels=channels, kind=kind)
        self.rpn = Rpn(self.strides, channels=channels, norm=network.norm, keep=network.proposals)
        self.box_head = BoxHead(channels, width=width, embed_dim=text.shape[1], relu_embedding=network.relu_embedding)
        self.mask_head = MaskHead(channels, width=width, norm=network.norm) if network.masks else None
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log())
        self.sampler = RoiSampler(samples=rois, match_low_quality=match_low_quality)
        self.text: Tensor
        self.is_novel: Tensor
        self.register_buffer("text", unit(text.detach()).clone())
        self.register_buffer("is_novel", is_novel.clone())
        self.parts: dict[str, Tensor] = {}
        self.to(next(clip.parameters()).device)

    @property
    def scale(self) -> Float[Tensor, ""]:
        """The temperature T, which stays above 0."""
        return self.log_scale.exp()

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """The sum of the losses of both stages, each a mean over what it sampled from the batch.

        Args:
            batch: images with `segments`: labels 0 to K - 1 are classes, K stands for a crowd that is neither object
                nor background; stuff is not looked at. An image without segments is all background. Draws come from
                torch's global stream.

        Returns:
            The loss; where no image could be used, a zero that still reaches every trained parameter.
        """
        samples = batch.samples or [blank_sample()]
        targets = [self._targets(sample) for sample in samples]
        levels = self.pyramid(self._maps(samples, targets, dense=False).taps)

        # --- first stage
        predictions = self.rpn(levels)
        boxes, crowds = [target.boxes for target in targets], [target.crowds for target in targets]
        objectness, anchor_box = self.rpn.losses(predictions, boxes, crowds)
        proposals, _ = self.rpn.propose(predictions, [target.jitter.fitted for target in targets])

        # --- second stage
        sampled = [
            self.sampler(candidates, target.boxes, target.labels, target.crowds, background=len(self.is_novel))
            for candidates, target in zip(proposals, targets, strict=True)
        ]
        rois, labels, matched = (list(part) for part in zip(*sampled, strict=True))
        classes, box = self._second_stage(levels, rois, labels, matched, targets)
        parts = {"objectness": objectness, "anchor_box": anchor_box, "class": classes, "box": box}
        if self.mask_head is not None:
            parts["mask"] = self._mask_loss(levels, rois, labels, matched, targets)
        self.parts = {name: part.detach() for name, part in parts.items()}
        loss = torch.stack(list(parts.values())).sum()
        return loss if batch.samples else loss * 0

    def _second_stage(
        self,
        levels: list[Tensor],
        rois: list[Float[Tensor, "_ 4"]],
        labels: list[Int64[Tensor, " _"]],
        matched: list[Int64[Tensor, " _"]],
        targets: list[Targets],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The losses of class and box."""
        background, is_empty = len(self.is_novel), not sum(len(boxes) for boxes in rois)
        if is_empty:  # every proposal is in a crowd, and BatchNorm needs an input
            rois = [boxes.new_tensor([[0.0, 0.0, self.size, self.size]]) for boxes in rois]
            labels = [image.new_full((1,), background) for image in labels]
            matched = [image.new_zeros(1) for image in matched]
        embeddings, codes = self.box_head(pool_levels(levels, rois, strides=self.strides, side=BOX_SIDE))
        all_labels = torch.cat(labels)  # (R,)
        logits = class_logits(embeddings, self.text, scale=self.scale)
        classes = class_loss(logits, all_labels, is_novel=self.is_novel, background_weight=self.background_weight)
        # background has no box of an object; its entry is not used
        boxes = [
            target.boxes[index] if len(target.boxes) else own
            for target, own, index in zip(targets, rois, matched, strict=True)
        ]
        box = box_loss(codes, torch.cat(rois), torch.cat(boxes), all_labels != background)
        return (classes * 0, box * 0) if is_empty else (classes, box)

    def _mask_loss(
        self,
        levels: list[Tensor],
        rois: list[Float[Tensor, "_ 4"]],
        labels: list[Int64[Tensor, " _"]],
        matched: list[Int64[Tensor, " _"]],
        targets: list[Targets],
    ) -> Float[Tensor, ""]:
        """Binary cross-entropy of the masks of those proposals that are objects."""
        assert self.mask_head is not None, "masks are learned by a mask head"
        is_object = [image < len(self.is_novel) for image in labels]
        if not any(bool(image.any()) for image in is_object):
            return self._no_mask_loss(levels)
        positives = [boxes[chosen] for boxes, chosen in zip(rois, is_object, strict=True)]
        truth = []
        for target, boxes, index, chosen in zip(targets, positives, matched, is_object, strict=True):
            if len(boxes):
                assert target.masks is not None, "every object that is sampled has a mask"
                truth.append(mask_targets(target.masks, boxes, index[chosen]))
        logits = self.mask_head(pool_levels(levels, positives, strides=self.strides, side=MASK_SIDE))
        return F.binary_cross_entropy_with_logits(logits, torch.cat(truth).float())

    def _no_mask_loss(self, levels: list[Tensor]) -> Float[Tensor, ""]:
        """A zero that reaches every parameter of the mask head, where no proposal of this process is an object.

        BatchNorm's running statistics stay as they are. SyncBN needs all processes in its layers, so there the head
        gets one whole image.
        """
        assert self.mask_head is not None, "masks are learned by a mask head"
        if any(isinstance(layer, nn.SyncBatchNorm) for layer in self.mask_head.modules()):
            whole = torch.tensor([[0.0, 0.0, self.size, self.size]], device=self.text.device)
            rois = [whole, *(whole[:0] for _ in levels[0][1:])]
            return self.mask_head(pool_levels(levels, rois, strides=self.strides, side=MASK_SIDE)).sum() * 0
        return torch.stack([parameter.sum() for parameter in self.mask_head.parameters()]).sum() * 0

    @torch.no_grad()
    def candidates(self, samples: list[Sample], *, masked: Choice | None = None) -> list[Candidates]:
        """Find possible objects of any class; no vocabulary is needed.

        Args:
            samples: decoded images; their boxes and segments are ignored.
            masked: which rows of an image's candidates get a mask, if there is a mask head; the others' masks are
                empty. None: all, which takes longer than everything else together.

        Returns:
            One record per image, on the CPU.
        """
        if not samples:
            return []
        was_training = self.training
        self.eval()
        samples = [Sample(sample.id, sample.image, sample.boxes[:0]) for sample in samples]
        targets = [self._targets(sample) for sample in samples]

        # --- proposals, their embeddings by the box head and by the frozen tower
        maps = self._maps(samples, targets, dense=True)
        assert maps.dense is not None, "the dense map was requested"
        levels = self.pyramid(maps.taps)
        proposals, scores = self.rpn.propose(self.rpn(levels), [target.jitter.fitted for target in targets])
        embeddings, codes = self.box_head(pool_levels(levels, proposals, strides=self.strides, side=BOX_SIDE))
        pooled = pool_boxes(maps.dense, proposals, stride=self.tower.clip.patch_size)

        # --- image by image
        counts = [len(boxes) for boxes in proposals]
        boxes = decode_boxes(codes, torch.cat(proposals)).split(counts)
        pairs = zip(unit(embeddings).half().split(counts), pooled.half().split(counts), strict=True)
        images = zip(samples, proposals, scores, boxes, pairs, strict=True)
        candidates = [
            self._candidates_of(*image, levels=[level[index : index + 1] for level in levels], masked=masked)
            for index, image in enumerate(images)
        ]
        self.train(was_training)
        return candidates

    def _candidates_of(
        self,
        sample: Sample,
        proposals: Float[Tensor, "N 4"],
        scores: Float[Tensor, " N"],
        boxes: Float[Tensor, "N 4"],
        embeddings: tuple[Float16[Tensor, "N D"], Float16[Tensor, "N D"]],
        *,
        levels: list[Float[Tensor, "1 C _ _"]],
        masked: Choice | None,
    ) -> Candidates:
        """The candidates of one image, in its own pixels; masks are of the regressed boxes."""
        height, width = sample.image.shape[1:]
        frame = {"height": height, "width": width}
        on_image = [boxes_on_image(part, **frame, size=self.size) for part in (proposals, boxes)]
        clipped = [clip_boxes(part, **frame).cpu() for part in on_image]
        detector, clip = (part.cpu() for part in embeddings)
        candidates = Candidates(sample.id, height, width, clipped[0], scores.cpu(), clipped[1], detector, clip)
        if self.mask_head is None:
            return candidates
        rows = torch.arange(len(boxes)) if masked is None else masked(candidates)
        fitted_height, fitted_width = no_jitter(height, width, size=self.size).fitted
        inside = clip_boxes(boxes[rows.to(boxes.device)], height=fitted_height, width=fitted_width)
        masks = torch.zeros(len(boxes), *MASK_SHAPE, dtype=torch.uint8)
        masks[rows] = self._masks(levels, inside)
        return replace(candidates, masks=masks)

    def _masks(self, levels: list[Float[Tensor, "1 C _ _"]], boxes: Float[Tensor, "N 4"]) -> Tensor:
        """Probabilities in 255ths, relative to the boxes, a few at a time."""
        assert self.mask_head is not None, "masks are made by a mask head"
        parts = [torch.zeros(0, *MASK_SHAPE, dtype=torch.uint8)]
        for chunk in boxes.split(MASK_CHUNK) if len(boxes) else ():
            logits = self.mask_head(pool_levels(levels, [chunk], strides=self.strides, side=MASK_SIDE))
            parts.append((255 * logits.sigmoid()).round().to(torch.uint8).cpu())
        return torch.cat(parts)  # (N, 28, 28)

    def _targets(self, sample: Sample) -> Targets:
        """Draw the jitter of an image, and transform the objects that are learned from."""
        scales = self.jitter if self.training else None
        jitter = choose_jitter(sample, size=self.size, scales=scales, flip=self.flip and self.training)
        segments, device, count = sample.segments, self.text.device, len(self.is_novel)
        if segments is None:
            assert not len(sample.boxes), f"image {sample.id}: has boxes without classes"
            empty = torch.zeros(0, 4, device=device)
            return Targets(empty, empty.new_zeros(0, dtype=torch.int64), None, empty, jitter)
        labels = segments.labels.to(device)
        assert not len(labels) or int(segments.labels.max()) <= count, f"image {sample.id}: a label beyond {count}"
        boxes, is_inside = jitter_boxes(segments.boxes.to(device), jitter)
        is_inside = is_inside & segments.is_thing.to(device)
        is_base = torch.cat([~self.is_novel, self.is_novel.new_zeros(1)])[labels]
        is_target, is_crowd = is_inside & is_base, is_inside & (labels == count)
        masks = None if self.mask_head is None else self._target_masks(sample, is_target, jitter)
        return Targets(boxes[is_target], labels[is_target], masks, boxes[is_crowd], jitter)

    def _target_masks(self, sample: Sample, is_target: Bool[Tensor, " N"], jitter: Jitter) -> Bool[Tensor, "M H W"]:
        """The masks of the objects that are learned from."""
        check_masks(sample)
        assert sample.segments is not None, "checked"
        masks = sample.segments.masks[is_target.cpu()].to(is_target.device)
        return jitter_masks(masks, jitter, size=self.size)

    def _maps(self, samples: list[Sample], targets: list[Targets], *, dense: bool) -> TowerMaps:
        """The tower's maps of a batch; from the cache where possible, unless the dense map is requested."""
        if self.cache is None or dense:
            return self.tower(self._inputs(samples, targets), dense=dense)
        batch = []
        for sample, target in zip(samples, targets, strict=True):
            taps = self.cache.read(sample, device=self.text.device)
            if taps is None:  # alone, so that its bits do not depend on the batch
                with torch.autocast(self.text.device.type, enabled=False):
                    taps = self.cache.write(sample, self.tower(self._inputs([sample], [target]), dense=False).taps)
            batch.append(taps)
        return TowerMaps([torch.cat(parts) for parts in zip(*batch, strict=True)], None)

    def _inputs(self, samples: list[Sample], targets: list[Targets]) -> Float[Tensor, "B 3 H W"]:
        options = {"size": self.size, "mean": self.mean, "std": self.std, "resize": self.resize}
        images = [sample.image.to(self.text.device, non_blocking=True) for sample in samples]
        jitters = [target.jitter for target in targets]
        return torch.stack(
            [jitter_image(image, jitter, **options) for image, jitter in zip(images, jitters, strict=True)]
        )

    def parameter_groups(self, *, weight_decay: float, ladder: float = 0.7) -> list[dict[str, Any]]:
        """Trained parameters in groups, see `foveate.heads.common.groups.parameter_groups`.

        Args:
            weight_decay: of all tensors, vectors too, as published; the temperature (whose logarithm is learned) and
                matrices trained in part (`partly`) have none.
            ladder: learning rate factor from one trained block of the tower to the one before it; the last has this
                factor itself.
        """
        undecayed = {id(parameter) for parameter, _ in self.tower.partly} | {id(self.log_scale)}
        blocks = [[*stage.parameters()] for stage in self.tower.trained]
        in_blocks = {id(parameter) for block in blocks for parameter in block}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in in_blocks]
        parts = [(rest, 1.0), *((block, ladder ** (len(blocks) - depth)) for depth, block in enumerate(blocks))]
        return parameter_groups(
            parts, weight_decay=weight_decay, decays=lambda parameter: id(parameter) not in undecayed
        )


def _check(clip: Clip, text: Tensor, is_novel: Tensor, *, size: int) -> None:
    step = 2 * clip.patch_size
    if size < step or size % step:
        near = max(1, round(size / step)) * step
        raise InputError(f"--size: need a positive multiple of {step}, two patches; got {size}. Try {near}.")
    if text.ndim != 2 or tuple(text.shape) != (len(is_novel) + 1, clip.embed_dim):
        raise InputError(
            f"text: need ({len(is_novel) + 1}, {clip.embed_dim}), one row a class and one for the background; got "
            f"{tuple(text.shape)}."
        )
    if bool(is_novel.all()):
        raise InputError("is_novel: need at least one class to learn from; all are novel or left out.")
