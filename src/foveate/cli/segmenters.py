"""What gives every pixel a class: a trained Cat-Seg, a generator of masks with a CLIP, or a CLIP's dense map alone.

`--model` says which by what lies there, so that `segment` and `evaluate semantic` take any of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.clip.names import Head, TemplateName
from foveate.errors import InputError
from foveate.heads.panoptic.described import describe, is_published
from foveate.heads.panoptic.names import Region

if TYPE_CHECKING:
    import torch

    from foveate.clip.vocabulary import Vocabulary
    from foveate.heads.panoptic.segment import PanopticSegmenter
    from foveate.types import LabelMap, Sample

CATSEG = "catseg.json"  # what a folder with one holds
GENERATOR = "generator.json"
OF_MASKS = ("encoder", "clip_with", "clip_with_pretrained", "shares", "input")  # flags that go with masks alone


@dataclass(frozen=True, kw_only=True)
class Segmenting:
    """How pixels are asked for classes."""

    model: str
    """OUT/model of `foveate train-catseg` or `train-panoptic`; a folder of transformers with a Mask2Former or
    MaskFormer and its classes; or a CLIP, whose dense map is asked as it is."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where --model is the name of an architecture."""
    clip: str | None = None
    """Where the CLIP lies that the model was trained on, when it is no longer where it was."""
    encoder: Path | None = None
    """With a generator of masks: where the folder lies that its encoder was read from, when it is no longer there."""
    clip_with: str | None = None
    """With a generator of masks: the CLIP that names them, such as OUT/model of a distillation; default: its own."""
    clip_with_pretrained: str | None = None
    """Weights file or open_clip tag, where --clip-with is the name of an architecture."""
    size: int | None = None
    """With a CLIP: longest side of its input; with a generator: side of the square input of the CLIP that names masks
    [pixels]. Default: four times the CLIP's own size, and its own size."""
    head: Head = "value"
    """With a CLIP: what becomes of the last block; value is the paper's."""
    templates: TemplateName = "vild"
    """With a CLIP: what class names are written into: ViLD's 63 templates, CLIP's 80 for ImageNet, or nothing."""
    shares: str | None = None
    """With a generator of masks: CLIP's share in the score of a class, as --shares of `foveate evaluate panoptic`;
    default: odise-label, and clip for a generator without words."""
    region: Region = "dense"
    """With a generator of masks: how the CLIP embeds one: the mean of its dense map, or masked attention."""
    input: tuple[int, int] | None = None
    """With a folder of transformers: its input, as --input of `foveate evaluate panoptic`."""
    at_once: int = 5
    """With Cat-Seg: views of a picture that are run together; fewer take less memory."""


@dataclass(frozen=True)
class Segmenter:
    """A vocabulary asked of pictures."""

    kind: str  # "catseg", "masks" or "cosines", for people
    trained: "Vocabulary | None"  # the classes that were learned from; None: nothing was
    label_maps: "Callable[[Sequence[Sample]], list[LabelMap]]"


def check_segmenting(config: Segmenting) -> None:
    """Refuse flags that the kind of model takes no notice of, before anything is loaded.

    Raises:
        InputError: names the flag and what it goes with.
    """
    if config.at_once < 1:
        raise InputError(f"--at-once: must be at least 1; got {config.at_once}.")
    folder = Path(config.model)
    if (folder / GENERATOR).is_file():
        kind, idle = "a generator of masks", ("pretrained", "input")
    elif is_published(folder):
        kind, idle = "a folder of transformers", ("pretrained", "clip", "encoder")
    elif (folder / CATSEG).is_file():
        kind, idle = "a Cat-Seg", ("pretrained", "size", *OF_MASKS)
    else:
        kind, idle = "a CLIP", ("clip", *OF_MASKS)
    for name in idle:
        given = getattr(config, name)
        if given is not None:
            raise InputError(f"--{name.replace('_', '-')}: --model {config.model} is {kind}, which takes no notice of "
                             f"it; got {given}. Leave it out.")  # fmt: skip


