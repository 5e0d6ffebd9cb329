"""The command line: finds the command in the table, reads its flags off its dataclass (tyro), and runs its procedure.

A mistake in the input, and what the system refuses (a full disk), end with a message and status 2, no traceback; for
signals, and for memory that runs out, see `engine.stop`.
Characters that the terminal's encoding lacks, and bytes of file names that are no characters, are printed as escapes.
"""

import errno
import io
import os
import sys
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import tyro
from tyro.conf import OmitArgPrefixes

from foveate.cli.commands import COMMANDS, commands_under, find_command, help_lines
from foveate.cli.help import help_text
from foveate.engine.stop import ended_in_order
from foveate.errors import InputError
from foveate.io.files import versions
from foveate.io.outputs import check_command

HELP = {"--help", "-h"}
VERSION = (["--version"], ["-V"])


def main(arguments: list[str] | None = None) -> None:
    """Parse and run one command; exit with 2 and a message when the input is wrong."""
    typed = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if typed in VERSION:
        print(f"foveate {versions()['foveate']}")
        return
    try:
        config = parse(typed)
        check_command(config)
        with ended_in_order(config):
            find_command(typed)[0].load_procedure()(config)
        _flush_output()
    except UnicodeEncodeError as error:  # a name that no check refused
        print(f"foveate: need names in UTF-8; got {error.object!r:.200}. Rename the file or folder.", file=sys.stderr)
        raise SystemExit(2) from None
    except (InputError, OSError) as error:  # OSError: the disk is full, a folder may not be read, ...
        with suppress(InputError):
            _flush_output()
        # files are named where they are written
        is_written = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE, errno.EIO)
        is_printing = not isinstance(error, InputError) and error.filename is None and is_written
        print(f"foveate: {'standard output: ' if is_printing else ''}{error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("foveate: stopped", file=sys.stderr)
        raise SystemExit(130) from None


def _flush_output() -> None:
    """Write what was printed; where that fails (a file on a full disk), Python would end with a traceback of its own.

    Raises:
        InputError: the output cannot be written.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InputError(f"standard output: need a file or pipe that can be written; {error}.") from error


def parse(arguments: list[str]) -> Any:
    """Read the flags of one command; with --recipe NAME they default to the recipe's.

    Raises:
        InputError: there is no such command, or no such recipe.
        SystemExit: 0 after help was printed, 2 where flags are wrong or missing.
    """
    _print_list(arguments)
    command, flags = find_command(arguments)
    settings: dict[str, Any] = {"prog": f"foveate {command.words}", "args": flags, "config": (OmitArgPrefixes,)}
    config = command.load_config()
    if "recipe" in {field.name for field in fields(config)}:
        from foveate.recipes import find_recipe
        from foveate.reproduce.list_recipes import defaults_of, named_in

        recipe = named_in(flags)
        if recipe is not None:
            settings["default"] = defaults_of(find_recipe(recipe, verb=command.words))
    if HELP & {*flags}:
        print(help_text(command, config, settings.get("default")))
        raise SystemExit(0)
    return tyro.cli(config, **settings)


def _print_list(arguments: list[str]) -> None:
    """Print the list of commands, or of those that share a first word, where that is what was typed."""
    word = arguments[0] if arguments else ""
    subcommands = commands_under(word)
    if word in HELP or not arguments:
        usage, commands = "COMMAND ...", COMMANDS
    elif subcommands and (len(arguments) == 1 or arguments[1] in HELP):
        usage, commands = f"{word} COMMAND ...", [replace(command, group="") for command in subcommands]
    else:
        return
    usage = f"usage: foveate {usage}    (its flags and an example: foveate COMMAND --help)"
    listed = ["Foveate: CLIPSelf for any CLIP.", usage, "", *help_lines(commands)]
    is_asked = not HELP.isdisjoint(arguments)
    print("\n".join(listed), file=sys.stdout if is_asked else sys.stderr)
    raise SystemExit(0 if is_asked else 2)


if __name__ == "__main__":
    main()
