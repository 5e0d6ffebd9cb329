"""F-ViT: a two-stage open-vocabulary detector on a frozen CLIP ViT (Sec. 3.3, A.3).

    images --jitter, pad--> frozen tower --taps--> pyramid --> RPN --> proposals
    proposals --RoIAlign--> embedding . text embeddings * T | box | mask

It learns from the boxes of base classes; other classes have neither boxes nor columns in training. `candidates` need no
vocabulary: `fusion` makes scores from their embeddings, the detector's and the frozen tower's.
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
from foveate.heads.common.inputs import check_masks, choose_jitter, evaluating, jittered_inputs
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
from foveate.ops.jitter import Jitter, jitter_boxes, jitter_masks, no_jitter
from foveate.ops.pool import pool_boxes
from foveate.types import Batch, Sample, blank_sample

RowChoice = Callable[[Candidates], Int64[Tensor, " M"]]
INITIAL_SCALE = 50.0  # of T
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
    trained_layers: int  # number of last blocks of the tower that are trained; 0 is the paper's
    norm: bool  # BatchNorm in the convolutions of RPN and mask head; published for OV-LVIS
    relu_embedding: bool  # see `BoxHead`; True is published
    statistics: Statistics  # see `foveate.heads.fvit.inputs`; "imagenet" is published
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
    """The objective (`loss = detector(batch)`) and the detector (`candidates`).

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
            is_novel: classes that are not learned from: novel ones, and those a split leaves out.
            background_weight: of background proposals in the class loss; 0.6 on COCO, 0.9 on LVIS.
            rois: proposals per image in the losses of the second stage, at most a quarter of them objects.
            match_low_quality: see `RoiSampler`; True is published for OV-LVIS.
            jitter: smallest and largest scale of the large-scale jitter in training; None: no jitter.
            flip: mirror half of the images in training.
            cache: of the frozen tower's maps; needs a frozen tower, no jitter and no flip.

        Raises:
            InputError: the arguments do not go together; see also `Tower`.
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
        self.log_scale = nn.Parameter(torch.tensor(INITIAL_SCALE).log())
        self.sampler = RoiSampler(samples=rois, match_low_quality=match_low_quality)
        self.text: Tensor
        self.is_novel: Tensor
        self.register_buffer("text", unit(text.detach()).clone())
        self.register_buffer("is_novel", is_novel.clone())
        self.parts: dict[str, Tensor] = {}
        self.to(next(clip.parameters()).device)

    @property
    def scale(self) -> Float[Tensor, ""]:
        """The temperature T, above 0."""
        return self.log_scale.exp()

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """The sum of the losses of both stages, each a mean over the samples of the batch.

        Args:
            batch: images with `segments`: labels 0 to K - 1 are classes, K is a crowd, neither object nor background;
                stuff is ignored. An image without segments is background only. Random numbers come from torch's global
                stream.

        Returns:
            The loss; for a batch without images a zero with a gradient (of zero) for every trained parameter.
        """
        samples = batch.samples or [blank_sample()]
        targets = [self._targets(sample) for sample in samples]
        levels = self.pyramid(self._maps(samples, targets, dense=False).taps)

        # first stage
        predictions = self.rpn(levels)
        boxes, crowds = [target.boxes for target in targets], [target.crowds for target in targets]
        objectness, anchor_box = self.rpn.losses(predictions, boxes, crowds)
        proposals, _ = self.rpn.propose(predictions, [target.jitter.fitted for target in targets])

        # second stage
        sampled = [
            self.sampler(part, target.boxes, target.labels, target.crowds, background=len(self.is_novel))
            for part, target in zip(proposals, targets, strict=True)
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
        # the entries of background are not used
        boxes = [
            target.boxes[index] if len(target.boxes) else proposals
            for target, proposals, index in zip(targets, rois, matched, strict=True)
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
        """Binary cross-entropy of the masks of positive proposals."""
        assert self.mask_head is not None, "no mask head"
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
        """A zero with a gradient for every parameter of the mask head, in a process without positive proposals.

        BatchNorm's running statistics do not change. SyncBN waits for all processes, so there the head gets one whole
        image.
        """
        assert self.mask_head is not None, "no mask head"
        if any(isinstance(layer, nn.SyncBatchNorm) for layer in self.mask_head.modules()):
            whole = torch.tensor([[0.0, 0.0, self.size, self.size]], device=self.text.device)
            rois = [whole, *(whole[:0] for _ in levels[0][1:])]
            return self.mask_head(pool_levels(levels, rois, strides=self.strides, side=MASK_SIDE)).sum() * 0
        return torch.stack([parameter.sum() for parameter in self.mask_head.parameters()]).sum() * 0

    @torch.no_grad()
    def candidates(self, samples: list[Sample], *, masked: RowChoice | None = None) -> list[Candidates]:
        """Detect possible objects of any class, without a vocabulary.

        Args:
            samples: decoded images; their boxes and segments are ignored.
            masked: returns the rows of an image's candidates that get a mask, if there is a mask head; the others'
                masks are empty. None: all, which takes longer than everything else together.

        Returns:
            One record per image, on the CPU.
        """
        if not samples:
            return []
        with evaluating(self):
            samples = [Sample(sample.id, sample.image, sample.boxes[:0]) for sample in samples]
            targets = [self._targets(sample) for sample in samples]

            # proposals, and their embeddings by the box head and by the frozen tower
            maps = self._maps(samples, targets, dense=True)
            assert maps.dense is not None, "the dense map was requested"
            levels = self.pyramid(maps.taps)
            proposals, scores = self.rpn.propose(self.rpn(levels), [target.jitter.fitted for target in targets])
            embeddings, codes = self.box_head(pool_levels(levels, proposals, strides=self.strides, side=BOX_SIDE))
            pooled = pool_boxes(maps.dense, proposals, stride=self.tower.clip.patch_size)

            # image by image
            counts = [len(boxes) for boxes in proposals]
            boxes = decode_boxes(codes, torch.cat(proposals)).split(counts)
            pairs = zip(unit(embeddings).half().split(counts), pooled.half().split(counts), strict=True)
            images = zip(samples, proposals, scores, boxes, pairs, strict=True)
            return [
                self._candidates_of(*image, levels=[level[index : index + 1] for level in levels], masked=masked)
                for index, image in enumerate(images)
            ]

    def _candidates_of(
        self,
        sample: Sample,
        proposals: Float[Tensor, "N 4"],
        scores: Float[Tensor, " N"],
        boxes: Float[Tensor, "N 4"],
        embeddings: tuple[Float16[Tensor, "N D"], Float16[Tensor, "N D"]],
        *,
        levels: list[Float[Tensor, "1 C _ _"]],
        masked: RowChoice | None,
    ) -> Candidates:
        """The candidates of one image, in pixels of the image; masks are relative to the regressed boxes."""
        height, width = sample.image.shape[1:]
        extent = {"height": height, "width": width}
        on_image = [boxes_on_image(part, **extent, size=self.size) for part in (proposals, boxes)]
        clipped = [clip_boxes(part, **extent).cpu() for part in on_image]
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
        """Mask probabilities in 255ths, relative to the boxes, a chunk at a time."""
        assert self.mask_head is not None, "no mask head"
        parts = [torch.zeros(0, *MASK_SHAPE, dtype=torch.uint8)]
        for chunk in boxes.split(MASK_CHUNK) if len(boxes) else ():
            logits = self.mask_head(pool_levels(levels, [chunk], strides=self.strides, side=MASK_SIDE))
            parts.append((255 * logits.sigmoid()).round().to(torch.uint8).cpu())
        return torch.cat(parts)  # (N, 28, 28)

    def _targets(self, sample: Sample) -> Targets:
        """Draw the jitter of an image, and transform its base objects and crowds."""
        jitter = choose_jitter(sample, size=self.size, scales=self.jitter, flip=self.flip, training=self.training)
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
        masks = None
        if self.mask_head is not None:
            check_masks(sample)
            masks = jitter_masks(segments.masks[is_target.cpu()].to(device), jitter, size=self.size)
        return Targets(boxes[is_target], labels[is_target], masks, boxes[is_crowd], jitter)

    def _maps(self, samples: list[Sample], targets: list[Targets], *, dense: bool) -> TowerMaps:
        """The tower's maps of a batch; from the cache if there is one, unless the dense map is requested."""
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
        return jittered_inputs(samples, [target.jitter for target in targets], device=self.text.device, **options)

    def parameter_groups(self, *, weight_decay: float, ladder: float = 0.7) -> list[dict[str, Any]]:
        """Trained parameters in groups, see `foveate.heads.common.groups.parameter_groups`.

        Args:
            weight_decay: of all tensors, vectors too, as published; the temperature and the matrices trained in part
                (`partly`) have none.
            ladder: layer-wise decay of the learning rate over the tower's trained blocks, from the last to the first;
                the last block has this factor.
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
            f"text: need ({len(is_novel) + 1}, {clip.embed_dim}), one row per class and one for the background; got "
            f"{tuple(text.shape)}."
        )
    if bool(is_novel.all()):
        raise InputError("is_novel: need at least one base class; all are novel or ignored.")
