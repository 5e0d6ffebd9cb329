"""Random views: reproducible, in range, and never mirrored."""

import torch

from foveate.ops.augment import random_views


def views(images: torch.Tensor, seed: int) -> torch.Tensor:
    return random_views(images, generator=torch.Generator().manual_seed(seed))


def test_views_are_grey_levels_drawn_from_the_generator() -> None:
    images = torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first = views(images, 1)
    assert first.shape == images.shape and first.dtype == torch.float32
    assert first.min() >= 0 and first.max() <= 255
    assert torch.equal(first, views(images, 1))
    assert not torch.equal(first, views(images, 2))


def test_views_are_not_mirrored() -> None:
    ramp = torch.linspace(40, 210, 32).to(torch.uint8)
    across = ramp.expand(200, 3, 32, 32)
    seen = views(across, 0)
    inside = seen[(seen > 0).all(dim=(1, 2, 3))]  # without those that got black bars
    assert len(inside) > 50
    assert (inside[..., 16:].mean(dim=(1, 2, 3)) > inside[..., :16].mean(dim=(1, 2, 3))).all()
    down = views(across.mT, 0)
    inside = down[(down > 0).all(dim=(1, 2, 3))]
    assert (inside[..., 16:, :].mean(dim=(1, 2, 3)) > inside[..., :16, :].mean(dim=(1, 2, 3))).all()


def test_two_views_in_five_have_black_bars_on_opposite_sides() -> None:
    seen = views(torch.full((2000, 3, 16, 16), 128, dtype=torch.uint8), 3)
    rows, columns = (seen[:, 0, 0] == 0).all(dim=1), (seen[:, 0, :, 0] == 0).all(dim=1)  # first row, first column
    assert torch.equal(rows, (seen[:, 0, -1] == 0).all(dim=1)) and not (rows & columns).any()
    # drawn with probability 0.4, and seen as a bar where less than 15/16 of the side is kept: 0.4 * 0.535 / 0.6 = 0.36
    assert 0.31 < (rows | columns).float().mean() < 0.41
