"""Masks with class logits -> a panoptic map, a semantic map, or instances (Mask2Former's inference).

    panoptic   each mask has its best class; a pixel belongs to the mask with the highest score x probability, if that
               probability is at least 0.5; a mask that loses more than a fifth of its pixels of at least 0.5 is removed
               with its pixels; masks of one stuff class are one segment
    semantic   sum over masks of class probability x mask probability
    instances  the best 100 pairs of a mask and a class, scored by class probability x the mean probability inside

The default of `min_score` is 0, ODISE's object mask threshold; that of Mask2Former's and MaskFormer's files for COCO is
0.8. Masks of a padded input are resized to the input, cropped, and resized to the image, as in detectron2 (`Frame`).
transformers' post-processing differs: its threshold is 0.5, it measures the lost fraction on score x probability,
assigns pixels of less than 0.5, and may give one id to two segments after merging stuff.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import masks_to_boxes

from foveate.ops.paste import encode_masks
from foveate.types import Detections, PanopticMap, SegmentInfo

MIN_OVERLAP = 0.8  # fraction of a mask's pixels that it must win
MIN_PROBABILITY = 0.5  # of a pixel of a mask
MAX_INSTANCES = 100
MASK_CHUNK = 16  # masks resized to the image at once


@dataclass(frozen=True)
class Frame:
    """The extent of an image in a padded input, at the top left."""

    padded: tuple[int, int]  # (H, W) of the input [pixels]
    fitted: tuple[int, int]  # (h, w) of the image in it


def panoptic_map(
    class_logits: Float[Tensor, "Q K1"],
    mask_logits: Float[Tensor, "Q h w"],
    is_thing: Bool[Tensor, " K"],
    *,
    size: tuple[int, int],
    min_score: float = 0.0,
    overlap: float = MIN_OVERLAP,
    frame: Frame | None = None,
) -> PanopticMap:
    """Assign every pixel to one segment, or to none.

    Args:
        class_logits: of the K classes and, last, of "no object".
        mask_logits: of the whole image, or of the padded input of `frame`.
        is_thing: of the classes; masks of one stuff class become one segment.
        size: (H, W) of the image [pixels].
        min_score: masks with a higher score are used.
        overlap: fraction of a mask's pixels (of a probability of at least 0.5) that it must win.
        frame: the image in the padded input; None: masks are of the whole image.

    Returns:
        Segments in the order of their masks; a merged one has its first mask's score.
    """
    # masks of a class, with a score above the threshold
    scores, labels = class_logits.float().softmax(dim=1).max(dim=1)  # (Q,) each
    used = (labels < class_logits.shape[1] - 1) & (scores > min_score)
    scores, labels = scores[used], labels[used]  # (M,)
    if not len(scores):
        return PanopticMap(torch.zeros(size, dtype=torch.int64, device=mask_logits.device), ())

    # the winner of each pixel
    masks = enlarge(mask_logits[used], size=size, frame=frame).sigmoid()  # (M, H, W)
    winner = (scores[:, None, None] * masks).argmax(dim=0)  # (H, W)
    is_inside = masks.gather(0, winner[None])[0] >= MIN_PROBABILITY  # (H, W)

    # masks that win enough pixels
    count = len(scores)
    won = winner.flatten().bincount(minlength=count)  # (M,)
    drawn = winner[is_inside].bincount(minlength=count)
    area = (masks >= MIN_PROBABILITY).flatten(1).sum(dim=1)
    is_valid = (drawn > 0) & (won.double() / area.clamp(min=1) >= overlap)
    mask_ids, segments = _number(is_valid.tolist(), labels.tolist(), scores.tolist(), is_thing.tolist())
    ids = torch.tensor(mask_ids, device=winner.device)[winner] * is_inside
    return PanopticMap(ids, segments)


def _number(
    is_valid: list[bool], labels: list[int], scores: list[float], is_thing: list[bool]
) -> tuple[list[int], tuple[SegmentInfo, ...]]:
    """The segment id of each mask (0: none), and the segments; masks of a stuff class share an id."""
    ids: list[int] = []
    segments: list[SegmentInfo] = []
    stuff_ids: dict[int, int] = {}
    for valid, label, score in zip(is_valid, labels, scores, strict=True):
        if not valid:
            ids.append(0)
        elif label in stuff_ids:
            ids.append(stuff_ids[label])
        else:
            segments.append(SegmentInfo(len(segments) + 1, label, is_thing[label], score))
            ids.append(len(segments))
            if not is_thing[label]:
                stuff_ids[label] = len(segments)
    return ids, tuple(segments)


def semantic_map(
    class_logits: Float[Tensor, "Q K1"],
    mask_logits: Float[Tensor, "Q h w"],
    *,
    size: tuple[int, int],
    frame: Frame | None = None,
) -> Float[Tensor, "K H W"]:
    """Scores of every class at every pixel, at least 0; they do not sum to 1. See `panoptic_map` for the arguments."""
    probabilities = class_logits.float().softmax(dim=1)[:, :-1]  # (Q, K)
    total = mask_logits.new_zeros((probabilities.shape[1], *size), dtype=torch.float32)
    for chunk, masks in zip(probabilities.split(MASK_CHUNK), mask_logits.split(MASK_CHUNK), strict=True):
        total += torch.einsum("qk,qhw->khw", chunk, enlarge(masks, size=size, frame=frame).sigmoid())
    return total


def instances(
    class_logits: Float[Tensor, "Q K1"],
    mask_logits: Float[Tensor, "Q h w"],
    is_thing: Bool[Tensor, " K"],
    *,
    size: tuple[int, int],
    keep: int = MAX_INSTANCES,
    frame: Frame | None = None,
) -> Detections:
    """Objects, best first; a mask may be several objects of different classes. See `panoptic_map` for the arguments.

    Args:
        is_thing: of the classes; pairs with stuff are among the `keep` best, and then removed.
        keep: max pairs of a mask and a class.

    Returns:
        Masks without a pixel are left out: their score is 0.
    """
    # the best pairs of a mask and a class
    probabilities = class_logits.float().softmax(dim=1)[:, :-1]  # (Q, K)
    classes = max(1, probabilities.shape[1])
    scores, pairs = probabilities.flatten().topk(min(keep, probabilities.numel()))
    rows, labels = pairs // classes, pairs % classes
    chosen = is_thing.to(labels.device)[labels]
    scores, rows, labels = scores[chosen], rows[chosen], labels[chosen]

    # masks, and the mean probability inside
    unique, index = rows.unique(return_inverse=True)  # a mask is resized once for all its classes
    inside, means = [torch.zeros((0, *size), dtype=torch.bool)], [scores.new_zeros(0)]
    for chunk in mask_logits[unique].split(MASK_CHUNK) if len(unique) else ():
        large = enlarge(chunk, size=size, frame=frame)
        is_inside = large > 0
        total = (large.sigmoid() * is_inside).flatten(1).sum(dim=1)
        means.append(total / (is_inside.flatten(1).sum(dim=1) + 1e-6))
        inside.append(is_inside.cpu())
    scores, masks, index = (scores * torch.cat(means)[index]).cpu(), torch.cat(inside), index.cpu()

    # sort, without empty masks
    order = scores.argsort(descending=True, stable=True)
    order = order[masks.flatten(1).any(dim=1)[index[order]]]
    masks = masks[index[order]]
    boxes = torch.zeros(0, 4)
    if len(masks):
        boxes = masks_to_boxes(masks).float() + torch.tensor([0.0, 0.0, 1.0, 1.0])
    return Detections(boxes, scores[order], labels.cpu()[order], tuple(encode_masks(masks)))


def enlarge(
    logits: Float[Tensor, "Q h w"], *, size: tuple[int, int], frame: Frame | None = None
) -> Float[Tensor, "Q H W"]:
    """Resize mask logits to an image's size (H, W), bilinearly; see `panoptic_map` for `frame`."""
    if not len(logits):
        return logits.new_zeros((0, *size), dtype=torch.float32)
    if frame is not None:
        h, w = frame.fitted
        large = F.interpolate(logits[None].float(), size=frame.padded, mode="bilinear", align_corners=False)
        return F.interpolate(large[:, :, :h, :w], size=size, mode="bilinear", align_corners=False)[0]
    return F.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)[0]