def finds_masks(folder: Path) -> bool:
    """Whether a folder holds a generator of masks or a model of transformers that finds them."""
    return (folder / GENERATOR).is_file() or is_published(folder)


def open_pixels(config: Segmenting, vocabulary: "Vocabulary", *, device: "torch.device") -> Segmenter:
    """Open what gives pixels classes, and ask it for a vocabulary.

    Args:
        config: the flags.
        vocabulary: the classes asked for.
        device: where to compute.

    Raises:
        InputError: it is none of the three, is damaged, or its CLIP is another than in training.
    """
    folder = Path(config.model)
    if (folder / CATSEG).is_file():
        return _open_catseg(config, folder, vocabulary, device=device)
    if finds_masks(folder):
        return _open_masks(config, folder, vocabulary, device=device)
    from foveate.clip.load import load
    from foveate.heads.common.text import embed_words
    from foveate.heads.cosines import Cosines

    clip = load(config.model, pretrained=config.pretrained, device=device)
    words = embed_words(clip, vocabulary, templates=config.templates)
    cosines = Cosines(clip, size=config.size, head=config.head)
    return Segmenter("cosines", None, lambda samples: cosines.label_maps(samples, words))


def _open_catseg(config: Segmenting, folder: Path, vocabulary: "Vocabulary", *, device: "torch.device") -> Segmenter:
    from foveate.clip.vocabulary import Vocabulary
    from foveate.heads.catseg.product import load_catseg

    catseg, about = load_catseg(folder, clip=config.clip, device=device)
    text = catseg.embed_classes(vocabulary)
    trained = Vocabulary(about.classes)
    return Segmenter("catseg", trained, lambda samples: catseg.label_maps(samples, text, at_once=config.at_once))


def _open_masks(config: Segmenting, folder: Path, vocabulary: "Vocabulary", *, device: "torch.device") -> Segmenter:
    segmenter = open_masks(config, vocabulary, is_thing=[True] * len(vocabulary.classes), device=str(device))

    def label_maps(samples: "Sequence[Sample]") -> "list[LabelMap]":
        from foveate.ops.argmax import best_labels

        pairs = zip(samples, segmenter.generator.propose([*samples]), strict=True)
        return [best_labels([segmenter.semantic(segmenter.score_proposals(*pair))]) for pair in pairs]

    return Segmenter("masks", learned_by(folder), label_maps)


def learned_by(folder: Path) -> "Vocabulary":
    """The classes that what finds masks was trained on; of a generator the base ones.

    Raises:
        InputError: there is none, or it is damaged.
    """
    from foveate.clip.vocabulary import Vocabulary
    from foveate.heads.panoptic.product import read_about

    return Vocabulary(describe(folder).classes) if is_published(folder) else read_about(folder).base


def open_masks(
    config: Segmenting,
    vocabulary: "Vocabulary",
    *,
    is_thing: "Sequence[bool]",
    min_score: float | None = None,
    overlap: float = 0.8,
    device: str,
) -> "PanopticSegmenter":
    """Open a generator of masks and the CLIP that names them.

    Args:
        config: the flags.
        vocabulary: the classes asked for.
        is_thing: of each.
        min_score: of a segment; see `foveate.cli.panoptic.open_segmenter`.
        overlap: likewise.
        device: as a flag names it.

    Raises:
        InputError: as `foveate.cli.panoptic.open_segmenter`.
    """
    from foveate.cli.panoptic import open_segmenter, share_numbers
    from foveate.heads.panoptic.fusion import Shares

    return open_segmenter(
        Path(config.model),
        vocabulary,
        is_thing,
        clip=config.clip,
        encoder=config.encoder,
        clip_with=config.clip_with,
        clip_with_pretrained=config.clip_with_pretrained,
        shares=None if config.shares is None else Shares(*share_numbers(config.shares)),
        region=config.region,
        head=config.head,
        size=config.size,
        min_score=min_score,
        overlap=overlap,
        input=config.input,
        device=device,
    )
