"""Region classification: Image Crop against Dense Feature on panoptic annotations (Fig. 2, 3, A1; Tab. 1, 2, A3).

Every annotated segment is classified among all categories by cosine with the text embeddings, once from the image
embedding of its crop and once from the dense map pooled over it. One pass over the images serves everything: each is
decoded once, its dense map is computed once per input size and pooled for boxes and for masks, and crops of different
images share full batches. Masked attention (Tab. A3), another way to embed a region, runs on the same inputs.
"""

from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import Head, TemplateName
from foveate.clip.text import embed_vocabulary
from foveate.data.batches import LOADING, Batches, Loading
from foveate.data.labels import refuse_repeated
from foveate.data.records import Dataset
from foveate.errors import InputError
from foveate.evaluate.crops import CropPacker
from foveate.evaluate.score import ranks_of, score
from foveate.evaluate.segments import counting_segments, crop_boxes, to_device
from foveate.ops.boxes import boxes_on_input, whole_patches
from foveate.ops.pool import pool_boxes, pool_masks, shrink_and_pad_masks
from foveate.ops.resample import check_side, square_inputs
from foveate.types import Segments


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
    loading: Loading = LOADING,
) -> dict:
    """Classify every annotated segment from its crop and from the dense map (Sec. 4.1; Fig. 2, 3; Tab. 1, 2).

    Boxes (of stuff: the extent of its mask) are pooled by RoIAlign, masks by their mean. The crop of a thing is its box
    enlarged 1.5 times and clipped, that of stuff the extent of its mask. Inputs are padded by the model's `pad`.

    Args:
        sizes: sides of the dense tower's padded square input [pixels]; the sweep of Fig. 3.
        masked: also embed boxes and masks by masked attention at each size (Tab. A3).
        crowd: keep segments marked as crowds, as the published evaluation does.
        text_cache: folder where text embeddings are cached; None: not cached.

    Returns:
        {"crop": R or None, "dense": {size: R}, "masked": {size: R} or None, "head", "templates", "classes", "images",
        "bad": [{"id", "reason"}]}, where R = {"boxes": S, "things": S, "stuff": S, "stuff_boxes": S} and S is of
        `score`. Boxes are thing boxes, things and stuff are masks, stuff boxes the extents of stuff; for crops things
        and stuff are those of the boxes. Masks exclude locations with only padding.

    Raises:
        InputError: no size, a size the tower cannot take, a data set without segments, or no readable image.
    """
    if not sizes or len(set(sizes)) < len(sizes):
        raise InputError(f"--size: need different multiples of the patch size {clip.patch_size}; got {sizes}.")
    for size in sizes:
        check_side(size, patch=clip.patch_size, flag="--size")
    if not dataset.categories:
        raise InputError(f"{dataset.name}: need annotated segments to classify; got images without annotations. "
                         "For images without annotations use `foveate evaluate agreement`.")  # fmt: skip
    clip.eval()
    names = [category.name for category in dataset.categories]
    refuse_repeated(dataset.name, names)
    text = embed_vocabulary(clip, names, templates=templates, cache=text_cache)  # (K, D)
    packer = CropPacker(clip, batch=loading.crop_batch)
    ranks: dict[tuple[str, int], list[Tensor]] = {}  # (method, size) -> ranks of boxes and of masks, on the device
    labels, is_thing = [], []
    batches = Batches(counting_segments(dataset, crowd=crowd), loading, masks=True)
    for samples in batches:
        images = [to_device(sample, text.device) for sample in samples]
        labels.append(torch.cat([segments.labels for _, segments in images]))
        is_thing.append(torch.cat([segments.is_thing for _, segments in images]))
        # crops are collected until a batch is full
        if crops:
            for image, segments in images:
                packer.add(image, crop_boxes(segments, height=image.shape[1], width=image.shape[2]))
        # the dense map and masked attention share the inputs of each size
        for size in sizes:
            inputs, boxes, masks = _regions_on_input(clip, images, size=size)
            dense = clip.encode_dense(inputs, head=head)  # (B, D, h, w)
            embedded = {"dense": (pool_boxes(dense, boxes, stride=clip.patch_size), pool_masks(dense, masks))}
            if masked:
                embedded["masked"] = _attend_masked(clip, inputs, boxes, masks)
            for method, pair in embedded.items():
                by_kind = [ranks_of(rows @ text.T, labels[-1].to(text.device)) for rows in pair]
                ranks.setdefault((method, size), []).append(torch.stack(by_kind))  # (2, R)
    truth = torch.cat(labels), torch.cat(is_thing)
    crop = None
    if crops:
        by_crop = ranks_of(packer.finish().to(text) @ text.T, truth[0].to(text.device)).cpu()
        crop = _scores(by_crop.expand(2, -1), *truth, among=len(names))
    scores = {key: _scores(torch.cat(parts, dim=1).cpu(), *truth, among=len(names)) for key, parts in ranks.items()}
    return {
        "crop": crop,
        "dense": {size: scores["dense", size] for size in sizes},
        "masked": {size: scores["masked", size] for size in sizes} if masked else None,
        "head": head,
        "pad": clip.pad,
        "templates": templates,
        "classes": len(dataset.categories),
        "images": batches.count,
        "bad": batches.bad_listed(),
    }


def _regions_on_input(
    clip: Clip, images: list[tuple[Tensor, Segments]], *, size: int
) -> tuple[Float[Tensor, "B 3 size size"], list[Float[Tensor, "_ 4"]], list[Bool[Tensor, "_ h w"]]]:
    """A batch at one input size: the padded squares, the boxes of all segments on them, all masks on the grid."""
    inputs = square_inputs([image for image, _ in images], size=size, mean=clip.mean, std=clip.std, pad=clip.pad)
    boxes = [
        boxes_on_input(segments.boxes, height=image.shape[1], width=image.shape[2], size=size)
        for image, segments in images
    ]
    masks = [shrink_and_pad_masks(segments.masks, side=size // clip.patch_size) for _, segments in images]
    return inputs, boxes, masks


def _attend_masked(
    clip: Clip, inputs: Float[Tensor, "B 3 S S"], boxes: list[Float[Tensor, "_ 4"]], masks: list[Bool[Tensor, "_ h w"]]
) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R D"]]:
    """Embed the boxes and the masks of all R segments in one pass of masked attention (Tab. A3)."""
    grid = (inputs.shape[2] // clip.patch_size, inputs.shape[3] // clip.patch_size)
    covered = [whole_patches(box.to(inputs.device), grid=grid, stride=clip.patch_size) for box in boxes]
    both = [torch.cat(pair) for pair in zip(covered, masks, strict=True)]  # (2 N_i, h, w) each: boxes, then masks
    embedded = clip.encode_masks(inputs, both, head="masked").split([len(image) for image in both])
    halves = [image.tensor_split(2) for image in embedded]  # each (N_i, D)
    return torch.cat([first for first, _ in halves]), torch.cat([second for _, second in halves])


def _scores(
    ranks: Int64[Tensor, "2 R"], labels: Int64[Tensor, " R"], is_thing: Bool[Tensor, " R"], *, among: int
) -> dict[str, dict[str, float | int | None]]:
    """Score the ranks of boxes and of masks among all classes, for things and for stuff."""
    by_box, by_mask = ranks
    return {
        "boxes": score(by_box[is_thing], labels[is_thing], among=among),
        "things": score(by_mask[is_thing], labels[is_thing], among=among),
        "stuff": score(by_mask[~is_thing], labels[~is_thing], among=among),
        "stuff_boxes": score(by_box[~is_thing], labels[~is_thing], among=among),
    }
