"""A tiny CLIP, a tiny folder of images, and commands on them."""

import os
import signal
from copy import deepcopy
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from foveate.clip.io.weights import save_clip
from foveate.clip.model import Clip

CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 2, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A model folder: ViT, 32 px, patch 8, 2 blocks, random weights."""
    torch.manual_seed(0)
    clip = Clip(open_clip.CLIP(**deepcopy(CONFIG["model_cfg"])), name="tiny", config=CONFIG)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_clip(clip, folder)
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """Ten PNG images of two shapes."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for number in range(10):
        coarse = Image.fromarray(draw.integers(0, 255, (4, 5, 3), dtype=np.uint8))
        coarse.resize((64, 48) if number % 2 else (40, 56), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def command(zygote, tiny_model, image_folder):
    """Run one command; its exit status and what it printed."""

    def start(*flags, out: Path, data: Path = image_folder, **request) -> tuple[int, str]:
        output = out.with_name("output.txt")
        output.unlink(missing_ok=True)
        fixed = ["--model", tiny_model, "--size", 32, "--steps", 4, "--batch", 3, "--lr", 1e-3, "--warmup", 1]
        fixed += ["--workers", 0, "--log-every", 1, "--save-every", 2, "--device", "cpu"]
        arguments = ["distill", "--data", data, "--out", out, *fixed, *flags]
        return zygote.wait(zygote.start(output, arguments, **request)), output.read_text()

    return start


@pytest.fixture
def distill(command, tmp_path):
    """The command, writing to the folder `run` of this test, or another there."""
    return lambda *flags, out="run", **others: command(*flags, out=tmp_path / out, **others)


@pytest.fixture
def two(zygote, tmp_path, tiny_model, image_folder):
    """The command in two processes, as torchrun starts them; their statuses and outputs. `second` is a request for the
    second process alone, which is killed where it does not end by itself."""

    def start(
        *flags, port: int, data: Path = image_folder, timeout: int = 120, second: dict | None = None, **request
    ) -> tuple:
        fixed = ["--data", data, "--out", tmp_path / "two", "--model", tiny_model, "--size", 32]
        fixed += [
            "--steps",
            4,
            "--batch",
            2,
            "--save-every",
            2,
            "--lr",
            1e-3,
            "--warmup",
            1,
            "--workers",
            0,
            "--log-every",
            1,
        ]
        output = [tmp_path / f"output{rank}.txt" for rank in range(2)]
        processes = []
        for rank in range(2):
            output[rank].unlink(missing_ok=True)
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "FOVEATE_TIMEOUT": str(timeout)}
            arguments = ["distill", *fixed, "--log-every", 1, "--device", "cpu", *flags]
            asked = {**request, **(second or {})} if rank else request
            processes.append(zygote.start(output[rank], arguments, environment=environment, **asked))
        first = zygote.wait(processes[0])
        if second:
            os.kill(processes[1], signal.SIGKILL)  # not reaped yet, so still this process
        return [first, zygote.wait(processes[1])], [path.read_text() for path in output]

    return start
