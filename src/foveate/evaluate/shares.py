"""Panoptic segmentation by generator and CLIP, measured for any number of shares from one pass over the pictures.

The networks see each picture once: masks, what the generator says of them, and what CLIP says. Each pair of shares then
makes classes of both, merges the masks, and is counted by itself (Tab. 5, and what lies between its rows). Deliberately
absent: training, the data set's words, tests on flipped or larger pictures.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from foveate.data.panoptic import mask_extents
from foveate.data.records import Dataset, Record
from foveate.data.semantic import flatten
from foveate.errors import InputError
from foveate.evaluate.detection import Gathered, open_truth
from foveate.evaluate.feed import Feed
from foveate.evaluate.panoptic import PanopticTally
from foveate.evaluate.semantic import Confusion
from foveate.evaluate.truth import Object
from foveate.heads.panoptic.fusion import Shares
from foveate.heads.panoptic.segment import PanopticSegmenter, check_shares
from foveate.ops.paste import encode_masks
from foveate.types import Category, Detections, LabelMap, PanopticMap, Sample, SegmentInfo

MEASURES = ("PQ", "SQ", "RQ")


def sweep_shares(
    segmenter: PanopticSegmenter,
    dataset: Dataset,
    shares: Sequence[Shares],
    *,
    semantic: bool = False,
    instances: bool = False,
    batch: int = 8,
    limit: int | None = None,
    workers: int = 2,
    strict: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a segmenter whose classes are the data set's.

    Args:
        segmenter: asked for as many classes as the data set has, in their order.
        dataset: with panoptic annotations.
        shares: CLIP's, one result each.
        semantic: measure mIoU too.
        instances: measure AP of the masks of things too, against the things of the panoptic annotation.
        batch: pictures a pass of the generator.
        limit: only the first so many pictures.
        workers: processes that decode.
        strict: end at the first picture that cannot be read.
        progress: show a bar.

    Returns:
        {"pictures", "bad", "masks": mean a picture, "shares": [{"seen", "unseen", "all", "things", "stuff": {"PQ",
        "SQ", "RQ", "classes"}, "groups": {"seen", "unseen": likewise}, "per_class", "semantic": None or as of
        `evaluate.semantic`, "instances": None or as of `evaluate.detection` with "seen" and "unseen" in its groups,
        "segments": found}]}. Pictures that cannot be read are in no measure.

    Raises:
        InputError: another number of classes, shares that the generator cannot have, or no picture could be read.
    """
    asked, categories = segmenter.asked, dataset.categories
    if asked.count != len(categories):
        raise InputError(f"classes: need the {len(categories)} of {dataset.name}; got {asked.count}.")
    for one in shares:
        check_shares(segmenter.generator, one, has_clip=segmenter.clip is not None)
    needs_clip = any(one.seen or one.unseen for one in shares)
    records = {str(record.id): record for record in dataset.records}
    things = Things(dataset) if instances else None
    counted = [Counted(len(categories), semantic=semantic, instances=instances) for _ in shares]
    feed = Feed(
        dataset, masks=True, batch=batch, limit=limit, workers=workers, strict=strict, progress=progress
    )  # fmt: skip
    masks = 0
    for samples in feed:
        for sample, proposals in zip(samples, segmenter.generator.propose(samples), strict=True):
            truth = truth_of(sample, records[sample.id])
            if things is not None:
                things.add(sample, truth)
            evidence = segmenter.ask(sample, proposals, clip=needs_clip)
            masks += len(proposals.masks)
            for one, count in zip(shares, counted, strict=True):
                count.add(truth, segmenter, segmenter.fuse(evidence, one), key=sample.id)
    seen = asked.is_seen.tolist()
    return {
        "pictures": feed.pictures,
        "bad": feed.bad_listed(),
        "masks": masks / feed.pictures,
        "shares": [
            {"seen": one.seen, "unseen": one.unseen, **count.measure(categories, seen, things)}
            for one, count in zip(shares, counted, strict=True)
        ],
    }


