"""`foveate recipes`, and what `--recipe NAME` of a verb starts from: reads the rows of `foveate.recipes`."""

import difflib
import json
import shlex
import sys
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from foveate.cli.train_catseg import TrainCatSeg
from foveate.cli.train_fvit import TrainFViT
from foveate.cli.train_panoptic import TrainPanoptic
from foveate.engine.config import DistillConfig
from foveate.errors import InputError
from foveate.evaluate.flags import Detection, Panoptic, Semantic
from foveate.recipes import RECIPES, Recipe, words_of

CONFIGS: dict[str, Any] = {
    "distill": DistillConfig,
    "train-fvit": TrainFViT,
    "evaluate detection": Detection,
    "train-catseg": TrainCatSeg,
    "evaluate semantic": Semantic,
    "train-panoptic": TrainPanoptic,
    "evaluate panoptic": Panoptic,
}
NAMED = ("distill", "train-fvit", "train-catseg", "train-panoptic")  # verbs that know --recipe
PLACES = {"data": "DIR", "out": "OUT"}  # what stands for the flags that every run needs


@dataclass(frozen=True)
class Recipes:
    """List the named settings of distill, of what trains on it and of its measures, or show one with its words."""

    name: Annotated[str | None, Positional] = None
    """Which one to show; or how the names begin of those to list, such as fvit. All are listed when not given."""
    json: bool = False
    """Write JSON, for programs."""


def run(config: Recipes) -> None:
    """List all rows, or show one.

    Raises:
        InputError: no row has that name, or one that begins so.
    """
    names = [recipe.name for recipe in RECIPES]
    if config.name is None and config.json:
        print(json.dumps([_as_json(recipe) for recipe in RECIPES], indent=2))
    elif config.name is None:
        _list("")
    elif config.name not in names and any(name.startswith(f"{config.name}-") for name in names):
        _list(f"{config.name}-")
    elif config.json:
        print(json.dumps(_as_json(find(config.name)), indent=2))
    else:
        _show(find(config.name))


# ----------------------------------------------------------------------------------------------- for `foveate distill`


def find(name: str, *, verb: str | None = None) -> Recipe:
    """The row of that name.

    Args:
        name: of the row.
        verb: whose settings it must be; None: any verb's.

    Raises:
        InputError: there is none; the message names near ones.
    """
    rows = {recipe.name: recipe for recipe in RECIPES if verb in (None, recipe.verb)}
    if name in rows:
        return rows[name]
    near = difflib.get_close_matches(name, rows, n=4, cutoff=0.5) or list(rows)[:4]
    raise InputError(
        f"recipe: must be one of those that `foveate recipes` lists; got {name!r}. Did you mean {', '.join(near)}?"
    )


def named_in(arguments: list[str]) -> str | None:
    """The recipe that the arguments of a verb name; the last, as for every flag. A missing name is the parser's."""
    name = None
    for word, following in zip(arguments, [*arguments[1:], "-"], strict=True):
        if word == "--recipe" and not following.startswith("-"):
            name = following
        elif word.startswith("--recipe="):
            name = word.removeprefix("--recipe=")
    return name


def start(recipe: Recipe) -> Any:
    """The flags' defaults under that recipe; what every run must be told stays required."""
    required = dict.fromkeys([*PLACES, *recipe.needs], tyro.MISSING)
    return CONFIGS[recipe.verb](**{**recipe.fields, **required}, recipe=recipe.name)


def command(recipe: Recipe, *, spelled: bool) -> list[str]:
    """The words of the command line: by the recipe's name, or with every flag spelled out."""
    named = {} if recipe.verb not in NAMED else {"recipe": recipe.name}
    flags = {**PLACES, **recipe.needs, **(named if named and not spelled else recipe.fields)}
    words = ["foveate", *recipe.verb.split()]
    for one in fields(CONFIGS[recipe.verb]):
        if one.name in flags:
            words += words_of({one.name: flags[one.name]})
    return words


# ---------------------------------------------------------------------------------------------------------- for people


def _as_json(recipe: Recipe) -> dict[str, Any]:
    commands = {name: shlex.join(command(recipe, spelled=name == "spelled")) for name in ("command", "spelled")}
    return {**asdict(recipe), **commands}


def _list(beginning: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    for verb in CONFIGS:
        name = "--recipe NAME" if verb in NAMED else "with the flags that `foveate recipes NAME` shows"
        table = Table(title=f"foveate {verb} {name} --data DIR --out OUT", title_justify="left")
        table.add_column("name", no_wrap=True)
        for heading in ("paper", "what", "time"):
            table.add_column(heading)
        rows = [one for one in RECIPES if one.verb == verb and one.name.startswith(beginning)]
        for recipe in rows:
            table.add_row(recipe.name, recipe.where, recipe.what, recipe.time)
        if rows:
            console.print(table)
    print("One of them, with its published numbers and every flag: foveate recipes NAME")


def _show(recipe: Recipe) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=recipe.name, title_justify="left", show_header=False, box=None)
    published = [f"{number}  {what}" for what, number in (recipe.published or {}).items()]
    table.add_row("what", recipe.what)
    table.add_row("paper", recipe.where)
    table.add_row("published", "\n".join(published) or "none")
    table.add_row("time", recipe.time)
    table.add_row("data", recipe.data)
    table.add_row("how", recipe.how)
    Console().print(table)
    print(f"\n{shlex.join(command(recipe, spelled=False))}\n\nwhich is\n")
    print(shlex.join(command(recipe, spelled=True)))  # no table: one line, to be copied
