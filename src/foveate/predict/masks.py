"""A generator of masks and a CLIP that names them, opened for any classes; also from folders of transformers."""

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
from foveate.heads.common.text import embed_words
from foveate.heads.panoptic.described import MIN_SCORE, Described, describe, is_published
from foveate.heads.panoptic.fusion import PRESETS, Shares, seen_classes
from foveate.heads.panoptic.names import SHARES, Preset, Templates
from foveate.heads.panoptic.product import chosen_templates, load_generator
from foveate.heads.panoptic.published import ClassMap, Published, match_classes, read_published
from foveate.heads.panoptic.segment import PanopticSegmenter, Query
from foveate.predict.flags import MaskFlags

ONE_PROMPT = ("photo", "none")  # templates of which an embedding of length 1 is the raw one, normalised


def open_segmenter(
    flags: MaskFlags,
    folder: Path,
    vocabulary: Vocabulary,
    is_thing: Sequence[bool],
    *,
    shares: Shares | None = None,
    squash: bool = True,
    templates: Templates | None = None,
    min_score: float | None = None,
    overlap: float = 0.8,
    device: str = "auto",
) -> PanopticSegmenter:
    """Open a trained generator of masks and a CLIP that names them, for any classes.

    Args:
        flags: where the models are, and how the CLIP embeds a mask.
        folder: OUT/model of `foveate train-panoptic`, or a folder of transformers with a Mask2Former or MaskFormer.
        vocabulary: the K classes, with their synonyms.
        is_thing: of the classes.
        shares: of the CLIP that names masks; None: ODISE's label model's, or CLIP alone for a generator without words.
        squash: ignore the aspect of images for that CLIP.
        templates: what the class names are written into for it; None: as in training.
        min_score: score that a mask must exceed; None: 0, and 0.8 for a folder of transformers.
        overlap: share of a mask that must be left.
        device: as a flag names it.

    Raises:
        InputError: no generator, another CLIP or encoder than it was trained on, or numbers that do not fit.
    """
    things = torch.tensor([*is_thing], dtype=torch.bool)
    target = choose_device(device, local_rank=None)
    settings: dict[str, Any] = {"region": flags.mask_pooling, "head": flags.head, "size": flags.size}
    settings |= {"squash": squash, "overlap": overlap}

    # a folder of transformers names its masks itself; a CLIP may help
    if is_published(folder):
        for flag, given in (("--clip", flags.clip), ("--encoder", flags.encoder)):
            if given is not None:
                raise InputError(f"{flag}: {folder} is a folder of transformers, which stands on no other model; got "
                                 f"{given}. Leave it out, or classify masks by --classifier.")  # fmt: skip
        namer = _load_namer(flags, target)
        model, mapped = open_published(
            folder, vocabulary, input=flags.input_edges, has_clip=namer is not None, device=target
        )
        text = None
        if namer is not None:
            text = embed_words(namer, vocabulary, templates=chosen_templates(templates or "photo"))
        query = Query(text, mapped, things, torch.tensor(mapped.known))
        usual = PRESETS["generator" if namer is None else "odise-label"]
        least = MIN_SCORE if min_score is None else min_score
        return PanopticSegmenter(model, namer, query, shares=shares or usual, min_score=least, **settings)
    if flags.input_edges is not None:
        raise InputError(f"--input-edges: goes with a folder of transformers; {folder} is none, and its input is "
                         "square. Leave it out.")  # fmt: skip

    # a generator of ours: its own embeddings of the classes, and those of the CLIP that names masks
    generator, own, about = load_generator(folder, clip=flags.clip, encoder=flags.encoder, device=target)
    namer = _load_namer(flags, target) or own
    learned = embed_words(own, vocabulary, templates=chosen_templates(about.templates), length=about.words)
    wanted = templates or about.templates
    if namer is own and wanted == about.templates and (about.words == "unit" or wanted in ONE_PROMPT):
        text = learned.normalized()
    else:
        text = embed_words(namer, vocabulary, templates=chosen_templates(wanted))
    query = Query(text, learned, things, seen_classes(vocabulary, about.base))
    usual = PRESETS["odise-label" if about.knows_words else "clip"]
    return PanopticSegmenter(generator, namer, query, shares=shares or usual, min_score=min_score or 0.0, **settings)


