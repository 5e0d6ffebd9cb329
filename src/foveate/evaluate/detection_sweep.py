"""One pass of a detector over a data set, then measurements without the network: fusions, and recall of proposals.

A detector's candidates are cached on disk, for every later fusion and vocabulary. One pass over the cache serves all
fusions: the cosines with the text are computed once per image. Deliberately absent: choosing the best fusion, which on
the measured data would be cheating.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from foveate.data.batches import Batches, Loading
from foveate.data.listing import list_files
from foveate.data.records import Dataset
from foveate.data.splits import BaseNovel
from foveate.engine.stop import until_stopped
from foveate.errors import InputError, StoppedError
from foveate.evaluate.detection import AREAS, evaluate_detection
from foveate.evaluate.ground_truth import GroundTruth, counting_names
from foveate.evaluate.proposals import recall_of
from foveate.heads.fvit.candidates import Candidates, CandidateStore, CandidateWriter
from foveate.heads.fvit.detector import FViT
from foveate.heads.fvit.fusion import Fusion, candidate_cosines, detect_from_cosines
from foveate.types import BadSample, Detections

SMALL, MEDIUM = 32.0**2, 96.0**2  # areas below these [square pixels]


def find_candidates(
    detector: FViT, dataset: Dataset, folder: Path, *, made_by: dict[str, str], loading: Loading
) -> CandidateStore:
    """Run a detector over every image, or resume where an earlier command stopped.

    Args:
        detector: in evaluation mode.
        dataset: the images; annotations are not used.
        made_by: what the candidates depend on.
        loading: its limit is ignored.

    Returns:
        The finished cache.

    Raises:
        InputError: the folder holds the candidates of another detector or of other images, or no image is readable.
        StoppedError: a signal arrived; the images before are in the cache, as where memory runs out.
    """
    writer = CandidateWriter(folder, images=list_files(dataset.records), made_by=made_by)
    remaining = tuple(replace(record, boxes=(), labels=(), crowd=()) for record in dataset.records[writer.done :])
    if remaining:
        batches = Batches(replace(dataset, records=remaining), replace(loading, limit=None))
        order = {str(record.id): number for number, record in enumerate(remaining)}
        written = 0  # unreadable images in the cache so far
        try:
            for samples in until_stopped(batches):
                # candidates and unreadable images, in the order of the records
                entries = [*detector.candidates(samples), *batches.bad[written:]]
                written = len(batches.bad)
                for entry in sorted(entries, key=lambda entry: order[entry.id]):
                    if isinstance(entry, BadSample):
                        writer.add_bad(entry)
                    else:
                        writer.add(entry)
        except (StoppedError, RuntimeError, MemoryError):  # the images before can be resumed from
            writer.flush()
            raise
        for entry in batches.bad[written:]:
            writer.add_bad(entry)
    writer.close()
    return CandidateStore(folder)


def sweep(
    store: Iterable[Candidates],
    text: Float[Tensor, "K1 D"],
    fusions: Sequence[Fusion],
    truth: GroundTruth,
    is_base: Bool[Tensor, " K"],
    *,
    detector_scale: float,
) -> list[dict[str, Any]]:
    """Measure many fusions of the same candidates.

    Args:
        text: one embedding per class of the vocabulary, and, last, that of background.
        is_base: which classes of the vocabulary the detector was trained on.
        detector_scale: T, the detector's learned temperature.

    Returns:
        The result of `evaluate_detection` for each fusion, with its hyperparameters as "fusion".
    """
    if len(text) != len(truth.labels) + 1:
        raise InputError(f"text: need {len(truth.labels)} classes and background; got {len(text)} embeddings.")
    predictions: list[list[tuple[str, Detections]]] = [[] for _ in fusions]
    for candidates in store:
        cosines = candidate_cosines(candidates, text)
        for fusion, detections in zip(fusions, predictions, strict=True):
            fused = detect_from_cosines(candidates, cosines, is_base, detector_scale, fusion, masks=truth.masks)
            detections.append((candidates.id, fused))
    return [
        {"fusion": asdict(fusion), **evaluate_detection(detections, truth)}
        for fusion, detections in zip(fusions, predictions, strict=True)
    ]


def proposal_recall(
    store: Iterable[Candidates], dataset: Dataset, *, split: BaseNovel | None, tops: Sequence[int] = (100, 1000)
) -> dict[str, Any]:
    """Measure how many annotated objects the proposals of candidates find, by group and by size of the object.

    Args:
        dataset: with annotated boxes; crowds are ignored.
        split: base and novel categories; None: one group.
        tops: K of AR@K.

    Returns:
        {"all", "base", "novel": {"all", "small", "medium", "large": see `recall_of`}}; sizes are COCO's, by the area
        of the box. Categories that the split excludes are in no group.

    Raises:
        InputError: an unknown image.
    """
    records = {str(record.id): record for record in dataset.records}
    images = []
    for candidates in store:
        record = records.get(candidates.id)
        if record is None:
            raise InputError(
                f"image {candidates.id}: need candidates of the images of {dataset.name}; it is not among them."
            )
        indices = [index for index, crowd in enumerate(record.crowd) if not crowd]
        boxes = torch.tensor([record.boxes[index] for index in indices], dtype=torch.float32).reshape(-1, 4)
        # an object's name holds its size and its category
        names = [f"{_size(record.boxes[index])} {dataset.categories[record.labels[index]].name}" for index in indices]
        images.append((boxes, names, candidates.proposals))
    groups = {"all": counting_names(dataset, split)}
    if split is not None:
        groups |= {"base": list(split.base), "novel": list(split.novel)}
    result: dict[str, Any] = {}
    for group, names in groups.items():
        sizes = {area: AREAS[1:] if area == "all" else (area,) for area in AREAS}
        members = {area: {f"{size} {name}" for name in names for size in sizes[area]} for area in AREAS}
        result[group] = recall_of(images, members, tops=tops)
    return result


def _size(box: tuple[float, float, float, float]) -> str:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return "small" if area < SMALL else "medium" if area < MEDIUM else "large"
