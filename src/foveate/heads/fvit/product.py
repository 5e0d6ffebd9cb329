"""A trained detector as a folder: what was trained, what it was told, and which CLIP it stands on (Sec. 3.3).

    FOLDER/detector.safetensors   the pyramid, both stages, the temperature, the texts; trained blocks of the tower
           detector.json          the tower's name and digest, the network's numbers, base and novel classes
           clip/                  the CLIP itself, only where it came with a published file (`published.py`)

The frozen tower is not copied: a detector is some 30 million parameters, a tower up to 300. It is found by its name
and recognised by its digest. Deliberately absent: optimizer state (the run's checkpoints have it).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from foveate.errors import InputError
from foveate.heads.fvit.detector import FViT
from foveate.heads.fvit.names import Kind, Resize, Statistics
from foveate.heads.product import load_base, load_own, own_state, read_facts, read_state, write_product

NAME = "detector"  # of its files
FORMAT = 2
CLIP_FOLDER = "clip"  # in the folder, of a CLIP that came with a published file
_OLDER = (  # why a folder of format 1 cannot be opened
    "its network was another than the published one: no ReLU after the class embedding, CLIP's colour statistics, "
    "bicubic resizing, and other RoI levels at patches of 14"
)
TOWER = "tower."  # names of the CLIP in a detector


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
    norm: bool
    relu_embedding: bool
    statistics: Statistics
    resize: Resize


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
    has_clip: bool = False  # the CLIP lies in the folder, in `CLIP_FOLDER`; else it is found by its name

    @property
    def classes(self) -> tuple[str, ...]:
        """Base and novel ones."""
        return (*self.base, *self.novel)


def save_detector(detector: FViT, folder: Path, about: About) -> None:
    """Write a detector.

    Args:
        detector: trained.
        folder: made where missing.
        about: what its folder says.
    """
    state = own_state(detector, prefix=TOWER)
    write_product(folder, NAME, facts={"format": FORMAT, **asdict(about)}, state=state)


def read_about(folder: Path) -> About:
    """Read what a detector's folder says.

    Raises:
        InputError: there is no detector in it, or its description is damaged or of another version.
    """
    content = read_facts(folder, NAME, version=FORMAT, verb="train-fvit", older=_OLDER)
    try:
        network = content["network"]
        taps = None if network["taps"] is None else tuple(network["taps"])
        named = {name: tuple(content[name]) for name in ("base", "novel", "left_out")}
        rest = {
            name: content[name]
            for name in ("model", "pretrained", "tower", "templates", "benchmark", "training", "has_clip")
        }
        return About(network=Network(**{**network, "taps": taps}), **named, **rest)
    except (ValueError, KeyError, TypeError) as error:
        path = folder / f"{NAME}.json"
        raise InputError(f"{path}: need a detector's description; {type(error).__name__}: {error}.") from error


def load_detector(
    folder: Path, *, clip: str | Path | None = None, device: str | torch.device = "cpu"
) -> tuple[FViT, About]:
    """Build a detector from its folder, on the CLIP that it was trained on.

    Args:
        folder: of `save_detector`.
        clip: where that CLIP lies now; when not given, in the folder itself, or where it lay in training.
        device: where it goes.

    Returns:
        The detector in evaluation mode, and what its folder says.

    Raises:
        InputError: no detector, damaged weights, or another tower than it was trained on.
    """
    about = read_about(folder)
    model = str(folder / CLIP_FOLDER) if about.has_clip else about.model
    tower = load_base(model, pretrained=about.pretrained, digest=about.tower, clip=clip, device=device, name=NAME)
    state = read_state(folder, NAME)
    missing = [name for name in ("text", "is_novel") if name not in state]
    if missing:
        raise InputError(f"{folder / NAME}.safetensors: need a detector's weights; {missing[0]} is not there.")
    detector = FViT(
        tower, text=state["text"], is_novel=state["is_novel"], jitter=None, flip=False, **asdict(about.network)
    )
    load_own(detector, state, prefix=TOWER, path=folder / f"{NAME}.json")
    return detector.eval(), about
