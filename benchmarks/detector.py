"""`detector`: a training step and inference of F-ViT beside torchvision's Mask R-CNN on a ResNet-50, at the same input.

    python benchmarks/detector.py --model EVA02-B-16 --size 640 --batch 1

Both learn boxes and masks of the same images and have random weights; theirs trains its whole backbone, ours leaves
the tower frozen. Both make at most 1,000 proposals and 100 detections of 80 classes. They are other networks: the ratio
says what the better features cost, not who is faster at the same thing.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torchvision.models.detection import maskrcnn_resnet50_fpn

from foveate.clip.load import load
from foveate.data.images import read_image
from foveate.heads.fvit.detector import FViT, Network
from foveate.heads.fvit.fusion import PRESETS, detect, detected_rows
from foveate.types import Batch, Sample, Segments
from inputs import photographs
from measure import arguments, read, report, take_turns

CLASSES = 80


def samples_of(count: int, *, objects: int, data: Any) -> list[Sample]:
    """Images with boxes that stand for objects, each with a mask that fills its box."""
    samples = []
    for number, (path, boxes) in enumerate(photographs(count, crops=objects, data=data)):
        image, corners = read_image(path), torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        masks = torch.zeros(len(corners), *image.shape[1:], dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, corners.round().int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        labels = torch.arange(len(corners)) % CLASSES
        things = torch.ones(len(corners), dtype=torch.bool)
        samples.append(Sample(str(number), image, corners, Segments(corners, masks, labels, things)))
    return samples


def theirs(samples: list[Sample], device: str) -> tuple[list[Any], list[Any]]:
    """The same images and objects as torchvision takes them; label 0 is its background."""
    images = [sample.image.to(device).float() / 255 for sample in samples]
    targets = []
    for sample in samples:
        assert sample.segments is not None
        masks, labels = sample.segments.masks.to(torch.uint8), sample.segments.labels + 1
        target = {"boxes": sample.boxes, "labels": labels, "masks": masks}
        targets.append({name: one.to(device) for name, one in target.items()})
    return images, targets


def main() -> None:
    """Measure and print."""
    options = read(arguments(__doc__, size=640, batch=1, crops=8, repeats=1))
    torch.manual_seed(0)
    clip = load(options.model, seed=0, device=options.device)
    text = F.normalize(torch.randn(CLASSES + 1, clip.embed_dim), dim=1).to(options.device)
    is_novel = torch.zeros(CLASSES, dtype=torch.bool, device=options.device)
    network = Network(
        size=options.size, taps=None, pyramid="taps", channels=256, width=256, masks=True, proposals=1000,
        trained_layers=0, norm=False, relu_embedding=True, statistics="imagenet", resize="bilinear",
    )  # fmt: skip
    ours = FViT(clip, network, text=text, is_novel=is_novel, jitter=None, flip=False)
    plain = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1, min_size=options.size, max_size=options.size
    ).to(options.device)
    samples = samples_of(options.batch, objects=options.crops, data=options.data)
    images, targets = theirs(samples, options.device)
    autocast = torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bfloat16")

    def train_ours() -> None:
        with autocast:
            loss = ours.train()(Batch(samples, []))
        loss.backward()

    def train_plain() -> None:
        with autocast:
            losses = plain.train()(images, targets)
        sum(losses.values()).backward()

    def find_ours() -> None:
        asking = (text.cpu(), ~is_novel.cpu(), 50.0, PRESETS["ov-coco"])
        with autocast:
            found = ours.eval().candidates(samples, masked=lambda one: detected_rows(one, *asking))
        for one in found:
            detect(one, *asking)

    def find_plain() -> None:
        with torch.inference_mode(), autocast:
            plain.eval()(images)

    numbers = {"repeats": options.repeats, "device": options.device}
    training = take_turns({"ours": train_ours, "plain": train_plain}, **numbers)
    inference = take_turns({"ours": find_ours, "plain": find_plain}, **numbers)
    report(
        "detector",
        options,
        ours=training["ours"] / options.batch,
        plain=training["plain"] / options.batch,
        ratio=training["plain"] / training["ours"],
        unit="seconds of a training pass, an image",
        inference={side: value / options.batch for side, value in inference.items()},
        inference_ratio=inference["plain"] / inference["ours"],
        trained={
            "ours": sum(one.numel() for one in ours.parameters() if one.requires_grad),
            "plain": sum(one.numel() for one in plain.parameters() if one.requires_grad),
        },
    )


if __name__ == "__main__":
    main()
