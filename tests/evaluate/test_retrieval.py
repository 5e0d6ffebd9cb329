"""Retrieval by locations against a slow loop, and its independence of order and batches."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from foveate.cli.main import main
from foveate.clip.io.weights import save_clip
from foveate.data.batches import Loading
from foveate.data.sources import open_data
from foveate.errors import InputError
from foveate.evaluate.gallery import draw_others
from foveate.evaluate.retrieval import Galleries, evaluate_retrieval, image_ranks, region_ranks
from foveate.ops.resample import crop_and_resize, normalize

TOPS = (1, 5, 10)


def panoptic(coco):
    return open_data(coco, split="val", annotations="panoptic")


def embed(clip, image: torch.Tensor, box: list[float]) -> torch.Tensor:
    crop = crop_and_resize(image, torch.tensor([box], dtype=torch.float32), size=clip.native_size)
    return clip.encode_image(normalize(crop, mean=clip.mean, std=clip.std))[0]


def dense_of(clip, image: torch.Tensor, size: int) -> tuple[torch.Tensor, int, int]:
    """The map of one image's padded square, and how many of its rows and columns hold any of the image."""
    scale = size / max(image.shape[1:])
    height, width = (round(side * scale) for side in image.shape[1:])
    resized = F.interpolate(image[None].float(), (height, width), mode="bicubic", antialias=True).clamp(0, 255)
    padded = torch.zeros(1, 3, size, size)
    padded[:, :, :height, :width] = resized
    padded = normalize(padded, mean=clip.mean, std=clip.std)
    return clip.encode_dense(padded)[0], -(-height // clip.patch_size), -(-width // clip.patch_size)


def shares(ranks: list[int]) -> dict:
    return {**{f"r{top}": 100 * sum(rank < top for rank in ranks) / len(ranks) for top in TOPS}, "count": len(ranks)}


def slow_reference(student, reference, coco, *, size: int, gallery: int, seed: int) -> dict:
    """Every location of every image, one at a time, straight from the files."""
    notes = json.loads((coco / "annotations/panoptic_val2017.json").read_text())
    images, whole, crops, infos = {}, {}, {}, {}
    for entry in notes["annotations"]:
        key = str(entry["image_id"])
        pixels = np.asarray(Image.open(coco / "val2017" / entry["file_name"]).convert("RGB"))
        images[key] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        height, width = pixels.shape[:2]
        whole[key], infos[key] = embed(reference, images[key], [0, 0, width, height]), entry
        for place, info in enumerate(entry["segments_info"]):
            x, y, w, h = info["bbox"]
            by = 0.25 if info["category_id"] < 50 else 0
            w, h = (w, h) if by else (w - 1, h - 1)  # stuff ends at its last pixel
            box = [max(0, x - by * w), max(0, y - by * h), min(width, x + w + by * w), min(height, y + h + by * h)]
            crops[key, place] = embed(reference, images[key], box)
    names, keys = sorted(whole), sorted(crops)
    labels = [f"{key}/{place}" for key, place in keys]
    by_image, by_region = [], []
    for key, image in images.items():
        dense, rows, columns = dense_of(student, image, size)
        rivals = [names[k] for k in draw_others(names, names.index(key), count=gallery - 1, seed=seed)]
        for i in range(rows):
            for j in range(columns):
                own = float(dense[:, i, j] @ whole[key])
                by_image.append(sum(float(dense[:, i, j] @ whole[rival]) >= own for rival in rivals))
        png = np.asarray(Image.open(coco / "annotations/panoptic_val2017" / infos[key]["file_name"])).astype(int)
        for place, info in enumerate(infos[key]["segments_info"]):
            mask = (torch.from_numpy(png[..., 0] + 256 * png[..., 1]) == info["id"])[None, None].float()
            grid = [round(length * dense.shape[1] / max(image.shape[1:])) for length in image.shape[1:]]
            inside = F.interpolate(mask, grid, mode="bicubic", align_corners=False)[0, 0] > 0
            at = labels.index(f"{key}/{place}")
            rivals = [keys[k] for k in draw_others(labels, at, count=gallery - 1, seed=seed, purpose="regions")]
            for i, j in inside.nonzero().tolist():
                own = float(dense[:, i, j] @ crops[key, place])
                by_region.append(sum(float(dense[:, i, j] @ crops[rival]) >= own for rival in rivals))
    return {"image": shares(by_image), "region": shares(by_region), "regions": len(crops)}


@pytest.mark.parametrize("gallery", [50, 3])
def test_retrieval_against_a_loop(clip, other_clip, coco, gallery):
    with torch.inference_mode():
        expected = slow_reference(clip, other_clip, coco, size=64, gallery=gallery, seed=3)
    result = evaluate_retrieval(
        clip, other_clip, panoptic(coco), size=64, gallery=gallery, seed=3, loading=Loading(batch=2, crop_batch=7)
    )
    for key, among in (("image", min(gallery, 5)), ("region", min(gallery, expected["regions"]))):
        for top in (1, 5, 10):
            share = pytest.approx(expected[key][f"r{top}"], abs=0.5)  # a near tie may fall either way
            assert result[key][f"r{top}"] == (share if top < among else None), (key, top)
        assert result[key]["count"] == expected[key]["count"]
    assert result["regions"] == expected["regions"] and result["images"] == 5
    assert (result["gallery"], result["region_gallery"]) == (min(gallery, 5), min(gallery, expected["regions"]))
    assert 0 < result["region"]["r1"] < 100 and 0 < result["image"]["r1"] < 100, "nothing can be learned from it"


def test_the_result_is_independent_of_order_and_batches(clip, other_clip, coco):
    dataset = panoptic(coco)
    first = evaluate_retrieval(clip, other_clip, dataset, size=64, gallery=3, loading=Loading(batch=1, crop_batch=1))
    turned = replace(dataset, records=dataset.records[::-1])
    second = evaluate_retrieval(clip, other_clip, turned, size=64, gallery=3, loading=Loading(batch=4))
    for key in ("image", "region"):
        assert second[key]["r1"] == pytest.approx(first[key]["r1"], abs=0.5)
        assert second[key]["r5"] is first[key]["r5"] is None, "5 of 3 is everything"
    assert {k: v for k, v in second.items() if k not in ("image", "region")} == {
        k: v for k, v in first.items() if k not in ("image", "region")
    }
    assert evaluate_retrieval(clip, clip, dataset, size=64, gallery=3)["region"] != first["region"]


def test_padding_is_no_query(clip, coco):
    """At 64 px, patches of 8: 40 x 56 becomes 46 x 64, which 6 x 8 locations touch; 64 x 48: 8 x 6; 33 x 70 becomes
    30 x 64: 4 x 8; 48 x 48: 8 x 8; 52 x 36 becomes 64 x 44: 8 x 6. In all 48 + 48 + 32 + 64 + 48."""
    result = evaluate_retrieval(clip, clip, open_data(coco / "val2017", split="val"), size=64, regions=False)
    assert result["image"]["count"] == 240 and result["region"] is result["regions"] is None


def test_ranks_by_hand():
    """Locations are along the axes: the first finds its embedding, the second another one, the third ties, the
    fourth is padding."""
    dense = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).T[:, :, None].repeat(1, 1, 2)  # (2, 2, 2)
    dense[:, 0, 1] = torch.tensor([0.6, 0.6])
    candidates = torch.eye(2)
    inside = torch.tensor([[True, True], [True, False]])
    assert image_ranks(dense, inside, candidates).tolist() == [0, 1, 1]
    masks = torch.tensor(
        [[[True, False], [False, False]], [[False, False], [False, False]], [[True, False], [True, True]]]
    )
    galleries = torch.stack([candidates, candidates, candidates.flip(0)])
    # region 0 holds one location and finds its crop; region 1 none; region 2's own crop is the second axis
    assert region_ranks(dense, masks, galleries).tolist() == [0, 1, 0, 0]


