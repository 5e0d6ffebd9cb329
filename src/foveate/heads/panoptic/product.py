"""A trained mask generator as a folder (Tab. 5): see `foveate.heads.common.product`.

    FOLDER/generator.safetensors   decoder, pyramid or bottlenecks, class head, text embeddings of the base classes
           generator.json          the CLIP's name and digest, the network, the classes

Frozen networks (the CLIP's tower, a Mask2Former's encoder, a diffusion model) are not copied: they are found by their
names and recognised by their digests. The loaded mask generator has its base classes only.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from foveate.clip.io.digest import digest_state
from foveate.clip.model import Clip
from foveate.clip.vocabulary import Vocabulary
from foveate.errors import InputError
from foveate.heads.common.names import Length, PyramidKind
from foveate.heads.common.product import (
    HeadKind,
    load_base,
    load_weights,
    read_description,
    read_weights,
    trained_state,
    write_head,
)
from foveate.heads.common.text import ODISE_TEMPLATES, ClassEmbeddings
from foveate.heads.panoptic.decoder import Encoder, MaskDecoder, TowerEncoder, build_decoder, read_library
from foveate.heads.panoptic.mask2former import MaskGenerator
from foveate.heads.panoptic.names import Templates
from foveate.heads.panoptic.odise import read_odise

GENERATOR = HeadKind("generator", format=2, command="train-panoptic")  # 1: no LayerNorm before the head's MLP
DIFFUSION = "model_index.json"  # in a folder of diffusers
EMBEDDINGS, LABELS = "words.rows", "words.owner"  # keys of the base classes in the weights file

Part = Literal["base", "novel", "left out"]


@dataclass(frozen=True)
class Network:
    """Hyperparameters of a mask generator."""

    size: int  # `size`, `joint` and `longest`: see `MaskGenerator`
    encoder: str | None  # folder of a Mask2Former or of a Stable Diffusion; None: the CLIP's tower
    channels: int  # of the pyramid, or of ODISE's bottlenecks
    pyramid: PyramidKind
    taps: tuple[int, ...] | None
    queries: int  # this and the next four: see `build_decoder`; ignored with a Mask2Former's folder, which has its own
    width: int
    feedforward: int
    pixel_layers: int
    layers: int
    joint: int
    longest: int | None = None


@dataclass(frozen=True)
class Class:
    """A class of the training data."""

    words: tuple[str, ...]  # synonyms; the first is its name
    is_thing: bool
    part: Part  # only base classes are trained on

    def __post_init__(self) -> None:
        if not self.words:
            raise ValueError("a class has no name")


@dataclass(frozen=True)
class About:
    """Description of a mask generator."""

    model: str  # the CLIP's name
    pretrained: str | None
    tower: str  # digest of the CLIP; of the image tower only if it was trained without class names
    frozen: str | None  # of `frozen_digest`
    network: Network
    classes: tuple[Class, ...]
    knows_words: bool  # trained with class names
    templates: Templates
    words: Length  # of the text embeddings of the class head
    training: dict[str, Any]  # data, steps, seed ...; for people

    @property
    def base(self) -> Vocabulary:
        """The base classes."""
        return Vocabulary(tuple(entry.words for entry in self.classes if entry.part == "base"))


def chosen_templates(name: Templates) -> Any:
    """The templates of a name, for `embed_classes`."""
    return ODISE_TEMPLATES if name == "photo" else name


def build_parts(network: Network, clip: Clip) -> tuple[Encoder, MaskDecoder]:
    """Build or read encoder and decoder; random weights come from torch's global stream.

    Args:
        network: hyperparameters.
        clip: its tower is the encoder, or it is the captioner's.

    Raises:
        InputError: hyperparameters that do not fit, or a folder with neither a Mask2Former nor a Stable Diffusion.
    """
    device = clip.model.logit_scale.device
    if network.encoder is None:
        encoder = TowerEncoder(clip, channels=network.channels, kind=network.pyramid, taps=network.taps)
    elif (Path(network.encoder) / DIFFUSION).is_file():
        encoder = read_odise(Path(network.encoder), clip, channels=network.channels).to(device)
    else:
        library, decoder = read_library(Path(network.encoder))
        return library.to(device), decoder
    decoder = build_decoder(
        encoder.widths,
        queries=network.queries,
        width=network.width,
        feedforward=network.feedforward,
        pixel_feedforward=network.feedforward // 2,
        pixel_layers=network.pixel_layers,
        layers=network.layers,
    )
    return encoder, decoder


def frozen_digest(encoder: Encoder) -> str | None:
    """Digest of an encoder's frozen weights; None for a CLIP's tower (see `tower_digest`)."""
    if isinstance(encoder, TowerEncoder):
        return None
    state = {name: value.detach() for name, value in encoder.named_parameters() if not value.requires_grad}
    return digest_state({name: value for name, value in state.items() if not name.startswith("captioner.")})


def save_generator(mask_generator: MaskGenerator, folder: Path, about: About) -> None:
    """Write a mask generator to a folder, which is created if missing."""
    state = trained_state(mask_generator, frozen=_frozen(mask_generator.encoder))
    state["is_novel"] = torch.zeros(int((~mask_generator.is_novel).sum()), dtype=torch.bool)
    classes = mask_generator.base_classes
    if classes is not None:
        state |= {EMBEDDINGS: classes.embeddings.cpu(), LABELS: classes.labels.cpu()}
    write_head(folder, GENERATOR, about, state)


def read_about(folder: Path) -> About:
    """Read the description of a mask generator; see `read_description`."""
    return read_description(folder, GENERATOR, About)


def load_generator(
    folder: Path,
    *,
    clip: str | Path | None = None,
    encoder: Path | None = None,
    device: str | torch.device = "cpu",
) -> tuple[MaskGenerator, Clip, About]:
    """Build a mask generator from its folder, on the CLIP and the encoder that it was trained on.

    Args:
        folder: of `save_generator`.
        clip: name or path of the CLIP; None: as in the description.
        encoder: path of the encoder's folder; None: as in the description.
        device: of the mask generator.

    Returns:
        The mask generator in evaluation mode, the CLIP, and the description.

    Raises:
        InputError: no mask generator, damaged weights, or another CLIP or encoder than it was trained on.
    """
    # the frozen networks
    about = read_about(folder)
    base = load_base(about, folder, clip=clip, device=device, kind=GENERATOR, whole=about.knows_words)
    path = about.network.encoder if encoder is None else str(encoder)
    network = replace(about.network, encoder=path)
    state, count = read_weights(folder, GENERATOR), len(about.base.classes)
    classes = _base_classes(state, count, folder) if about.knows_words else None
    parts = build_parts(network, base)
    if frozen_digest(parts[0]) != about.frozen:
        raise InputError(
            f"{path}: need the encoder that the mask generator was trained on, {about.network.encoder}; this is "
            "another. Give its path with --encoder."
        )

    # the trained weights
    mask_generator = MaskGenerator(
        *parts,
        is_novel=torch.zeros(count, dtype=torch.bool),
        size=network.size,
        classes=classes,
        joint=network.joint,
        jitter=None,
        flip=False,
        longest=network.longest,
    )
    load_weights(mask_generator, state, frozen=_frozen(parts[0]), folder=folder, kind=GENERATOR)
    return mask_generator.eval(), base, about


def _base_classes(state: dict[str, Tensor], count: int, folder: Path) -> ClassEmbeddings:
    """Remove the text embeddings of the base classes from a state, and return them."""
    try:
        return ClassEmbeddings(state.pop(EMBEDDINGS), state.pop(LABELS), count)
    except (KeyError, InputError) as error:
        path = folder / f"{GENERATOR.name}.safetensors"
        raise InputError(f"{path}: need the embeddings of {count} base classes; {error}") from error


def _frozen(encoder: Encoder) -> str:
    """Prefix of the frozen network's names; trained weights below it are saved."""
    return "encoder.tower." if isinstance(encoder, TowerEncoder) else "encoder."
