"""Recall of region proposals, of base and of novel objects.

An object is recalled at an IoU if one of the image's best K proposals overlaps it by at least that. R@0.5 is the
fraction at 0.5; AR@K is the mean over the IoUs 0.5, 0.55 ... 0.95, over all objects together (COCO's AR is a mean over
classes, with one detection per object). Crowds are ignored.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import box_iou

IOUS = tuple(0.5 + 0.05 * step for step in range(10))


def best_overlaps(objects: Float[Tensor, "N 4"], proposals: Float[Tensor, "M 4"], *, top: int) -> Float[Tensor, " N"]:
    """The highest IoU of each object with the first `top` proposals, which are sorted by score; boxes are xyxy."""
    if not len(objects) or not len(proposals):
        return torch.zeros(len(objects))
    return box_iou(objects, proposals[:top]).amax(dim=1)  # (N,)


def recall_of(
    images: Sequence[tuple[Float[Tensor, "_ 4"], Sequence[str], Float[Tensor, "_ 4"]]],
    groups: Mapping[str, Collection[str]],
    *,
    tops: Sequence[int] = (10, 100),
) -> dict[str, Any]:
    """Measure proposals against annotated boxes.

    Args:
        images: (boxes of the objects without crowds, names of their categories, proposals by score) of each image.
        groups: name of a group -> names of its categories.
        tops: K of AR@K; R@0.5 uses the largest.

    Returns:
        {group: {"objects": count, "recall50", "AR@K": percent, None without an object}}.
    """
    result: dict[str, Any] = {}
    for group, names in groups.items():
        members = [torch.tensor([name in names for name in labels], dtype=torch.bool) for _, labels, _ in images]
        pairs = [(objects[rows], proposals) for rows, (objects, _, proposals) in zip(members, images, strict=True)]
        ious = {top: torch.cat([torch.zeros(0), *(best_overlaps(*pair, top=top) for pair in pairs)]) for top in tops}
        best = ious[max(tops)]
        result[group] = {"objects": len(best), "recall50": _percent(best, (0.5,))}
        result[group] |= {f"AR@{top}": _percent(ious[top], IOUS) for top in tops}
    return result


def _percent(overlaps: Float[Tensor, " N"], ious: Sequence[float]) -> float | None:
    if not len(overlaps):
        return None
    recalls = [(overlaps >= iou - 1e-6).float().mean().item() for iou in ious]
    return round(100 * sum(recalls) / len(recalls), 2)
