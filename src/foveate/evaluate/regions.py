"""Region classification: Image Crop against Dense Feature on panoptic annotations (Fig. 2, 3, A1; Tab. 1, 2, A3).

Every annotated segment is classified among all categories by cosine with the text embeddings, once from the model's
image embedding of its crop and once from the dense map pooled over it. One pass over the pictures serves everything:
each is decoded once, its dense map is computed once an input size and pooled for boxes and for masks, and crops of
different pictures share full batches. Masked attention (Tab. A3), the other way to a region's embedding, is asked on
the same inputs. Deliberately absent: proposals (the regions are the annotated ones) and detection
metrics.
"""

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import Head, TemplateName
from foveate.clip.text import embed_vocabulary
from foveate.data.records import Dataset, Record
from foveate.errors import InputError
from foveate.evaluate.feed import CropPacker, Feed
from foveate.evaluate.score import ranks_of, score
from foveate.ops.boxes import boxes_on_input, cover_patches, enlarge_boxes, whole_patches
from foveate.ops.pool import pool_boxes, pool_masks, shrink_and_pad_masks
from foveate.ops.resample import check_side, square_inputs
from foveate.types import Sample, Segments

FIRST = 100  # only so many segments of a picture are looked at, in the annotation's order
AREA = (64.0, 1024.0**2)  # width * height of an annotated box that counts [square pixels], both ends included
CONTEXT = 1.5  # a thing's crop is its box enlarged about the centre; stuff is cut as it is


