"""The small random CLIPs of `slow.towers`, wrapped as ours."""

from collections.abc import Callable

import pytest
from slow.towers import build, register

from foveate.clip.model import Clip


@pytest.fixture(scope="session", autouse=True)
def small_towers_are_known_to_timm() -> None:
    register()


@pytest.fixture(scope="session")
def make_clip(small_towers_are_known_to_timm: None) -> Callable[..., Clip]:
    """Build a small random CLIP of one of `slow.towers.FAMILIES`: make_clip("vit", seed=0)."""

    def make(family: str, *, seed: int = 0) -> Clip:
        model, config = build(family, seed)
        return Clip(model, name=f"small-{family}", config=config)

    return make
