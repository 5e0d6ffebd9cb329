"""What masks learn from: each target is matched with one query, the other queries are nothing (Mask2Former).

    match   cheapest sum of 2 (-p of the class) + 5 cross-entropy + 5 dice, at random points
    loss    2 cross-entropy of classes, nothing weighing a tenth + 5 cross-entropy + 5 dice of the matched masks, at
            points of which three quarters are those where the mask is least sure

for the bare queries and after each layer. Written here since the library's version wants scipy; the same numbers to
rounding. Each pass of each process divides by its own number of targets, so that two processes, or two accumulated
passes, do not give the gradient of one with both batches. Deliberately absent: the mean over processes of that number.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from foveate.ops.assign import assign

OVERSAMPLE = 3.0  # points looked at for one that is used
UNSURE = 0.75  # of the points are the least sure ones
Pairs = tuple[Int64[Tensor, " M"], Int64[Tensor, " M"]]


@dataclass(frozen=True)
class Target:
    """What an image holds, as the network sees it."""

    masks: Bool[Tensor, "N H W"]
    labels: Int64[Tensor, " N"]


@dataclass(frozen=True)
class Weights:
    """Of the parts of the loss, and how many points of a mask are looked at."""

    classes: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    nothing: float = 0.1
    points: int = 12544


def mask_losses(
    class_logits: Float[Tensor, "B Q K1"], masks: Float[Tensor, "B Q h w"], targets: list[Target], weights: Weights
) -> dict[str, Float[Tensor, ""]]:
    """The losses of one layer, weighted. Draws come from torch's global stream.

    Args:
        class_logits: of the classes and, last, of nothing.
        masks: logits.
        targets: of each image.
        weights: see `Weights`.
    """
    pairs = [
        match(logits, found, target, weights)
        for logits, found, target in zip(class_logits, masks, targets, strict=True)
    ]
    rows = torch.cat([torch.full_like(queries, place) for place, (queries, _) in enumerate(pairs)])
    queries = torch.cat([one for one, _ in pairs])
    labels = torch.cat(
        [target.labels[chosen.to(target.labels.device)] for target, (_, chosen) in zip(targets, pairs, strict=True)]
    )
    last = class_logits.shape[2] - 1
    wanted = torch.full(class_logits.shape[:2], last, device=class_logits.device)  # (B, Q)
    wanted[rows, queries] = labels.to(wanted.device)
    weight = class_logits.new_ones(last + 1, dtype=torch.float32)
    weight[last] = weights.nothing
    classes = F.cross_entropy(class_logits.float().mT, wanted, weight)
    parts = {"class": weights.classes * classes}
    count = max(1, sum(len(target.labels) for target in targets))
    if not len(queries):
        return {**parts, "mask": masks.sum() * 0, "dice": masks.sum() * 0}
    truth = torch.cat(
        [target.masks[chosen.to(target.masks.device)] for target, (_, chosen) in zip(targets, pairs, strict=True)]
    )
    logits, values = _at_points(masks[rows, queries].float(), truth.to(masks.device).float(), points=weights.points)
    mask = F.binary_cross_entropy_with_logits(logits, values, reduction="none").mean(dim=1).sum() / count
    dice = _dice(logits.sigmoid(), values).sum() / count
    return {**parts, "mask": weights.mask * mask, "dice": weights.dice * dice}


@torch.no_grad()
def match(
    class_logits: Float[Tensor, "Q K1"], masks: Float[Tensor, "Q h w"], target: Target, weights: Weights
) -> Pairs:
    """Give each target of an image a query of its own.

    Args:
        class_logits: of the classes and, last, of nothing.
        masks: logits.
        target: of the image.
        weights: of the costs, as of the losses.

    Returns:
        Queries and their targets, min(Q, N) of each, on the CPU.
    """
    labels, masks = target.labels.to(masks.device), masks.float()
    places = torch.rand(1, weights.points, 2, device=masks.device)
    found = sample(masks, places.expand(len(masks), -1, -1))  # (Q, points)
    truth = sample(target.masks.to(masks.device).float(), places.expand(len(labels), -1, -1))  # (N, points)
    with torch.autocast(masks.device.type, enabled=False):  # bfloat16 would make queries alike
        # cross-entropy of a pixel that belongs to the target, and of one that does not
        inside, outside = F.softplus(-found) @ truth.T, F.softplus(found) @ (1 - truth).T
        crossed = (inside + outside) / weights.points  # (Q, N)
        probable = found.sigmoid()
        dice = 1 - (2 * probable @ truth.T + 1) / (probable.sum(dim=1)[:, None] + truth.sum(dim=1) + 1)
    classes = -class_logits.float().softmax(dim=1)[:, labels]
    return assign(weights.mask * crossed + weights.classes * classes + weights.dice * dice)


def sample(maps: Float[Tensor, "N h w"], places: Float[Tensor, "N points 2"]) -> Float[Tensor, "N points"]:
    """Read maps between their places, bilinearly.

    Args:
        maps: of any size.
        places: x and y in [0, 1], over the whole map.
    """
    if not len(maps):
        return maps.new_zeros((0, places.shape[1]))
    return F.grid_sample(maps[:, None], 2 * places[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


def _at_points(
    logits: Float[Tensor, "M h w"], truth: Float[Tensor, "M H W"], *, points: int
) -> tuple[Float[Tensor, "M points"], Float[Tensor, "M points"]]:
    """Read masks and their targets at points, most of them where the masks are least sure."""
    with torch.no_grad():
        many, count = int(points * OVERSAMPLE), int(UNSURE * points)
        places = torch.rand(len(logits), many, 2, device=logits.device)
        chosen = sample(logits, places).abs().neg().topk(count, dim=1).indices  # (M, count)
        unsure = places.gather(1, chosen[:, :, None].expand(-1, -1, 2))
        rest = torch.rand(len(logits), points - count, 2, device=logits.device)
        places = torch.cat([unsure, rest], dim=1)  # (M, points, 2)
        values = sample(truth, places)
    return sample(logits, places), values


def _dice(found: Float[Tensor, "M points"], truth: Float[Tensor, "M points"]) -> Float[Tensor, " M"]:
    return 1 - (2 * (found * truth).sum(dim=1) + 1) / (found.sum(dim=1) + truth.sum(dim=1) + 1)
