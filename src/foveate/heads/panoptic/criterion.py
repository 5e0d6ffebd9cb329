"""Losses of masks: each target is matched with one query, the other queries are "no object" (Mask2Former).

    match   lowest sum of 2 (-p of the class) + 5 cross-entropy + 5 dice, at random points
    loss    2 cross-entropy of classes ("no object" has a weight of 0.1) + 5 cross-entropy + 5 dice of the matched
            masks, at points of which three quarters are the most uncertain ones

for the initial queries and after each layer. transformers' version needs scipy; this one returns the same values to
rounding. Each pass of each process divides by its own number of targets, so two processes, or two accumulated passes,
do not have the gradient of one process with both batches.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from foveate.ops.assign import assign

OVERSAMPLE_RATIO = 3.0  # points drawn, of which the most uncertain are used [times `points`]
UNCERTAIN_FRACTION = 0.75  # of the points
Pairs = tuple[Int64[Tensor, " M"], Int64[Tensor, " M"]]


@dataclass(frozen=True)
class Target:
    """Segments of an image, in the network's input."""

    masks: Bool[Tensor, "N H W"]
    labels: Int64[Tensor, " N"]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses and of the matching costs, and the number of points per mask."""

    classes: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    no_object: float = 0.1
    points: int = 12544


def mask_losses(
    class_logits: Float[Tensor, "B Q K1"], masks: Float[Tensor, "B Q h w"], targets: list[Target], weights: LossWeights
) -> dict[str, Float[Tensor, ""]]:
    """The weighted losses of one layer. Random numbers come from torch's global stream.

    Args:
        class_logits: of the classes and, last, of "no object".
        masks: logits.
        targets: of each image.
        weights: see `LossWeights`.
    """
    # match queries with targets
    images = zip(class_logits, masks, targets, strict=True)
    pairs = [match(*image, weights) for image in images]
    rows = torch.cat([torch.full_like(queries, index) for index, (queries, _) in enumerate(pairs)])
    queries = torch.cat([queries for queries, _ in pairs])  # (M,)

    # classes
    labels = _matched([target.labels for target in targets], pairs)
    last = class_logits.shape[2] - 1
    expected = torch.full(class_logits.shape[:2], last, device=class_logits.device)  # (B, Q)
    expected[rows, queries] = labels.to(expected.device)
    weight = class_logits.new_ones(last + 1, dtype=torch.float32)
    weight[last] = weights.no_object
    parts = {"class": weights.classes * F.cross_entropy(class_logits.float().mT, expected, weight)}
    if not len(queries):
        return {**parts, "mask": masks.sum() * 0, "dice": masks.sum() * 0}

    # masks
    truth = _matched([target.masks for target in targets], pairs)
    logits, values = _at_points(masks[rows, queries].float(), truth.to(masks.device).float(), points=weights.points)
    count = max(1, sum(len(target.labels) for target in targets))
    mask = F.binary_cross_entropy_with_logits(logits, values, reduction="none").mean(dim=1).sum() / count
    dice = _dice(logits.sigmoid(), values).sum() / count
    return {**parts, "mask": weights.mask * mask, "dice": weights.dice * dice}


def _matched(values: list[Tensor], pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The entries of each image's matched targets, concatenated."""
    return torch.cat([part[chosen.to(part.device)] for part, (_, chosen) in zip(values, pairs, strict=True)])


@torch.no_grad()
def match(
    class_logits: Float[Tensor, "Q K1"], masks: Float[Tensor, "Q h w"], target: Target, weights: LossWeights
) -> Pairs:
    """Match each target of an image with a different query.

    Args:
        class_logits: of the classes and, last, of "no object".
        masks: logits.
        target: of the image.
        weights: see `LossWeights`.

    Returns:
        Queries and their targets, min(Q, N) of each, on the CPU.
    """
    # predictions and targets at the same random points
    labels, masks = target.labels.to(masks.device), masks.float()
    points = torch.rand(1, weights.points, 2, device=masks.device)
    logits = sample(masks, points.expand(len(masks), -1, -1))  # (Q, points)
    truth = sample(target.masks.to(masks.device).float(), points.expand(len(labels), -1, -1))  # (N, points)

    # costs
    with torch.autocast(masks.device.type, enabled=False):  # bfloat16 would give different queries equal costs
        # cross-entropy of points inside the target, and of points outside
        inside, outside = F.softplus(-logits) @ truth.T, F.softplus(logits) @ (1 - truth).T
        cross_entropy = (inside + outside) / weights.points  # (Q, N)
        probabilities = logits.sigmoid()
        dice = 1 - (2 * probabilities @ truth.T + 1) / (probabilities.sum(dim=1)[:, None] + truth.sum(dim=1) + 1)
    classes = -class_logits.float().softmax(dim=1)[:, labels]
    return assign(weights.mask * cross_entropy + weights.classes * classes + weights.dice * dice)


def sample(maps: Float[Tensor, "N h w"], points: Float[Tensor, "N P 2"]) -> Float[Tensor, "N P"]:
    """Read maps at points bilinearly; x and y are in [0, 1], over the whole map."""
    if not len(maps):
        return maps.new_zeros((0, points.shape[1]))
    return F.grid_sample(maps[:, None], 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


def _at_points(
    logits: Float[Tensor, "M h w"], truth: Float[Tensor, "M H W"], *, points: int
) -> tuple[Float[Tensor, "M points"], Float[Tensor, "M points"]]:
    """Read masks and their targets at points, most of them where the masks are most uncertain."""
    with torch.no_grad():
        drawn, count = int(points * OVERSAMPLE_RATIO), int(UNCERTAIN_FRACTION * points)
        candidates = torch.rand(len(logits), drawn, 2, device=logits.device)
        index = sample(logits, candidates).abs().neg().topk(count, dim=1).indices  # (M, count)
        uncertain = candidates.gather(1, index[:, :, None].expand(-1, -1, 2))
        rest = torch.rand(len(logits), points - count, 2, device=logits.device)
        chosen = torch.cat([uncertain, rest], dim=1)  # (M, points, 2)
        values = sample(truth, chosen)
    return sample(logits, chosen), values


def _dice(probabilities: Float[Tensor, "M points"], truth: Float[Tensor, "M points"]) -> Float[Tensor, " M"]:
    return 1 - (2 * (probabilities * truth).sum(dim=1) + 1) / (probabilities.sum(dim=1) + truth.sum(dim=1) + 1)
