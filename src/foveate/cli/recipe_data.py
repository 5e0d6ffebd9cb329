"""A recipe names the data it means; other data is refused here, before anything is written."""

from pathlib import Path
from typing import TYPE_CHECKING

from foveate.errors import InputError
from foveate.recipes import RECIPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foveate.types import Category


def check_recipe_data(recipe: str | None, categories: "Sequence[Category]", *, root: Path | str) -> None:
    """Refuse data of another kind than the recipe's numbers are for.

    Args:
        recipe: its name; None: the flags are the user's own.
        categories: of the data set, all of them; none where only images were read.
        root: the data set's, for the message.

    Raises:
        InputError: the data is of another kind.
    """
    from foveate.data.kinds import TITLES, kind_of

    found = kind_of(categories)
    row = next((one for one in RECIPES if one.name == recipe), None)
    if row is None or row.data in ("any", found):
        return
    got = f"{len(categories)} other categories" if categories else "none that were read"
    raise InputError(
        f"--recipe {recipe}: must have {TITLES[row.data]}, which its numbers are for; --data {root} has "
        f"{TITLES[found] if found != 'any' else got}. Name that data "
        "(its file with --annotations, or --kind of label maps), choose another "
        f"row of `foveate recipes`, or give the flags without --recipe: `foveate recipes {recipe}` prints them."
    )
