"""Consistency of the rows: unique names, commands that parse, claims about existing rows."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from foveate.cli.main import parse
from foveate.recipes import RECIPES
from foveate.reproduce.commands import Job, Stage, figures_for, jobs_for, seeds_of, skip_reason
from foveate.reproduce.rows import (
    B16,
    CLAIMS,
    DEFAULT_BATCH,
    L14,
    OPENAI_B16,
    SMALL,
    TABLES,
    Claim,
    Scale,
    rows_of,
    runs_of,
    scale_of,
)
from foveate.train.flags import DistillConfig

SCALES = pytest.mark.parametrize("scale", [SMALL, B16, L14], ids=["small", "b16", "l14"])
WORLD = Stage("world", Path("o"), Path("docs/results"), SMALL, "foveate-small", None, (0, 1, 2))


@SCALES
def test_names_are_unique_and_references_exist(scale: Scale) -> None:
    rows, runs = rows_of(scale), runs_of(scale)
    assert len({row.name for row in rows}) == len(rows)
    assert {row.table for row in rows} == set(TABLES)
    assert {row.run for row in rows} - {None, "cnn"} <= set(runs)
    assert set(runs) <= {row.run for row in rows}, "a run that no row shows"
    assert all(set(dict(row.published)) <= set(row.metrics) for row in rows)


@SCALES
def test_claims_are_about_rows_and_their_metrics(scale: Scale) -> None:
    metrics = {row.name: row.metrics for row in rows_of(scale)}
    for claim in CLAIMS:
        assert claim.table in TABLES and claim.pairs, claim
        for side in (side for pair in claim.pairs for side in pair):
            name, metric = side.split(".", 1)
            assert metric in metrics[name], (claim.text, side)


def test_sizes_fit_the_patches() -> None:
    for scale, patch in ((SMALL, 8), (B16, 16), (L14, 14)):
        assert not [size for size in (scale.size, *scale.sweep, *scale.sizes) if size % patch], scale
    named = [scale_of(patch=patch, native=native) for patch, native in ((8, 64), (16, 224), (14, 336), (32, 224))]
    assert named == [SMALL, B16, L14, B16]


def test_a_sweep_of_alpha_takes_students_that_are_not_mixed() -> None:
    stage = Stage("coco", Path("o"), Path("docs/results"), B16, "EVA02-B-16", "w.pt", (0,))
    jobs = jobs_for(stage, tuple(row for row in rows_of(B16) if row.measure == "pareto"))
    assert "--alpha" not in jobs["clipself-unmixed-0"].words and "--alpha" in jobs["clipself-0"].words
    assert jobs["pareto-0/pareto"].needs == ("clipself-unmixed-0", "keep-unmixed-0")


def test_every_step_of_an_ablation_is_compared() -> None:
    claim = next(one for one in CLAIMS if "blocks" in one.text)
    assert claim.pairs == (
        ("layers1.boxes", "layers0.boxes"),
        ("layers2.boxes", "layers1.boxes"),
        ("m6.boxes", "layers2.boxes"),
    )
    assert isinstance(claim, Claim)


@pytest.mark.parametrize(
    "stage",
    [
        WORLD,
        Stage("world", Path("o"), Path("docs/results"), B16, "EVA02-B-16", "w.pt", (0, 1), cnn="rn", limit=4),
        Stage("coco", Path("o"), Path("docs/results"), SMALL, "foveate-small", None, (3,)),
    ],
    ids=["world", "paper", "coco"],
)
def test_every_command_parses(stage: Stage) -> None:
    rows = rows_of(stage.scale)
    jobs = {**jobs_for(stage, rows), **figures_for(stage, rows)}
    assert all(job.name == name for name, job in jobs.items())
    seen, parsed = set[str](), set[str]()
    for job in jobs.values():
        shape = re.sub(r"\d+", "0", " ".join(job.words))  # another seed or size parses alike
        if shape not in parsed:
            parse(list(job.words))  # exits with an error where a flag does not exist
            parsed.add(shape)
        assert set(job.needs) <= seen, f"{job.name} comes before what it needs"
        seen.add(job.name)
    made = [job.output for job in jobs.values()]
    assert len(set(made)) == len(made), "two commands write the same file"


def test_rows_share_trainings_and_a_pretrained_clip_is_measured_once() -> None:
    rows = tuple(row for row in rows_of(SMALL) if row.table in ("tab2", "tab8"))
    trainings = [name for name, job in jobs_for(WORLD, rows).items() if job.words[0] == "distill"]
    assert len(trainings) == len(set(trainings)) == 3 * len({row.run for row in rows})
    untouched = next(row for row in rows_of(SMALL) if row.run is None)
    assert seeds_of(WORLD, untouched) == (0,) and seeds_of(WORLD, rows[0]) == (0, 1, 2)


def test_a_run_of_another_head_is_measured_with_it() -> None:
    jobs = jobs_for(WORLD, tuple(row for row in rows_of(SMALL) if row.table == "terms"))
    for name, head in (("values3-gates-1/regions", "values3"), ("clipself-1/regions", None)):
        words = jobs[name].words
        assert (words[words.index("--head") + 1] if "--head" in words else None) == head


def test_rows_that_other_data_does_not_support_are_skipped_with_the_reason() -> None:
    stage = Stage("coco", Path("o"), Path("docs/results"), SMALL, "foveate-small", None, (0,))
    left = {row.name: reason for row in rows_of(SMALL) if (reason := skip_reason(stage, row))}
    assert set(left) == {"tab8-other", "figs-cnn", "image-text", "tab8-region-text"}, "no captions there"
    assert "--cnn" in left["figs-cnn"]
    named = replace(stage, cnn="rn50")
    assert {row.name for row in rows_of(SMALL) if skip_reason(named, row)} == set(left) - {"figs-cnn"}


def test_the_papers_hyperparameters_reach_the_command() -> None:
    stage = Stage("coco", Path("o"), Path("docs/results"), B16, "EVA02-B-16", "w.pt", (0,))
    rows = tuple(row for row in rows_of(B16) if row.name in ("m4", "layers0", "size0"))
    jobs: dict[str, Job] = jobs_for(stage, rows)
    assert "--alpha 0.7" in " ".join(jobs["m4-0"].words) and "--steps 44358" in " ".join(jobs["m4-0"].words)
    assert "--layers 3" in " ".join(jobs["last3-0"].words)
    assert " ".join(jobs["size320-0"].words).count("--size") == 1


def test_a_row_has_the_settings_of_its_recipe() -> None:
    """Each command parses to the recipe's own settings: size, precision, steps, betas, jitter."""
    stage = Stage("coco", Path("o"), Path("docs/results"), OPENAI_B16, "ViT-B-16-quickgelu", "openai", (0,))
    jobs = jobs_for(stage, rows_of(OPENAI_B16))
    for job, recipe in (
        ("clipself-0", "openai-b16-patches"),
        ("fvit-clipself-0", "fvit-ov-coco-b16"),
        ("catseg-clipself-0", "catseg-2024"),
        ("generator-0", "panoptic-tower"),
        ("last3-0", "clipself-b16-last3"),
        ("size640-0", "clipself-b16-size640"),
        ("fvit-clipself-simple-0", "fvit-ov-coco-b16-simple"),
        ("fvit-clipself-unfrozen-0", "fvit-ov-coco-b16-unfrozen"),
    ):
        config = parse(list(jobs[job].words))
        (row,) = (row for row in RECIPES if row.name == recipe)
        skipped = {"model", "pretrained"}
        skipped |= {"betas", "eps"} if recipe.startswith("clipself") else set()  # an ablation of another tower
        for field, value in row.fields.items():
            if field not in skipped:
                assert getattr(config, field) == value, (job, field)
    masks = list(jobs["masks-clipself-0/panoptic"].words)
    assert masks[masks.index("--size") + 1] == str(OPENAI_B16.size), "COCO's masks are named at the student's own size"


def test_label_maps_are_those_of_the_recipe() -> None:
    """CAT-Seg's recipe is for COCO-Stuff's 171 classes."""
    for scale, kind in ((B16, "stuff"), (SMALL, None)):
        stage = Stage("coco", Path("o"), Path("docs/results"), scale, "EVA02-B-16", "w.pt", (0,))
        jobs = jobs_for(stage, tuple(row for row in rows_of(scale) if row.table == "ovss"))
        for name in ("catseg-clipself-0", "catseg-clipself-0/semantic", "clipself-0/cosines"):
            assert getattr(parse(list(jobs[name].words)), "kind") == kind, name  # noqa: B009


def test_the_default_batch_is_that_of_distill() -> None:
    assert DistillConfig(data="d", out=Path("o")).batch == DEFAULT_BATCH


def test_published_values_of_other_data_are_in_no_table() -> None:
    """Published mIoU and PQ are of ADE20K, which no row is measured on."""
    assert not [row.name for row in rows_of(B16) if row.table in ("ovss", "ovps") and row.published]
