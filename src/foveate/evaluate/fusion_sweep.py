"""Panoptic segmentation by a mask generator and CLIP, measured for many fusion weights in one pass over the images.

The networks run once per image: masks, the mask generator's scores, and CLIP's. The classes, the merged masks and the
counts of each pair of fusion weights follow without them (Tab. 5). Deliberately absent: test-time augmentation.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from foveate.data.batches import LOADING, Batches, Loading
from foveate.data.panoptic import mask_extents
from foveate.data.records import Dataset, Record
from foveate.data.semantic import flatten
from foveate.errors import InputError
from foveate.evaluate.detection import evaluate_detection
from foveate.evaluate.ground_truth import Object, open_ground_truth
from foveate.evaluate.panoptic import PanopticTally
from foveate.evaluate.semantic import Confusion
from foveate.heads.panoptic.fusion import FusionWeights
from foveate.heads.panoptic.segment import PanopticSegmenter, check_shares
from foveate.ops.paste import encode_masks
from foveate.types import Category, Detections, LabelMap, PanopticMap, Sample, SegmentInfo

MEASURES = ("PQ", "SQ", "RQ")


def sweep_fusion(
    segmenter: PanopticSegmenter,
    dataset: Dataset,
    weights: Sequence[FusionWeights],
    *,
    semantic: bool = False,
    instances: bool = False,
    loading: Loading = LOADING,
) -> dict[str, Any]:
    """Measure a segmenter whose classes are the data set's.

    Args:
        segmenter: opened with the data set's classes, in their order.
        weights: fusion weights of CLIP, one result each.
        instances: also measure AP of the masks of things, against the things of the panoptic annotation.
        loading: a batch is one pass of the mask generator.

    Returns:
        {"images", "bad", "masks": mean per image, "shares": [{"seen", "unseen", "all", "things", "stuff": {"PQ",
        "SQ", "RQ", "classes"}, "groups": {"seen", "unseen": likewise}, "per_class", "semantic": None or as of
        `evaluate.semantic`, "instances": None or as of `evaluate.detection` with "seen" and "unseen" in its groups,
        "segments": predicted}]}. Unreadable images are in no measure.

    Raises:
        InputError: another number of classes, weights that the mask generator does not support, or no readable image.
    """
    query, categories = segmenter.query, dataset.categories
    if query.count != len(categories):
        raise InputError(f"classes: need the {len(categories)} of {dataset.name}; got {query.count}.")
    for pair in weights:
        check_shares(segmenter.mask_generator, pair, has_clip=segmenter.clip is not None)
    needs_clip = any(pair.seen or pair.unseen for pair in weights)
    records = {str(record.id): record for record in dataset.records}
    things = ThingObjects(dataset) if instances else None
    tallies = [FusionTally(len(categories), semantic=semantic, instances=instances) for _ in weights]
    batches = Batches(dataset, loading, masks=True)
    masks = 0
    for samples in batches:
        for sample, proposals in zip(samples, segmenter.mask_generator.propose(samples), strict=True):
            truth = panoptic_truth(sample, records[sample.id])
            if things is not None:
                things.add(sample, truth)
            evidence = segmenter.gather_evidence(sample, proposals, clip=needs_clip)
            masks += len(proposals.masks)
            for pair, tally in zip(weights, tallies, strict=True):
                tally.add(truth, segmenter, segmenter.fuse(evidence, pair), key=sample.id)
    seen = query.is_seen.tolist()
    return {
        "images": batches.count,
        "bad": batches.bad_listed(),
        "masks": masks / batches.count,
        "shares": [
            {"seen": pair.seen, "unseen": pair.unseen, **tally.measure(categories, seen, things)}
            for pair, tally in zip(weights, tallies, strict=True)
        ],
    }


class FusionTally:
    """The counts of one pair of fusion weights."""

    def __init__(self, classes: int, *, semantic: bool, instances: bool) -> None:
        self.panoptic, self.segments = PanopticTally(classes), 0
        self.detections: list[tuple[str, Detections]] | None = [] if instances else None
        self.confusion = Confusion(classes) if semantic else None

    def add(self, truth: PanopticMap, segmenter: PanopticSegmenter, scored: Any, *, key: str) -> None:
        """Merge an image's masks and count the segments."""
        prediction = segmenter.panoptic(scored)
        self.segments += len(prediction.segments)
        self.panoptic.add(truth, prediction, key=key)
        if self.detections is not None:
            self.detections.append((key, segmenter.instances(scored)))
        if self.confusion is not None:
            scores = segmenter.semantic(scored)  # (K, H, W)
            labels = scores.argmax(dim=0) if len(scored.masks) else torch.full(scored.size, -1)
            self.confusion.add(flatten(truth), LabelMap(labels), key=key)

    def measure(
        self, categories: Sequence[Category], seen: Sequence[bool], things: "ThingObjects | None"
    ) -> dict[str, Any]:
        """Summarise; see `sweep_fusion`."""
        result = self.panoptic.measure(categories)
        per_class = [{**row, "seen": is_seen} for row, is_seen in zip(result["per_class"], seen, strict=True)]
        semantic = instances = None
        if self.confusion is not None:
            semantic = self.confusion.measure([category.name for category in categories], seen=seen)
        if things is not None and self.detections is not None:
            instances = things.measure(self.detections, seen)
        return {
            **result,
            "groups": {"seen": _means(per_class, seen=True), "unseen": _means(per_class, seen=False)},
            "per_class": per_class,
            "semantic": semantic,
            "instances": instances,
            "segments": self.segments,
        }


