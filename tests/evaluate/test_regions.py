"""The protocol against a slow reference: one image, one region at a time, with only the libraries."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.ops import roi_align

from foveate.clip.text import embed_vocabulary
from foveate.data.batches import Loading
from foveate.data.sources import open_data
from foveate.errors import InputError
from foveate.evaluate.crops import CropPacker
from foveate.evaluate.regions import evaluate_regions
from foveate.evaluate.segments import counting_segments

KINDS = ("boxes", "things", "stuff", "stuff_boxes")


def panoptic(coco):
    return open_data(coco, split="val", annotations="panoptic")


def macc(scores: list[tuple[list[float], int]], top: int) -> float:
    """mAcc in percent of (scores of all classes, true class)."""
    by_class: dict[int, list[bool]] = {}
    for row, label in scores:
        best = sorted(range(len(row)), key=lambda k: -row[k])[:top]
        by_class.setdefault(label, []).append(label in best)
    return 100 * sum(sum(rights) / len(rights) for rights in by_class.values()) / len(by_class)


def to_input(clip, pixels: np.ndarray) -> torch.Tensor:
    """Normalise grey levels (H, W, 3)."""
    image = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 255
    return (image - torch.tensor(clip.mean)[:, None, None]) / torch.tensor(clip.std)[:, None, None]


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pillow's bicubic on each channel as floating point, so that nothing is rounded to grey levels."""
    channels = [Image.fromarray(pixels[..., c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(channel.resize((width, height), Image.Resampling.BICUBIC)) for channel in channels]
    return np.stack(resized, axis=2).clip(0, 255)


def crop_embedding(clip, pixels: np.ndarray, box: list[float]) -> torch.Tensor:
    """A box cut, its longest side brought to the native size, black around it, embedded."""
    x1, y1, x2, y2 = (round(side) for side in box)
    cut, size = pixels[y1:y2, x1:x2], clip.native_size
    longest = max(cut.shape[:2])
    height, width = (max(1, round(side * size / longest)) for side in cut.shape[:2])
    square = np.zeros((size, size, 3), np.float32)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = resize(cut, height, width)
    return clip.encode_image(to_input(clip, square)[None])[0]


def dense_of(clip, pixels: np.ndarray, size: int, head: str) -> tuple[torch.Tensor, float]:
    """One image's normalised map, and how many input pixels an image's pixel becomes."""
    height, width = pixels.shape[:2]
    longest = max(height, width)
    new_height, new_width = round(height * size / longest), round(width * size / longest)
    black = np.zeros((size, size, 3), np.float32)
    black[:new_height, :new_width] = resize(pixels, new_height, new_width)
    return clip.encode_dense(to_input(clip, black)[None], head=head)[0], size / longest


def slow_reference(clip, coco, *, size: int, head: str) -> dict:
    """Score every segment of the tiny root straight from its files."""
    notes = json.loads((coco / "annotations/panoptic_val2017.json").read_text())
    order = [category["id"] for category in notes["categories"]]
    text = embed_vocabulary(clip, [category["name"] for category in notes["categories"]])
    found = {source: {kind: [] for kind in KINDS} for source in ("crop", "dense")}
    for entry in notes["annotations"]:
        pixels = np.asarray(Image.open(coco / "val2017" / entry["file_name"]).convert("RGB"))
        colours = np.asarray(Image.open(coco / "annotations/panoptic_val2017" / entry["file_name"])).astype(int)
        height, width = pixels.shape[:2]
        dense, scale = dense_of(clip, pixels, size, head)
        for info in entry["segments_info"]:
            label, is_thing = order.index(info["category_id"]), info["category_id"] < 50
            x, y, w, h = info["bbox"]
            if is_thing:
                cut = [max(0, x - w / 4), max(0, y - h / 4), min(width, x + 1.25 * w), min(height, y + 1.25 * h)]
            else:  # up to the last pixel, which is not in it
                w, h = w - 1, h - 1
                cut = [x, y, x + w, y + h]
            box = torch.tensor([[0.0, x, y, x + w, y + h]])
            box[:, 1:] *= scale
            pooled = roi_align(dense[None], box, 1, 1 / clip.patch_size, -1, True).flatten()
            by_box = ((F.normalize(pooled, dim=0) @ text.T).tolist(), label)
            found["dense"]["boxes" if is_thing else "stuff_boxes"].append(by_box)
            crop = ((crop_embedding(clip, pixels, cut) @ text.T).tolist(), label)
            mask = torch.from_numpy(colours[..., 0] + 256 * colours[..., 1] == info["id"])[None, None].float()
            grid = [round(side * dense.shape[1] / max(height, width)) for side in (height, width)]
            inside = F.interpolate(mask, grid, mode="bicubic", align_corners=False)[0, 0] > 0
            mean = torch.stack([dense[:, i, j] for i, j in inside.nonzero().tolist()]).mean(dim=0)
            by_mask = ((F.normalize(mean, dim=0) @ text.T).tolist(), label)
            found["dense"]["things" if is_thing else "stuff"].append(by_mask)
            for kind in ("boxes", "things") if is_thing else ("stuff", "stuff_boxes"):
                found["crop"][kind].append(crop)
    return {
        source: {kind: {"top1": macc(s, 1), "top5": macc(s, 5), "count": len(s)} for kind, s in kinds.items()}
        for source, kinds in found.items()
    }


@pytest.mark.parametrize("size,head", [(32, "value"), (64, "value"), (96, "value_only")])
def test_equals_the_slow_reference(clip, coco, size, head):
    with torch.inference_mode():
        expected = slow_reference(clip, coco, size=size, head=head)
    result = evaluate_regions(clip, panoptic(coco), sizes=[size], head=head, loading=Loading(batch=3, crop_batch=7))
    for source, scores in (("crop", result["crop"]), ("dense", result["dense"][size])):
        for kind in KINDS:
            assert scores[kind] == pytest.approx(expected[source][kind]), (source, kind)
    assert (result["head"], result["classes"], result["images"], result["bad"]) == (head, 6, 5, [])
    tops = [scores[kind]["top1"] for scores in (result["crop"], result["dense"][size]) for kind in KINDS]
    assert any(0 < top < 100 for top in tops), f"nothing can be learned from {tops}"


def test_the_result_is_independent_of_the_batch(clip, coco):
    single = evaluate_regions(clip, panoptic(coco), sizes=[32, 64], loading=Loading(batch=1, crop_batch=1))
    assert evaluate_regions(clip, panoptic(coco), sizes=[32, 64], loading=Loading(batch=4, crop_batch=1000)) == single


def test_several_sizes_equal_one_run_per_size(clip, coco):
    both = evaluate_regions(clip, panoptic(coco), sizes=[64, 32], crops=False)
    assert both["crop"] is None
    for size in (32, 64):
        assert evaluate_regions(clip, panoptic(coco), sizes=[size], crops=False)["dense"][size] == both["dense"][size]


def test_the_result_is_independent_of_the_order_of_images(clip, coco):
    dataset = panoptic(coco)
    turned = replace(dataset, records=dataset.records[::-1])
    assert evaluate_regions(clip, turned, sizes=[64], loading=Loading(batch=2)) == evaluate_regions(
        clip, dataset, sizes=[64], loading=Loading(batch=2)
    )


def test_each_dense_map_and_crop_is_computed_once(clip, coco, monkeypatch):
    """One dense pass per batch and size serves boxes and masks, and every crop is embedded once, in full batches."""
    shapes, crops = [], []
    dense, image = clip.encode_dense, clip.encode_image
    monkeypatch.setattr(clip, "encode_dense", lambda x, **k: (shapes.append(tuple(x.shape)), dense(x, **k))[1])
    monkeypatch.setattr(clip, "encode_image", lambda x, **k: (crops.append(len(x)), image(x, **k))[1])
    result = evaluate_regions(clip, panoptic(coco), sizes=[32, 64], loading=Loading(batch=4, crop_batch=5))
    assert shapes == [(4, 3, 32, 32), (4, 3, 64, 64), (1, 3, 32, 32), (1, 3, 64, 64)]
    count = result["crop"]["boxes"]["count"] + result["crop"]["stuff"]["count"]
    assert crops == [5] * (count // 5) + ([count % 5] if count % 5 else [])


def test_crops_of_things_include_their_surroundings(clip, coco, monkeypatch):
    """Crops: things 1.5 times as large about the centre and clipped, stuff the extent of its mask."""
    cut = []
    add = CropPacker.add
    monkeypatch.setattr(CropPacker, "add", lambda self, image, boxes: (cut.append(boxes), add(self, image, boxes))[1])
    evaluate_regions(clip, panoptic(coco), sizes=[32])
    notes = json.loads((coco / "annotations/panoptic_val2017.json").read_text())
    for boxes, entry, image in zip(cut, notes["annotations"], notes["images"], strict=True):
        for box, info in zip(boxes.tolist(), entry["segments_info"], strict=True):
            x, y, w, h = info["bbox"]
            by = (
                0.25 if info["category_id"] < 50 else 0.0
            )  # a quarter of a side more on each side is half a side in all
            w, h = (w, h) if by else (w - 1, h - 1)  # stuff ends at its last pixel
            expected = [max(0, x - by * w), max(0, y - by * h)]
            expected += [min(image["width"], x + w + by * w), min(image["height"], y + h + by * h)]
            assert box == pytest.approx(expected)


def test_which_segments_count(coco):
    """First 100 segments, boxes of 64 to 1024^2 square pixels, crowds only if requested."""
    dataset = panoptic(coco)
    record = replace(
        dataset.records[0],
        boxes=tuple(
            (0.0, 0.0, w, h)
            for w, h in [(8.0, 8.0), (7.9, 8.0), (1024.0, 1024.0), (1025.0, 1024.0), *[(9.0, 9.0)] * 98]
        ),
        labels=tuple(range(102)),
        crowd=(True, *[False] * 101),
        segment_ids=tuple(range(1, 103)),
    )
    kept = counting_segments(replace(dataset, records=(record,)), crowd=True).records[0]
    # 0 and 2 are just within, 1 and 3 just outside, 4..99 are among the first 100, 100 and 101 are not
    assert kept.labels == (0, 2, *range(4, 100))
    assert kept.segment_ids == tuple(label + 1 for label in kept.labels) and len(kept.boxes) == len(kept.crowd) == 98
    assert counting_segments(replace(dataset, records=(record,)), crowd=False).records[0].labels == kept.labels[1:]


def test_an_image_without_segments(clip, coco):
    dataset = panoptic(coco)
    bare = replace(dataset.records[0], boxes=(), labels=(), crowd=(), segment_ids=())
    only = evaluate_regions(clip, replace(dataset, records=dataset.records[1:]), sizes=[32])
    result = evaluate_regions(clip, replace(dataset, records=(bare, *dataset.records[1:])), sizes=[32])
    assert result == {**only, "images": 5}
    nothing = evaluate_regions(clip, replace(dataset, records=(bare,)), sizes=[32])
    assert nothing["dense"][32]["boxes"] == nothing["crop"]["stuff"] == {"top1": None, "top5": None, "count": 0}


def test_unreadable_images_are_listed(clip, coco, tmp_path):
    dataset = panoptic(coco)
    broken = tmp_path / "broken.png"
    broken.write_bytes((coco / "val2017/2.png").read_bytes()[:60])
    records = list(dataset.records)
    records[1] = replace(records[1], path=broken)
    dataset = replace(dataset, records=tuple(records))
    result = evaluate_regions(clip, dataset, sizes=[32], loading=Loading(batch=2))
    assert result["images"] == 4 and [bad["id"] for bad in result["bad"]] == ["2"]
    assert "broken.png" in result["bad"][0]["reason"]
    with pytest.raises(InputError, match="image 2"):
        evaluate_regions(clip, dataset, sizes=[32], loading=Loading(strict=True))
    with pytest.raises(InputError, match="no image could be read"):
        evaluate_regions(clip, replace(dataset, records=(records[1],)), sizes=[32])


def test_limit_keeps_the_first_images(clip, coco):
    dataset = panoptic(coco)
    first = evaluate_regions(clip, replace(dataset, records=dataset.records[:2]), sizes=[32])
    assert evaluate_regions(clip, dataset, sizes=[32], loading=Loading(limit=2)) == first


@pytest.mark.parametrize("sizes", [[], [32, 32], [30], [0]])
def test_wrong_sizes_are_refused(clip, coco, sizes):
    with pytest.raises(InputError, match=r"--size: need .*of the patch size 8"):
        evaluate_regions(clip, panoptic(coco), sizes=sizes)


def test_images_without_annotations_are_refused(clip, coco):
    with pytest.raises(InputError, match="annot"):
        evaluate_regions(clip, open_data(coco / "val2017", split="val"), sizes=[32])
