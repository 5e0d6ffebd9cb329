"""`eval_regions`: dense embeddings of the annotated boxes and masks of N images; ours beside the plain evaluation.

    python benchmarks/eval_regions.py --model EVA02-B-16 --size 512 --images 4 --data COCO_ROOT

Two halves, timed apart. Model: one dense pass of a batch, pooled for boxes and for masks, beside two passes of one
image at a time and mask pooling that repeats the map. Loader: decoding of images and masks, beside a loader that
also makes every crop. Both score the same regions against the same (random) class embeddings; how far embeddings and
mAcc are apart is in the line: Pillow rounds the resized pixels, ours does not.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.data.batches import Batches, Loading
from foveate.data.records import Dataset
from foveate.evaluate.regions import _regions_on_input
from foveate.evaluate.score import ranks_of, score
from foveate.evaluate.segments import counting_segments, to_device
from foveate.ops.pool import pool_boxes, pool_masks
from inputs import panoptic
from measure import arguments, read, report, take_turns
from plain.evaluation import PlainSegments, accuracy, embed


def plain_segments(dataset: Dataset, clip: Clip, *, size: int) -> PlainSegments:
    """The plain loader over the segments that count."""
    rows = []
    for record in dataset.records:
        things = [dataset.categories[label].is_thing for label in record.labels]
        boxes, colours = [list(box) for box in record.boxes], list(record.segment_ids)
        rows.append((record.path, record.panoptic, colours, boxes, list(record.labels), things))
    options = {"student_size": size, "teacher_size": clip.native_size, "mean": clip.mean, "std": clip.std}
    return PlainSegments(rows, patch=clip.patch_size, **options)


def decode(dataset: Dataset, *, batch: int) -> list[Any]:
    """Our loader's half."""
    return list(Batches(dataset, Loading(batch=batch, strict=True), masks=True).samples())


@torch.inference_mode()
def embed_ours(clip: Clip, samples: list[Any], *, size: int, batch: int) -> tuple[Tensor, Tensor]:
    """Our model's half: what `evaluate_regions` does between decoding and scoring."""
    device = next(clip.parameters()).device
    by_box, by_mask = [], []
    for start in range(0, len(samples), batch):
        chosen = [to_device(sample, device) for sample in samples[start : start + batch]]
        inputs, boxes, masks = _regions_on_input(clip, chosen, size=size)
        dense = clip.encode_dense(inputs, head="value")  # (B, D, h, w)
        by_box.append(pool_boxes(dense, boxes, stride=clip.patch_size))
        by_mask.append(pool_masks(dense, masks))
    return torch.cat(by_box), torch.cat(by_mask)


def embed_plain(clip: Clip, samples: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    """The plain model's half."""
    pairs = [embed(clip.visual, sample, patch=clip.patch_size) for sample in samples]
    return torch.cat([boxes for boxes, _ in pairs]), torch.cat([masks for _, masks in pairs])


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, crops=0)
    parser.add_argument("--images", type=int, default=4, help="images to evaluate")
    options = read(parser)
    clip = load(options.model, seed=0, device=options.device)
    dataset = counting_segments(panoptic(options.images, options.data), crowd=True)
    dataset = Dataset(dataset.name, dataset.categories, dataset.records[: options.images], {})
    plain = plain_segments(dataset, clip, size=options.size)
    samples, theirs = decode(dataset, batch=options.batch), [plain[i] for i in range(len(plain))]
    found: dict[str, tuple[Tensor, Tensor]] = {}
    model = {
        "ours": lambda: found.update(ours=embed_ours(clip, samples, size=options.size, batch=options.batch)),
        "plain": lambda: found.update(plain=embed_plain(clip, theirs)),
    }
    taken = take_turns(model, repeats=options.repeats, device=options.device)
    loader = take_turns(
        {"ours": lambda: decode(dataset, batch=options.batch), "plain": lambda: [plain[i] for i in range(len(plain))]},
        repeats=options.repeats,
        device="cpu",
    )
    report(
        "eval_regions",
        options,
        ours=taken["ours"],
        plain=taken["plain"],
        ratio=taken["plain"] / taken["ours"],
        unit=f"seconds of the model for {len(samples)} images",
        images=len(samples),
        regions=len(found["ours"][1]),
        loader=loader,
        loader_ratio=loader["plain"] / loader["ours"],
        loader_target=">= 8",
        **agreement(found, theirs, classes=len(dataset.categories)),
    )


def agreement(found: dict[str, tuple[Tensor, Tensor]], theirs: list[tuple[Tensor, ...]], *, classes: int) -> dict:
    """How far apart the sides' embeddings and scores are."""
    labels = torch.cat([sample[3] for sample in theirs])
    text = F.normalize(torch.randn(classes, found["ours"][0].shape[1], generator=torch.Generator().manual_seed(0)))
    cosine, top1 = {}, {}
    for place, (kind, own) in enumerate((("boxes", labels), ("masks", labels))):
        ours, plain = (found[side][place].cpu() for side in ("ours", "plain"))
        cosine[kind] = float((ours * plain).sum(dim=1)[plain.norm(dim=1) > 0].min()) if len(ours) else None
        top1[kind] = [score(ranks_of(ours @ text.T, own), own, among=len(text))["top1"], accuracy(plain, own, text, 1)]
    return {"least_cosine": cosine, "top1_ours_plain": top1}


if __name__ == "__main__":
    main()
