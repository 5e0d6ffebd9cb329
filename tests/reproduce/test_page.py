"""From measurements to a row's file and the page; text written by hand is preserved."""

import json
from pathlib import Path

import pytest

from foveate.errors import InputError
from foveate.reproduce.commands import Stage, jobs_for, measured
from foveate.reproduce.page import BY_HAND, check_page, read_results, settings_of, write_page, write_results
from foveate.reproduce.rows import SMALL, Row, rows_of


def fill(stage: Stage, row: Row, *values: float) -> None:
    """Write measurements as the evaluation does, one per seed."""
    for seed, value in zip(stage.seeds, values, strict=False):
        scores = {kind: {"top1": value} for kind in ("boxes", "things", "stuff")}
        path = measured(stage, row, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"dense": {"192": scores}, "crop": scores}))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage("world", tmp_path / "out", tmp_path / "docs" / "results", SMALL, "foveate-small", None, (0, 1, 2))


def write(stage: Stage, tmp_path: Path) -> str:
    rows = tuple(row for row in rows_of(SMALL) if row.table == "tab1")
    jobs = jobs_for(stage, rows)
    done = {name: job for name, job in jobs.items() if "/" not in name or job.output.exists()}
    stamps = {name: {"seconds": 60.0, "versions": {"foveate": "1"}} for name in done}
    write_results(stage, rows, done, tmp_path / "results", stamps=stamps)
    page = tmp_path / "docs" / "results.md"
    write_page(page, tmp_path / "results", scale=SMALL, settings=settings_of(stage))
    return page.read_text()


def test_rows_measured_with_every_seed_are_written_and_shown(stage: Stage, tmp_path: Path) -> None:
    rows = {row.name: row for row in rows_of(SMALL)}
    fill(stage, rows["untouched"], 4.0)
    fill(stage, rows["m6"], 51.0, 52.0, 53.0)
    fill(stage, rows["m4"], 50.0, 51.0)  # one seed is missing
    text = write(stage, tmp_path)
    assert sorted(path.stem for path in (tmp_path / "results").iterdir()) == ["m6", "untouched"]
    assert "| pretrained CLIP | 4.0 | 4.0 | 4.0 | 4.0 | boxes 18.2, crops 68.4 |" in text
    assert "| 52.0 ± 1.0 | 52.0 ± 1.0 | 52.0 ± 1.0 | 52.0 ± 1.0 | boxes 72.1, things 74.4, stuff 46.8 |" in text
    assert "| M = 4 | not run |" in text
    assert (
        "**holds**: CLIPSelf makes dense features recognise regions (Tab. 1): boxes +48.0 (m6 over untouched)" in text
    )
    assert "**not run**: M = 6 is better than M = 4" in text

    fill(stage, rows["m4"], 54.0, 55.0, 56.0)
    assert "**contradicted**: M = 6 is better than M = 4" in write(stage, tmp_path)
    content = json.loads((tmp_path / "results" / "m4.json").read_text())
    assert content["values"]["boxes"] == [54.0, 55.0, 56.0] and content["seeds"] == [0, 1, 2]
    assert [command.split()[1] for command in content["commands"]] == ["world", "distill", "evaluate"]
    assert content["seconds"] == [60.0] * 3


def test_text_written_by_hand_is_preserved(stage: Stage, tmp_path: Path) -> None:
    fill(stage, next(row for row in rows_of(SMALL) if row.name == "untouched"), 4.0)
    page = tmp_path / "docs" / "results.md"
    first = write(stage, tmp_path)
    page.write_text(first + "\n## Why\n\nBecause.\n")
    second = write(stage, tmp_path)
    assert second == first + "\n## Why\n\nBecause.\n"
    assert second.count(BY_HAND) == 1


def test_a_page_does_not_overwrite_another_file(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    check_page(page)
    page.write_text("mine")
    with pytest.raises(InputError, match="need a new file"):
        check_page(page)
    page.write_text(f"made\n{BY_HAND}\nmine")
    check_page(page)


def test_rows_with_other_settings_are_ignored(stage: Stage, tmp_path: Path) -> None:
    fill(stage, next(row for row in rows_of(SMALL) if row.name == "untouched"), 4.0)
    assert "| pretrained CLIP | 4.0 |" in write(stage, tmp_path)
    write_page(tmp_path / "p.md", tmp_path / "results", scale=SMALL, settings={**settings_of(stage), "limit": 5})
    assert "| pretrained CLIP |" not in (tmp_path / "p.md").read_text()


def test_absolute_paths_are_replaced_by_placeholders(tmp_path: Path) -> None:
    stage = Stage(
        str(tmp_path / "coco"), tmp_path / "out", tmp_path / "docs", SMALL, str(tmp_path / "clip"), None, (0,)
    )
    row = next(row for row in rows_of(SMALL) if row.name == "untouched")
    fill(stage, row, 4.0)
    jobs = jobs_for(stage, (row,))
    stamps = {name: {"seconds": 1.0, "versions": {}} for name in jobs}
    [path] = write_results(stage, (row,), jobs, tmp_path / "results", stamps=stamps)
    assert str(tmp_path) not in path.read_text()
    assert "--data DATA" in path.read_text() and "--out OUT/untouched/regions.json" in path.read_text()


def test_a_damaged_row_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")  # another program's is ignored
    (tmp_path / "x.json").write_text('{"row": "m4"}')
    with pytest.raises(InputError, match=r"x\.json: need a row .* KeyError: 'settings'"):
        read_results(tmp_path)
