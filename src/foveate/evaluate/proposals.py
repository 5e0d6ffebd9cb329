"""How many annotated objects region proposals find: recall of base and of novel objects apart.

An object is found at an IoU if one of the image's best K proposals overlaps it by as much. R@0.5 is the share found at
0.5; AR@K is the mean over the IoUs 0.5, 0.55 ... 0.95, over all objects together. Crowds are ignored.
Deliberately absent: precision, and a mean over classes and one proposal per object (COCO's AR, of detections with
classes).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import box_iou

IOUS = tuple(0.5 + 0.05 * step for step in range(10))


def best_overlaps(objects: Float[Tensor, "N 4"], proposals: Float[Tensor, "M 4"], *, top: int) -> Float[Tensor, " N"]:
    """The IoU of each object with the best of the first `top` proposals.

    Args:
        proposals: xyxy, highest score first; M may be 0.
    """
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
        images: of each the objects' boxes (without crowds), their categories' names, and the proposals, best first.
        groups: what is reported -> names of its categories.
        tops: K of AR@K; R@0.5 is of the largest.

    Returns:
        For each group the number of objects, "recall50" and "AR@K" in percent; None where it has no object.
    """
    result: dict[str, Any] = {}
    for group, names in groups.items():
        members = [torch.tensor([name in names for name in labels], dtype=torch.bool) for _, labels, _ in images]
        pairs = [(objects[mine], proposals) for mine, (objects, _, proposals) in zip(members, images, strict=True)]
        ious = {top: torch.cat([torch.zeros(0), *(best_overlaps(*pair, top=top) for pair in pairs)]) for top in tops}
        best = ious[max(tops)]
        result[group] = {"objects": len(best), "recall50": _percent(best, (0.5,))}
        result[group] |= {f"AR@{top}": _percent(ious[top], IOUS) for top in tops}
    return result


def _percent(overlaps: Float[Tensor, " N"], ious: Sequence[float]) -> float | None:
    if not len(overlaps):
        return None
    shares = [(overlaps >= iou - 1e-6).float().mean().item() for iou in ious]
    return round(100 * sum(shares) / len(shares), 2)
