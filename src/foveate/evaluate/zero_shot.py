"""Zero-shot classification and image-text retrieval with image embeddings, before and after distillation.

Self-distillation changes the tower that embeds whole images, and may reduce what made CLIP useful (CLIPSelf's authors
measure only regions). Therefore both models, before and after, are evaluated on the same images in one pass. Images are
cropped to their central square as in CLIP's own evaluations, or padded to a square as for CLIPSelf's teacher.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import TemplateName
from foveate.clip.text import embed_vocabulary, report_cut
from foveate.data.batches import LOADING, Batches, Loading
from foveate.data.records import Dataset
from foveate.errors import InputError
from foveate.evaluate.crops import CropPacker
from foveate.evaluate.flags import View
from foveate.evaluate.labelled_images import LabelledImages
from foveate.evaluate.score import ranks_of, recall, score
from foveate.evaluate.segments import CONTEXT
from foveate.ops.boxes import enlarge_boxes
from foveate.types import Sample

TEXT_BATCH = 512  # captions embedded at once
QUERY_BATCH = 1024  # queries ranked at once
MAX_CAPTIONS = 5  # per image; the published protocol of COCO and Flickr30k
BLANK = "its captions are blank: no answer is right"
EQUALS = "captions with the same words are right answers of one another"


@torch.inference_mode()
def evaluate_global(
    clips: dict[str, Clip],
    *,
    labelled: LabelledImages | None = None,
    captioned: Dataset | None = None,
    view: View = "centre",
    templates: TemplateName | tuple[str, ...] = "vild",
    text_cache: Path | None = None,
    loading: Loading = LOADING,
) -> dict:
    """Classify and retrieve with the image embeddings of several models, on the same images.

    Args:
        clips: models by their name in the result ("reference", "model").
        labelled: images or boxes with classes; None: no classification. Boxes are cropped as in `evaluate_regions`.
        captioned: images with captions; None: no retrieval.
        view: of whole images: "centre", their central square as in CLIP's own evaluations; "whole", padded as for
            CLIPSelf's teacher.
        text_cache: folder where text embeddings are cached; None: not cached.

    Returns:
        {NAME: {"classification": C or None, "retrieval": R or None} for each model, "classification": {"of": "images"
        or "boxes", "classes", "images"} or None, "retrieval": {"images", "captions", "different": distinct captions,
        "equals": the rule} or None, "view", "templates", "bad": [{"id", "reason"}]}, where C is of `accuracies` and R
        of `recall_both_ways`.

    Raises:
        InputError: nothing to measure, an unknown view, no readable image, or none with a caption.
    """
    if labelled is None and captioned is None:
        raise InputError("global: need classes or captions to measure by; got neither.")
    if view not in ("centre", "whole"):
        raise InputError(f"view: must be centre or whole; got {view!r}.")
    for clip in clips.values():
        clip.eval()
    result: dict = {name: {"classification": None, "retrieval": None} for name in clips}
    result |= {"classification": None, "retrieval": None, "view": view, "templates": templates, "bad": []}
    if labelled is not None:
        batches = Batches(labelled.dataset, loading)
        packers = {name: CropPacker(clip, batch=loading.crop_batch) for name, clip in clips.items()}
        labels = _crop_labelled(packers, labelled, batches, view=view)
        for name, packer in packers.items():
            result[name]["classification"] = _classify(packer, labels, labelled, templates, text_cache)
        kind = "boxes" if labelled.by_image is None else "images"
        result["classification"] = {"of": kind, "classes": len(labelled.classes.classes), "images": batches.count}
        result["bad"] += batches.bad_listed()
    if captioned is not None:
        batches = Batches(captioned, loading)
        recalls, counts, blank = _retrieve(clips, captioned, batches, view=view, crop_batch=loading.crop_batch)
        for name, both_ways in recalls.items():
            result[name]["retrieval"] = both_ways
        result["retrieval"] = counts
        result["bad"] += [entry for entry in batches.bad_listed() if entry not in result["bad"]]
        result["bad"] += [{"id": name, "reason": BLANK} for name in blank]
    return result


def central_square(*, height: int, width: int) -> Float[Tensor, "1 4"]:
    """The crop of CLIP's own evaluations, which resize the shorter side to the native size: xyxy, pixels."""
    side = min(height, width)
    x, y = (width - side) // 2, (height - side) // 2
    return torch.tensor([[x, y, x + side, y + side]], dtype=torch.float32)


def _box_of(sample: Sample, view: View) -> Float[Tensor, "1 4"]:
    """The part of an image that is embedded."""
    height, width = sample.image.shape[1:]
    if view == "centre":
        return central_square(height=height, width=width)
    return torch.tensor([[0.0, 0.0, width, height]])


# ------------------------------------------------------------------------------------------------------ classification


def _crop_labelled(
    packers: dict[str, CropPacker], labelled: LabelledImages, batches: Batches, *, view: View
) -> Int64[Tensor, " R"]:
    """Add every image, or every box, to each packer; return their classes."""
    labels = [torch.zeros(0, dtype=torch.int64)]
    for sample in batches.samples():
        if labelled.by_image is not None:
            boxes, classes = _box_of(sample, view), torch.tensor([labelled.by_image[sample.id]])
        else:
            assert sample.segments is not None, f"image {sample.id} came without its annotation"
            height, width = sample.image.shape[1:]
            boxes = enlarge_boxes(sample.segments.boxes, factor=CONTEXT, height=height, width=width)  # (N, 4)
            classes = sample.segments.labels
        labels.append(classes)
        _add(packers, sample, boxes)
    return torch.cat(labels)