class ThingObjects:
    """The things of the panoptic ground truth as objects, of the images that were read."""

    def __init__(self, dataset: Dataset) -> None:
        things = tuple(category for category in dataset.categories if category.is_thing)
        names = [category.name for category in dataset.categories]
        empty = replace(dataset, categories=things, records=(), file=None)
        self.truth = open_ground_truth(empty, vocabulary=names, split=None, style="coco")
        self.images: dict[str, int] = {}
        self.sizes: list[tuple[int, int]] = []
        self.objects: list[Object] = []

    def add(self, sample: Sample, truth: PanopticMap) -> None:
        """Add the things of an image."""
        assert sample.segments is not None, "read with masks"
        number = len(self.images)
        self.images[sample.id] = number
        height, width = sample.image.shape[1:]
        self.sizes.append((height, width))
        rows = zip(truth.segments, sample.segments.masks, mask_extents(sample.segments.masks)[0].tolist(), strict=True)
        for segment, mask, (x1, y1, x2, y2) in rows:
            if segment.is_thing:
                (encoded,) = encode_masks(mask[None])
                box, label = (x1, y1, x2 - x1, y2 - y1), self.truth.labels[segment.label]
                self.objects.append(Object(number, label, box, float(mask.sum()), segment.is_crowd, encoded))

    def measure(self, predictions: Sequence[tuple[str, Detections]], seen: Sequence[bool]) -> dict[str, Any]:
        """AP of the predicted instances in these images."""
        pairs = [(label, is_seen) for label, is_seen in zip(self.truth.labels, seen, strict=True) if label >= 0]
        groups = {
            "seen": [label for label, is_seen in pairs if is_seen],
            "unseen": [label for label, is_seen in pairs if not is_seen],
        }
        truth = replace(
            self.truth,
            masks=True,
            groups=groups,
            images=self.images,
            sizes=self.sizes,
            objects=self.objects,
            rules=("things of the panoptic annotation; areas and boxes are those of their masks",),
        )
        return evaluate_detection(predictions, truth)


def panoptic_truth(sample: Sample, record: Record) -> PanopticMap:
    """The ground truth of a decoded image, from the masks of its segments (which do not overlap), as one map."""
    assert sample.segments is not None, "read with masks"
    masks = sample.segments.masks  # (N, H, W)
    if not len(masks):
        return PanopticMap(torch.zeros(sample.image.shape[1:], dtype=torch.int64), ())
    ids = torch.where(masks.any(dim=0), masks.byte().argmax(dim=0) + 1, 0)
    rows = zip(record.labels, sample.segments.is_thing.tolist(), record.crowd, strict=True)
    segments = (SegmentInfo(n, label, thing, is_crowd=crowd) for n, (label, thing, crowd) in enumerate(rows, start=1))
    return PanopticMap(ids, tuple(segments))


def _means(per_class: Sequence[dict[str, Any]], *, seen: bool) -> dict[str, Any]:
    """The means over seen classes, or over unseen ones, without classes that have no segment."""
    rows = [row for row in per_class if row["seen"] == seen and row["PQ"] is not None]
    means = {name: float(np.mean([row[name] for row in rows])) if rows else None for name in MEASURES}
    return {**means, "classes": len(rows)}
