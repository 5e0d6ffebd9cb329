"""A trained CAT-Seg as a folder: see `foveate.heads.common.product`.

    FOLDER/catseg.safetensors   aggregator, guidance, and what was trained of the CLIP
           catseg.json          the CLIP's name and digest, the network, the classes of the training data

It has no text embeddings, since the text tower may have been trained.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.vocabulary import Vocabulary
from foveate.heads.catseg.guidance import Backbone
from foveate.heads.catseg.model import CatSeg, Network
from foveate.heads.common.product import (
    HeadKind,
    load_base,
    load_weights,
    read_description,
    read_weights,
    trained_state,
    write_head,
)

CATSEG = HeadKind(
    "catseg",
    format=2,
    command="train-catseg",
    older="its attention over classes had another activation than CAT-Seg's (GELU for ReLU)",
)
FROZEN_BACKBONE = "swin"  # in the name of a backbone that is not trained
CLIP = "clip."  # prefix of the CLIP's names in the state


@dataclass(frozen=True)
class About:
    """Description of a CAT-Seg."""

    model: str  # the CLIP's name
    pretrained: str | None
    tower: str  # digest of both towers before training
    network: Network
    classes: tuple[tuple[str, ...], ...]  # of the training data, each with its synonyms
    novel: tuple[str, ...]  # of the data, not trained on
    training: dict[str, Any]  # data, steps, seed ...; for people
    has_clip: bool = False  # the CLIP is in the folder, in `CLIP_FOLDER`


def build_catseg(
    clip: Clip,
    network: Network,
    *,
    classes: tuple[tuple[str, ...], ...],
    pretrained: bool | dict[str, Tensor],
    augment: bool,
) -> CatSeg:
    """Build a CAT-Seg with its backbone, if it has one; see `CatSeg`, and `Backbone` for `pretrained`."""
    name, backbone = network.backbone, None
    if name is not None:
        backbone = Backbone(name, size=network.size, is_trained=FROZEN_BACKBONE not in name, pretrained=pretrained)
    return CatSeg(clip, network, vocabulary=Vocabulary(classes), backbone=backbone, augment=augment)


def save_catseg(catseg: CatSeg, folder: Path, about: About) -> None:
    """Write a CAT-Seg to a folder, which is created if missing."""
    write_head(folder, CATSEG, about, trained_state(catseg, frozen=CLIP))


def read_about(folder: Path) -> About:
    """Read the description of a CAT-Seg; see `read_description`."""
    return read_description(folder, CATSEG, About)


def load_catseg(
    folder: Path, *, clip: str | Path | None = None, device: str | torch.device = "cpu"
) -> tuple[CatSeg, About]:
    """Build a CAT-Seg from its folder, on the CLIP that it was trained on.

    Args:
        folder: of `save_catseg`.
        clip: name or path of that CLIP; None: as in the description.
        device: of the CAT-Seg.

    Returns:
        The CAT-Seg in evaluation mode, and its description.

    Raises:
        InputError: no CAT-Seg, damaged weights, or another CLIP than it was trained on.
    """
    about = read_about(folder)
    base = load_base(about, folder, clip=clip, device=device, kind=CATSEG, whole=True)
    state = read_weights(folder, CATSEG)
    catseg = build_catseg(base, about.network, classes=about.classes, pretrained=False, augment=False)
    load_weights(catseg, state, frozen=CLIP, folder=folder, kind=CATSEG)
    return catseg.eval(), about