def _load_namer(flags: MaskFlags, device: torch.device) -> Clip | None:
    """The CLIP of --classifier."""
    return None if flags.classifier is None else load(flags.classifier, device=device)


def share_numbers(name: str) -> tuple[float, float]:
    """CLIP's shares, of seen classes and of others, by a preset's name or as typed.

    Raises:
        InputError: no preset, and not two numbers in [0, 1].
    """
    if name in SHARES:
        return SHARES[name]
    try:
        seen, unseen = (float(part) for part in name.split(","))
    except ValueError:
        seen = unseen = -1.0
    if not (0 <= seen <= 1 and 0 <= unseen <= 1):
        raise InputError(
            f"--fusion: must be {', '.join(get_args(Preset))}, or two numbers in [0, 1] such as 0.3,0.7 (of classes "
            f"the generator has seen, and of others); got {name}."
        )
    return seen, unseen


def named_shares(name: str | None) -> Shares | None:
    """CLIP's shares by a preset's name or as typed; None: not given."""
    return None if name is None else Shares(*share_numbers(name))


def open_published(
    folder: Path, vocabulary: Vocabulary, *, input: tuple[int, int] | None, has_clip: bool, device: torch.device
) -> tuple[Published, ClassMap]:
    """Read a folder of transformers, match its classes with a vocabulary, and report those without a match.

    Args:
        folder: the model's.
        vocabulary: the classes asked for.
        input: shortest and longest edge of its input [pixels]; None: the folder's.
        has_clip: whether a CLIP names masks too.
        device: where the model goes.

    Raises:
        InputError: a damaged folder, sizes that cannot be, or no class in common.
    """
    about = describe(folder)
    if input is not None:
        if not 1 <= input[0] <= input[1]:
            raise InputError(f"--input-edges: must be the shortest edge and then the longest, in pixels; got "
                             f"{input[0]} {input[1]}.")  # fmt: skip
        about = replace(about, shortest=input[0], longest=input[1], notes=())
    for line in about.notes:
        report(line)
    own = _classes_of(about, vocabulary, folder)
    mapped = match_classes(own, vocabulary, is_open=has_clip)
    left = [name for name, index in zip(own.names, mapped.owner.tolist(), strict=True) if index < 0]
    unknown = [name for name, is_known in zip(vocabulary.names, mapped.known, strict=True) if not is_known]
    for names, what in (
        (left, "of the model are not asked for: masks of them " + ("go to CLIP" if has_clip else "are left out")),
        (unknown, "asked for are none of the model's: " + ("CLIP alone names them" if has_clip else "none is found")),
    ):
        if names:
            report(f"{len(names)} classes {what} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})")
    return read_published(folder, described=about, device=device), mapped


def _classes_of(about: Described, asked: Vocabulary, folder: Path) -> Vocabulary:
    """The classes of a folder of transformers; in the order of those asked for where it only numbers as many.

    Raises:
        InputError: it only numbers its classes, and has not as many.
    """
    if about.has_names:
        return Vocabulary(about.classes)
    if len(about.classes) != len(asked.classes):
        raise InputError(
            f"{folder}: need the names of its classes, or as many as are asked for; config.json numbers "
            f"{len(about.classes)} without names, and {len(asked.classes)} are asked for. Write the names into "
            "id2label."
        )
    report(
        f"{folder}: has no names of its {len(about.classes)} classes; they are taken in the order of those asked for"
    )
    return asked


def report(message: str) -> None:
    """Print a line beside the result."""
    print(message, file=sys.stderr, flush=True)
