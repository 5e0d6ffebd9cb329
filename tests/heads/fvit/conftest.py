"""A tiny random CLIP, and drawn scenes with objects of 32 classes."""

from copy import deepcopy

import numpy as np
import open_clip
import pytest
import torch
from slow.towers import build, register

from foveate.clip.model import Clip
from foveate.types import Sample, Segments

CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 2, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}


@pytest.fixture
def tiny_clip():
    """Build one: tiny_clip(patch_size=14), tiny_clip("eva")."""

    def make(family: str = "vit", **vision) -> Clip:
        register()
        if family != "vit":
            model, config = build(family, 0)
            return Clip(model, name=family, config=config)
        torch.manual_seed(0)
        described = deepcopy(CONFIG)
        described["model_cfg"]["vision_cfg"] |= vision
        return Clip(open_clip.CLIP(**deepcopy(described["model_cfg"])), name="tiny", config=described)

    return make


@pytest.fixture
def squares():
    """Images with one or two bright squares, of class 0 (large) or 1 (small), with masks."""

    def make(count: int, *, size: int = 64) -> list[Sample]:
        rng = np.random.default_rng(0)
        found = []
        for number in range(count):
            image = torch.from_numpy(rng.integers(0, 60, (3, size, size), dtype=np.uint8))
            boxes, masks, labels = [], [], []
            for label, side in enumerate((28, 14)):
                x, y = (int(one) for one in rng.integers(0, size - side, 2))
                image[label, y : y + side, x : x + side] = 220
                mask = torch.zeros(size, size, dtype=torch.bool)
                mask[y : y + side, x : x + side] = True
                boxes.append([float(x), float(y), float(x + side), float(y + side)])
                masks.append(mask)
                labels.append(label)
            segments = Segments(torch.tensor(boxes), torch.stack(masks), torch.tensor(labels), torch.ones(2) > 0)
            found.append(Sample(str(number), image, segments.boxes, segments))
        return found

    return make
