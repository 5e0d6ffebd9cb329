"""What a model's IMAGE embedding knows: zero-shot classification and image-text retrieval, before and after.

Self-distillation changes the very tower that embeds whole pictures, and may cost what made CLIP useful (CLIPSelf's
authors measure regions alone). So both models, the one before and the one after, see the same pictures in one pass.
A picture is looked at as CLIP's own evaluations do, through its central square, or whole in a padded square as
CLIPSelf's teacher does. Deliberately absent: linear probes, and anything dense.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import TemplateName
from foveate.clip.text import embed_vocabulary
from foveate.data.records import Dataset
from foveate.errors import InputError
from foveate.evaluate.feed import CropPacker, Feed
from foveate.evaluate.labelled import Labelled
from foveate.evaluate.regions import CONTEXT
from foveate.evaluate.score import ranks_of, recall, score
from foveate.ops.boxes import enlarge_boxes
from foveate.types import Sample

View = Literal["centre", "whole"]
TEXTS = 512  # captions embedded at once
QUERIES = 1024  # ranked at once
FIRST = 5  # captions a picture; the published protocol of COCO and Flickr30k
BLANK = "its captions are blank: no answer is right"
EQUALS = "captions with the same words are right answers of one another"


@torch.inference_mode()
def evaluate_global(
    clips: dict[str, Clip],
    *,
    labelled: Labelled | None = None,
    captioned: Dataset | None = None,
    view: View = "centre",
    templates: TemplateName | tuple[str, ...] = "vild",
    text_cache: Path | None = None,
    crop_batch: int = 128,
    batch: int = 8,
    limit: int | None = None,
    strict: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> dict:
    """Classify and retrieve with the image embeddings of several models, on the same pictures.

    Args:
        clips: models by what the result calls them ("reference", "model").
        labelled: pictures or boxes with classes; None: nothing is classified. A box is cut as in `evaluate_regions`.
        captioned: pictures that have captions (`foveate.data.captions`); None: nothing is retrieved.
        view: of whole pictures: "centre", their central square as CLIP's own evaluations; "whole", padded as
            CLIPSelf's teacher sees crops.
        templates: what class names are written into.
        text_cache: folder where the classes' text embeddings are kept; None: nowhere.
        crop_batch: pictures or crops an image batch.
        batch: pictures read at once.
        limit: only the first so many pictures of each data set.
        strict: raise on the first bad picture instead of listing it.
        workers: processes that decode.
        progress: show a bar on stderr.

    Returns:
        {NAME: {"classification": C or None, "retrieval": R or None} for each model, "classification": {"of": "pictures"
        or "boxes", "classes", "pictures"} or None, "retrieval": {"pictures", "captions", "different": captions that
        differ, "equals": what counts as right} or None, "view", "templates", "bad": [{"id", "reason"}]}, where C =
        {"mean": {"top1", "top5"}: accuracy averaged over the classes present, "overall": {"top1", "top5"}, "count"} and
        R = {"image_to_text": S, "text_to_image": S}, S = {"r1", "r5", "r10", "count"}; all in percent.

    Raises:
        InputError: nothing to measure, another view, no picture that can be read, or none with a caption.
    """
    if labelled is None and captioned is None:
        raise InputError("global: need classes or captions to measure by; got neither.")
    if view not in ("centre", "whole"):
        raise InputError(f"view: must be centre or whole; got {view!r}.")
    for clip in clips.values():
        clip.eval()
    reading = {"batch": batch, "limit": limit, "strict": strict, "workers": workers, "progress": progress}
    result: dict = {name: {"classification": None, "retrieval": None} for name in clips}
    result |= {"classification": None, "retrieval": None, "view": view, "templates": templates, "bad": []}
    if labelled is not None:
        feed = Feed(labelled.dataset, masks=False, **reading)
        packers = {name: CropPacker(clip, batch=crop_batch) for name, clip in clips.items()}
        truth = _cut_labelled(packers, labelled, feed, view=view)
        found = _classify(packers, truth, labelled, templates=templates, cache=text_cache)
        for name, one in found.items():
            result[name]["classification"] = one
        kind = "boxes" if labelled.by_picture is None else "pictures"
        result["classification"] = {"of": kind, "classes": len(labelled.classes.classes), "pictures": feed.pictures}
        result["bad"] += feed.bad_listed()
    if captioned is not None:
        feed = Feed(captioned, masks=False, **reading)
        found, about, blank = _retrieve(clips, captioned, feed, view=view, crop_batch=crop_batch)
        for name, one in found.items():
            result[name]["retrieval"] = one
        result["retrieval"] = about
        result["bad"] += [one for one in feed.bad_listed() if one not in result["bad"]]
        result["bad"] += [{"id": name, "reason": BLANK} for name in blank]
    return result


def central_square(*, height: int, width: int) -> Float[Tensor, "1 4"]:
    """The box that CLIP's own evaluations look at once the shorter side is resized to the native size: xyxy, pixels."""
    side = min(height, width)
    x, y = (width - side) // 2, (height - side) // 2
    return torch.tensor([[x, y, x + side, y + side]], dtype=torch.float32)


def _box_of(sample: Sample, view: View) -> Float[Tensor, "1 4"]:
    """The part of a picture that stands for all of it."""
    height, width = sample.image.shape[1:]
    if view == "centre":
        return central_square(height=height, width=width)
    return torch.tensor([[0.0, 0.0, width, height]])


# ------------------------------------------------------------------------------------------------------ classification


def _cut_labelled(packers: dict[str, CropPacker], labelled: Labelled, feed: Feed, *, view: View) -> Int64[Tensor, " R"]:
    """Hand every picture, or every box, to each model; return their classes."""
    labels = [torch.zeros(0, dtype=torch.int64)]
    for sample in (sample for samples in feed for sample in samples):
        if labelled.by_picture is not None:
            boxes, own = _box_of(sample, view), torch.tensor([labelled.by_picture[sample.id]])
        else:
            assert sample.segments is not None, f"picture {sample.id} came without its annotation"
            height, width = sample.image.shape[1:]
            boxes = enlarge_boxes(sample.segments.boxes, factor=CONTEXT, height=height, width=width)  # (N, 4)
            own = sample.segments.labels
        labels.append(own)
        _add(packers, sample, boxes)
    return torch.cat(labels)


def _classify(
    packers: dict[str, CropPacker],
    truth: Int64[Tensor, " R"],
    labelled: Labelled,
    *,
    templates: TemplateName | tuple[str, ...],
    cache: Path | None,
) -> dict[str, dict]:
    """Rank the classes for what each model was handed."""
    found = {}
    for name, packer in packers.items():
        text = embed_vocabulary(packer.clip, labelled.classes, templates=templates, cache=cache)  # (K, D)
        ranks = ranks_of(packer.finish().to(text) @ text.T, truth.to(text.device)).cpu()
        found[name] = accuracies(ranks, truth)
    return found


def _add(packers: dict[str, CropPacker], sample: Sample, boxes: Float[Tensor, "N 4"]) -> None:
    for packer in packers.values():
        packer.add(sample.image.to(next(packer.clip.parameters()).device), boxes)


def accuracies(ranks: Int64[Tensor, " R"], labels: Int64[Tensor, " R"]) -> dict:
    """Sum up: {"mean": over the classes present, "overall": over all, each {"top1", "top5"} in percent, "count"}."""
    per_class = score(ranks, labels)
    count = labels.numel()
    overall = {f"top{top}": 100 * int((ranks < top).sum()) / count if count else None for top in (1, 5)}
    return {"mean": {"top1": per_class["top1"], "top5": per_class["top5"]}, "overall": overall, "count": count}


# ---------------------------------------------------------------------------------------------------------- retrieval


