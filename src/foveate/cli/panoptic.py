"""A mask generator and a CLIP put together, for any classes; panoptic data.

Torch is imported only when something is segmented, so that help and typing errors answer at once.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from foveate.clip.names import Head
from foveate.errors import InputError
from foveate.heads.panoptic.names import SHARES, Preset, Region, Templates

if TYPE_CHECKING:
    from foveate.clip.vocabulary import Vocabulary
    from foveate.data.records import Dataset
    from foveate.heads.panoptic.fusion import Shares
    from foveate.heads.panoptic.segment import PanopticSegmenter
    from foveate.types import Category

ONE_PROMPT = ("photo", "none")  # templates of which an embedding of length 1 is the raw one, normalised
ADE = "ade20k_panoptic_val"  # what Mask2Former's tools write into ADEChallengeData2016


def open_segmenter(
    folder: Path,
    vocabulary: "Vocabulary",
    is_thing: Sequence[bool],
    *,
    clip: str | None = None,
    encoder: Path | None = None,
    clip_with: str | None = None,
    clip_with_pretrained: str | None = None,
    shares: "Shares | None" = None,
    region: Region = "dense",
    head: Head = "value",
    size: int | None = None,
    squash: bool = True,
    templates: Templates | None = None,
    min_score: float | None = None,
    overlap: float = 0.8,
    input: tuple[int, int] | None = None,
    device: str = "auto",
) -> "PanopticSegmenter":
    """Put a trained generator and a CLIP together, asked for any classes.

    Args:
        folder: OUT/model of `foveate train-panoptic`, or a folder of transformers with a Mask2Former or MaskFormer.
        vocabulary: the K classes, with their synonyms.
        is_thing: of the classes.
        clip: where the generator's CLIP lies now; None: where it lay.
        encoder: likewise of its encoder's folder.
        clip_with: the CLIP that classifies masks; None: the generator's.
        clip_with_pretrained: its weights, where it is the name of an architecture.
        shares: that CLIP's; None: ODISE's label model's, or CLIP alone for a generator without words.
        region: how it embeds a mask.
        head: of its dense map.
        size: side of its input [pixels]; None: its own.
        squash: ignore the aspect.
        templates: what the words are written into for it; None: as in training.
        min_score: score that a mask must exceed; None: 0, and 0.8 for a folder of transformers.
        overlap: share of a mask that must be left.
        input: shortest and longest edge of the input of a folder of transformers [pixels]; None: its own.
        device: as a flag names it.

    Raises:
        InputError: no generator, another CLIP or encoder than it was trained on, or numbers that do not fit.
    """
    import torch

    from foveate.cli.published import open_published
    from foveate.clip.load import load
    from foveate.engine.distributed import choose_device
    from foveate.heads.panoptic.described import MIN_SCORE, is_published
    from foveate.heads.panoptic.fusion import PRESETS, embed_words, seen_classes
    from foveate.heads.panoptic.product import chosen_templates, load_generator
    from foveate.heads.panoptic.segment import Asked, PanopticSegmenter

    things = torch.tensor([*is_thing], dtype=torch.bool)
    chosen = choose_device(device, local_rank=None)
    rest: dict[str, Any] = {"region": region, "head": head, "size": size, "squash": squash, "overlap": overlap}
    if is_published(folder):
        for flag, given in (("--clip", clip), ("--encoder", encoder)):
            if given is not None:
                raise InputError(f"{flag}: {folder} is a folder of transformers, which stands on no other model; got "
                                 f"{given}. Leave it out, or name masks by --clip-with.")  # fmt: skip
        other = None if clip_with is None else load(clip_with, clip_with_pretrained, device=chosen)
        model, mapped = open_published(folder, vocabulary, input=input, has_clip=other is not None, device=chosen)
        words = None
        if other is not None:
            words = embed_words(other, vocabulary, templates=chosen_templates(templates or "photo"))
        asked = Asked(words, mapped, things, torch.tensor(mapped.known))
        usual = PRESETS["generator" if other is None else "odise-label"]
        least = MIN_SCORE if min_score is None else min_score
        return PanopticSegmenter(model, other, asked, shares=shares or usual, min_score=least, **rest)
    if input is not None:
        raise InputError(f"--input: goes with a folder of transformers; {folder} is none, and its input is square. "
                         "Leave it out.")  # fmt: skip
    generator, own, about = load_generator(folder, clip=clip, encoder=encoder, device=chosen)
    other = own if clip_with is None else load(clip_with, clip_with_pretrained, device=chosen)
    learned = embed_words(own, vocabulary, templates=chosen_templates(about.templates), length=about.words)
    wanted = templates or about.templates
    if other is own and wanted == about.templates and (about.words == "unit" or wanted in ONE_PROMPT):
        words = learned.normalized()
    else:
        words = embed_words(other, vocabulary, templates=chosen_templates(wanted))
    asked = Asked(words, learned, things, seen_classes(vocabulary, about.base))
    usual = PRESETS["odise-label" if about.knows_words else "clip"]
    return PanopticSegmenter(generator, other, asked, shares=shares or usual, min_score=min_score or 0.0, **rest)


def open_panoptic(root: Path, split: str, *, images: bool = True) -> "Dataset":
    """The pictures of a root with panoptic annotations, COCO's layout or ADE20K's; the images may be absent.

    Raises:
        InputError: it has none, or they are damaged.
    """
    from foveate.data.coco import read_panoptic
    from foveate.data.sources import open_data, open_panoptic_annotations

    file = root / f"{ADE}.json"
    if not file.is_file() and not images:
        return open_panoptic_annotations(root, split=split)
    if not file.is_file():
        return open_data(root, split=split, annotations="panoptic")
    if split != "val":
        raise InputError(f"--split: must be val for ADE20K; got {split}.")
    found = read_panoptic(file, root / "images" / "validation" if images else None, root / ADE)
    return replace(found, categories=tuple(_words_apart(one) for one in found.categories))


def _words_apart(category: "Category") -> "Category":
    """A class of ADE20K, whose name is a list of words: "windowpane, window "."""
    words = [word.strip() for word in category.name.split(",")]
    return replace(category, name=words[0], synonyms=(*words[1:], *category.synonyms))


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
            f"--shares: must be {', '.join(get_args(Preset))}, or two numbers in [0, 1] such as 0.3,0.7 (of classes "
            f"the generator has seen, and of others); got {name}."
        )
    return seen, unseen
