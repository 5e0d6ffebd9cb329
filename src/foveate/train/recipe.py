"""What a run that was started by a recipe's name is held to: the data and the batch that its numbers are for.

The only place where training looks at `foveate.recipes`.
"""

from collections.abc import Sequence
from pathlib import Path

from foveate.data.kinds import TITLES, kind_of
from foveate.errors import InputError
from foveate.recipes import RECIPES, Recipe
from foveate.train.flags import DistillConfig
from foveate.types import Category


def check_recipe_data(recipe: str | None, categories: Sequence[Category], *, root: Path | str) -> None:
    """Refuse data of another kind than the recipe's numbers are for.

    Args:
        recipe: its name; None: the flags are the user's own.
        categories: of the data set, all of them; none where only images were read.
        root: the data set's, for the message.

    Raises:
        InputError: the data is of another kind.
    """
    row, kind = _find(recipe), kind_of(categories)
    if row is None or row.data in ("any", kind):
        return
    got = f"{len(categories)} other categories" if categories else "none that were read"
    raise InputError(
        f"--recipe {recipe}: must have {TITLES[row.data]}, which its numbers are for; --data {root} has "
        f"{TITLES[kind] if kind != 'any' else got}. Name that data "
        "(its file with --annotations, or --kind of label maps), choose another "
        f"row of `foveate recipes`, or give the flags without --recipe: `foveate recipes {recipe}` prints them."
    )


def batch_notes(recipe: str | None, images: int) -> list[str]:
    """A warning where batch, accumulation and processes together are not what the recipe of a distillation means.

    Args:
        recipe: its name, if any.
        images: per step, over all processes.
    """
    row = _find(recipe)
    if row is None:
        return []
    meant = row.fields.get("batch", DistillConfig.batch) * row.fields.get("accumulate", DistillConfig.accumulate)
    if images == meant:
        return []
    return [f"WARNING   {recipe} means {meant} images per step; these flags and processes take {images}"]


def _find(name: str | None) -> Recipe | None:
    return next((row for row in RECIPES if row.name == name), None)
