"""Classes and input of a Mask2Former or MaskFormer in a transformers folder.

Read from config.json and preprocessor_config.json without torch or transformers, for the command line. transformers'
files of these models have a fixed height and width; then the original's sizes are used, with which the published
results were measured: shortest edge 800, longest at most 1333.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from foveate.errors import InputError
from foveate.io.json_text import parse_json

Kind = Literal["mask2former", "maskformer"]
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
MAX_CLASSES = 10_000
SHORTEST, LONGEST, MULTIPLE = 800, 1333, 32  # of the published configurations for COCO [pixels]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MIN_SCORE, OVERLAP = 0.8, 0.8  # object mask and overlap threshold of the published configurations
_COCO = (133, "person", "toothbrush", 80)  # classes, first and last thing, things

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class ModelDescription:
    """Classes and input of a published model."""

    kind: Kind
    classes: tuple[tuple[str, ...], ...]  # the synonyms of each; the first is its name
    has_names: bool  # False: the folder only numbers them
    shortest: int = SHORTEST  # edge of the input [pixels]
    longest: int = LONGEST
    multiple: int = MULTIPLE  # of the padded sides [pixels]
    mean: Colour = IMAGENET[0]
    std: Colour = IMAGENET[1]
    notes: tuple[str, ...] = ()  # warnings for the user

    @property
    def is_thing(self) -> tuple[bool, ...] | None:
        """Which classes are things, if they are COCO's 133; None: unknown."""
        count, first, last, things = _COCO
        if len(self.classes) != count or self.classes[0][0] != first or self.classes[things - 1][0] != last:
            return None
        return tuple(index < things for index in range(count))


def is_published(folder: Path) -> bool:
    """Whether a folder holds a Mask2Former or MaskFormer of transformers, by its config.json.

    Raises:
        InputError: it holds a OneFormer.
    """
    try:
        content = parse_json((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind == "oneformer":
        raise InputError(
            f"{folder}: need a Mask2Former or a MaskFormer; this is a OneFormer, which needs a task "
            "prompt. Use another model."
        )
    return kind in get_args(Kind)


def describe(folder: Path) -> ModelDescription:
    """Read a transformers folder.

    Raises:
        InputError: no Mask2Former or MaskFormer, or a damaged description.
    """
    path = folder / CONFIG
    config = _read(path)
    kind = config.get("model_type")
    if kind not in get_args(Kind):
        raise InputError(f'{path}: need "model_type" {" or ".join(get_args(Kind))}; got {kind!r}. Check the folder.')
    names = _names(config, path)
    has_names = bool(names) and not all(name == f"LABEL_{index}" for index, name in enumerate(names))
    classes = tuple(tuple(part.strip() for part in name.split(",") if part.strip()) or (name,) for name in names)
    return ModelDescription(cast(Kind, kind), classes, has_names, **_input(folder / PREPROCESSOR))


def _names(config: dict[str, Any], path: Path) -> list[str]:
    """The names of the classes in the order of their indices; "LABEL_0" .. if the folder has none."""
    table = config.get("id2label")
    if table is None:
        count = config.get("num_labels", 2)  # transformers writes neither for two classes
        is_count = isinstance(count, int) and count <= MAX_CLASSES
        table = {str(index): f"LABEL_{index}" for index in range(count if is_count else 0)}
    keys = [str(index) for index in range(len(table))] if isinstance(table, dict) else []
    if not keys or {*table} != {*keys} or not all(isinstance(name, str) and name.strip() for name in table.values()):
        raise InputError(f'{path}: need "id2label" with a name for each class 0, 1, 2 ...; got {_short(table)}.')
    return [table[key] for key in keys]


def _input(path: Path) -> dict[str, Any]:
    """The input, as arguments of `ModelDescription`."""
    published = f"shortest edge {SHORTEST}, longest at most {LONGEST}"
    if not path.is_file():
        return {"notes": (f"{path} not found: using the published input, {published}",)}
    content = _read(path)
    size, longest, notes = content.get("size", SHORTEST), content.get("max_size", LONGEST), ()
    if isinstance(size, dict) and "shortest_edge" in size:
        size, longest = size["shortest_edge"], size.get("longest_edge", longest)
    elif isinstance(size, dict):
        notes = (
            f"{path} has the size {_short(size)}: using the published input instead, {published}; see --input-edges",
        )
        size, longest = SHORTEST, LONGEST
    multiple = content.get("size_divisor") or MULTIPLE  # 0 in folders of fixed sizes
    colours = [content.get(name, default) for name, default in zip(("image_mean", "image_std"), IMAGENET, strict=True)]
    is_valid = all(type(side) is int and side > 0 for side in (size, longest, multiple))
    if (
        not is_valid
        or not all(map(_is_colour, colours))
        or min(colours[1]) <= 0
        or size > longest
        or multiple > longest
    ):
        raise InputError(
            f"{path}: need whole positive sizes, and a mean and a deviation of three numbers; got {size!r}, "
            f"{longest!r}, {multiple!r}, {_short(colours)}. Correct the file."
        )
    factor = content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 1.0
    if not (isinstance(factor, int | float) and abs(factor * 255 - 1) < 1e-3):
        raise InputError(
            f"{path}: need colours that are divided by 255 before the mean is subtracted; got do_rescale "
            f"{content.get('do_rescale', True)!r} and rescale_factor {content.get('rescale_factor', 1 / 255)!r}."
        )
    if not content.get("do_normalize", True):
        colours = [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]
    mean, std = (cast(Colour, tuple(map(float, colour))) for colour in colours)
    return {"shortest": size, "longest": longest, "multiple": multiple, "mean": mean, "std": std, "notes": notes}


def _is_colour(value: Any) -> bool:
    has_three = isinstance(value, list | tuple) and len(value) == 3
    return has_three and all(isinstance(channel, int | float) and math.isfinite(channel) for channel in value)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: need transformers' description of a model; {type(error).__name__}: {_short(error)}."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: need transformers' description of a model; got a {type(content).__name__}.")
    return content


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