def _classify(
    packer: CropPacker,
    labels: Int64[Tensor, " R"],
    labelled: LabelledImages,
    templates: TemplateName | tuple[str, ...],
    cache: Path | None,
) -> dict:
    """Rank the classes for the crops of a model."""
    text = embed_vocabulary(packer.clip, labelled.classes, templates=templates, cache=cache)  # (K, D)
    ranks = ranks_of(packer.finish().to(text) @ text.T, labels.to(text.device)).cpu()
    return accuracies(ranks, labels, among=len(text))


def _add(packers: dict[str, CropPacker], sample: Sample, boxes: Float[Tensor, "N 4"]) -> None:
    for packer in packers.values():
        packer.add(sample.image.to(next(packer.clip.parameters()).device), boxes)


def accuracies(ranks: Int64[Tensor, " R"], labels: Int64[Tensor, " R"], *, among: int) -> dict:
    """{"mean": over the classes present, "overall": over all, each {"top1", "top5"} in percent; "count"}.

    Args:
        among: how many classes compete, as for `score`.
    """
    per_class = score(ranks, labels, among=among)
    count = labels.numel()
    overall = {f"top{top}": 100 * int((ranks < top).sum()) / count if count and top < among else None for top in (1, 5)}
    return {"mean": {"top1": per_class["top1"], "top5": per_class["top5"]}, "overall": overall, "count": count}


# ---------------------------------------------------------------------------------------------------------- retrieval


def _retrieve(
    clips: dict[str, Clip], captioned: Dataset, batches: Batches, *, view: View, crop_batch: int
) -> tuple[dict[str, dict], dict, list[str]]:
    """Recall in both directions with each model; counts; and the ids of images with blank captions."""
    packers = {name: CropPacker(clip, batch=crop_batch) for name, clip in clips.items()}
    indices = range(len(batches.dataset.records))  # fewer than the captions where --limit is given
    captions = {str(captioned.records[index].id): captioned.captions[index][:MAX_CAPTIONS] for index in indices}
    names, blank = [], []
    for sample in batches.samples():
        if captions[sample.id]:
            names.append(sample.id)
            _add(packers, sample, _box_of(sample, view))
        else:  # a shard's text turns out to be blank only when it is read
            blank.append(sample.id)
    if not names:
        raise InputError(f"{captioned.name}: need captions to retrieve; those of all {len(blank)} images are blank.")
    # each distinct caption is embedded once
    texts: dict[str, int] = {}  # distinct caption -> index
    caption_ids = [[texts.setdefault(text, len(texts)) for text in captions[name]] for name in names]
    recalls = {}
    for name, clip in clips.items():
        tokens = clip.tokenize([*texts])  # (U, context)
        report_cut(clip, [*texts], tokens, what="captions")
        rows = torch.cat([clip.encode_text(part).float() for part in tokens.split(TEXT_BATCH)])  # (U, D)
        recalls[name] = recall_both_ways(packers[name].finish().to(rows), rows, caption_ids)
    counts = {"images": len(names), "captions": sum(map(len, caption_ids)), "different": len(texts), "equals": EQUALS}
    return recalls, counts, blank


def recall_both_ways(
    images: Float[Tensor, "B D"], texts: Float[Tensor, "U D"], caption_ids: Sequence[Sequence[int]]
) -> dict[str, dict]:
    """Rank captions for each image and images for each caption.

    The right answers of an image are all captions equal to one of its own, those of a caption all images with an equal
    caption. A query's rank is the number of wrong answers that score at least as high as the best right one; a caption
    that occurs n times counts n times among the answers and among the queries.

    Args:
        texts: of the distinct captions.
        caption_ids: for each image, the indices of its captions in `texts`, with repetitions.

    Returns:
        {"image_to_text": S, "text_to_image": S}, where S is of `foveate.evaluate.score.recall`.
    """
    pairs = [(image, text) for image, ids in enumerate(caption_ids) for text in ids]
    right = torch.tensor(pairs, dtype=torch.int64, device=texts.device).reshape(-1, 2)  # (captions, 2)
    times = torch.bincount(right[:, 1], minlength=len(texts))  # (U,)
    once = torch.ones(len(images), dtype=torch.int64, device=texts.device)
    image_to_text = _best_ranks(images, texts, right, times)
    text_to_image = _best_ranks(texts, images, right.flip(1), once)
    return {
        "image_to_text": recall(image_to_text, among=int(times.sum())),
        "text_to_image": recall(text_to_image, times, among=len(images)),
    }


def _best_ranks(
    queries: Float[Tensor, "Q D"], answers: Float[Tensor, "A D"], right: Int64[Tensor, "pairs 2"],
    times: Int64[Tensor, " A"],
) -> Int64[Tensor, " Q"]:  # fmt: skip
    """Count, for each query, the wrong answers, each `times` times, that score at least as high as the best right one.

    `right` holds (query, answer) pairs, at least one per query.
    """
    ranks = []
    for first in range(0, len(queries), QUERY_BATCH):
        scores = queries[first : first + QUERY_BATCH] @ answers.T  # (q, A)
        # mark the right answers of this block of queries
        inside = (right[:, 0] >= first) & (right[:, 0] < first + len(scores))
        is_right = torch.zeros_like(scores, dtype=torch.bool)
        is_right[right[inside, 0] - first, right[inside, 1]] = True
        best = scores.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)  # (q, 1)
        above = ~(scores < best) & ~is_right  # NaN counts against the query
        ranks.append((above * times).sum(dim=1))
    return torch.cat(ranks)
