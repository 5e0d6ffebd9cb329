"""A trained head as a folder (F-ViT, CAT-Seg, mask generators).

    FOLDER/NAME.json          the CLIP it was trained on, with its digest; hyperparameters; classes
           NAME.safetensors   the head, and what was trained of the CLIP
           clip/              the CLIP itself, only if it came with a published file

Frozen weights of the CLIP are not copied: the CLIP is up to ten times as large. It is found by its name and recognised
by its digest. The dataclasses of the descriptions are in the `product` module of each head.
"""

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from foveate.clip.io.digest import digest_state, read_tensors, save_tensors
from foveate.clip.io.states import differences
from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.errors import InputError, listed
from foveate.io.files import reason_of, versions, write_whole
from foveate.io.json_text import parse_json

CLIP_FOLDER = "clip"
Description = TypeVar("Description")


@dataclass(frozen=True)
class HeadKind:
    """The kind of head in a folder."""

    name: str  # stem of the two files
    format: int  # of the description
    command: str  # of `foveate` that writes such folders
    older: str = ""  # why an older format cannot be read


def write_head(folder: Path, kind: HeadKind, about: Any, state: dict[str, Tensor]) -> None:
    """Write a head to a folder, which is created if missing.

    The weights are written last, so a folder with weights is complete.

    Args:
        about: a dataclass, see `read_dataclass`.
        state: of `trained_state`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": kind.format, **asdict(about), "versions": versions()}
    write_whole(folder / f"{kind.name}.json", (json.dumps(content, indent=2) + "\n").encode())
    weights = save_tensors({key: value.contiguous() for key, value in state.items()})
    write_whole(folder / f"{kind.name}.safetensors", weights)


def read_description(folder: Path, kind: HeadKind, cls: type[Description]) -> Description:
    """Read the description in a head's folder.

    Raises:
        InputError: the file is missing, damaged or of another format.
    """
    path, name = folder / f"{kind.name}.json", kind.name
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{folder}: need a folder with a {name}, such as OUT/model of `foveate {kind.command}`; {path.name} "
            f"{reason_of(error)}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: need a {name}'s description; {type(error).__name__}: {error}.") from error
    if not isinstance(content, dict) or "format" not in content:
        raise InputError(f"{path}: need a {name}'s description with `format`; not found. Train it again.")
    version = content.pop("format")
    if version != kind.format:
        reason = f", and {kind.older}" if kind.older and isinstance(version, int) and version < kind.format else ""
        raise InputError(f"{path}: need a {name} of format {kind.format}; got {version}{reason}. Train it again.")
    content.pop("versions", None)  # of the packages that wrote it
    return read_dataclass(cls, content, source=f"{path}: need a {name}'s description")


def read_dataclass(cls: type[Description], content: Any, *, source: str) -> Description:
    """Build a dataclass from JSON. Fields with a default may be missing; unknown fields are refused.

    Args:
        cls: its fields are ints, floats, strings, bools, Literals, tuples, dictionaries, optional values, and
            dataclasses of these.
        source: start of the message: the file, and what is needed.

    Raises:
        InputError: a field is missing, unknown or of another type.
    """
    try:
        return _read_value(cls, content, cls.__name__)
    except ValueError as error:
        raise InputError(f"{source}; {error}. Train or convert it again.") from error


def _read_value(kind: Any, value: Any, name: str) -> Any:
    """Convert a JSON value to a type, or raise a ValueError with the field's name."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        return _read_fields(kind, value, name)
    if NoneType in args:
        (inner,) = (arg for arg in args if arg is not NoneType)
        return None if value is None else _read_value(inner, value, name)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, args))}; got {value!r}")
        return value
    if origin is tuple and isinstance(value, list):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) != len(value):
            raise ValueError(f"{name} must have {len(kinds)} values; got {len(value)}")
        return tuple(_read_value(part, entry, f"an entry of {name}") for part, entry in zip(kinds, value, strict=True))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not (origin or kind):
        raise ValueError(f"{name} must be of type {getattr(origin or kind, '__name__', kind)}; got {value!r}")
    return value