def _retrieve(
    clips: dict[str, Clip], captioned: Dataset, feed: Feed, *, view: View, crop_batch: int
) -> tuple[dict[str, dict], dict, list[str]]:
    """Retrieve captions by pictures and pictures by captions, with each model; and the pictures that cannot ask."""
    packers = {name: CropPacker(clip, batch=crop_batch) for name, clip in clips.items()}
    read = range(len(feed.dataset.records))
    captions = {str(captioned.records[place].id): captioned.captions[place][:FIRST] for place in read}
    names, blank = [], []
    for sample in (sample for samples in feed for sample in samples):
        if captions[sample.id]:
            names.append(sample.id)
            _add(packers, sample, _box_of(sample, view))
        else:  # a shard's text of nothing but blanks is known when it is read
            blank.append(sample.id)
    if not names:
        raise InputError(f"{captioned.name}: need captions to retrieve; those of all {len(blank)} pictures are blank.")
    texts: dict[str, int] = {}  # different captions -> their place
    said = [[texts.setdefault(text, len(texts)) for text in captions[name]] for name in names]
    found = {}
    for name, clip in clips.items():
        pictures, rows = packers[name].finish(), _embed_texts(clip, list(texts))  # (B, D), (U, D)
        found[name] = recall_both_ways(pictures.to(rows), rows, said)
    about = {
        "pictures": len(names),
        "captions": sum(map(len, said)),
        "different": len(texts),
        "equals": EQUALS,
    }
    return found, about, blank


def _embed_texts(clip: Clip, texts: list[str]) -> Float[Tensor, "U D"]:
    parts = [texts[first : first + TEXTS] for first in range(0, len(texts), TEXTS)]
    return torch.cat([clip.encode_text(clip.tokenize(part)).float() for part in parts])


def recall_both_ways(
    pictures: Float[Tensor, "B D"], texts: Float[Tensor, "U D"], said: Sequence[Sequence[int]]
) -> dict[str, dict]:
    """Rank captions for each picture and pictures for each caption.

    A picture's right answers are all captions with the words of one of its own, a caption's are all pictures of which
    its words are said. A query's rank is the number of wrong answers that score at least as high as the best right one;
    a caption said n times stands n times among the answers, and asks n times.

    Args:
        pictures: image embeddings, L2-normalised.
        texts: embeddings of the different captions, L2-normalised.
        said: for each picture, the places of its captions in `texts`; one may occur twice.

    Returns:
        {"image_to_text": recall, "text_to_image": recall}, see `foveate.evaluate.score.recall`.
    """
    pairs = [(picture, text) for picture, own in enumerate(said) for text in own]
    places = torch.tensor(pairs, dtype=torch.int64, device=texts.device).reshape(-1, 2)  # (captions, 2)
    times = torch.bincount(places[:, 1], minlength=len(texts))  # (U,)
    once = torch.ones(len(pictures), dtype=torch.int64, device=texts.device)
    image_to_text = _best_ranks(pictures, texts, places, times)
    text_to_image = _best_ranks(texts, pictures, places.flip(1), once)
    return {
        "image_to_text": recall(image_to_text, among=int(times.sum())),
        "text_to_image": recall(text_to_image, times, among=len(pictures)),
    }


def _best_ranks(
    queries: Float[Tensor, "Q D"], answers: Float[Tensor, "A D"], right: Int64[Tensor, "pairs 2"],
    times: Int64[Tensor, " A"],
) -> Int64[Tensor, " Q"]:  # fmt: skip
    """Count, for each query, the wrong answers, each so many times, that score at least as high as the best right one.

    `right` holds (query, answer) pairs, at least one a query.
    """
    ranks = []
    for first in range(0, len(queries), QUERIES):
        scores = queries[first : first + QUERIES] @ answers.T  # (q, A)
        is_right = _mark(right, first, scores)
        best = scores.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)  # (q, 1)
        above = ~(scores < best) & ~is_right  # NaN counts against the query
        ranks.append((above * times).sum(dim=1))
    return torch.cat(ranks)


def _mark(right: Int64[Tensor, "pairs 2"], first: int, scores: Float[Tensor, "q A"]) -> Bool[Tensor, "q A"]:
    """Which of a block of scores, whose first query is `first`, belong to right answers."""
    inside = (right[:, 0] >= first) & (right[:, 0] < first + len(scores))
    marks = torch.zeros_like(scores, dtype=torch.bool)
    marks[right[inside, 0] - first, right[inside, 1]] = True
    return marks