def test_unreadable_images_are_in_no_gallery(clip, coco, tmp_path):
    dataset = panoptic(coco)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"x")
    records = (replace(dataset.records[0], path=broken), *dataset.records[1:])
    result = evaluate_retrieval(clip, clip, replace(dataset, records=records), size=32)
    assert (result["images"], result["gallery"], [bad["id"] for bad in result["bad"]]) == (4, 4, ["1"])
    bare = replace(dataset.records[0], boxes=(), labels=(), crowd=(), segment_ids=())
    nothing = evaluate_retrieval(clip, clip, replace(dataset, records=(bare,)), size=32)
    assert nothing["region"] == {"r1": None, "r5": None, "r10": None, "count": 0} and nothing["regions"] == 0


def test_the_command(clip, coco, tmp_path, capsys):
    model, out = tmp_path / "tiny", tmp_path / "r.json"
    save_clip(clip, model)
    main(f"evaluate retrieval --data {coco} --model {model} --size 32 --limit 3 --workers 0 --out {out}".split())
    assert "its image among 3" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["size"] == 32 and written["config"]["gallery"] == 50
    main(f"evaluate retrieval --data {coco}/val2017 --no-crops --model {model} --reference {model} --workers 0".split())
    table = capsys.readouterr().out
    assert "128 px" in " ".join(table.split()) and "region" not in table


def test_wrong_arguments_are_refused(clip, wide_clip, coco):
    dataset = open_data(coco / "val2017", split="val")
    with pytest.raises(InputError, match="embedding size 24; got 40"):
        evaluate_retrieval(clip, wide_clip, dataset, size=64)
    with pytest.raises(InputError, match="--no-crops"):
        evaluate_retrieval(clip, clip, dataset, size=64)
    with pytest.raises(InputError, match="gallery"):
        evaluate_retrieval(clip, clip, dataset, size=64, regions=False, gallery=0)
    with pytest.raises(InputError, match="--size"):
        evaluate_retrieval(clip, clip, dataset, size=60, regions=False)


def test_galleries_of_more_than_ten_regions_are_independent_of_the_order_of_reading():
    """As text "a/10" is before "a/2", as a key after it."""
    keys = [(image, place) for image in ("a", "a/1", "b") for place in range(12)]
    rows = {key: torch.full((2,), float(number)) for number, key in enumerate(keys)}
    images = {name: torch.zeros(2) for name in ("b", "a/1", "a")}
    one = Galleries(images, rows, gallery=5, seed=0)
    turned = {key: rows[key] for key in sorted(rows, key=lambda key: (-key[1], key[0]))}
    other = Galleries(dict(reversed(images.items())), turned, gallery=5, seed=0)
    for name in images:
        assert torch.equal(one.regions_for(name), other.regions_for(name))
        own = torch.tensor([rows[name, place].tolist() for place in range(12)])
        assert torch.equal(one.regions_for(name)[:, 0], own)