@torch.inference_mode()
def evaluate_regions(
    clip: Clip,
    dataset: Dataset,
    *,
    sizes: list[int],
    crops: bool = True,
    masked: bool = False,
    crowd: bool = True,
    head: Head = "value",
    templates: TemplateName | tuple[str, ...] = "vild",
    text_cache: Path | None = None,
    batch: int = 8,
    crop_batch: int = 128,
    limit: int | None = None,
    strict: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> dict:
    """Classify every annotated segment from its crop and from the dense map (Sec. 4.1; Fig. 2, 3; Tab. 1, 2).

    Boxes (of stuff: the extent of its mask) are pooled by RoIAlign, masks by their mean. The crop of a thing is its box
    enlarged 1.5 times and clipped, that of stuff the extent of its mask. Inputs are padded as the model says (`pad`).

    Args:
        clip: the model under test; put it on the device wanted.
        dataset: pictures with panoptic annotations.
        sizes: sides of the dense tower's padded square input [pixels]; the sweep of Fig. 3.
        crops: also embed crops at the tower's native size.
        masked: also embed boxes and masks by masked attention at each size (Tab. A3).
        crowd: keep segments marked as crowds, as the published evaluation does.
        head: how the last block makes dense tokens, see `Clip.encode_dense`.
        templates: what the class names are written into, see `foveate.clip.templates.template_set`.
        text_cache: folder where text embeddings are kept, see `foveate.clip.text.embed_vocabulary`.
        batch: pictures a dense batch.
        crop_batch: crops an image batch.
        limit: only the first so many pictures.
        strict: raise on the first bad picture instead of listing it.
        workers: processes that decode.
        progress: show a bar on stderr.

    Returns:
        {"crop": R or None, "dense": {size: R}, "masked": {size: R} or None, "head": head, "templates": templates,
        "classes": how many compete, "pictures": how many were good, "bad": [{"id", "reason"}]}, where R = {"boxes": S,
        "things": S, "stuff": S, "stuff_boxes": S} and S = {"top1", "top5": mAcc in percent or None without regions,
        "count"}. Boxes are thing boxes, things and stuff are masks, stuff boxes the extents of stuff; for crops things
        and stuff are those of the boxes. No mask holds a location of padding alone.

    Raises:
        InputError: no size, a size the tower cannot take, a data set without segments, or no picture that can be read.
    """
    _check_sizes(sizes, clip.patch_size)
    if not dataset.categories:
        raise InputError(f"{dataset.name}: need annotated segments to classify; got pictures without annotations. "
                         "Pictures alone can be measured by `foveate evaluate agreement`.")  # fmt: skip
    clip.eval()
    names = [category.name for category in dataset.categories]
    text = embed_vocabulary(clip, names, templates=templates, cache=text_cache)  # (K, D)
    packer = CropPacker(clip, batch=crop_batch)
    ways = ("dense", "masked") if masked else ("dense",)
    by_box = {(way, size): [] for way in ways for size in sizes}  # ranks, on the device until the end
    by_mask = {(way, size): [] for way in ways for size in sizes}
    labels, is_thing = [], []
    feed = Feed(
        counting_segments(dataset, crowd=crowd),
        masks=True,
        batch=batch,
        limit=limit,
        workers=workers,
        strict=strict,
        progress=progress,
    )
    for samples in feed:
        chosen = [to_device(sample, text.device) for sample in samples]
        labels.append(torch.cat([segments.labels for _, segments in chosen]))
        is_thing.append(torch.cat([segments.is_thing for _, segments in chosen]))
        if crops:
            for image, segments in chosen:
                packer.add(image, crop_boxes(segments, height=image.shape[1], width=image.shape[2]))
        for size in sizes:
            regions = _regions_on_input(clip, chosen, size=size)
            for way in ways:
                boxes, masks = _dense(clip, *regions, head=head) if way == "dense" else _masked(clip, *regions)
                by_box[way, size].append(ranks_of(boxes @ text.T, labels[-1].to(text.device)))
                by_mask[way, size].append(ranks_of(masks @ text.T, labels[-1].to(text.device)))
    truth = torch.cat(labels), torch.cat(is_thing)
    crop = None
    if crops:
        ranks = ranks_of(packer.finish().to(text) @ text.T, truth[0].to(text.device)).cpu()
        crop = _scores(ranks, ranks, *truth)
    found = {
        way: {size: _scores(torch.cat(by_box[way, size]).cpu(), torch.cat(by_mask[way, size]).cpu(), *truth)
              for size in sizes}
        for way in ways
    }  # fmt: skip
    return {
        "crop": crop,
        "dense": found["dense"],
        "masked": found.get("masked"),
        "head": head,
        "pad": clip.pad,
        "templates": templates,
        "classes": len(dataset.categories),
        "pictures": feed.pictures,
        "bad": feed.bad_listed(),
    }


def _check_sizes(sizes: list[int], patch_size: int) -> None:
    """Refuse a sweep that is empty, repeats itself or does not fit the patches, before any work is done."""
    if not sizes or len(set(sizes)) < len(sizes):
        raise InputError(f"--sizes: need different multiples of the patch size {patch_size}; got {sizes}.")
    for size in sizes:
        check_side(size, patch=patch_size, flag="--sizes")


def counting_segments(dataset: Dataset, *, crowd: bool) -> Dataset:
    """Leave out of the records what the protocol does not count, so that it is never decoded (Sec. 4.1).

    Args:
        dataset: with annotations.
        crowd: keep segments marked as crowds.

    Returns:
        The same pictures, each with those of its first 100 segments whose box is neither too small nor too large.
    """
    return replace(dataset, records=tuple(_counting(record, crowd=crowd) for record in dataset.records))


def _counting(record: Record, *, crowd: bool) -> Record:
    kept = [
        index
        for index, (x1, y1, x2, y2) in enumerate(record.boxes[:FIRST])
        if AREA[0] <= (x2 - x1) * (y2 - y1) <= AREA[1] and (crowd or not record.crowd[index])
    ]
    return replace(
        record,
        boxes=tuple(record.boxes[index] for index in kept),
        labels=tuple(record.labels[index] for index in kept),
        crowd=tuple(record.crowd[index] for index in kept),
        segment_ids=tuple(record.segment_ids[index] for index in kept if record.segment_ids),  # of panoptic files alone
    )


def to_device(sample: Sample, device: torch.device) -> tuple[Tensor, Segments]:
    """Move an image and its masks to the device; the rest stays."""
    segments = sample.segments
    assert segments is not None, f"picture {sample.id} came without segments although they were asked for"
    return sample.image.to(device), replace(segments, masks=segments.masks.to(device))


def crop_boxes(segments: Segments, *, height: int, width: int) -> Float[Tensor, "N 4"]:
    """Cut things with their surroundings and stuff as it is."""
    enlarged = enlarge_boxes(segments.boxes, factor=CONTEXT, height=height, width=width)  # (N, 4)
    return torch.where(segments.is_thing[:, None], enlarged, segments.boxes)


def picture_locations(*, height: int, width: int, size: int, patch: int) -> Bool[Tensor, "h w"]:
    """Say which locations of a picture's padded square hold any of the picture; the others are padding (Sec. 4.1).

    Args:
        height: of the picture [pixels].
        width: of the picture [pixels].
        size: side of the square [pixels].
        patch: side of a location [pixels].
    """
    whole = boxes_on_input(
        torch.tensor([[0.0, 0.0, width, height]]), height=height, width=width, size=size
    )  # (1, 4), xyxy
    return cover_patches(whole, grid=(size // patch, size // patch), stride=patch)[0]


def _regions_on_input(
    clip: Clip, chosen: list[tuple[Tensor, Segments]], *, size: int
) -> tuple[Float[Tensor, "B 3 size size"], list[Float[Tensor, "_ 4"]], list[Bool[Tensor, "_ h w"]]]:
    """Bring a batch to one input size: the padded squares, the boxes of all segments on them, all masks on the grid."""
    inputs = square_inputs([image for image, _ in chosen], size=size, mean=clip.mean, std=clip.std, pad=clip.pad)
    boxes = [
        boxes_on_input(segments.boxes, height=image.shape[1], width=image.shape[2], size=size)
        for image, segments in chosen
    ]
    masks = [shrink_and_pad_masks(segments.masks, side=size // clip.patch_size) for _, segments in chosen]
    return inputs, boxes, masks


def _dense(
    clip: Clip,
    inputs: Float[Tensor, "B 3 S S"],
    boxes: list[Float[Tensor, "_ 4"]],
    masks: list[Bool[Tensor, "_ h w"]],
    *,
    head: Head,
) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R D"]]:
    """Pool ONE dense pass over the boxes and over the masks of all R segments."""
    dense = clip.encode_dense(inputs, head=head)  # (B, D, h, w)
    return pool_boxes(dense, boxes, stride=clip.patch_size), pool_masks(dense, masks)


def _masked(
    clip: Clip, inputs: Float[Tensor, "B 3 S S"], boxes: list[Float[Tensor, "_ 4"]], masks: list[Bool[Tensor, "_ h w"]]
) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R D"]]:
    """Run ONE pass of masked attention for the boxes and the masks of all R segments (Tab. A3)."""
    grid = (inputs.shape[2] // clip.patch_size, inputs.shape[3] // clip.patch_size)
    covered = [whole_patches(own.to(inputs.device), grid=grid, stride=clip.patch_size) for own in boxes]
    both = [torch.cat([one, other]) for one, other in zip(covered, masks, strict=True)]  # (2 N_i, h, w) each
    embedded = clip.encode_masks(inputs, both, head="masked").split([len(one) for one in both])
    pairs = [one.split([len(own), len(one) - len(own)]) for one, own in zip(embedded, boxes, strict=True)]
    return torch.cat([one for one, _ in pairs]), torch.cat([other for _, other in pairs])


def _scores(
    by_box: Int64[Tensor, " R"],
    by_mask: Int64[Tensor, " R"],
    labels: Int64[Tensor, " R"],
    is_thing: Bool[Tensor, " R"],
) -> dict[str, dict[str, float | int | None]]:
    """Score the ranks of thing boxes, thing masks, stuff masks and stuff boxes apart."""
    return {
        "boxes": score(by_box[is_thing], labels[is_thing]),
        "things": score(by_mask[is_thing], labels[is_thing]),
        "stuff": score(by_mask[~is_thing], labels[~is_thing]),
        "stuff_boxes": score(by_box[~is_thing], labels[~is_thing]),
    }
