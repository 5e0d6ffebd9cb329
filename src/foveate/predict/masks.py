"""A mask generator and a CLIP that classifies masks, opened for any classes; also from folders of transformers."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.clip.vocabulary import Vocabulary
from foveate.engine.distributed import choose_device
from foveate.errors import InputError
from foveate.heads.common.text import embed_classes
from foveate.heads.panoptic.described import MIN_SCORE, ModelDescription, describe, is_published
from foveate.heads.panoptic.fusion import PRESETS, FusionWeights, seen_classes
from foveate.heads.panoptic.names import FUSION_WEIGHTS, Preset, Templates
from foveate.heads.panoptic.product import chosen_templates, load_generator
from foveate.heads.panoptic.published import ClassMap, PublishedModel, match_classes, read_published
from foveate.heads.panoptic.segment import PanopticSegmenter, Query
from foveate.predict.flags import MaskFlags

ONE_PROMPT = ("photo", "none")  # templates with one prompt, whose embedding is the raw one, normalised


def open_segmenter(
    flags: MaskFlags,
    folder: Path,
    vocabulary: Vocabulary,
    is_thing: Sequence[bool],
    *,
    shares: FusionWeights | None = None,
    squash: bool = True,
    templates: Templates | None = None,
    min_score: float | None = None,
    overlap: float = 0.8,
    device: str = "auto",
) -> PanopticSegmenter:
    """Open a trained mask generator and a CLIP that classifies its masks, for any classes.

    Args:
        flags: paths of the models, and how the CLIP embeds a mask.
        folder: OUT/model of `foveate train-panoptic`, or a transformers folder with a Mask2Former or MaskFormer.
        vocabulary: the K classes, with their synonyms.
        shares: fusion weights; None: ODISE's label model's, or only CLIP for a mask generator without classes.
        squash: resize images to a square for that CLIP.
        templates: prompt templates for that CLIP; None: as in training.
        min_score: score that a mask must exceed; None: 0, and 0.8 for a transformers folder.
        overlap: minimum visible fraction of a mask.

    Raises:
        InputError: no mask generator, another CLIP or encoder than in training, or values that do not fit.
    """
    things = torch.tensor([*is_thing], dtype=torch.bool)
    target = choose_device(device, local_rank=None)
    settings: dict[str, Any] = {"region": flags.mask_pooling, "head": flags.head, "size": flags.size}
    settings |= {"squash": squash, "overlap": overlap}

    # a transformers folder classifies its masks itself; a CLIP may be added
    if is_published(folder):
        for flag, value in (("--clip", flags.clip), ("--encoder", flags.encoder)):
            if value is not None:
                raise InputError(f"{flag}: {folder} is a transformers folder, which needs no other model; got "
                                 f"{value}. Remove it, or classify masks with --classifier.")  # fmt: skip
        namer = _load_namer(flags, target)
        model, mapped = open_published(
            folder, vocabulary, input=flags.input_edges, has_clip=namer is not None, device=target
        )
        text = None
        if namer is not None:
            text = embed_classes(namer, vocabulary, templates=chosen_templates(templates or "photo"))
        query = Query(text, mapped, things, torch.tensor(mapped.known))
        default = PRESETS["generator" if namer is None else "odise-label"]
        threshold = MIN_SCORE if min_score is None else min_score
        return PanopticSegmenter(model, namer, query, weights=shares or default, min_score=threshold, **settings)
    if flags.input_edges is not None:
        raise InputError(f"--input-edges: goes with a transformers folder; {folder} is not one, and its input "
                         "is square. Remove it.")  # fmt: skip

    # a mask generator: the class embeddings of its own CLIP, and those of the CLIP that classifies masks
    generator, trained_clip, about = load_generator(folder, clip=flags.clip, encoder=flags.encoder, device=target)
    namer = _load_namer(flags, target) or trained_clip
    learned = embed_classes(trained_clip, vocabulary, templates=chosen_templates(about.templates), length=about.words)
    prompts = templates or about.templates
    if namer is trained_clip and prompts == about.templates and (about.words == "unit" or prompts in ONE_PROMPT):
        text = learned.normalized()
    else:
        text = embed_classes(namer, vocabulary, templates=chosen_templates(prompts))
    query = Query(text, learned, things, seen_classes(vocabulary, about.base))
    default = PRESETS["odise-label" if about.knows_words else "clip"]
    return PanopticSegmenter(generator, namer, query, weights=shares or default, min_score=min_score or 0.0, **settings)


def _load_namer(flags: MaskFlags, device: torch.device) -> Clip | None:
    """The CLIP of --classifier."""
    return None if flags.classifier is None else load(flags.classifier, device=device)


def share_numbers(name: str) -> tuple[float, float]:
    """Fusion weights of seen and unseen classes: a preset, or two numbers in [0, 1]."""
    if name in FUSION_WEIGHTS:
        return FUSION_WEIGHTS[name]
    try:
        seen, unseen = (float(part) for part in name.split(","))
    except ValueError:
        seen = unseen = -1.0
    if not (0 <= seen <= 1 and 0 <= unseen <= 1):
        raise InputError(
            f"--fusion: must be {', '.join(get_args(Preset))}, or two numbers in [0, 1] such as 0.3,0.7 (of classes "
            f"the mask generator was trained on, and of others); got {name}."
        )
    return seen, unseen


def named_shares(name: str | None) -> FusionWeights | None:
    """The fusion weights of --fusion; None: not given."""
    return None if name is None else FusionWeights(*share_numbers(name))


def open_published(
    folder: Path, vocabulary: Vocabulary, *, input: tuple[int, int] | None, has_clip: bool, device: torch.device
) -> tuple[PublishedModel, ClassMap]:
    """Read a transformers folder, match its classes with a vocabulary, and report those without a match.

    Args:
        input: shortest and longest edge of its input [pixels]; None: the folder's.
        has_clip: whether a CLIP classifies masks too.

    Raises:
        InputError: a damaged folder, invalid sizes, or no class in common.
    """
    about = describe(folder)
    if input is not None:
        if not 1 <= input[0] <= input[1]:
            raise InputError(f"--input-edges: must be the shortest edge and then the longest, in pixels; got "
                             f"{input[0]} {input[1]}.")  # fmt: skip
        about = replace(about, shortest=input[0], longest=input[1], notes=())
    for line in about.notes:
        report(line)
    model_classes = _classes_of(about, vocabulary, folder)
    mapped = match_classes(model_classes, vocabulary, is_open=has_clip)
    not_requested = [name for name, index in zip(model_classes.names, mapped.labels.tolist(), strict=True) if index < 0]
    unknown = [name for name, is_known in zip(vocabulary.names, mapped.known, strict=True) if not is_known]
    for names, what in (
        (not_requested, f"of the model are not requested: their masks are {'left to CLIP' if has_clip else 'ignored'}"),
        (unknown, f"requested are not the model's: {'only CLIP can name them' if has_clip else 'they are not found'}"),
    ):
        if names:
            report(f"{len(names)} classes {what} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})")
    return read_published(folder, described=about, device=device), mapped


def _classes_of(about: ModelDescription, vocabulary: Vocabulary, folder: Path) -> Vocabulary:
    """The classes of a transformers folder; if it only numbers them, those requested, in their order."""
    if about.has_names:
        return Vocabulary(about.classes)
    if len(about.classes) != len(vocabulary.classes):
        raise InputError(
            f"{folder}: need the names of its classes, or as many as are requested; config.json numbers "
            f"{len(about.classes)} without names, and {len(vocabulary.classes)} are requested. Write the names into "
            "id2label."
        )
    report(
        f"{folder}: has no names of its {len(about.classes)} classes; they are taken in the order of those requested"
    )
    return vocabulary


def report(message: str) -> None:
    """Print a line to stderr."""
    print(message, file=sys.stderr, flush=True)
