"""Stored candidates measured without the network: many ways of fusing their scores, and the recall of their proposals.

One pass over the store serves all fusions: the cosines with the text are computed once a picture. Deliberately absent:
choosing the best of them (on what is measured that would be cheating), and the fusion itself (`heads/fvit/fusion.py`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from foveate.data.records import Dataset
from foveate.data.splits import BaseNovel
from foveate.errors import InputError
from foveate.evaluate.detection import AREAS, Gathered, Style
from foveate.evaluate.proposals import recall_of
from foveate.evaluate.truth import Truth
from foveate.heads.fvit.candidates import Candidates
from foveate.heads.fvit.fusion import Fusion, compare, detect_from

SMALL, MEDIUM = 32.0**2, 96.0**2  # below these [square pixels]


def sweep(
    store: Iterable[Candidates],
    text: Float[Tensor, "K1 D"],
    fusions: Sequence[Fusion],
    truth: Truth,
    is_base: Bool[Tensor, " K"],
    *,
    detector_scale: float,
    style: Style,
    masks: bool = False,
) -> list[dict[str, Any]]:
    """Measure many ways of fusing the same candidates; the network is not needed, and cosines are computed once.

    Args:
        store: the candidates of the data set's pictures.
        text: an embedding a class of the vocabulary, and, last, that of background.
        fusions: the ways.
        truth: of `foveate.evaluate.detection.open_truth`, for that vocabulary.
        is_base: which classes of the vocabulary the detector was trained on, whatever is measured.
        detector_scale: T, the detector's learned temperature.
        style: whose rule.
        masks: also measure the masks.

    Returns:
        The result of `evaluate_detection` of each fusion, with "fusion": its numbers.
    """
    if len(text) != len(truth.places) + 1:
        raise InputError(f"text: need {len(truth.places)} classes and background; got {len(text)} embeddings.")
    gathered = [Gathered(truth, style=style, masks=masks) for _ in fusions]
    for one in store:
        cosines = compare(one, text)
        for fusion, each in zip(fusions, gathered, strict=True):
            detections = detect_from(one, cosines, is_base, detector_scale=detector_scale, fusion=fusion, masks=masks)
            each.add(one.id, detections)
    results = []
    for fusion in fusions:
        results.append({"fusion": asdict(fusion), **gathered.pop(0).measure(ov="novel" in truth.groups)})
    return results


def proposal_recall(
    store: Iterable[Candidates], dataset: Dataset, *, split: BaseNovel | None, tops: Sequence[int] = (100, 1000)
) -> dict[str, Any]:
    """Measure how many annotated objects the proposals of candidates find, by group and by size of the object.

    Args:
        store: the candidates of pictures of the data set.
        dataset: with annotated boxes; crowds are not asked for.
        split: base and novel categories; None: all are one group.
        tops: K of AR@K.

    Returns:
        {"all", "base", "novel": {"all", "small", "medium", "large": see `recall_of`}}; sizes are COCO's, by the area
        of the box. Left-out categories are in no group.

    Raises:
        InputError: a picture that is not the data set's.
    """
    records = {str(record.id): record for record in dataset.records}
    pictures = []
    for one in store:
        record = records.get(one.id)
        if record is None:
            raise InputError(
                f"picture {one.id}: need candidates of the pictures of {dataset.name}; it is none of them."
            )
        chosen = [place for place, crowd in enumerate(record.crowd) if not crowd]
        boxes = torch.tensor([record.boxes[place] for place in chosen], dtype=torch.float32).reshape(-1, 4)
        names = [f"{_size(record.boxes[place])} {dataset.categories[record.labels[place]].name}" for place in chosen]
        pictures.append((boxes, names, one.proposals))
    left_out = set() if split is None else set(split.left_out)
    groups = {"all": [category.name for category in dataset.categories if category.name not in left_out]}
    if split is not None:
        groups |= {"base": list(split.base), "novel": list(split.novel)}
    asked = {
        (group, size): {f"{one} {name}" for name in names for one in (AREAS[1:] if size == "all" else (size,))}
        for group, names in groups.items()
        for size in AREAS
    }
    flat = recall_of(pictures, {f"{group} {size}": names for (group, size), names in asked.items()}, tops=tops)
    return {group: {size: flat[f"{group} {size}"] for size in AREAS} for group in groups}


def _size(box: tuple[float, float, float, float]) -> str:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return "small" if area < SMALL else "medium" if area < MEDIUM else "large"
