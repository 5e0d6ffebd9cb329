"""A trained CAT-Seg as a folder (`foveate.heads.product`): its aggregator, and the attention that learned with it.

    FOLDER/catseg.safetensors   the aggregator, what guides it, and of the CLIP what was trained
           catseg.json          the CLIP's name and digest, the numbers, the classes that were learned from
           clip/                the CLIP itself, only where it came with a published file (`write_published`)

Unlike a detector it holds no texts: the text tower is part of the CLIP, some of which was trained.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.vocabulary import Vocabulary
from foveate.errors import InputError
from foveate.heads.catseg.guidance import Backbone
from foveate.heads.catseg.model import CatSeg
from foveate.heads.catseg.names import Residual, Version
from foveate.heads.product import load_base, load_own, own_state, read_facts, read_state, write_product

NAME = "catseg"  # of its files
FORMAT = 2
CLIP_FOLDER = "clip"  # in the folder, of a CLIP that came with a published file
_OLDER = (  # why a folder of format 1 cannot be opened
    "its attention over classes was built with another activation than CAT-Seg's (GELU for ReLU), so its weights are "
    "those of another network"
)
SWIN = "swin"  # in the name of a backbone that does not learn (Cat-Seg of 2023)
_CLIP = "clip."
_PAIRS = ("decoder", "decoder_guidance", "tower_guidance")


@dataclass(frozen=True)
class Network:
    """The numbers that a Cat-Seg is built from again; see `CatSeg`."""

    version: Version
    residual: Residual
    backbone: str | None
    size: int
    clip_size: int
    test_size: int
    longest: int
    stride: int
    window: int
    hidden: int
    guidance: int
    decoder: tuple[int, int]
    decoder_guidance: tuple[int, int]
    tower_guidance: tuple[int, int]
    heads: int
    layers: int
    most: int


@dataclass(frozen=True)
class About:
    """What a Cat-Seg's folder says of it."""

    model: str  # the CLIP, as it was named
    pretrained: str | None
    tower: str  # digest of both towers before training
    network: Network
    classes: tuple[tuple[str, ...], ...]  # learned from, each with its words
    novel: tuple[str, ...]  # of the data, not learned from
    training: dict[str, Any]  # data, steps, seed ...; for people
    has_clip: bool = False  # the CLIP lies in the folder, in `CLIP_FOLDER`; else it is found by its name


def build_catseg(
    clip: Clip,
    network: Network,
    *,
    classes: tuple[tuple[str, ...], ...],
    pretrained: bool | dict[str, Tensor],
    is_varied: bool,
) -> CatSeg:
    """Build a Cat-Seg by its numbers.

    Args:
        clip: changed, see `CatSeg`.
        network: the numbers.
        classes: to learn from, each with its words.
        pretrained: of the backbone, where there is one, see `Backbone`; False where they come from the folder.
        is_varied: see `CatSeg`.

    Raises:
        InputError: as `CatSeg` and `Backbone`.
    """
    numbers = asdict(network)
    name = numbers.pop("backbone")
    backbone = None
    if name is not None:
        backbone = Backbone(name, size=network.size, is_trained=SWIN not in name, pretrained=pretrained)
    return CatSeg(clip, vocabulary=Vocabulary(classes), backbone=backbone, is_varied=is_varied, **numbers)


def save_catseg(catseg: CatSeg, folder: Path, about: About) -> None:
    """Write a Cat-Seg.

    Args:
        catseg: trained.
        folder: made where missing.
        about: what its folder says.
    """
    state = own_state(catseg, prefix=_CLIP)
    write_product(folder, NAME, facts={"format": FORMAT, **asdict(about)}, state=state)


def read_about(folder: Path) -> About:
    """Read what a Cat-Seg's folder says.

    Raises:
        InputError: there is no Cat-Seg in it, or its description is damaged or of another version.
    """
    content = read_facts(folder, NAME, version=FORMAT, verb="train-catseg", older=_OLDER)
    try:
        pairs = {name: tuple(content["network"][name]) for name in _PAIRS}
        classes = tuple(tuple(words) for words in content["classes"])
        rest = {name: content[name] for name in ("model", "pretrained", "tower", "training", "has_clip")}
        network = Network(**{**content["network"], **pairs})
        return About(network=network, classes=classes, novel=tuple(content["novel"]), **rest)
    except (ValueError, KeyError, TypeError) as error:
        path = folder / f"{NAME}.json"
        raise InputError(f"{path}: need a Cat-Seg's description; {type(error).__name__}: {error}.") from error


def load_catseg(
    folder: Path, *, clip: str | Path | None = None, device: str | torch.device = "cpu"
) -> tuple[CatSeg, About]:
    """Build a Cat-Seg from its folder, on the CLIP that it was trained on.

    Args:
        folder: of `save_catseg`.
        clip: where that CLIP lies now; when not given, in the folder itself, or where it lay in training.
        device: where it goes.

    Returns:
        Cat-Seg in evaluation mode, and what its folder says.

    Raises:
        InputError: no Cat-Seg, damaged weights, or another CLIP than it was trained on.
    """
    about = read_about(folder)
    base = load_base(
        str(folder / CLIP_FOLDER) if about.has_clip else about.model,
        pretrained=about.pretrained,
        digest=about.tower,
        clip=clip,
        device=device,
        name=NAME,
        whole=True,
    )
    state = read_state(folder, NAME)
    catseg = build_catseg(base, about.network, classes=about.classes, pretrained=False, is_varied=False)
    load_own(catseg, state, prefix=_CLIP, path=folder / f"{NAME}.json")
    return catseg.eval(), about
