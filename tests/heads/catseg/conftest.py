"""Small random CLIPs, and a small CAT-Seg."""

from dataclasses import replace

import pytest
import torch
from slow.towers import build, register

from foveate.clip.model import Clip
from foveate.heads.catseg.model import CatSeg, Network
from foveate.types import LabelMap, Sample

SMALL = Network(
    version="2024", residual="cls", backbone=None, size=48, clip_size=48, test_size=72, longest=288, stride=24,
    window=3, hidden=16, guidance=8, decoder=(16, 8), decoder_guidance=(8, 4), tower_guidance=(6, 5), heads=2, layers=1,
    most=256,
)  # fmt: skip


@pytest.fixture
def tiny_clip():
    """Build one: tiny_clip("eva")."""

    def make(family: str = "vit") -> Clip:
        register()
        model, config = build(family, 0)
        return Clip(model, name=family, config=config)

    return make


@pytest.fixture
def catseg(tiny_clip):
    """Build one of three classes: catseg("eva", residual="cls"). A map of 6 x 6 places, in windows of 3."""

    def make(family: str = "vit", *, vocabulary=("cat", "dog", "sky"), backbone=None, **settings) -> CatSeg:
        clip, network = tiny_clip(family), replace(SMALL, **settings)
        torch.manual_seed(0)
        return CatSeg(clip, network, vocabulary=vocabulary, backbone=backbone)

    return make


@pytest.fixture
def make_images():
    """Random images of several sizes with random classes, -1 to 2."""

    def make(*sizes: tuple[int, int]) -> list[Sample]:
        generator = torch.Generator().manual_seed(1)
        found = []
        for number, size in enumerate(sizes):
            image = torch.randint(0, 256, (3, *size), generator=generator).to(torch.uint8)
            labels = torch.randint(-1, 3, size, generator=generator)
            found.append(Sample(str(number), image, torch.zeros(0, 4), label_map=LabelMap(labels)))
        return found

    return make
