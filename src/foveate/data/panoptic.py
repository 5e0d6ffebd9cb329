"""Decodes panoptic PNGs, whose colour R + 256 G + 65536 B is a segment's id (COCO's format; the regions of Fig. 2, 3).

`coco.py` reads the annotation file once; this decodes pixels, in the loader's workers. Pixels whose colour is no
segment of the record (unlabelled ones, and segments that were ignored) are in no mask.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from foveate.data.images import ImageError, read_image
from foveate.data.records import Box, Record
from foveate.types import Category, PanopticMap, SegmentInfo, Segments

MAX_MASK_BYTES = 4_000_000_000  # one byte per pixel and segment


def panoptic_segments(record: Record, categories: Sequence[Category]) -> Segments:
    """Decode the masks of an image's segments, for a record from `read_panoptic` and the categories of its data set.

    Returns:
        The segments in the record's order. Boxes of things are the annotated ones; boxes of stuff reach from the first
        to the last pixel of the mask (excluding it, as in the published evaluation).

    Raises:
        ImageError: the PNG is missing, damaged, of another size or kind, or lacks an annotated segment.
    """
    assert record.panoptic is not None and record.size is not None, f"{record.id}: not a record of a panoptic file"
    height, width = record.size
    count = len(record.segment_ids)
    if count * height * width > MAX_MASK_BYTES:
        raise ImageError(
            f"{record.panoptic}: need at most {MAX_MASK_BYTES:,} bytes of masks; {count} segments of "
            f"{height} x {width} pixels take more. Make the image smaller or merge segments."
        )
    colours = read_colours(record.panoptic, size=record.size)  # (H, W)
    masks = colours == torch.tensor(record.segment_ids, dtype=torch.int32)[:, None, None]  # (N, H, W)
    extents, is_empty = mask_extents(masks)
    _check_missing(record, [key for key, empty in zip(record.segment_ids, is_empty.tolist(), strict=True) if empty])
    is_thing = torch.tensor([categories[label].is_thing for label in record.labels], dtype=torch.bool)  # (N,)
    extents[:, 2:] = torch.maximum(extents[:, 2:] - 1, extents[:, :2] + 1)  # up to the last pixel, as published
    annotated = torch.tensor(record.boxes, dtype=torch.float32).reshape(-1, 4)  # (N, 4)
    return Segments(
        boxes=torch.where(is_thing[:, None], annotated, extents),
        masks=masks,
        labels=torch.tensor(record.labels, dtype=torch.int64),
        is_thing=is_thing,
    )


def compare_segments(record: Record) -> tuple[list[Box | None], int]:
    """Decode an image's PNG to compare it with the annotated segments.

    Returns:
        The extent of each segment, xyxy in pixels, None without a pixel; and how many pixels have a colour that is
        neither 0 nor an annotated segment's.

    Raises:
        ImageError: as `read_colours`.
    """
    assert record.panoptic is not None, f"{record.id}: not a record of a panoptic file"
    colours = read_colours(record.panoptic, size=record.size).numpy()  # (H, W)
    unlisted = int((colours != 0).sum())
    extents: list[Box | None] = []
    for key in record.segment_ids:  # one at a time, in NumPy, which is several times faster than `mask_extents` here
        mask = colours == key  # (H, W)
        extents.append(_extent(mask))
        unlisted -= int(mask.sum())
    return extents, unlisted


def extent_of_segment(path: Path, key: int, *, size: tuple[int, int]) -> Box | None:
    """The extent of one segment in a PNG of (height, width) pixels: xyxy; None: it has no pixel, or no PNG."""
    try:
        return _extent(read_colours(path, size=size).numpy() == key)
    except ImageError:  # reported where it is read
        return None


def _extent(mask: Bool[np.ndarray, "H W"]) -> Box | None:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)).tolist() for axis in (1, 0))
    return (columns[0], rows[0], columns[-1] + 1.0, rows[-1] + 1.0) if rows else None


def read_panoptic_map(record: Record, categories: Sequence[Category]) -> PanopticMap:
    """Decode an image's segments as one map, as PQ and semantic segmentation need them (Tab. 5).

    Returns:
        The map, 0 outside the record's segments, and the segments in the record's order.

    Raises:
        ImageError: as `panoptic_segments`.
    """
    assert record.panoptic is not None, f"{record.id}: not a record of a panoptic file"
    colours = read_colours(record.panoptic, size=record.size).long()  # (H, W)
    ids = torch.tensor(record.segment_ids, dtype=torch.int64)  # (N,)
    present = colours.unique()
    _check_missing(record, ids[~torch.isin(ids, present)].tolist())
    rows = zip(record.segment_ids, record.labels, record.crowd, strict=True)
    segments = tuple(SegmentInfo(key, label, categories[label].is_thing, is_crowd=crowd) for key, label, crowd in rows)
    if not torch.isin(present, ids).all():
        colours = colours.where(torch.isin(colours, ids), 0)
    return PanopticMap(colours, segments)


def mask_extents(masks: Bool[Tensor, "N H W"]) -> tuple[Float[Tensor, "N 4"], Bool[Tensor, " N"]]:
    """Find the smallest box that contains each mask.

    Returns:
        (N, 4) xyxy, pixels, integers; and which masks are empty (their box is arbitrary).
    """
    height, width = masks.shape[1:]
    rows, columns = masks.any(dim=2), masks.any(dim=1)  # (N, H), (N, W)
    x1, y1 = columns.int().argmax(dim=1), rows.int().argmax(dim=1)  # (N,) each: the first True
    x2, y2 = width - columns.flip(1).int().argmax(dim=1), height - rows.flip(1).int().argmax(dim=1)
    return torch.stack([x1, y1, x2, y2], dim=1).float(), ~rows.any(dim=1)


def _check_missing(record: Record, missing: list[int]) -> None:
    if missing:
        raise ImageError(
            f"{record.panoptic}: need pixels of every segment annotated for image {record.id}; "
            f"{len(missing)} of {len(record.segment_ids)} have none (the first id: {missing[0]}). Is this the PNG of "
            "another image or file?"
        )


def read_colours(path: Path, *, size: tuple[int, int] | None) -> Int32[Tensor, "H W"]:
    """Decode a panoptic PNG of (height, width) pixels to the ids of its segments.

    Raises:
        ImageError: as `read_image`.
    """
    red, green, blue = read_image(path, expected_size=size).int()  # (H, W) each
    return red + 256 * green + 65536 * blue
