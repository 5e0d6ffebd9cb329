"""Checks of a run that was started by a recipe's name: the data and the batch that the recipe is for.

The only module of training that reads `foveate.recipes`.
"""

from collections.abc import Sequence
from pathlib import Path

from foveate.data.kinds import TITLES, kind_of
from foveate.errors import InputError
from foveate.recipes import RECIPES, Recipe
from foveate.train.flags import DistillConfig
from foveate.types import Category


def check_recipe_data(recipe: str | None, categories: Sequence[Category], *, root: Path | str) -> None:
    """Refuse data of another kind than the recipe is for, with an InputError.

    Args:
        recipe: its name; None: nothing is checked.
        categories: all of the data set; none where only images were read.
        root: of the data set, for the message.
    """
    row, kind = _find(recipe), kind_of(categories)
    if row is None or row.data in ("any", kind):
        return
    got = f"{len(categories)} other categories" if categories else "no categories that were read"
    raise InputError(
        f"--recipe {recipe}: must have {TITLES[row.data]}, as in the recipe; --data {root} has "
        f"{TITLES[kind] if kind != 'any' else got}. Give that data "
        "(its file with --annotations, or --kind of label maps), choose another "
        f"row of `foveate recipes`, or give the flags without --recipe: `foveate recipes {recipe}` prints them."
    )


def batch_notes(recipe: str | None, images: int) -> list[str]:
    """A warning where `images` per step, over all processes, are not those of the recipe of a distillation."""
    row = _find(recipe)
    if row is None:
        return []
    expected = row.fields.get("batch", DistillConfig.batch) * row.fields.get("accumulate", DistillConfig.accumulate)
    if images == expected:
        return []
    return [f"WARNING   {recipe} is for {expected} images per step; these flags and processes take {images}"]


def _find(name: str | None) -> Recipe | None:
    return next((row for row in RECIPES if row.name == name), None)
