"""Verdicts by hand, and metrics of the measurements' files."""

import json
from pathlib import Path

import pytest

from foveate.errors import InputError
from foveate.reproduce.page import compare, read_metrics, spread, verdict_of
from foveate.reproduce.rows import Row


@pytest.mark.parametrize(
    ("more", "less", "verdict"),
    [
        # means 13 and 10; each spread 1, so the difference's standard error is sqrt(1/3 + 1/3) = 0.816; t at 4 degrees
        # of freedom is 2.78: 2.27
        ([12.0, 13.0, 14.0], [9.0, 10.0, 11.0], "holds"),
        ([9.0, 10.0, 11.0], [12.0, 13.0, 14.0], "contradicted"),
        ([11.0, 12.0, 13.0], [9.0, 10.0, 11.0], "not significant"),  # 2 < 2.27
        # a pretrained CLIP has no spread: 1 / sqrt(3) = 0.577, t at 2 is 4.30: 2.48
        ([12.0, 13.0, 14.0], [10.0], "holds"),
        ([11.0, 12.0, 13.0], [10.0], "not significant"),
        # where neither has seeds: 3 points
        ([13.5], [10.0], "holds"),
        ([12.5], [10.0], "not significant"),
    ],
)
def test_a_difference_is_significant_outside_its_confidence_interval(
    more: list[float], less: list[float], verdict: str
) -> None:
    measured = {"a": {"boxes": more}, "b": {"boxes": less}}
    trained = {name for name, values in (("a", more), ("b", less)) if len(values) > 1}
    pair = compare("a.boxes", "b.boxes", measured, trained=trained)
    assert pair.verdict == verdict == verdict_of([pair])
    assert pair.difference == pytest.approx(sum(more) / len(more) - sum(less) / len(less))


def test_one_seed_of_a_trained_row_is_not_sufficient() -> None:
    measured = {"a": {"boxes": [50.0]}, "b": {"boxes": [10.0]}, "c": {"boxes": [None]}}
    pair = compare("a.boxes", "b.boxes", measured, trained={"a"})
    assert pair.verdict == "not significant" and pair.difference is None
    pair = compare("c.boxes", "b.boxes", measured, trained=())
    assert pair.verdict == "not run", "there was nothing to measure"


def test_a_claim_has_the_verdict_of_its_worst_pair() -> None:
    measured = {"a": {"x": [9.0], "y": [1.0], "z": [1.0]}, "b": {"x": [1.0], "y": [1.0], "z": [9.0]}}
    pairs = [("a.x", "b.x"), ("a.y", "b.y"), ("a.x", "c.x"), ("a.z", "b.z")]
    compared = [compare(*pair, measured, trained=()) for pair in pairs]
    verdicts = [verdict_of(compared[:count]) for count in (1, 2, 3, 4)]
    assert verdicts == ["holds", "not significant", "not run", "contradicted"]


def test_spread_is_the_sample_standard_deviation() -> None:
    assert spread([2.0, 4.0, 6.0]) == pytest.approx(2.0)  # (4 + 0 + 4) / 2 = 4
    assert spread([7.0]) == 0.0


def test_regions_are_read_at_the_largest_size_and_sizes_are_numbers(tmp_path: Path) -> None:
    def scores(base: float) -> dict[str, dict[str, float]]:
        return {kind: {"top1": base + place} for place, kind in enumerate(("boxes", "things", "stuff"))}

    content = {
        "dense": {"96": scores(10), "128": scores(20)},
        "crop": scores(80),
        "masked": {"96": scores(1), "128": scores(30)},
    }
    path = tmp_path / "regions.json"
    path.write_text(json.dumps(content))
    metrics = ("boxes", "things", "stuff", "crops", "smallest", "largest", "masked-stuff")
    found = read_metrics(Row("r", "tab1", "", None, "regions", metrics), path)
    assert found == dict(zip(metrics, (20, 21, 22, 80, 10, 20, 32), strict=True))


def test_metrics_that_the_data_does_not_have_are_none(tmp_path: Path) -> None:
    path = tmp_path / "global.json"
    path.write_text(json.dumps({"model": {"classification": {"mean": {"top1": 61.0}}, "retrieval": None}}))
    found = read_metrics(Row("r", "global", "", None, "global", ("classes", "image-to-text")), path)
    assert found == {"classes": 61.0, "image-to-text": None}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"dense": {}}', '{"dense": {"64": {}}}'])
def test_a_damaged_measurement_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "regions.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"regions\.json: need the result of `foveate evaluate` for row m4"):
        read_metrics(Row("m4", "tab1", "", "m4"), path)
