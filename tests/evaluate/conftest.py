"""A tiny random CLIP and a tiny COCO root, drawn from fixed seeds."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from foveate.clip.model import Clip

SIZES = [(40, 56), (64, 48), (33, 70), (48, 48), (52, 36)]  # (height, width) of the images
NAMES = [("cup", 1), ("dog", 1), ("kite", 1), ("bus", 1), ("grass", 0), ("sky_other", 0)]  # name, isthing


def make_clip(seed: int, *, embed_dim: int = 24, layers: int = 2) -> Clip:
    """A CLIP with 32 px native size and patches of 8 px; weights spread so that regions differ visibly."""
    vision = {"image_size": 32, "layers": layers, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(embed_dim=embed_dim, vision_cfg=vision, text_cfg=text)
    with torch.no_grad():
        model.token_embedding.weight.mul_(30)
    statistics = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    config = {"model_cfg": {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}}
    return Clip(model, name=f"tiny-{seed}", config={**config, "preprocess_cfg": statistics}).eval()


@pytest.fixture(scope="session")
def clip() -> Clip:
    return make_clip(0)


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images of noise, each with 2 to 4 thing rectangles over two halves of stuff; val and train."""
    root = tmp_path_factory.mktemp("coco")
    for split, seed in (("val", 1), ("train", 2)):
        write_split(root, split, np.random.default_rng(seed))
    return root


def write_split(root: Path, split: str, rng: np.random.Generator) -> None:
    folder, notes = root / f"{split}2017", root / "annotations"
    pngs = notes / f"panoptic_{split}2017"
    folder.mkdir(parents=True)
    pngs.mkdir(parents=True)
    images, annotations = [], []
    for number, (height, width) in enumerate(SIZES, start=1):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(folder / f"{number}.png")
        ids = np.full((height, width), 1, np.int64)
        ids[height // 2 :] = 2
        infos = [{"id": 1, "category_id": 50}, {"id": 2, "category_id": 60}]
        for thing in range(int(rng.integers(2, 5))):
            h, w = int(rng.integers(9, height // 2)), int(rng.integers(9, width // 2))
            y, x = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
            ids[y : y + h, x : x + w] = 300 + thing  # above 255: needs the green channel
            infos.append({"id": 300 + thing, "category_id": 10 * int(rng.integers(1, 5))})
        infos = [info for info in infos if (ids == info["id"]).any()]
        for info in infos:
            y, x = (ids == info["id"]).nonzero()
            box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
            info |= {"bbox": [int(side) for side in box], "area": int(x.size), "iscrowd": int(info["id"] == 301)}
        colours = np.stack([ids % 256, ids // 256, ids // 65536], axis=2).astype(np.uint8)
        Image.fromarray(colours).save(pngs / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": infos})
    categories = [
        {"id": 10 * place, "name": name, "isthing": thing} for place, (name, thing) in enumerate(NAMES, start=1)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (notes / f"panoptic_{split}2017.json").write_text(json.dumps(content))
    boxes = [
        {"id": 10 * image["image_id"] + place, "image_id": image["image_id"], **info, "id_": 0}
        for image in annotations
        for place, info in enumerate(image["segments_info"])
        if info["category_id"] < 50
    ]
    for place, box in enumerate(boxes):
        box["id"] = place
    content = {"images": images, "annotations": boxes, "categories": categories[:4]}
    (notes / f"instances_{split}2017.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def other_clip() -> Clip:
    return make_clip(1)


@pytest.fixture(scope="session")
def wide_clip() -> Clip:
    return make_clip(2, embed_dim=40)


@pytest.fixture
def deep_clips() -> tuple[Clip, Clip]:
    return make_clip(3, layers=3), make_clip(4, layers=3)
