"""`foveate COMMAND --help`: the flags of a command in groups, read off the dataclass that holds them.

tyro parses the command line, but its help has no groups. A flag belongs to the same group in every command.
"""

import ast
import inspect
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields, is_dataclass
from itertools import pairwise
from shutil import get_terminal_size
from textwrap import fill
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import Positional

from foveate.cli.commands import Command

GROUPS = {
    "data": "data split annotations accept_annotations images image_list limit validate captions boxes from_results "
    "global_data kind maps map_ids labels novel vocab stuff crowd gallery train val test pairs only",
    "model": "model pretrained reference clip classifier cnn encoder backbone backbone_weights text_from config "
    "version residual pyramid taps channels depth queries class_names embeddings lvis_heads relu_embedding head size "
    "input_edges squash pad window statistics resize templates",
    "method": "objective regions grid grid_rule max_regions keep correlation alpha tokens augment jitter patch_dropout "
    "background_weight benchmark fusion temperature detector_temperature mask_pooling min_score nms max_boxes overlap "
    "all_synonyms panoptic what crops masked masks metrics style task view clusters",
    "optimisation": "steps batch accumulate lr clip_lr weight_decay betas eps warmup milestones layers layer_decay "
    "clip_gradient whole_steps",
    "run": "out overwrite recipe seed log_every save_every product skip_nonfinite track dry_run allow_changed_data "
    "strict cache candidates results plot page draw to format opset",
    "machine": "device workers jobs precision dtype compile checkpointing fsdp",
}
"""The flags of each group, by the names of their fields."""
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}
ORDER = {name: place for place, name in enumerate(GROUP_OF)}
LEFT = 24  # columns of the names of flags
WIDEST = 100  # columns


def help_text(command: Command, config: type[Any], default: Any = None) -> str:
    """The help of a command: what it does, an example, its arguments, and its flags in groups.

    Args:
        command: row of the table of commands.
        config: dataclass of its flags.
        default: an instance whose values are the defaults, such as a recipe's; None: those of the dataclass.
    """
    width = min(get_terminal_size().columns, WIDEST)
    hints = get_type_hints(config, include_extras=True)
    texts = _field_docs(config)
    entries: dict[str, list[str]] = {"arguments": [], **{group: [] for group in GROUPS}}
    usage = [f"usage: foveate {command.words}"]
    for field in sorted(fields(config), key=lambda field: ORDER.get(field.name, 0)):
        kind, is_positional = _unwrap(hints[field.name])
        value = _values(kind)
        if is_positional:
            group, left = "arguments", field.name.upper()
            shown = left if get_origin(kind) is not tuple else f"{left} ..."
            usage.append(shown if field.default is MISSING else f"[{shown}]")
        else:
            group, flag = GROUP_OF[field.name], field.name.replace("_", "-")
            left = f"--{flag}, --no-{flag}" if kind is bool else f"--{flag} {value}"
        right = " ".join([*texts[field.name].split(), *_default(field, default)])
        entries[group].append(_entry(left, right, width))
    about = [_paragraph(text, width) for text in (inspect.getdoc(config) or "").split("\n\n")]
    example = f"Example:\n  foveate {command.words} {command.example}"
    groups = ["\n".join([f"{group}:", *lines]) for group, lines in entries.items() if lines]
    return "\n\n".join([" ".join([*usage, "[FLAGS]"]), *about, example, *groups])


def flags_of(config: type[Any]) -> list[str]:
    """The fields of a command that are flags, not positional arguments."""
    hints = get_type_hints(config, include_extras=True)
    return [field.name for field in fields(config) if not _unwrap(hints[field.name])[1]]


def _field_docs(config: type[Any]) -> dict[str, str]:
    """The text below each field, in its class or in one that it inherits from."""
    docs: dict[str, str] = {}
    for base in reversed(config.__mro__):
        body = ast.parse(inspect.getsource(base)).body[0].body if is_dataclass(base) else []  # pyright: ignore[reportAttributeAccessIssue]
        for field, below in pairwise(body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(str(text))):
                    docs[name] = text
    return docs


def _unwrap(hint: Any) -> tuple[Any, bool]:
    """A type without its marks and without None, and whether it is given without a flag."""
    marks = hint.__metadata__ if get_origin(hint) is Annotated else ()
    kind = get_args(hint)[0] if marks else hint
    kinds = [part for part in get_args(kind) if part is not NoneType] if _is_union(kind) else [kind]
    return (kinds[0] if len(kinds) == 1 else Union[tuple(kinds)]), any(_is_positional(mark) for mark in marks)  # noqa: UP007


def _is_positional(mark: Any) -> bool:
    return mark is Positional or mark in get_args(Positional[int])[1:]


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def _values(kind: Any) -> str:
    """What stands for the value of a flag: a type's name, or the values that may be chosen."""
    if kind is bool:
        return ""
    if _is_union(kind) or get_origin(kind) is Literal:
        return f"{{{','.join(_choices(kind))}}}"
    if get_origin(kind) is not tuple:
        return kind.__name__.upper()
    first, *others = get_args(kind)
    return f"{_values(first)} ..." if others == [...] else " ".join(map(_values, (first, *others)))


def _choices(kind: Any) -> list[str]:
    parts: Iterable[Any] = get_args(kind)
    return [choice for part in parts for choice in (_choices(part) if get_origin(part) else [str(part)])]


def _default(field: Field[Any], default: Any) -> list[str]:
    """What is taken where a flag is not given; nothing where its text says it."""
    value = field.default if default is None else getattr(default, field.name)
    if value is MISSING or value is tyro.MISSING:
        return ["(required)"]
    values = value if isinstance(value, tuple) else (value,)
    shown = " ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in values)
    return [] if value in (None, (), "") else [f"(default: {shown})"]


def _entry(left: str, right: str, width: int) -> str:
    """A flag with its text beside it, or below it where the flag is long."""
    indent = " " * LEFT
    text = fill(right, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    if len(left) + 4 <= LEFT:
        return f"  {left}{text[len(left) + 2 :]}"
    if len(left) + 2 > width:
        left = fill(left.replace(",", ", "), width - 2, subsequent_indent="  ").replace("\n", "\n  ")
    return f"  {left}\n{text}"


def _paragraph(text: str, width: int) -> str:
    """A paragraph, filled; a table, whose lines are indented, is left as it is."""
    return text if any(line.startswith(" ") for line in text.splitlines()) else fill(text, width)
