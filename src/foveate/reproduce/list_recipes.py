"""`foveate recipes`, and the defaults of `--recipe NAME`: the rows of `foveate.recipes` as command lines."""

import json
import shlex
import sys
from dataclasses import asdict, fields
from typing import Any, get_args

import tyro
from rich.console import Console
from rich.table import Table

from foveate.cli.commands import find_command
from foveate.recipes import RECIPES, Recipe, Verb, find_recipe, words_of
from foveate.reproduce.flags import Recipes

REQUIRED = {"data": "DIR", "out": "OUT"}  # placeholders of the flags that every run needs


def run(config: Recipes) -> None:
    """List all recipes, those with a prefix, or show one; InputError for an unknown name."""
    names = [recipe.name for recipe in RECIPES]
    if config.name is None and config.format == "json":
        print(json.dumps([_as_json(recipe) for recipe in RECIPES], indent=2))
    elif config.name is None:
        _list("")
    elif config.name not in names and any(name.startswith(f"{config.name}-") for name in names):
        _list(f"{config.name}-")
    elif config.format == "json":
        print(json.dumps(_as_json(find_recipe(config.name)), indent=2))
    else:
        _show(find_recipe(config.name))


def named_in(arguments: list[str]) -> str | None:
    """The last --recipe among the arguments of a command; the parser reports a missing name."""
    name = None
    for word, following in zip(arguments, [*arguments[1:], "-"], strict=True):
        if word == "--recipe" and not following.startswith("-"):
            name = following
        elif word.startswith("--recipe="):
            name = word.removeprefix("--recipe=")
    return name


def defaults_of(recipe: Recipe) -> Any:
    """The flags' defaults under a recipe; required paths stay required."""
    required = dict.fromkeys([*REQUIRED, *recipe.needs], tyro.MISSING)
    return flags_of(recipe.verb)(**{**recipe.fields, **required}, recipe=recipe.name)


def flags_of(verb: str) -> type[Any]:
    """The dataclass of the flags of a recipe's command."""
    return find_command(verb.split())[0].load_config()


def has_names(verb: str) -> bool:
    """Whether a command knows --recipe NAME."""
    return "recipe" in {field.name for field in fields(flags_of(verb))}


def command_of(recipe: Recipe, *, spelled: bool) -> list[str]:
    """A recipe's command line: by its name, or with every flag spelled out."""
    named = has_names(recipe.verb) and not spelled
    flags = {**REQUIRED, **recipe.needs, **({"recipe": recipe.name} if named else recipe.fields)}
    return ["foveate", *recipe.verb.split(), *words_of(flags)]


def _as_json(recipe: Recipe) -> dict[str, Any]:
    commands = {key: shlex.join(command_of(recipe, spelled=key == "spelled")) for key in ("command", "spelled")}
    return {**asdict(recipe), **commands}


def _list(prefix: str) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    for verb in get_args(Verb):
        recipes = [recipe for recipe in RECIPES if recipe.verb == verb and recipe.name.startswith(prefix)]
        flags = "--recipe NAME" if has_names(verb) else "with the flags that `foveate recipes NAME` shows"
        table = Table(title=f"foveate {verb} {flags} --data DIR --out OUT", title_justify="left")
        table.add_column("name", no_wrap=True)
        for heading in ("paper", "what", "time"):
            table.add_column(heading)
        for recipe in recipes:
            table.add_row(recipe.name, recipe.where, recipe.what, recipe.time)
        if recipes:
            console.print(table)
    print("One recipe with its published results and every flag: foveate recipes NAME")


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
    print(f"\n{shlex.join(command_of(recipe, spelled=False))}\n\nis equivalent to\n")
    print(shlex.join(command_of(recipe, spelled=True)))  # no table: one line, to be copied
