"""`foveate recipes`, and the defaults of `--recipe NAME`: the rows of `foveate.recipes` as command lines."""

import json
import shlex
import sys
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from foveate.cli.detection import Detection
from foveate.cli.panoptic import Panoptic
from foveate.cli.semantic import Semantic
from foveate.recipes import RECIPES, Recipe, find_recipe, words_of
from foveate.train.flags import DistillConfig, TrainCatSeg, TrainFViT, TrainPanoptic

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
REQUIRED = {"data": "DIR", "out": "OUT"}  # what stands for the flags that every run needs


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
        print(json.dumps(_as_json(find_recipe(config.name)), indent=2))
    else:
        _show(find_recipe(config.name))


def named_in(arguments: list[str]) -> str | None:
    """The recipe that the arguments of a verb name; the last, as for every flag. A missing name is the parser's."""
    name = None
    for word, following in zip(arguments, [*arguments[1:], "-"], strict=True):
        if word == "--recipe" and not following.startswith("-"):
            name = following
        elif word.startswith("--recipe="):
            name = word.removeprefix("--recipe=")
    return name


def defaults_of(recipe: Recipe) -> Any:
    """The flags' defaults under a recipe; the paths that every run needs stay required."""
    required = dict.fromkeys([*REQUIRED, *recipe.needs], tyro.MISSING)
    return CONFIGS[recipe.verb](**{**recipe.fields, **required}, recipe=recipe.name)


def command_of(recipe: Recipe, *, spelled: bool) -> list[str]:
    """The words of a recipe's command line: by its name, or with every flag spelled out."""
    by_name = recipe.verb in NAMED and not spelled
    flags = {**REQUIRED, **recipe.needs, **({"recipe": recipe.name} if by_name else recipe.fields)}
    ordered = {field.name: flags[field.name] for field in fields(CONFIGS[recipe.verb]) if field.name in flags}
    return ["foveate", *recipe.verb.split(), *words_of(ordered)]


def _as_json(recipe: Recipe) -> dict[str, Any]:
    commands = {key: shlex.join(command_of(recipe, spelled=key == "spelled")) for key in ("command", "spelled")}
    return {**asdict(recipe), **commands}


def _list(prefix: str) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    for verb in CONFIGS:
        recipes = [recipe for recipe in RECIPES if recipe.verb == verb and recipe.name.startswith(prefix)]
        flags = "--recipe NAME" if verb in NAMED else "with the flags that `foveate recipes NAME` shows"
        table = Table(title=f"foveate {verb} {flags} --data DIR --out OUT", title_justify="left")
        table.add_column("name", no_wrap=True)
        for heading in ("paper", "what", "time"):
            table.add_column(heading)
        for recipe in recipes:
            table.add_row(recipe.name, recipe.where, recipe.what, recipe.time)
        if recipes:
            console.print(table)
    print("One of them, with its published numbers and every flag: foveate recipes NAME")


def _show(recipe: Recipe) -> None:
    table = Table(title=recipe.name, title_justify="left", show_header=False, box=None)
    published = [f"{number}  {what}" for what, number in (recipe.published or {}).items()]
    table.add_row("what", recipe.what)
    table.add_row("paper", recipe.where)
    table.add_row("published", "\n".join(published) or "none")
    table.add_row("time", recipe.time)
    table.add_row("data", recipe.data)
    table.add_row("how", recipe.how)
    Console().print(table)
    print(f"\n{shlex.join(command_of(recipe, spelled=False))}\n\nwhich is\n")
    print(shlex.join(command_of(recipe, spelled=True)))  # no table: one line, to be copied
