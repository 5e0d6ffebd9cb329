"""A trained detector as a folder (Sec. 3.3): see `foveate.heads.common.product`.

FOLDER/detector.safetensors   pyramid, both stages, temperature, text embeddings; trained blocks of the tower
       detector.json          the tower's name and digest, the network, base and novel classes
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foveate.errors import InputError
from foveate.heads.common.product import (
    HeadKind,
    load_base,
    load_weights,
    read_description,
    read_weights,
    trained_state,
    write_head,
)
from foveate.heads.fvit.detector import FViT, Network

DETECTOR = HeadKind(
    "detector",
    format=2,
    command="train-fvit",
    older="its network differs from the published one: no ReLU after the class embedding, CLIP's mean and deviation, "
    "bicubic resizing, and other RoI levels at patches of 14",
)
TOWER = "tower."  # prefix of the CLIP's names in the state


@dataclass(frozen=True)
class About:
    """Description of a detector."""

    model: str  # the CLIP's name
    pretrained: str | None
    tower: str  # digest of the image tower before training
    network: Network
    base: tuple[str, ...]
    novel: tuple[str, ...]
    left_out: tuple[str, ...]
    templates: str
    benchmark: str  # default fusion of scores
    training: dict[str, Any]  # data, steps, seed ...; for people
    has_clip: bool = False  # the CLIP is in the folder, in `CLIP_FOLDER`

    @property
    def classes(self) -> tuple[str, ...]:
        """Base and novel ones."""
        return (*self.base, *self.novel)


def save_detector(detector: FViT, folder: Path, about: About) -> None:
    """Write a detector to a folder, which is created if missing."""
    write_head(folder, DETECTOR, about, trained_state(detector, frozen=TOWER))


def read_about(folder: Path) -> About:
    """Read the description of a detector; see `read_description`."""
    return read_description(folder, DETECTOR, About)


def load_detector(
    folder: Path, *, clip: str | Path | None = None, device: str | torch.device = "cpu"
) -> tuple[FViT, About]:
    """Build a detector from its folder, on the CLIP that it was trained on.

    Args:
        folder: of `save_detector`.
        clip: name or path of that CLIP; None: as in the description.
        device: of the detector.

    Returns:
        The detector in evaluation mode, and its description.

    Raises:
        InputError: no detector, damaged weights, or another tower than it was trained on.
    """
    about = read_about(folder)
    tower = load_base(about, folder, clip=clip, device=device, kind=DETECTOR)
    state = read_weights(folder, DETECTOR)
    missing = [name for name in ("text", "is_novel") if name not in state]
    if missing:
        raise InputError(
            f"{folder / DETECTOR.name}.safetensors: need a detector's weights; {missing[0]} not found. Train it again."
        )
    detector = FViT(tower, about.network, text=state["text"], is_novel=state["is_novel"], jitter=None, flip=False)
    load_weights(detector, state, frozen=TOWER, folder=folder, kind=DETECTOR)
    return detector.eval(), about
