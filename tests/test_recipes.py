"""Every row of the recipes: flags that exist and pass, models that there are, numbers that the paper's text gives."""

from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest

from foveate.recipes import RECIPES, Recipe
from foveate.reproduce.list_recipes import flags_of
from foveate.train.checks import check_catseg, check_distill, check_fvit, check_panoptic
from foveate.train.defaults import LARGE, resolve_defaults
from foveate.train.flags import SMALL_CLIP, DistillConfig, TrainCatSeg, TrainFViT, TrainPanoptic

ROWS = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


def row(name: str) -> Recipe:
    (found,) = [recipe for recipe in RECIPES if recipe.name == name]
    return found


def test_names_are_unique_and_can_be_typed() -> None:
    names = [recipe.name for recipe in RECIPES]
    assert len(set(names)) == len(names)
    assert all(name.replace("-", "").isalnum() and not name.startswith("-") for name in names)


@ROWS
def test_a_row_says_what_it_is(recipe: Recipe) -> None:
    assert recipe.where and recipe.how and recipe.what.endswith(".") and "\n" not in recipe.what
    assert "(published" in recipe.time or "(estimate" in recipe.time or recipe.time == "not measured"
    assert recipe.published is None or recipe.published


@ROWS
def test_the_fields_exist_differ_from_the_defaults_and_pass(recipe: Recipe) -> None:
    defaults = {one.name: one.default for one in fields(flags_of(recipe.verb))}
    assert set(recipe.fields) | set(recipe.needs) <= set(defaults)
    needed = {name for name, default in defaults.items() if default is MISSING}
    assert not needed & set(recipe.fields), "folders are the user's"
    for name, value in recipe.fields.items():
        assert value != defaults[name], name
    if recipe.verb == "distill":
        check_distill(DistillConfig(data=Path("d"), out=Path("o"), **recipe.fields))
    if recipe.verb == "train-fvit":
        check_fvit(TrainFViT(data=Path("d"), out=Path("o"), **recipe.fields))
    if recipe.verb == "train-catseg":
        check_catseg(TrainCatSeg(data=Path("d"), out=Path("o"), **recipe.fields))
    if recipe.verb == "train-panoptic":
        config = TrainPanoptic(data=Path("d"), out=Path("o"), **recipe.fields)
        check_panoptic(resolve_defaults(config, LARGE))


def test_models_are_architectures_with_that_tag_and_the_activation_it_needs() -> None:
    import open_clip

    known = set(open_clip.list_pretrained())
    for recipe in RECIPES:
        model, tag = recipe.fields.get("model", SMALL_CLIP), recipe.fields.get("pretrained")
        assert (model, tag) in known or (model, tag) == (SMALL_CLIP, None), recipe.name
        if tag is not None:
            described = open_clip.get_pretrained_cfg(model, tag)
            config = open_clip.get_model_config(model)
            assert bool(described.get("quick_gelu")) == bool(config.get("quick_gelu")), recipe.name


def test_the_two_recipes_of_the_paper() -> None:
    # 6 epochs of COCO's 118,287 training images, 16 a step: 6 * 118,287 / 16 = 44,357.6
    for size, alpha, student in (("b16", 0.7, 1024), ("l14", 0.95, 896)):
        for regions in ("patches", "proposals"):
            one = row(f"clipself-{size}-{regions}-1gpu").fields
            synchronised = row(f"clipself-{size}-{regions}-sync16").fields
            for ending in ("1gpu", "sync16"):
                assert ("regions" in row(f"clipself-{size}-{regions}-{ending}").needs) == (regions == "proposals")
            for numbers in (one, synchronised):
                assert numbers["steps"] == 44_358 and numbers["warmup"] == 1000
                assert (numbers["lr"], numbers["weight_decay"]) == (1e-5, 0.1)
                assert (numbers["alpha"], numbers["size"]) == (alpha, student)
            assert one["batch"] * one.get("accumulate", 1) == 2
            assert synchronised["batch"] * synchronised.get("accumulate", 1) == 16


def test_published_numbers_stand_with_the_run_they_came_from() -> None:
    published = {one.name: one.published for one in RECIPES if one.published and one.verb == "distill"}
    # the published gradients were never averaged: no -sync16 row has a number
    assert {name: numbers for name, numbers in published.items() if not name.startswith("clipself-b16-patches")} == {
        "clipself-l14-patches-1gpu": {"OV-COCO, novel AP50": 38.4},
        "clipself-b16-proposals-1gpu": {"OV-COCO, novel AP50": 37.6},
        "clipself-l14-proposals-1gpu": {"OV-COCO, novel AP50": 44.3},
        "clipself-b16-lvis": {"OV-LVIS, APr": 25.3},
        "clipself-l14-lvis": {"OV-LVIS, APr": 34.9},
    }
    assert list(published["clipself-b16-patches-1gpu"].values()) == [72.1, 74.4, 46.8, 33.6]


