"""Pretraining of ViTs and residual towers: the same command resumes to the bit, and open_clip reads the product."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from foveate.clip.load import load
from foveate.engine.log import Log
from foveate.errors import InputError
from foveate.train.flags import Pretrain
from foveate.train.pretrain import run

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
RESIDUAL = MODEL | {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 4, "head_width": 32}}
STATISTICS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
WEIGHTS = "open_clip_model.safetensors"
COLOURS = {"a red thing": (220, 30, 30), "a green thing": (30, 200, 40), "a blue thing": (40, 50, 220)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config and a shard of 30 images in three colours."""
    root = tmp_path_factory.mktemp("pretrain")
    config = describe(root / "open_clip_config.json", MODEL)
    rng = np.random.default_rng(0)
    with tarfile.open(root / "pairs.tar", "w") as tar:
        for index in range(30):
            caption, colour = list(COLOURS.items())[index % 3]
            image = np.clip(np.array(colour) + rng.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            for kind, content in (("png", buffer.getvalue()), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{index}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return root, config


@pytest.fixture(scope="module")
def residual(made: tuple[Path, Path]) -> tuple[Path, Path]:
    """The same shard, and the config of a residual tower beside the same text tower."""
    return made[0], describe(made[0] / "resnet.json", RESIDUAL)


@pytest.fixture(scope="module")
def source(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP whose text tower others may take."""
    out = tmp_path_factory.mktemp("source") / "model"
    train(made, out, steps=1)
    return out


def describe(path: Path, model: dict) -> Path:
    path.write_text(json.dumps({"model_cfg": model, "preprocess_cfg": STATISTICS}))
    return path


def train(made: tuple[Path, Path], out: Path, **changed) -> list[dict]:
    """Pretrain; the lines of the steps."""
    settings = {
        "steps": 4, "batch": 6, "lr": 4e-3, "warmup": 2, "whole_steps": 1, "save_every": 2,
        "track": "none", "device": "cpu", **changed,
    }  # fmt: skip
    run(Pretrain(data=made[0], config=made[1], out=out, **settings))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize("kind", ["ViT", "residual, locked text"])
def test_a_resumed_run_has_the_same_bits(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = request.getfixturevalue("made" if kind == "ViT" else "residual")
    changed = {} if kind == "ViT" else {"text_from": str(request.getfixturevalue("source"))}
    whole = train(made, tmp_path / "whole", **changed)
    step = Log.step

    def die_after_3(log: Log, done: int, **numbers) -> None:
        step(log, done, **numbers)
        if done == 3:  # after the save of step 2: the third step is lost and made again
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Log, "step", die_after_3)
        train(made, tmp_path / "parts", **changed)
    rest = train(made, tmp_path / "parts", **changed)
    assert [row["step"] for row in rest] == [1, 2, 3, 4], "the lost step's line is replaced"
    assert [row["loss"] for row in rest] == [row["loss"] for row in whole]
    first, second = load_file(tmp_path / "whole" / WEIGHTS), load_file(tmp_path / "parts" / WEIGHTS)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_loss_falls_and_open_clip_reads_the_product(made: tuple[Path, Path], tmp_path: Path) -> None:
    rows = train(made, tmp_path, steps=40, whole_steps=10, save_every=40)
    # three captions, two of each in a batch of six: guessing gives log 6 = 1.79, knowing gives log 2 = 0.69
    assert rows[0]["loss"] > 1.5 and np.mean([row["loss"] for row in rows[-5:]]) < 1.2
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    tokens = open_clip.SimpleTokenizer(context_length=8)(list(COLOURS))
    with torch.no_grad():
        text = model.encode_text(tokens, normalize=True)
        images = torch.stack([preprocess(Image.new("RGB", (16, 16), colour)) for colour in COLOURS.values()])
        image = model.encode_image(images, normalize=True)
    assert (image @ text.T).argmax(dim=1).tolist() == [0, 1, 2]


def test_a_locked_text_tower_does_not_change_and_the_residual_tower_is_trained(
    residual: tuple[Path, Path], source: Path, tmp_path: Path
) -> None:
    rows = train(residual, tmp_path, steps=40, lr=2e-2, save_every=40, text_from=str(source))
    # an untrained text tower tells three captions apart well enough; log 6 = 1.79 is guessing, log 2 = 0.69 knowing
    assert rows[0]["loss"] > 1.5 and np.mean([row["loss"] for row in rows[-5:]]) < 1.3
    before, after = load_file(source / WEIGHTS), load_file(tmp_path / WEIGHTS)
    text = {key for key in after if not key.startswith("visual.")} - {"logit_scale"}
    assert len(text) > 10 and all(torch.equal(before[key], after[key]) for key in text)
    assert after["visual.bn1.num_batches_tracked"] == 40, "BatchNorm's statistics are those of the 40 steps"
    assert load(tmp_path).patch_size == 32


def test_a_residual_tower_drops_no_patches_and_trains_a_text_tower(
    residual: tuple[Path, Path], source: Path, tmp_path: Path
) -> None:
    rows = [train(residual, tmp_path / str(share), steps=2, patch_dropout=share) for share in (0.0, 0.5)]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    trained, other = load_file(tmp_path / "0.0" / WEIGHTS), load_file(source / WEIGHTS)
    assert not torch.equal(trained["text_projection"], other["text_projection"])


def test_a_text_tower_of_another_kind_is_refused(made: tuple[Path, Path], source: Path, tmp_path: Path) -> None:
    wide = describe(tmp_path / "wide.json", RESIDUAL | {"embed_dim": 32})
    with pytest.raises(InputError, match=r"--text-from.*'embed_dim': 16.*got.*'embed_dim': 32"):
        train((made[0], wide), tmp_path / "out", text_from=str(source))


def test_another_run_in_the_folder_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    train(made, tmp_path)
    with pytest.raises(InputError, match=r"lr: stored 0\.004, now 0\.001"):
        train(made, tmp_path, lr=1e-3)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch": 31}, {"batch": 1}, {"patch_dropout": 1.0}, {"save_every": 0}]
)
def test_numbers_that_cannot_train_are_refused(made: tuple[Path, Path], tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(InputError, match=r"--(steps|batch|patch-dropout|save-every): must be|Lower --batch"):
        train(made, tmp_path, **wrong)
