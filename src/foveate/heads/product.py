"""A trained head as a folder: what it was told beside what was trained (F-ViT, Cat-Seg, generators of masks).

    FOLDER/NAME.json          which CLIP it stands on, with its digest; its numbers; its classes
           NAME.safetensors   the head, and of the CLIP what was trained with it

The rest of the CLIP is not copied: it is up to ten times as large. It is found by its name and known by its digest.
Deliberately absent: optimizer state (the run's checkpoints have it), and what the numbers are (each head's `product`).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save
from torch import Tensor, nn

from foveate.clip.digest import digest_state
from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.clip.states import differences
from foveate.errors import InputError
from foveate.io.files import versions, write_whole


def write_product(folder: Path, name: str, *, facts: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Write a head; the weights last, so that a folder with weights is whole.

    Args:
        folder: made where missing.
        name: of the two files.
        facts: JSON of what it was told.
        state: of `own_state`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {**facts, "versions": versions()}
    write_whole(folder / f"{name}.json", (json.dumps(content, indent=2) + "\n").encode())
    write_whole(folder / f"{name}.safetensors", save({key: one.contiguous() for key, one in state.items()}))


def read_facts(folder: Path, name: str, *, version: int, verb: str, older: str = "") -> dict[str, Any]:
    """Read what a head's folder says of it.

    Args:
        folder: of `write_product`.
        name: of its files, which is also what it is called in messages.
        version: of the form that is understood.
        verb: of `foveate` that makes such folders.
        older: why a form before it is not understood, for the message.

    Raises:
        InputError: there is no such head in it, or what it says is damaged or of another form.
    """
    path = folder / f"{name}.json"
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{folder}: need a folder with a {name}, such as OUT/model of `foveate {verb}`; {path.name} is not there."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: need a {name}'s description; {type(error).__name__}: {error}.") from error
    if not isinstance(content, dict) or "format" not in content:
        raise InputError(f"{path}: need a {name}'s description with its `format`; there is none.")
    if content["format"] != version:
        is_older = isinstance(content["format"], int) and content["format"] < version
        reason = f", and {older}" if older and is_older else ""
        raise InputError(f"{path}: need a {name} of format {version}; got {content['format']}{reason}. Train it again.")
    return content


def read_state(folder: Path, name: str) -> dict[str, Tensor]:
    """Read what was trained.

    Raises:
        InputError: the file is missing or damaged, or holds values that are not finite.
    """
    path = folder / f"{name}.safetensors"
    try:
        state = read_tensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: need a {name}'s weights; {type(error).__name__}: {error}.") from error
    if not all(bool(one.isfinite().all()) for one in state.values() if one.is_floating_point()):
        raise InputError(f"{path}: holds values that are not finite. Train it again.")
    return state


def load_own(head: nn.Module, state: dict[str, Tensor], *, prefix: str, path: Path) -> None:
    """Put what was trained into a head that was built from its description.

    Args:
        head: changed here.
        state: of `read_state`.
        prefix: as in `own_state`.
        path: of the description, for messages.

    Raises:
        InputError: the weights are of another head than the description's.
    """
    problems = differences(own_state(head, prefix=prefix), state)
    if problems:
        raise InputError(
            f"{path.with_suffix('.safetensors')}: need the weights that {path.name} describes; {problems}."
        )
    head.load_state_dict(state, strict=False)  # the names were compared: what is missing is frozen and not copied


def own_state(head: nn.Module, *, prefix: str) -> dict[str, Tensor]:
    """All of a head's state that is not a frozen network's.

    Args:
        head: with a network whose names begin with `prefix`.
        prefix: of the network of which only what is trained counts.
    """
    trained = {name for name, parameter in head.named_parameters() if parameter.requires_grad}
    state = head.state_dict()
    return {name: one.cpu() for name, one in state.items() if name in trained or not name.startswith(prefix)}


def load_base(
    model: str,
    *,
    pretrained: str | None,
    digest: str,
    clip: str | Path | None,
    device: str | torch.device,
    name: str,
    whole: bool = False,
) -> Clip:
    """Load the CLIP that a head stands on, and make sure that it is the one.

    Args:
        model: how it was named in training.
        pretrained: likewise.
        digest: of `tower_digest` in training.
        clip: where it lies now; None: where it lay.
        device: where it goes.
        name: what the head is called in messages.
        whole: as for `tower_digest`.

    Raises:
        InputError: there is no such CLIP, or it is another.
    """
    where = model if clip is None else clip
    try:
        found = load(where, pretrained=pretrained if clip is None else None, device=device)
    except InputError as error:
        raise InputError(f"{error} (the CLIP that the {name} was trained on; say with --clip where it is)") from error
    if tower_digest(found, whole=whole) != digest:
        tower = "this one" if whole else "the image tower of this one"
        raise InputError(
            f"{where}: need the CLIP that the {name} was trained on, {model}; {tower}, or its "
            "windows, are others. Name it with --clip."
        )
    return found


def tower_digest(clip: Clip, *, whole: bool = False) -> str:
    """What tells the CLIP that a head stands on from another: its weights, and the windows it looks through.

    Args:
        clip: before anything of it is trained.
        whole: the text tower too, of a head that embeds words with it.
    """
    weights = digest_state((clip.model if whole else clip.visual).state_dict())
    if clip.windows is None:
        return weights
    return hashlib.sha256(f"{weights} {clip.windows.size} {list(clip.windows.blocks)}".encode()).hexdigest()
