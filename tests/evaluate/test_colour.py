"""The colour-only bound: features by hand, and bounds of data with and without colour as a cue."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from foveate.data.records import Dataset, Record
from foveate.errors import InputError
from foveate.evaluate.colour import HUES, colour_bound, colour_features, fit_linear
from foveate.types import Category


def test_features_by_hand():
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    image[0, :, :2] = (
        255  # left half pure red: hue bin 0, chroma 1, levels (3, 0, 0) -> bin 48; right half black: bin 0
    )
    left, whole, touched = colour_features(
        image, torch.tensor([[0.0, 0, 2, 4], [0, 0, 4, 4], [1.2, 0.5, 1.8, 0.9]])
    )  # the third box touches one red pixel
    assert left[:3].tolist() == [1, 0, 0] and left[3] == 1 and left[3 + HUES + 48] == 1
    assert left.sum() == 3 and torch.equal(left, touched)
    assert whole[0] == 0.5
    half = 0.5**0.5
    assert whole[3].item() == pytest.approx(half) and whole[3 + HUES + 48].item() == pytest.approx(half)
    assert whole[3 + HUES].item() == pytest.approx(half)


@pytest.mark.parametrize(
    "rgb,hue", [((255, 0, 0), 0), ((255, 255, 0), 60), ((0, 255, 0), 120), ((0, 0, 255), 240), ((255, 0, 254), 300)]
)
def test_hue_bins(rgb, hue):
    image = torch.tensor(rgb, dtype=torch.uint8)[:, None, None]
    histogram = colour_features(image, torch.tensor([[0.0, 0, 1, 1]]))[0, 3 : 3 + HUES]
    assert histogram.nonzero().flatten().tolist() == [hue * HUES // 360]


def test_grey_has_no_hue():
    image = torch.full((3, 2, 2), 130, dtype=torch.uint8)
    assert colour_features(image, torch.tensor([[0.0, 0, 2, 2]]))[0, 3 : 3 + HUES].sum() == 0


def test_features_without_boxes():
    assert colour_features(torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(0, 4)).shape == (0, 3 + 24 + 64)


def planted(folder, *, told_by_colour: bool, seed: int) -> Dataset:
    """Images of one colour with one box each; the class either follows from the colour or is independent of it."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    records = []
    for number in range(60):
        place, other = torch.randint(0, 3, (2,), generator=generator).tolist()
        Image.new("RGB", (12, 10), colours[place]).save(folder / f"{number}.png")
        label = place if told_by_colour else other
        records.append(
            Record(number, folder / f"{number}.png", 10, 12, ((1.0, 1.0, 11.0, 9.0),), (label + 1,), (False,))
        )
    categories = (Category(1, "mud", False), *(Category(n, f"thing {n}", True) for n in (2, 3, 4)))
    return Dataset(folder.name, categories, tuple(records), {})


def test_the_bound_is_high_if_colour_determines_the_class(tmp_path):
    sets = [planted(tmp_path / name, told_by_colour=True, seed=seed) for seed, name in enumerate(("train", "val"))]
    result = colour_bound(*sets)
    assert result == {"top1": 100.0, "top5": None, "count": 60, "train_count": 60, "classes": 3}
    assert colour_bound(*sets) == result


def test_the_bound_is_low_if_colour_is_independent_of_the_class(tmp_path):
    sets = [planted(tmp_path / name, told_by_colour=False, seed=seed) for seed, name in enumerate(("train", "val"))]
    assert 10 < colour_bound(*sets)["top1"] < 60  # chance is 33


def test_the_fit_is_class_balanced():
    """Nine examples of one class and one of another at the same place: balanced, neither wins there."""
    weights = fit_linear(torch.zeros(10, 1), torch.tensor([0] * 9 + [1]), classes=2, penalty=1e-3)
    assert weights[0, -1].item() == pytest.approx(weights[1, -1].item(), abs=1e-6)


def test_wrong_data_is_refused(tmp_path):
    train = planted(tmp_path / "train", told_by_colour=True, seed=0)
    with pytest.raises(InputError, match="same categories"):
        colour_bound(train, replace(train, categories=train.categories[:2]))
    bare = replace(train, name="bare", records=tuple(replace(r, boxes=(), labels=(), crowd=()) for r in train.records))
    with pytest.raises(InputError, match="bare: need thing boxes"):
        colour_bound(train, bare)
