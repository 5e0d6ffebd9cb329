"""The small random CLIPs of `slow.towers`, and those by a name that `foveate.clip.load.load` would not know."""

from collections.abc import Callable

import pytest
from slow.towers import build, register

from foveate.clip.model import Clip


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Clip]:
    """Build a small random CLIP of one of `slow.towers.FAMILIES`: make_clip("vit", seed=0)."""
    register()

    def make(family: str, *, seed: int = 0) -> Clip:
        model, config = build(family, seed)
        return Clip(model, name=f"small-{family}", config=config)

    return make
