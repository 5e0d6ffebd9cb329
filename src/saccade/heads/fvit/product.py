"""A trained detector as a folder: what was trained, what it was told, and which CLIP it stands on (Sec. 3.3).

    FOLDER/detector.safetensors   the pyramid, both stages, the temperature, the texts; trained blocks of the tower
           detector.json          the tower's name and digest, the network's numbers, base and novel classes

The frozen tower is not copied: a detector is some 30 million parameters, a tower up to 300. It is found by its name
and recognised by its digest. Deliberately absent: optimizer state (the run's checkpoints have it).
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save

from saccade.clip.digest import digest_state
from saccade.clip.load import load
from saccade.clip.model import Clip
from saccade.files import versions, write_whole
from saccade.heads.fvit.detector import FViT
from saccade.heads.fvit.names import Kind
from saccade.types import InputError

WEIGHTS, ABOUT = "detector.safetensors", "detector.json"
FORMAT = 1
_TOWER = "tower."


@dataclass(frozen=True)
class Network:
    """The numbers that a detector is built from again."""

    size: int
    taps: tuple[int, ...] | None
    pyramid: Kind
    channels: int
    width: int
    masks: bool
    proposals: int
    trained_layers: int


@dataclass(frozen=True)
class About:
    """What a detector's folder says of it."""

    model: str  # the CLIP, as it was named
    pretrained: str | None
    tower: str  # digest of the image tower that was trained on
    network: Network
    base: tuple[str, ...]
    novel: tuple[str, ...]
    left_out: tuple[str, ...]
    templates: str
    benchmark: str  # whose fusion it is asked with where nothing else is said
    training: dict[str, Any]  # data, steps, seed ...; for people

    @property
    def classes(self) -> tuple[str, ...]:
        """Base and novel ones."""
        return (*self.base, *self.novel)


def save_detector(detector: FViT, folder: Path, about: About) -> None:
    """Write a detector; the weights last, so that a folder with weights is whole.

    Args:
        detector: trained.
        folder: made where missing.
        about: what its folder says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, **asdict(about), "versions": versions()}
    write_whole(folder / ABOUT, (json.dumps(content, indent=2) + "\n").encode())
    write_whole(folder / WEIGHTS, save({name: one.contiguous() for name, one in _own_state(detector).items()}))


def read_about(folder: Path) -> About:
    """Read what a detector's folder says.

    Raises:
        InputError: there is no detector in it, or its description is damaged or of another version.
    """
    path = folder / ABOUT
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise InputError(f"{path}: need a detector of format {FORMAT}; got {content['format']}. Train it again.")
        network = content["network"]
        taps = None if network["taps"] is None else tuple(network["taps"])
        named = {name: tuple(content[name]) for name in ("base", "novel", "left_out")}
        rest = {name: content[name] for name in ("model", "pretrained", "tower", "templates", "benchmark", "training")}
        return About(network=Network(**{**network, "taps": taps}), **named, **rest)
    except OSError as error:
        raise InputError(
            f"{folder}: need a folder with a detector, such as OUT/model of `saccade train-fvit`; {ABOUT} is not there."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: need a detector's description; {type(error).__name__}: {error}.") from error


def load_detector(
    folder: Path, *, clip: str | Path | None = None, device: str | torch.device = "cpu"
) -> tuple[FViT, About]:
    """Build a detector from its folder, on the CLIP that it was trained on.

    Args:
        folder: of `save_detector`.
        clip: where that CLIP lies now; when not given, where it lay in training.
        device: where it goes.

    Returns:
        The detector in evaluation mode, and what its folder says.

    Raises:
        InputError: no detector, damaged weights, or another tower than it was trained on.
    """
    about = read_about(folder)
    tower = load_tower(about, clip=clip, device=device)
    path = folder / WEIGHTS
    try:
        state = read_tensors(path.read_bytes())
        text, is_novel = state["text"], state["is_novel"]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path}: need a detector's weights; {type(error).__name__}: {error}.") from error
    detector = FViT(tower, text=text, is_novel=is_novel, jitter=None, flip=False, **asdict(about.network))
    expected = _own_state(detector)
    wrong = [name for name in sorted({*state, *expected}) if _shape(state, name) != _shape(expected, name)]
    if wrong:
        raise InputError(
            f"{path}: need the weights that {ABOUT} describes; {len(wrong)} tensors differ, such as {wrong[0]}."
        )
    if not all(bool(one.isfinite().all()) for one in state.values() if one.is_floating_point()):
        raise InputError(f"{path}: holds values that are not finite. Train it again.")
    detector.load_state_dict(state, strict=False)  # the names were compared: what is missing is the frozen tower's
    return detector.eval(), about


def load_tower(about: About, *, clip: str | Path | None, device: str | torch.device) -> Clip:
    """Load the CLIP that a detector stands on, and make sure that it is the one."""
    name = about.model if clip is None else clip
    try:
        found = load(name, pretrained=about.pretrained if clip is None else None, device=device)
    except InputError as error:
        raise InputError(f"{error} (the CLIP that the detector was trained on; say with --clip where it is)") from error
    if tower_digest(found) != about.tower:
        raise InputError(
            f"{name}: need the CLIP that the detector was trained on, {about.model}; the image tower of this one, "
            "or its windows, are others. Name it with --clip."
        )
    return found


def tower_digest(clip: Clip) -> str:
    """What tells the tower that a detector stands on from another: its weights, and the windows it looks through."""
    weights = digest_state(clip.visual.state_dict())
    if clip.windows is None:
        return weights
    return hashlib.sha256(f"{weights} {clip.windows.size} {list(clip.windows.blocks)}".encode()).hexdigest()


def _own_state(detector: FViT) -> dict[str, torch.Tensor]:
    """All that is not the frozen tower's."""
    trained = {name for name, parameter in detector.named_parameters() if parameter.requires_grad}
    state = detector.state_dict()
    return {name: one.cpu() for name, one in state.items() if name in trained or not name.startswith(_TOWER)}


def _shape(state: dict[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None
