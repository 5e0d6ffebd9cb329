"""A tiny CLIP and a tiny folder of pictures on disk, and processes that start fast."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from saccade.clip.model import Clip
from saccade.clip.weights import save_clip

CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 2, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
}


class Zygote:
    """See zygote.py; one for the whole session."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, request: dict) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.answer())

    def start(self, output: Path, arguments: list, **request) -> int:
        target = request if "script" in request else {"module": "saccade.cli.main", **request}
        return self.ask({"arguments": [str(argument) for argument in arguments], "output": str(output), **target})

    def wait(self, process: int) -> int:
        return self.ask({"wait": process})


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    one = Zygote()
    yield one
    assert one.process.stdin is not None
    one.process.stdin.close()
    one.process.wait(timeout=20)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A model folder: ViT, 32 px, patch 8, 2 blocks, random weights."""
    torch.manual_seed(0)
    clip = Clip(open_clip.CLIP(**deepcopy(CONFIG["model_cfg"])), name="tiny", config=CONFIG)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_clip(clip, folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Ten PNG pictures of two shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for number in range(10):
        coarse = Image.fromarray(draw.integers(0, 255, (4, 5, 3), dtype=np.uint8))
        coarse.resize((64, 48) if number % 2 else (40, 56), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder
