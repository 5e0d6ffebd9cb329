"""The shipped small CLIP: open_clip loads it, and its results are those of its card."""

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors import safe_open

import foveate.clip
from foveate.clip.io.describe import build, read_config
from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.data.sources import open_data
from foveate.data.world.write import WorldSize, write_world
from foveate.evaluate.regions import evaluate_regions

FOLDER = Path(foveate.clip.__file__).parent / "small"
WEIGHTS = FOLDER / "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def small() -> Clip:
    return load("foveate-small")


def test_weights_are_half_precision_and_at_most_12_mb() -> None:
    assert WEIGHTS.stat().st_size <= 12_000_000
    with safe_open(WEIGHTS, framework="pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118


def test_open_clip_loads_the_small_clip_and_embeds_the_same(small: Clip) -> None:
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{FOLDER}")
    model.eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens = small.tokenize(["a photo of a dotted ball.", "grass."])
    with torch.no_grad():
        torch.testing.assert_close(small.encode_image(images), model.encode_image(images, normalize=True))
        torch.testing.assert_close(small.encode_text(tokens), model.encode_text(tokens, normalize=True))
    assert (small.native_size, small.patch_size, small.embed_dim) == (64, 8, 128)
    normalise = next(step for step in preprocess.transforms if type(step).__name__ == "Normalize")
    assert tuple(normalise.mean) == small.mean and tuple(normalise.std) == small.std


def test_the_residual_config_has_the_same_text_tower_and_embedding(small: Clip) -> None:
    described = read_config(FOLDER / "resnet.json")
    shared = [{key: value for key, value in one["model_cfg"].items() if key != "vision_cfg"} for one in
              (described, small.config)]  # fmt: skip
    assert shared[0] == shared[1]
    residual = Clip(build(described, name="resnet", seed=0), name="resnet", config=described)
    assert (residual.native_size, residual.patch_size, residual.embed_dim) == (64, 32, small.embed_dim)
    assert (residual.mean, residual.std) == (small.mean, small.std)


def test_the_small_clip_recognises_crops_better_than_locations(small: Clip, tmp_path: Path) -> None:
    # a world of another seed than the one it was pretrained on; the card's numbers are those of 300 scenes
    write_world(tmp_path / "world", WorldSize(train=0, val=24, test=0, pairs=0, seed=11), processes=1)
    dataset = open_data(tmp_path / "world", split="val", annotations="panoptic")
    result = evaluate_regions(small, dataset, sizes=[64, 192])
    crop = result["crop"]["boxes"]["top1"]
    assert crop > 65
    for size in (64, 192):
        assert result["dense"][size]["boxes"]["top1"] < crop / 2