class Counted:
    """What was found with one pair of shares."""

    def __init__(self, classes: int, *, semantic: bool, instances: bool) -> None:
        self.tally, self.segments = PanopticTally(classes), 0
        self.objects: list[tuple[str, Detections]] | None = [] if instances else None
        self.confusion = Confusion(classes) if semantic else None

    def add(self, truth: PanopticMap, segmenter: PanopticSegmenter, scored: Any, *, key: str) -> None:
        """Merge a picture's masks and count."""
        found = segmenter.panoptic(scored)
        self.segments += len(found.segments)
        self.tally.add(truth, found, key=key)
        if self.objects is not None:
            self.objects.append((key, segmenter.instances(scored)))
        if self.confusion is not None:
            scores = segmenter.semantic(scored)  # (K, H, W)
            labels = scores.argmax(dim=0) if len(scored.masks) else torch.full(scored.size, -1)
            self.confusion.add(flatten(truth), LabelMap(labels), key=key)

    def measure(self, categories: Sequence[Category], seen: Sequence[bool], things: "Things | None") -> dict[str, Any]:
        """Sum up."""
        found = self.tally.measure(categories)
        per_class = [{**row, "seen": one} for row, one in zip(found["per_class"], seen, strict=True)]
        semantic = None
        if self.confusion is not None:
            semantic = self.confusion.measure([one.name for one in categories], seen=seen)
        return {
            **found,
            "groups": {"seen": _mean(per_class, seen=True), "unseen": _mean(per_class, seen=False)},
            "per_class": per_class,
            "semantic": semantic,
            "instances": None if things is None or self.objects is None else things.measure(self.objects, seen),
            "segments": self.segments,
        }


class Things:
    """The things of the ground truth, of the pictures that were read."""

    def __init__(self, dataset: Dataset) -> None:
        """Ask early for what is needed to measure them."""
        categories = dataset.categories
        self.truth = open_truth(
            replace(dataset, categories=tuple(one for one in categories if one.is_thing), records=()),
            vocabulary=[one.name for one in categories],
            split=None,
            style="coco",
            masks=False,
            annotations=None,
            only_present=False,
        )
        self.pictures: dict[str, int] = {}
        self.sizes: list[tuple[int, int]] = []
        self.objects: list[Object] = []

    def add(self, sample: Sample, truth: PanopticMap) -> None:
        """Take those of a picture."""
        assert sample.segments is not None, "read with masks"
        number = len(self.pictures)
        self.pictures[sample.id] = number
        height, width = sample.image.shape[1:]
        self.sizes.append((height, width))
        rows = zip(truth.segments, sample.segments.masks, mask_extents(sample.segments.masks)[0].tolist(), strict=True)
        for info, mask, (x1, y1, x2, y2) in rows:
            if info.is_thing:
                (encoded,) = encode_masks(mask[None])
                box = (x1, y1, x2 - x1, y2 - y1)
                place = self.truth.places[info.label]
                self.objects.append(Object(number, place, box, float(mask.sum()), info.is_crowd, encoded))

    def measure(self, found: Sequence[tuple[str, Detections]], seen: Sequence[bool]) -> dict[str, Any]:
        """AP of what was found in these pictures."""
        pairs = [(place, known) for place, known in zip(self.truth.places, seen, strict=True) if place >= 0]
        groups = {name: [place for place, known in pairs if known == (name == "seen")] for name in ("seen", "unseen")}
        truth = replace(
            self.truth,
            groups=groups,
            pictures=self.pictures,
            sizes=self.sizes,
            objects=self.objects,
            rules=("things of the panoptic annotation; areas and boxes are those of their masks",),
        )
        gathered = Gathered(truth, style="coco", masks=True)
        for key, detections in found:
            gathered.add(key, detections)
        return gathered.measure(ov=False)


def truth_of(sample: Sample, record: Record) -> PanopticMap:
    """The ground truth of a decoded picture as one map, without reading its PNG again.

    Args:
        sample: with the masks of its segments, which do not overlap.
        record: of the same picture.
    """
    assert sample.segments is not None, "read with masks"
    masks = sample.segments.masks  # (N, H, W)
    if not len(masks):
        return PanopticMap(torch.zeros(sample.image.shape[1:], dtype=torch.int64), ())
    ids = torch.where(masks.any(dim=0), masks.byte().argmax(dim=0) + 1, 0)
    rows = zip(record.labels, sample.segments.is_thing.tolist(), record.crowd, strict=True)
    infos = (SegmentInfo(n, label, thing, is_crowd=crowd) for n, (label, thing, crowd) in enumerate(rows, start=1))
    return PanopticMap(ids, tuple(infos))


def _mean(per_class: Sequence[dict[str, Any]], *, seen: bool) -> dict[str, Any]:
    """The means over seen classes, or over the others; those without a segment are in none."""
    rows = [row for row in per_class if row["seen"] == seen and row["PQ"] is not None]
    means = {name: float(np.mean([row[name] for row in rows])) if rows else None for name in MEASURES}
    return {**means, "classes": len(rows)}
