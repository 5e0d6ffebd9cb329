"""Models that classify every pixel: a trained CAT-Seg, a mask generator with a CLIP, or a CLIP's dense map alone.

The content of `--model` determines which; `segment` and `evaluate semantic` take any of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from foveate.clip.load import load
from foveate.clip.vocabulary import Vocabulary
from foveate.errors import InputError
from foveate.heads.catseg.product import load_catseg
from foveate.heads.catseg.product import read_about as read_catseg
from foveate.heads.common.text import embed_classes
from foveate.heads.cosines import Cosines
from foveate.heads.panoptic.described import describe, is_published
from foveate.heads.panoptic.product import read_about as read_generator
from foveate.ops.argmax import best_labels
from foveate.predict.flags import Segmenting
from foveate.predict.masks import named_shares, open_segmenter
from foveate.types import LabelMap, Sample

CATSEG = "catseg.json"  # in a folder of a CAT-Seg
GENERATOR = "generator.json"
OF_MASKS = ("encoder", "classifier", "fusion", "input_edges")  # flags of mask generators


@dataclass(frozen=True)
class Segmenter:
    """A model that classifies pixels among the classes of a vocabulary."""

    kind: str  # "catseg", "masks" or "cosines", for people
    trained: Vocabulary | None  # the classes of its training; None: not trained
    label_maps: Callable[[Sequence[Sample]], list[LabelMap]]


def check_segmenting(config: Segmenting) -> None:
    """Refuse flags that the kind of model ignores, before anything is loaded.

    Raises:
        InputError: a flag that the model ignores.
    """
    folder = Path(config.model)
    if (folder / GENERATOR).is_file():
        kind, ignored_flags = "a mask generator", ("pretrained", "input_edges")
    elif is_published(folder):
        kind, ignored_flags = "a transformers folder", ("pretrained", "clip", "encoder")
    elif (folder / CATSEG).is_file():
        kind, ignored_flags = "a CAT-Seg", ("pretrained", "size", *OF_MASKS)
    else:
        kind, ignored_flags = "a CLIP", ("clip", *OF_MASKS)
    for name in ignored_flags:
        value = getattr(config, name)
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')}: --model {config.model} is {kind}, which ignores it; "
                             f"got {value}. Remove it.")  # fmt: skip


def finds_masks(folder: Path) -> bool:
    """Whether a folder holds a mask generator or a model of transformers that finds masks."""
    return (folder / GENERATOR).is_file() or is_published(folder)


def known_classes(folder: Path) -> Vocabulary:
    """The classes of the data that a model was trained on, seen or unseen; InputError for a CLIP."""
    if (folder / CATSEG).is_file():
        about = read_catseg(folder)
        return Vocabulary((*about.classes, *((name,) for name in about.novel)))
    if (folder / GENERATOR).is_file():
        return Vocabulary(tuple(category.words for category in read_generator(folder).classes))
    if is_published(folder):
        return Vocabulary(describe(folder).classes)
    raise InputError('--vocab: need class names; a CLIP was trained on none. Try --vocab "grass, dog, sky".')


def open_pixels(config: Segmenting, vocabulary: Vocabulary, *, device: torch.device) -> Segmenter:
    """Open the model of `--model` for the classes of a vocabulary.

    Raises:
        InputError: it is none of the three, is damaged, or its CLIP is another than in training.
    """
    folder = Path(config.model)
    if (folder / CATSEG).is_file():
        catseg, about = load_catseg(folder, clip=config.clip, device=device)
        text, trained = catseg.embed_classes(vocabulary), Vocabulary(about.classes)
        return Segmenter("catseg", trained, lambda samples: catseg.label_maps(samples, text))
    if finds_masks(folder):
        return _open_masks(config, folder, vocabulary, device=device)
    clip = load(config.model, pretrained=config.pretrained, device=device)
    text = embed_classes(clip, vocabulary, templates=config.templates)
    cosines = Cosines(clip, size=config.size, head=config.head)
    return Segmenter("cosines", None, lambda samples: cosines.label_maps(samples, text))


def _open_masks(config: Segmenting, folder: Path, vocabulary: Vocabulary, *, device: torch.device) -> Segmenter:
    is_thing = [True] * len(vocabulary.classes)
    segmenter = open_segmenter(
        config, folder, vocabulary, is_thing, shares=named_shares(config.fusion), device=str(device)
    )
    trained = Vocabulary(describe(folder).classes) if is_published(folder) else read_generator(folder).base

    def label_maps(samples: Sequence[Sample]) -> list[LabelMap]:
        pairs = zip(samples, segmenter.mask_generator.propose([*samples]), strict=True)
        return [best_labels([segmenter.semantic(segmenter.score_proposals(*pair))]) for pair in pairs]

    return Segmenter("masks", trained, label_maps)
