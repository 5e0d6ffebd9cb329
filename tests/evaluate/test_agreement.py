"""Agreement against brute force, and the deterministic choice of patches and galleries."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from foveate.data.batches import Loading
from foveate.data.sources import open_data
from foveate.errors import InputError
from foveate.evaluate.agreement import evaluate_agreement, patches_of, recall_at_1
from foveate.ops.resample import crop_and_resize, normalize
from foveate.types import Sample


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_recall_against_brute_force():
    """With a gallery of all images every region is ranked among all crops."""
    counts = {"c": 4, "a": 1, "b": 6}
    crops = unit(11, 5, seed=0)
    dense = F.normalize(crops + 0.9 * unit(11, 5, seed=1), dim=1)
    hits = 0
    for region in range(11):
        scores = [float(dense[region] @ crops[other]) for other in range(11)]
        hits += max(range(11), key=lambda other: scores[other]) == region
    assert 0 < hits < 11
    recall, choices = recall_at_1(dense, crops, counts, gallery=50, seed=0)
    assert recall == pytest.approx(100 * hits / 11) and choices == 11
    assert recall_at_1(dense, crops, counts, gallery=3, seed=7) == (recall, 11)


def test_a_gallery_of_one_is_the_image_itself():
    counts = {"a": 2, "b": 3}
    crops = torch.eye(5)
    dense = crops.clone()
    dense[1] = F.normalize(2 * crops[3] + crops[1], dim=0)  # own crop beats image a's other one, but not b's second
    recall, choices = recall_at_1(dense, crops, counts, gallery=1, seed=0)
    assert recall == 100 and choices == pytest.approx((2 * 2 + 3 * 3) / 5)
    assert recall_at_1(dense, crops, counts, gallery=2, seed=0)[0] == 80


def test_galleries_hold_distractors_once_and_depend_only_on_ids():
    """Equal numbers of crops: a gallery of 3 images must hold 6; reordering the images changes nothing."""
    names = [f"p{n}" for n in range(9)]
    crops = unit(18, 6, seed=3)
    dense = F.normalize(crops + 0.8 * unit(18, 6, seed=4), dim=1)
    first = recall_at_1(dense, crops, dict.fromkeys(names, 2), gallery=3, seed=1)
    assert first[1] == 6
    back = torch.arange(18).unflatten(0, (9, 2)).flip(0).flatten()
    assert recall_at_1(dense[back], crops[back], dict.fromkeys(names[::-1], 2), gallery=3, seed=1) == first
    others = {recall_at_1(dense, crops, dict.fromkeys(names, 2), gallery=3, seed=seed)[0] for seed in range(8)}
    assert len(others) > 1, "another seed should choose other galleries"


def test_a_constant_map_retrieves_nothing():
    crops = unit(4, 3, seed=5)
    same = crops[:1].expand(4, -1)
    assert recall_at_1(same, same, {"a": 2, "b": 2}, gallery=2, seed=0)[0] == 0


def test_patches_depend_only_on_seed_and_id():
    def patches(image: str, seed: int) -> torch.Tensor:
        sample = Sample(image, torch.zeros(3, 40, 60, dtype=torch.uint8), torch.zeros(0, 4))
        return patches_of(sample, grid=6, rule="published", keep=20, seed=seed)

    assert torch.equal(patches("7", 0), patches("7", 0))
    assert len({tuple(patches(str(n), 0).flatten().tolist()) for n in range(12)}) > 6
    assert len({tuple(patches("7", seed).flatten().tolist()) for seed in range(12)}) > 6


def test_agreement_against_a_loop(clip, coco):
    dataset = open_data(coco, split="val")
    result = evaluate_agreement(clip, clip, dataset, size=64, loading=Loading(batch=2, crop_batch=9), seed=3)
    dense, crops = [], []
    from foveate.data.images import read_image

    with torch.inference_mode():
        for record in dataset.records:
            image = read_image(record.path)
            boxes = patches_of(
                Sample(str(record.id), image, torch.zeros(0, 4)), grid=6, rule="published", keep=20, seed=3
            )
            scale = 64 / max(image.shape[1:])
            height, width = (round(side * scale) for side in image.shape[1:])
            resized = F.interpolate(image[None].float(), (height, width), mode="bicubic", antialias=True).clamp(0, 255)
            padded = torch.zeros(1, 3, 64, 64)
            padded[:, :, :height, :width] = resized
            padded = normalize(padded, mean=clip.mean, std=clip.std)
            for box in boxes:
                crop = normalize(crop_and_resize(image, box[None], size=32), mean=clip.mean, std=clip.std)
                crops.append(clip.encode_image(crop)[0])
                dense.append(clip.encode_boxes(padded, [(box * scale)[None]])[0])
    cosines = [float(one @ other) for one, other in zip(dense, crops, strict=True)]
    assert result["cosine"] == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    hits = sum(max(range(len(crops)), key=lambda k: float(one @ crops[k])) == i for i, one in enumerate(dense))
    assert result["recall"] == pytest.approx(100 * hits / len(crops))
    assert (result["regions"], result["images"], result["gallery"], result["bad"]) == (len(crops), 5, 5, [])


def test_the_result_is_independent_of_order_batch_and_annotations(clip, other_clip, coco):
    dataset = open_data(coco, split="val", annotations="panoptic")
    first = evaluate_agreement(clip, other_clip, dataset, size=64, gallery=3, loading=Loading(batch=1, crop_batch=1))
    turned = replace(dataset, records=dataset.records[::-1])
    second = evaluate_agreement(clip, other_clip, turned, size=64, gallery=3, loading=Loading(batch=4))
    assert second == {**first, "cosine": pytest.approx(first["cosine"], abs=1e-5)}
    assert first["cosine"] != evaluate_agreement(clip, clip, dataset, size=64, gallery=3)["cosine"]


def test_wrong_arguments_are_refused(clip, wide_clip, coco):
    dataset = open_data(coco / "val2017", split="val")
    with pytest.raises(InputError, match="embedding size 24; got 40"):
        evaluate_agreement(clip, wide_clip, dataset, size=64)
    with pytest.raises(InputError, match="gallery"):
        evaluate_agreement(clip, clip, dataset, size=64, gallery=0)
    for size in (0, -8, 60):
        with pytest.raises(InputError, match=f"--size: need a positive multiple of the patch size 8; got {size}"):
            evaluate_agreement(clip, clip, dataset, size=size)
