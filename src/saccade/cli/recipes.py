"""`saccade recipes`, and what `saccade distill --recipe NAME` starts from: reads the rows of `saccade.recipes`."""

import difflib
import json
import shlex
import sys
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from saccade.engine.config import DistillConfig
from saccade.errors import InputError
from saccade.recipes import RECIPES, Recipe

PLACES = {"data": "DIR", "out": "OUT"}  # what stands for the flags that every run needs


@dataclass(frozen=True)
class Recipes:
    """List the named settings of distill, or show one of them with its command line."""

    name: Annotated[str | None, Positional] = None
    """Which one to show; all are listed when not given."""
    json: bool = False
    """Write JSON, for programs."""


def run(config: Recipes) -> None:
    """List all rows, or show one.

    Raises:
        InputError: no row has that name.
    """
    if config.name is None and config.json:
        print(json.dumps([_as_json(recipe) for recipe in RECIPES], indent=2))
    elif config.name is None:
        _list()
    elif config.json:
        print(json.dumps(_as_json(find(config.name)), indent=2))
    else:
        _show(find(config.name))


# ----------------------------------------------------------------------------------------------- for `saccade distill`


def find(name: str) -> Recipe:
    """The row of that name.

    Raises:
        InputError: there is none; the message names near ones.
    """
    rows = {recipe.name: recipe for recipe in RECIPES}
    if name in rows:
        return rows[name]
    near = difflib.get_close_matches(name, rows, n=4, cutoff=0.5) or list(rows)[:4]
    raise InputError(
        f"recipe: must be one of those that `saccade recipes` lists; got {name!r}. Did you mean {', '.join(near)}?"
    )


def named_in(arguments: list[str]) -> str | None:
    """The recipe that the arguments of `distill` name; the last, as for every flag. A missing name is the parser's."""
    name = None
    for word, following in zip(arguments, [*arguments[1:], "-"], strict=True):
        if word == "--recipe" and not following.startswith("-"):
            name = following
        elif word.startswith("--recipe="):
            name = word.removeprefix("--recipe=")
    return name


def start(recipe: Recipe) -> DistillConfig:
    """The flags' defaults under that recipe; what every run must be told stays required."""
    required = dict.fromkeys([*PLACES, *recipe.needs], tyro.MISSING)
    return DistillConfig(**{**recipe.fields, **required}, recipe=recipe.name)


def command(recipe: Recipe, *, spelled: bool) -> list[str]:
    """The words of the command line: by the recipe's name, or with every flag spelled out."""
    flags = {**PLACES, **recipe.needs, **(recipe.fields if spelled else {"recipe": recipe.name})}
    words = ["saccade", "distill"]
    for one in fields(DistillConfig):
        if one.name in flags:
            words += _words(one.name.replace("_", "-"), flags[one.name])
    return words


def _words(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{flag}", *map(str, values)]


# ---------------------------------------------------------------------------------------------------------- for people


def _as_json(recipe: Recipe) -> dict[str, Any]:
    commands = {name: shlex.join(command(recipe, spelled=name == "spelled")) for name in ("command", "spelled")}
    return {**asdict(recipe), **commands}


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="saccade distill --recipe NAME --data DIR --out OUT", title_justify="left")
    table.add_column("name", no_wrap=True)
    for heading in ("paper", "what", "time"):
        table.add_column(heading)
    for recipe in RECIPES:
        table.add_row(recipe.name, recipe.where, recipe.what, recipe.time)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print("One of them, with its published numbers and every flag: saccade recipes NAME")


def _show(recipe: Recipe) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=recipe.name, title_justify="left", show_header=False, box=None)
    published = [f"{number}  {what}" for what, number in (recipe.published or {}).items()]
    table.add_row("what", recipe.what)
    table.add_row("paper", recipe.where)
    table.add_row("published", "\n".join(published) or "none")
    table.add_row("time", recipe.time)
    table.add_row("how", recipe.how)
    Console().print(table)
    print(f"\n{shlex.join(command(recipe, spelled=False))}\n\nwhich is\n")
    print(shlex.join(command(recipe, spelled=True)))  # no table: one line, to be copied