def test_detectors_are_the_paper_s() -> None:
    # 3 epochs of 107,761 images at 64 a step are 5,051.3 steps; 48 of 100,170 are 75,127.5, a tenth from 32 and 44
    for size, side, wide in (("b16", 640, 1024), ("l14", 896, 896)):
        coco, lvis = row(f"fvit-ov-coco-{size}"), row(f"fvit-ov-lvis-{size}")
        config = TrainFViT(data=Path("d"), out=Path("o"), **coco.fields)
        assert config.batch * config.accumulate == 64 and config.steps == 5052 and not config.milestones
        assert (config.lr, config.weight_decay, config.clip_gradient, config.warmup) == (1e-4, 0.1, 1.0, 250)
        assert config.jitter == (0.1, 2.0) and config.augment
        assert config.size == side and config.background_weight == 0.6
        config = TrainFViT(data=Path("d"), out=Path("o"), **lvis.fields)
        assert abs(config.steps - 48 * 100_170 / 64) < 48 and config.masks and config.background_weight == 0.9
        assert [round(one / config.steps * 48) for one in config.milestones] == [32, 44] and config.size == wide
    verbs = ("train-fvit", "evaluate detection")
    published = {one.name: [*one.published.values()] for one in RECIPES if one.published and one.verb in verbs}
    assert published == {
        "fvit-ov-coco-b16": [17.5, 33.6, 37.6],
        "fvit-ov-coco-l14": [24.7, 38.4, 44.3],
        "fvit-ov-lvis-b16": [11.5, 25.3],
        "fvit-ov-lvis-l14": [24.2, 34.9],
        "transfer-coco": [40.5, 63.8, 44.3],
        "transfer-objects365": [19.5, 31.3, 20.7],
    }


def test_cat_seg_is_its_authors() -> None:
    # downstream facts: 80,000 iterations of 4 images at 2e-4, decay 1e-4, gradients cut at .01, the CLIP at .01 of it
    config = TrainCatSeg(data=Path("d"), out=Path("o"), **row("catseg-2024").fields)
    assert (config.steps, config.batch, config.lr, config.weight_decay) == (80_000, 4, None, 1e-4)
    assert (config.clip_gradient, config.clip_lr, config.warmup, config.version) == (0.01, 0.01, 0, "2024")
    assert row("catseg-2023-l14").fields["backbone"].startswith("swin")


def test_the_generator_is_odise_s() -> None:
    # 92,188 steps of 64 images at 1e-4, decay .05; a tenth and a hundredth of the rate near the end
    config = TrainPanoptic(data=Path("d"), out=Path("o"), **row("panoptic-odise").fields)
    usual = resolve_defaults(config, LARGE)
    assert config.steps == 92_188 and config.batch * config.accumulate == 64
    assert (usual.lr, usual.weight_decay, usual.clip_gradient) == (1e-4, 0.05, 0.01)
    assert (usual.queries, usual.depth, LARGE.pixel_layers, LARGE.width) == (100, 9, 6, 256)


def test_openai_towers_have_their_optimizer_numbers() -> None:
    rows = [recipe for recipe in RECIPES if recipe.fields.get("pretrained") == "openai"]
    assert {recipe.fields["model"] for recipe in rows} == {
        "ViT-B-16-quickgelu",
        "ViT-L-14-quickgelu",
        "ViT-L-14-336-quickgelu",
    }
    assert all(recipe.fields["betas"] == (0.9, 0.98) and recipe.fields["eps"] == 1e-6 for recipe in rows)


def test_an_ablation_differs_in_one_flag() -> None:
    base = row("clipself-b16-patches-1gpu").fields
    ablations = [one for one in RECIPES if one.what.startswith("Ablation") and one.verb == "distill"]
    assert len(ablations) >= 9
    for recipe in ablations:
        assert len(dict(recipe.fields.items() ^ base.items())) == 1, recipe.name


def test_the_world_row_is_what_the_demo_distils() -> None:
    from foveate.reproduce.demo import _distill_config
    from foveate.reproduce.flags import Demo

    demo = _distill_config(Demo(out=Path("demo")), Path("d"))
    assert replace(DistillConfig(data=demo.data, out=demo.out), **row("world").fields) == demo
