"""A tiny random CLIP, a tiny decoder, and scenes of the world with all their segments."""

from copy import deepcopy

import numpy as np
import open_clip
import pytest
import torch
from slow.towers import build, register
from torchvision.ops import masks_to_boxes

from foveate.clip.model import Clip
from foveate.data.world.scenes import KINDS, draw_scene
from foveate.heads.panoptic.decoder import MaskDecoder, build_decoder
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
def tiny_decoder():
    """Build one for maps of some widths."""

    def make(widths: tuple[int, ...] = (16,) * 4, *, queries: int = 8) -> MaskDecoder:
        torch.manual_seed(0)
        sizes = {"width": 32, "heads": 4, "feedforward": 32, "pixel_feedforward": 32, "pixel_layers": 1, "layers": 2}
        return build_decoder(widths, queries=queries, **sizes)

    return make


@pytest.fixture
def scenes():
    """Scenes with things and stuff, whose labels are places in KINDS."""

    def make(count: int) -> list[Sample]:
        found = []
        for number in range(count):
            scene = draw_scene(np.random.default_rng([0, number]))
            owner = torch.from_numpy(scene.segments).long()
            present = [(place, KINDS.index(kind)) for place, kind in enumerate(scene.kinds) if (owner == place).any()]
            masks = torch.stack([owner == place for place, _ in present])
            labels = torch.tensor([label for _, label in present])
            is_thing = torch.tensor([KINDS[label].is_thing for _, label in present])
            boxes = masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0])
            image = torch.from_numpy(scene.image).permute(2, 0, 1)
            found.append(Sample(str(number), image, boxes, Segments(boxes, masks, labels, is_thing)))
        return found

    return make
