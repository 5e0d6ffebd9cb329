"""A trained generator of masks as a folder: what was trained, what it was told, and what it stands on (Tab. 5).

    FOLDER/generator.safetensors   decoder, pyramid or bottlenecks, the head for words, embeddings of the base words
           generator.json          the CLIP's name and digest, the network's numbers, the classes

Frozen networks (the CLIP's tower, a Mask2Former's encoder, a diffusion model) are not copied: they are found by their
names and recognised by their digests. The generator that is read knows its base classes and no others. Deliberately
absent: optimizer state (the run's checkpoints have it).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from foveate.clip.digest import digest_state
from foveate.clip.model import Clip
from foveate.clip.vocabulary import Vocabulary
from foveate.errors import InputError
from foveate.heads.fvit.names import Kind
from foveate.heads.panoptic.criterion import Weights
from foveate.heads.panoptic.decoder import Encoder, MaskDecoder, TowerEncoder, build_decoder, read_library
from foveate.heads.panoptic.fusion import ODISE, Words
from foveate.heads.panoptic.mask2former import MaskGenerator
from foveate.heads.panoptic.names import Length, Templates
from foveate.heads.panoptic.odise import read_odise
from foveate.heads.product import load_base, load_own, own_state, read_facts, read_state, write_product

NAME = "generator"  # of its files
FORMAT = 2  # 1: no LayerNorm before the head's MLP, words of length 1 alone
DIFFUSION = "model_index.json"  # in a folder of diffusers
ROWS, OWNER = "words.rows", "words.owner"  # beside the network's own tensors

Part = Literal["base", "novel", "left out"]


@dataclass(frozen=True)
class Network:
    """The numbers that a generator is built from again."""

    size: int
    encoder: str | None  # folder of a Mask2Former or of a Stable Diffusion; None: the CLIP's tower
    channels: int  # of the pyramid, or of ODISE's bottlenecks
    pyramid: Kind
    taps: tuple[int, ...] | None
    queries: int  # this and the next four: not of a Mask2Former's folder, which has its own
    width: int
    feedforward: int
    pixel_layers: int
    layers: int
    joint: int
    longest: int | None = None  # edge at test, where the shortest becomes `size`; None: in the square


@dataclass(frozen=True)
class Class:
    """A class of the training data."""

    words: tuple[str, ...]  # the first is its name
    is_thing: bool
    part: Part  # learned from, or not


@dataclass(frozen=True)
class About:
    """What a generator's folder says of it."""

    model: str  # the CLIP, as it was named
    pretrained: str | None
    tower: str  # its digest: with the text tower where words were learned from, else of the image tower
    frozen: str | None  # digest of the encoder's folder
    network: Network
    classes: tuple[Class, ...]
    knows_words: bool
    templates: Templates
    words: Length  # of the embeddings that the head for words gets
    training: dict[str, Any]  # data, steps, seed ...; for people

    @property
    def base(self) -> Vocabulary:
        """What it learned from."""
        return Vocabulary(tuple(one.words for one in self.classes if one.part == "base"))


def chosen_templates(name: Templates) -> Any:
    """The templates of a name, as `fusion.embed_words` takes them."""
    return ODISE if name == "photo" else name


