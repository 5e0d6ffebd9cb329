"""Masks with class logits -> a panoptic map, a semantic one, or instances (Mask2Former's inference; ODISE's numbers).

    panoptic   each mask speaks for its best class; a pixel goes to the mask whose score x probability is the largest,
               if that probability is one half at least; a mask that lost more than a fifth of its half-probable pixels
               is dropped, and its pixels with it; masks of one stuff class are one segment
    semantic   sum over masks of class probability x mask probability
    instances  the best 100 pairs of a mask and a class, scored by class probability x the mean probability inside

No score is too low unless a threshold is given: ODISE's object mask threshold is 0, that of Mask2Former's and
MaskFormer's files for COCO .8. Masks of a padded input become as large as the input first, lose its padding, and then
become as large as the image, as detectron2 does it (`Frame`). transformers' post-processing is another one: its
threshold is .5 unless said otherwise, it measures the lost share on score x probability, gives away pixels that no mask
finds half probable, and may number two segments alike after stuff was merged.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import masks_to_boxes

from foveate.ops.paste import encode_masks
from foveate.types import Detections, PanopticMap, SegmentInfo

OVERLAP = 0.8  # share of a mask that must be left
HALF = 0.5  # probability of a pixel that belongs to a mask
KEEP = 100  # instances
_CHUNK = 16  # masks made large at once


@dataclass(frozen=True)
class Frame:
    """How an image lies in the padded input whose masks are given: at the top left."""

    padded: tuple[int, int]  # (H, W) of the input [pixels]
    fitted: tuple[int, int]  # (h, w) of the image in it


def panoptic_map(
    class_logits: Float[Tensor, "Q K1"],
    mask_logits: Float[Tensor, "Q h w"],
    is_thing: Bool[Tensor, " K"],
    *,
    size: tuple[int, int],
    min_score: float = 0.0,
    overlap: float = OVERLAP,
    frame: Frame | None = None,
) -> PanopticMap:
    """Give every pixel to one segment, or to none.

    Args:
        class_logits: of the K classes and, last, of "no object".
        mask_logits: of the whole image.
        is_thing: of the classes; masks of one stuff class become one segment.
        size: (H, W) of the image [pixels].
        min_score: masks whose best class has more are used.
        overlap: share of a mask's half-probable pixels that it must win.
        frame: of the masks, where they are of a padded input; None: they are of the whole image.

    Returns:
        Segments in the order of their masks; a merged one has its first mask's score.
    """
    scores, labels = class_logits.float().softmax(dim=1).max(dim=1)  # (Q,) each
    used = (labels < class_logits.shape[1] - 1) & (scores > min_score)
    scores, labels = scores[used], labels[used]  # (M,)
    if not len(scores):
        return PanopticMap(torch.zeros(size, dtype=torch.int64, device=mask_logits.device), ())
    masks = enlarge(mask_logits[used], size=size, frame=frame).sigmoid()  # (M, H, W)
    winner = (scores[:, None, None] * masks).argmax(dim=0)  # (H, W)
    is_inside = masks.gather(0, winner[None])[0] >= HALF  # (H, W)
    count = len(scores)
    won = winner.flatten().bincount(minlength=count)  # (M,)
    drawn = winner[is_inside].bincount(minlength=count)
    whole = (masks >= HALF).flatten(1).sum(dim=1)
    stays = (drawn > 0) & (won.double() / whole.clamp(min=1) >= overlap)  # what is drawn is part of the whole
    numbers, segments = _number(stays.tolist(), labels.tolist(), scores.tolist(), is_thing.tolist())
    ids = torch.tensor(numbers, device=winner.device)[winner] * is_inside
    return PanopticMap(ids, segments)


def _number(
    stays: list[bool], labels: list[int], scores: list[float], is_thing: list[bool]
) -> tuple[list[int], tuple[SegmentInfo, ...]]:
    """Number the masks that stay, the later ones of a stuff class as its first."""
    numbers: list[int] = []
    segments: list[SegmentInfo] = []
    of_stuff: dict[int, int] = {}
    for one, label, score in zip(stays, labels, scores, strict=True):
        if not one:
            numbers.append(0)
        elif label in of_stuff:
            numbers.append(of_stuff[label])
        else:
            segments.append(SegmentInfo(len(segments) + 1, label, is_thing[label], score))
            numbers.append(len(segments))
            if not is_thing[label]:
                of_stuff[label] = len(segments)
    return numbers, tuple(segments)


def semantic_map(
    class_logits: Float[Tensor, "Q K1"],
    mask_logits: Float[Tensor, "Q h w"],
    *,
    size: tuple[int, int],
    frame: Frame | None = None,
) -> Float[Tensor, "K H W"]:
    """Score every class at every pixel.

    Args:
        class_logits: of the K classes and, last, of "no object".
        mask_logits: of the whole image.
        size: (H, W) of the image [pixels].
        frame: as for `panoptic_map`.

    Returns:
        At least 0; the classes of a pixel do not add up to 1.
    """
    probabilities = class_logits.float().softmax(dim=1)[:, :-1]  # (Q, K)
    total = mask_logits.new_zeros((probabilities.shape[1], *size), dtype=torch.float32)
    for some, masks in zip(probabilities.split(_CHUNK), mask_logits.split(_CHUNK), strict=True):
        total += torch.einsum("qk,qhw->khw", some, enlarge(masks, size=size, frame=frame).sigmoid())
    return total


def instances(
    class_logits: Float[Tensor, "Q K1"],
    mask_logits: Float[Tensor, "Q h w"],
    is_thing: Bool[Tensor, " K"],
    *,
    size: tuple[int, int],
    keep: int = KEEP,
    frame: Frame | None = None,
) -> Detections:
    """Find objects; a mask may be several, of different classes.

    Args:
        class_logits: of the K classes and, last, of "no object".
        mask_logits: of the whole image.
        is_thing: of the classes; stuff takes part in the choice and is left out after it.
        size: (H, W) of the image [pixels].
        keep: pairs of a mask and a class that are looked at.
        frame: as for `panoptic_map`.

    Returns:
        Best first. Masks without a pixel are left out: their score is 0.
    """
    probabilities = class_logits.float().softmax(dim=1)[:, :-1]  # (Q, K)
    classes = max(1, probabilities.shape[1])
    scores, pairs = probabilities.flatten().topk(min(keep, probabilities.numel()))
    rows, labels = pairs // classes, pairs % classes
    chosen = is_thing.to(labels.device)[labels]
    scores, rows, labels = scores[chosen], rows[chosen], labels[chosen]
    unique, place = rows.unique(return_inverse=True)  # a mask is made large once, whatever its classes
    inside, means = [torch.zeros((0, *size), dtype=torch.bool)], [scores.new_zeros(0)]
    for some in mask_logits[unique].split(_CHUNK) if len(unique) else ():
        large = enlarge(some, size=size, frame=frame)
        is_inside = large > 0
        total = (large.sigmoid() * is_inside).flatten(1).sum(dim=1)
        means.append(total / (is_inside.flatten(1).sum(dim=1) + 1e-6))
        inside.append(is_inside.cpu())
    scores, masks = (scores * torch.cat(means)[place]).cpu(), torch.cat(inside)
    order = scores.argsort(descending=True, stable=True)
    order = order[masks.flatten(1).any(dim=1)[place.cpu()[order]]]
    mine = place.cpu()[order]
    boxes = torch.zeros(0, 4)
    if len(mine):
        boxes = masks_to_boxes(masks[mine]).float() + torch.tensor([0.0, 0.0, 1.0, 1.0])
    return Detections(boxes, scores[order], labels.cpu()[order], tuple(encode_masks(masks[mine])))


def enlarge(
    logits: Float[Tensor, "Q h w"], *, size: tuple[int, int], frame: Frame | None = None
) -> Float[Tensor, "Q H W"]:
    """Bring mask logits to an image's size, bilinearly.

    Args:
        logits: of the whole image.
        size: (H, W) of the image [pixels].
        frame: as for `panoptic_map`.
    """
    if not len(logits):
        return logits.new_zeros((0, *size), dtype=torch.float32)
    if frame is not None:
        h, w = frame.fitted
        large = F.interpolate(logits[None].float(), size=frame.padded, mode="bilinear", align_corners=False)
        return F.interpolate(large[:, :, :h, :w], size=size, mode="bilinear", align_corners=False)[0]
    return F.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)[0]