def _read_fields(cls: type, value: Any, name: str) -> Any:
    """Convert a JSON object to a dataclass."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object of named values; got {value!r}")
    hints = get_type_hints(cls)
    missing = [field.name for field in fields(cls) if field.default is MISSING and field.name not in value]
    unknown = [key for key in value if key not in hints]
    for problem, names in (("missing", missing), ("unknown", unknown)):
        if names:
            raise ValueError(f"{name} has {problem} fields: {listed(names)}")
    return cls(**{key: _read_value(hints[key], part, f"{name}.{key}") for key, part in value.items()})


def read_weights(folder: Path, kind: HeadKind) -> dict[str, Tensor]:
    """Read the trained weights.

    Raises:
        InputError: the file is missing or damaged, or has values that are not finite.
    """
    path = folder / f"{kind.name}.safetensors"
    state = read_tensors(path, need=f"a {kind.name}'s weights")
    if not all(bool(value.isfinite().all()) for value in state.values() if value.is_floating_point()):
        raise InputError(f"{path}: weights must be finite; some are not. Train it again.")
    return state


def load_weights(head: nn.Module, state: dict[str, Tensor], *, frozen: str, folder: Path, kind: HeadKind) -> None:
    """Load the weights of `read_weights` into a head that was built from its description.

    Args:
        frozen: as in `trained_state`.
        folder: for messages.

    Raises:
        InputError: the weights do not fit the description.
    """
    problems = differences(trained_state(head, frozen=frozen), state)
    if problems:
        raise InputError(
            f"{folder / kind.name}.safetensors: need the weights that {kind.name}.json describes; {problems}."
        )
    head.load_state_dict(state, strict=False)  # the names were compared: only frozen weights are missing


def trained_state(head: nn.Module, *, frozen: str) -> dict[str, Tensor]:
    """The state of a head, with only the trained weights of its frozen network.

    Args:
        frozen: prefix of the names of that network.
    """
    trained = {name for name, parameter in head.named_parameters() if parameter.requires_grad}
    state = head.state_dict()
    return {name: value.cpu() for name, value in state.items() if name in trained or not name.startswith(frozen)}


def load_base(
    about: Any,
    folder: Path,
    *,
    clip: str | Path | None,
    device: str | torch.device,
    kind: HeadKind,
    whole: bool = False,
) -> Clip:
    """Load the CLIP that a head was trained on, and check that it is the same.

    Args:
        about: description of the head: `model` and `pretrained`, the CLIP's name in training, and `tower`, its digest.
        folder: of the head; the CLIP is in it if the description has `has_clip`.
        clip: name or path of the CLIP; None: as in the description.
        whole: as for `tower_digest`.

    Raises:
        InputError: the CLIP is not found, or is another.
    """
    path = folder / CLIP_FOLDER if getattr(about, "has_clip", False) else about.model
    path, pretrained = (path, about.pretrained) if clip is None else (clip, None)
    try:
        base = load(path, pretrained=pretrained, device=device)
    except InputError as error:
        raise InputError(
            f"{error} (the CLIP that the {kind.name} was trained on; give its path with --clip)"
        ) from error
    if tower_digest(base, whole=whole) != about.tower:
        tower = "this CLIP" if whole else "the image tower of this CLIP"
        raise InputError(
            f"{path}: need the CLIP that the {kind.name} was trained on, {about.model}; {tower} has "
            "other weights or windows. Give its path with --clip."
        )
    return base


def tower_digest(clip: Clip, *, whole: bool = False) -> str:
    """Digest of the CLIP that a head is trained on: its weights and its attention windows.

    Args:
        clip: before any of it is trained.
        whole: include the text tower, for heads that embed class names with it.
    """
    weights = digest_state((clip.model if whole else clip.visual).state_dict())
    if clip.windows is None:
        return weights
    return hashlib.sha256(f"{weights} {clip.windows.size} {list(clip.windows.blocks)}".encode()).hexdigest()
