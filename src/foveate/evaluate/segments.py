"""Which annotated segments count, how they are cropped, and where padding begins (Sec. 4.1).

The rules of the published evaluation, shared by the protocols that measure regions.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from foveate.data.records import Dataset, Record
from foveate.ops.boxes import boxes_on_input, cover_patches, enlarge_boxes
from foveate.types import Sample, Segments

MAX_SEGMENTS = 100  # per image, in the annotation's order
AREA = (64.0, 1024.0**2)  # range of width * height of a box that counts [square pixels], both ends included
CONTEXT = 1.5  # a thing's crop is its box enlarged about the centre; stuff is cropped as it is


def counting_segments(dataset: Dataset, *, crowd: bool) -> Dataset:
    """Remove from the records the segments that do not count, so that they are never decoded (Sec. 4.1).

    Args:
        crowd: keep segments marked as crowds.

    Returns:
        The same images, each with those of its first 100 segments whose box is neither too small nor too large.
    """
    records = []
    for record in dataset.records:
        indices = [
            index
            for index, (x1, y1, x2, y2) in enumerate(record.boxes[:MAX_SEGMENTS])
            if AREA[0] <= (x2 - x1) * (y2 - y1) <= AREA[1] and (crowd or not record.crowd[index])
        ]
        records.append(select_boxes(record, indices))
    return replace(dataset, records=tuple(records))


def select_boxes(record: Record, indices: list[int]) -> Record:
    """A record with only these boxes, and what belongs to them."""
    return replace(
        record,
        boxes=tuple(record.boxes[index] for index in indices),
        labels=tuple(record.labels[index] for index in indices),
        crowd=tuple(record.crowd[index] for index in indices),
        segment_ids=tuple(record.segment_ids[index] for index in indices if record.segment_ids),  # panoptic files only
    )


def to_device(sample: Sample, device: torch.device) -> tuple[Tensor, Segments]:
    """Move an image and its masks to the device; boxes and labels stay."""
    segments = sample.segments
    assert segments is not None, f"image {sample.id} came without segments"
    return sample.image.to(device), replace(segments, masks=segments.masks.to(device))


def crop_boxes(segments: Segments, *, height: int, width: int) -> Float[Tensor, "N 4"]:
    """The boxes that are cropped: things with their surroundings, stuff as it is; xyxy, pixels of the image."""
    enlarged = enlarge_boxes(segments.boxes, factor=CONTEXT, height=height, width=width)  # (N, 4)
    return torch.where(segments.is_thing[:, None], enlarged, segments.boxes)


def image_locations(*, height: int, width: int, size: int, patch: int) -> Bool[Tensor, "h w"]:
    """Which locations of an image's padded square hold any of the image; the rest is padding. All sides in pixels."""
    whole = torch.tensor([[0.0, 0.0, width, height]])
    whole = boxes_on_input(whole, height=height, width=width, size=size)  # (1, 4), xyxy
    return cover_patches(whole, grid=(size // patch, size // patch), stride=patch)[0]