def build_parts(network: Network, clip: Clip) -> tuple[Encoder, MaskDecoder]:
    """Build or read encoder and decoder; first weights come from torch's global stream.

    Args:
        network: the numbers.
        clip: whose tower is the encoder, or that captions.

    Raises:
        InputError: numbers that do not fit, or a folder with neither a Mask2Former nor a Stable Diffusion.
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
    """What tells an encoder's folder from another; None where the encoder is a CLIP's tower, which has its own."""
    if isinstance(encoder, TowerEncoder):
        return None
    state = {name: one for name, one in encoder.named_parameters() if not one.requires_grad}
    return digest_state({name: one.detach() for name, one in state.items() if not name.startswith("captioner.")})


def save_generator(generator: MaskGenerator, folder: Path, about: About) -> None:
    """Write a generator.

    Args:
        generator: trained.
        folder: made where missing.
        about: what its folder says.
    """
    state = own_state(generator, prefix=_prefix(generator.encoder))
    state["is_novel"] = torch.zeros(int((~generator.is_novel).sum()), dtype=torch.bool)
    if generator.words is not None:
        state |= {ROWS: generator.words.rows.cpu(), OWNER: generator.words.owner.cpu()}
    write_product(folder, NAME, facts={"format": FORMAT, **asdict(about)}, state=state)


def read_about(folder: Path) -> About:
    """Read what a generator's folder says.

    Raises:
        InputError: there is no generator in it, or its description is damaged or of another version.
    """
    content = read_facts(folder, NAME, version=FORMAT, verb="train-panoptic")
    try:
        network = content["network"]
        taps = None if network["taps"] is None else tuple(network["taps"])
        if not all(one["words"] and one["part"] in get_args(Part) for one in content["classes"]):
            raise ValueError("a class without words, or neither base nor novel nor left out")
        classes = tuple(Class(tuple(one["words"]), one["is_thing"], one["part"]) for one in content["classes"])
        names = ("model", "pretrained", "tower", "frozen", "knows_words", "templates", "words", "training")
        rest = {name: content[name] for name in names}
        if rest["words"] not in get_args(Length):
            raise ValueError(f"words that are neither raw nor unit: {rest['words']!r}")
        return About(network=Network(**{**network, "taps": taps}), classes=classes, **rest)
    except (ValueError, KeyError, TypeError) as error:
        path = folder / f"{NAME}.json"
        raise InputError(f"{path}: need a generator's description; {type(error).__name__}: {error}.") from error


def load_generator(
    folder: Path,
    *,
    clip: str | Path | None = None,
    encoder: Path | None = None,
    device: str | torch.device = "cpu",
) -> tuple[MaskGenerator, Clip, About]:
    """Build a generator from its folder, on what it was trained on.

    Args:
        folder: of `save_generator`.
        clip: where the CLIP lies now; when not given, where it lay in training.
        encoder: where the encoder's folder lies now; likewise.
        device: where it goes.

    Returns:
        The generator in evaluation mode, the CLIP it was trained on, and what its folder says.

    Raises:
        InputError: no generator, damaged weights, or another CLIP or encoder than it was trained on.
    """
    about = read_about(folder)
    model, pretrained, whole = about.model, about.pretrained, about.knows_words
    own = load_base(model, pretrained=pretrained, digest=about.tower, clip=clip, device=device, name=NAME, whole=whole)
    state, base = read_state(folder, NAME), len(about.base.classes)
    words = _words(state, base, folder) if about.knows_words else None
    network = about.network
    where = network.encoder if encoder is None else str(encoder)
    seen, decoder = build_parts(Network(**{**asdict(network), "encoder": where}), own)
    if frozen_digest(seen) != about.frozen:
        raise InputError(
            f"{where}: need the encoder that the {NAME} was trained on, {network.encoder}; this is another. Name it "
            "with --encoder."
        )
    generator = MaskGenerator(
        seen,
        decoder,
        is_novel=torch.zeros(base, dtype=torch.bool),
        size=network.size,
        words=words,
        joint=network.joint,
        weights=Weights(),
        jitter=None,
        flip=False,
        longest=network.longest,
    )
    load_own(generator, state, prefix=_prefix(seen), path=folder / f"{NAME}.json")
    return generator.eval(), own, about


def _words(state: dict[str, Tensor], count: int, folder: Path) -> Words:
    """Take the embeddings of the base words out of a state."""
    try:
        return Words(state.pop(ROWS), state.pop(OWNER), count)
    except (KeyError, InputError) as error:
        path = folder / f"{NAME}.safetensors"
        raise InputError(f"{path}: need the embeddings of {count} base classes; {error}") from error


def _prefix(encoder: Encoder) -> str:
    """Of the names of what is frozen; what is trained below it is kept all the same."""
    return "encoder.tower." if isinstance(encoder, TowerEncoder) else "encoder."
