"""Region classification: Image Crop against Dense Feature on panoptic annotations (Fig. 2, 3, A1; Tab. 1, 2, A3).

Every annotated segment is classified among all categories by cosine with the text embeddings, once from the model's
image embedding of its crop and once from the dense map pooled over it. One pass over the images serves everything: each
is decoded once, its dense map is computed once per input size and pooled for boxes and for masks, and crops of
different images share full batches. Masked attention (Tab. A3), the other way to embed a region, runs on the same
inputs. Deliberately absent: proposals (the regions are the annotated ones) and detection metrics.
"""

from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import Head, TemplateName
from foveate.clip.text import embed_vocabulary
from foveate.data.batches import LOADING, Batches, Loading
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
    enlarged 1.5 times and clipped, that of stuff the extent of its mask. Inputs are padded as the model says (`pad`).

    Args:
        clip: the model under test; on the device to use.
        dataset: images with panoptic annotations.
        sizes: sides of the dense tower's padded square input [pixels]; the sweep of Fig. 3.
        crops: also embed crops at the tower's native size.
        masked: also embed boxes and masks by masked attention at each size (Tab. A3).
        crowd: keep segments marked as crowds, as the published evaluation does.
        head: how the last block makes dense tokens, see `Clip.encode_dense`.
        templates: what the class names are written into, see `foveate.clip.templates.template_set`.
        text_cache: folder where text embeddings are cached, see `foveate.clip.text.embed_vocabulary`.
        loading: how images are read and batched.

    Returns:
        {"crop": R or None, "dense": {size: R}, "masked": {size: R} or None, "head": head, "templates": templates,
        "classes": how many compete, "images": how many were read, "bad": [{"id", "reason"}]}, where R = {"boxes": S,
        "things": S, "stuff": S, "stuff_boxes": S} and S = {"top1", "top5": mAcc in percent or None without regions,
        "count"}. Boxes are thing boxes, things and stuff are masks, stuff boxes the extents of stuff; for crops things
        and stuff are those of the boxes. No mask holds a location of padding alone.

    Raises:
        InputError: no size, a size the tower cannot take, a data set without segments, or no image that can be read.
    """
    _check_sizes(sizes, clip.patch_size)
    if not dataset.categories:
        raise InputError(f"{dataset.name}: need annotated segments to classify; got images without annotations. "
                         "Images alone can be measured by `foveate evaluate agreement`.")  # fmt: skip
    clip.eval()
    names = [category.name for category in dataset.categories]
    text = embed_vocabulary(clip, names, templates=templates, cache=text_cache)  # (K, D)
    packer = CropPacker(clip, batch=loading.crop_batch)
    methods = (_pool_dense, _attend_masked) if masked else (_pool_dense,)
    by_box = {(method, size): [] for method in methods for size in sizes}  # ranks, on the device until the end
    by_mask = {(method, size): [] for method in methods for size in sizes}
    labels, is_thing = [], []
    batches = Batches(counting_segments(dataset, crowd=crowd), loading, masks=True)
    for samples in batches:
        images = [to_device(sample, text.device) for sample in samples]
        labels.append(torch.cat([segments.labels for _, segments in images]))
        is_thing.append(torch.cat([segments.is_thing for _, segments in images]))
        # crops wait in the packer until a batch is full
        if crops:
            for image, segments in images:
                packer.add(image, crop_boxes(segments, height=image.shape[1], width=image.shape[2]))
        # the dense map, and masked attention where wanted, see the same inputs at each size
        for size in sizes:
            regions = _regions_on_input(clip, images, size=size)
            for method in methods:
                boxes, masks = method(clip, *regions, head)  # (R, D) each
                by_box[method, size].append(ranks_of(boxes @ text.T, labels[-1].to(text.device)))
                by_mask[method, size].append(ranks_of(masks @ text.T, labels[-1].to(text.device)))
    truth = torch.cat(labels), torch.cat(is_thing)
    crop = None
    if crops:
        ranks = ranks_of(packer.finish().to(text) @ text.T, truth[0].to(text.device)).cpu()
        crop = _scores(ranks, ranks, *truth)
    scores = {
        method: {
            size: _scores(torch.cat(by_box[method, size]).cpu(), torch.cat(by_mask[method, size]).cpu(), *truth)
            for size in sizes
        }
        for method in methods
    }
    return {
        "crop": crop,
        "dense": scores[_pool_dense],
        "masked": scores.get(_attend_masked),
        "head": head,
        "pad": clip.pad,
        "templates": templates,
        "classes": len(dataset.categories),
        "images": batches.count,
        "bad": batches.bad_listed(),
    }


def _check_sizes(sizes: list[int], patch_size: int) -> None:
    """Refuse a sweep that is empty, repeats itself or does not fit the patches, before any work is done."""
    if not sizes or len(set(sizes)) < len(sizes):
        raise InputError(f"--size: need different multiples of the patch size {patch_size}; got {sizes}.")
    for size in sizes:
        check_side(size, patch=patch_size, flag="--size")


def _regions_on_input(
    clip: Clip, images: list[tuple[Tensor, Segments]], *, size: int
) -> tuple[Float[Tensor, "B 3 size size"], list[Float[Tensor, "_ 4"]], list[Bool[Tensor, "_ h w"]]]:
    """Bring a batch to one input size: the padded squares, the boxes of all segments on them, all masks on the grid."""
    inputs = square_inputs([image for image, _ in images], size=size, mean=clip.mean, std=clip.std, pad=clip.pad)
    boxes = [
        boxes_on_input(segments.boxes, height=image.shape[1], width=image.shape[2], size=size)
        for image, segments in images
    ]
    masks = [shrink_and_pad_masks(segments.masks, side=size // clip.patch_size) for _, segments in images]
    return inputs, boxes, masks


def _pool_dense(
    clip: Clip,
    inputs: Float[Tensor, "B 3 S S"],
    boxes: list[Float[Tensor, "_ 4"]],
    masks: list[Bool[Tensor, "_ h w"]],
    head: Head,
) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R D"]]:
    """Pool ONE dense pass over the boxes and over the masks of all R segments."""
    dense = clip.encode_dense(inputs, head=head)  # (B, D, h, w)
    return pool_boxes(dense, boxes, stride=clip.patch_size), pool_masks(dense, masks)


def _attend_masked(
    clip: Clip,
    inputs: Float[Tensor, "B 3 S S"],
    boxes: list[Float[Tensor, "_ 4"]],
    masks: list[Bool[Tensor, "_ h w"]],
    head: Head,
) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R D"]]:
    """Run ONE pass of masked attention for the boxes and the masks of all R segments (Tab. A3); no dense head."""
    grid = (inputs.shape[2] // clip.patch_size, inputs.shape[3] // clip.patch_size)
    covered = [whole_patches(box.to(inputs.device), grid=grid, stride=clip.patch_size) for box in boxes]
    both = [torch.cat(pair) for pair in zip(covered, masks, strict=True)]  # (2 N_i, h, w) each: boxes, then masks
    embedded = clip.encode_masks(inputs, both, head="masked").split([len(image) for image in both])
    halves = [image.tensor_split(2) for image in embedded]  # each (N_i, D)
    return torch.cat([first for first, _ in halves]), torch.cat([second for _, second in halves])


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
