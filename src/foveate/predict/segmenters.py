"""What gives every pixel a class: a trained CAT-Seg, a generator of masks with a CLIP, or a CLIP's dense map alone.

The content of `--model` decides which, so that `segment` and `evaluate semantic` take any of them.
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
from foveate.heads.common.text import embed_words
from foveate.heads.cosines import Cosines
from foveate.heads.panoptic.described import describe, is_published
from foveate.heads.panoptic.product import read_about as read_generator
from foveate.ops.argmax import best_labels
from foveate.predict.flags import Segmenting
from foveate.predict.masks import named_shares, open_segmenter
from foveate.types import LabelMap, Sample

CATSEG = "catseg.json"  # in a folder of a CAT-Seg
GENERATOR = "generator.json"
OF_MASKS = ("encoder", "classifier", "fusion", "input_edges")  # flags that go with masks alone


@dataclass(frozen=True)
class Segmenter:
    """A model that gives pixels the classes of a vocabulary."""

    kind: str  # "catseg", "masks" or "cosines", for people
    trained: Vocabulary | None  # the classes that it was trained on; None: it was not trained
    label_maps: Callable[[Sequence[Sample]], list[LabelMap]]


def check_segmenting(config: Segmenting) -> None:
    """Refuse flags that the kind of model ignores, before anything is loaded.

    Raises:
        InputError: names the flag and what it goes with.
    """
    folder = Path(config.model)
    if (folder / GENERATOR).is_file():
        kind, idle = "a generator of masks", ("pretrained", "input_edges")
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


def known_classes(folder: Path) -> Vocabulary:
    """The classes of the data that a model was trained on, seen or not.

    Raises:
        InputError: it is a CLIP, or is damaged.
    """
    if (folder / CATSEG).is_file():
        about = read_catseg(folder)
        return Vocabulary((*about.classes, *((name,) for name in about.novel)))
    if (folder / GENERATOR).is_file():
        return Vocabulary(tuple(one.words for one in read_generator(folder).classes))
    if is_published(folder):
        return Vocabulary(describe(folder).classes)
    raise InputError('--vocab: need the classes to ask for; a CLIP was trained on none. Try --vocab "grass, dog, sky".')


def open_pixels(config: Segmenting, vocabulary: Vocabulary, *, device: torch.device) -> Segmenter:
    """Open the model that gives pixels the classes of a vocabulary.

    Args:
        config: the flags.
        vocabulary: the classes.
        device: where to compute.

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
    words = embed_words(clip, vocabulary, templates=config.templates)
    cosines = Cosines(clip, size=config.size, head=config.head)
    return Segmenter("cosines", None, lambda samples: cosines.label_maps(samples, words))


def _open_masks(config: Segmenting, folder: Path, vocabulary: Vocabulary, *, device: torch.device) -> Segmenter:
    is_thing = [True] * len(vocabulary.classes)
    segmenter = open_segmenter(
        config, folder, vocabulary, is_thing, shares=named_shares(config.fusion), device=str(device)
    )
    trained = Vocabulary(describe(folder).classes) if is_published(folder) else read_generator(folder).base

    def label_maps(samples: Sequence[Sample]) -> list[LabelMap]:
        pairs = zip(samples, segmenter.generator.propose([*samples]), strict=True)
        return [best_labels([segmenter.semantic(segmenter.score_proposals(*pair))]) for pair in pairs]

    return Segmenter("masks", trained, label_maps)
