"""The masks of a panoptic PNG: a colour R + 256 G + 65536 B a segment (COCO's format; the regions of Fig. 2, 3).

Apart from `coco.py` because it decodes pixels, in the workers, while that reads text, once. Pixels whose colour is
no segment of the record (unlabelled ones, and segments left out when the file was read) are in no mask.
Deliberately absent: which segments an evaluation uses (its protocol says), run-length and polygon masks.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from foveate.data.images import ImageError, read_image
from foveate.data.records import Record
from foveate.types import Category, PanopticMap, SegmentInfo, Segments

MAX_MASK_BYTES = 4_000_000_000  # one byte a pixel and segment


def panoptic_segments(record: Record, categories: Sequence[Category]) -> Segments:
    """Decode the masks of an image's segments.

    Args:
        record: from `read_panoptic`.
        categories: of the same data set.

    Returns:
        One entry a segment in the record's order; thing boxes as annotated, stuff boxes from the first to the last
        pixel of the mask (without that pixel, as the published evaluation has it).

    Raises:
        ImageError: the PNG is missing, damaged, of another size or kind, or lacks a segment the annotation lists.
    """
    assert record.panoptic is not None and record.size is not None, f"{record.id}: not a record of a panoptic file"
    height, width = record.size
    count = len(record.segment_ids)
    if count * height * width > MAX_MASK_BYTES:
        raise ImageError(
            f"{record.panoptic}: need at most {MAX_MASK_BYTES:,} bytes of masks; {count} segments of "
            f"{height} x {width} pixels take more. Make the image smaller or merge segments."
        )
    colours = _colours_of(record)  # (H, W)
    ids = torch.tensor(record.segment_ids, dtype=torch.int32)  # (N,)
    masks = colours == ids[:, None, None]  # (N, H, W)
    extents, empty = mask_extents(masks)
    _check_found(record, [colour for colour, gone in zip(record.segment_ids, empty.tolist(), strict=True) if gone])
    is_thing = torch.tensor([categories[label].is_thing for label in record.labels], dtype=torch.bool)  # (N,)
    extents[:, 2:] = torch.maximum(extents[:, 2:] - 1, extents[:, :2] + 1)  # up to the last pixel, as published
    annotated = torch.tensor(record.boxes, dtype=torch.float32).reshape(-1, 4)  # (N, 4)
    return Segments(
        boxes=torch.where(is_thing[:, None], annotated, extents),
        masks=masks,
        labels=torch.tensor(record.labels, dtype=torch.int64),
        is_thing=is_thing,
    )


def read_panoptic_map(record: Record, categories: Sequence[Category]) -> PanopticMap:
    """Decode an image's segments as one map, as PQ and semantic segmentation need them (Tab. 5).

    Args:
        record: from `read_panoptic`.
        categories: of the same data set.

    Returns:
        The map, zero where no segment of the record is, and the segments in the record's order.

    Raises:
        ImageError: as `panoptic_segments`.
    """
    colours = _colours_of(record).long()  # (H, W)
    ids = torch.tensor(record.segment_ids, dtype=torch.int64)  # (N,)
    there = colours.unique()
    _check_found(record, ids[~torch.isin(ids, there)].tolist())
    rows = zip(record.segment_ids, record.labels, record.crowd, strict=True)
    segments = tuple(SegmentInfo(one, label, categories[label].is_thing, is_crowd=crowd) for one, label, crowd in rows)
    if not torch.isin(there, ids).all():
        colours = colours.where(torch.isin(colours, ids), 0)
    return PanopticMap(colours, segments)


def mask_extents(masks: Bool[Tensor, "N H W"]) -> tuple[Float[Tensor, "N 4"], Bool[Tensor, " N"]]:
    """Find the smallest box that holds each mask.

    Returns:
        (N, 4) xyxy, pixels, whole numbers; and which masks are empty (their box means nothing).
    """
    height, width = masks.shape[1:]
    rows, columns = masks.any(dim=2), masks.any(dim=1)  # (N, H), (N, W)
    x1, y1 = columns.int().argmax(dim=1), rows.int().argmax(dim=1)  # (N,) each: the first True
    x2, y2 = width - columns.flip(1).int().argmax(dim=1), height - rows.flip(1).int().argmax(dim=1)
    return torch.stack([x1, y1, x2, y2], dim=1).float(), ~rows.any(dim=1)


def _check_found(record: Record, missing: list[int]) -> None:
    if missing:
        raise ImageError(
            f"{record.panoptic}: need pixels of every segment annotated for image {record.id}; there are none of "
            f"{len(missing)} of {len(record.segment_ids)} (the first id: {missing[0]}). Is this the PNG of another "
            "image or file?"
        )


def read_colours(path: Path, *, size: tuple[int, int] | None) -> Int32[Tensor, "H W"]:
    """Decode a panoptic PNG to the ids of its segments; `read_image` holds every bound and names every fault.

    Args:
        path: of the PNG.
        size: (height, width) [pixels] of its image.

    Raises:
        ImageError: it is missing, damaged or of another size.
    """
    red, green, blue = read_image(path, expected_size=size).int()  # (3, H, W)
    return red + 256 * green + 65536 * blue


def _colours_of(record: Record) -> Int32[Tensor, "H W"]:
    assert record.panoptic is not None
    return read_colours(record.panoptic, size=record.size)
