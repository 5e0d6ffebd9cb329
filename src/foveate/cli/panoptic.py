"""`foveate evaluate panoptic`: PQ of masks whose classes come from a generator's words and from a CLIP (Tab. 5).

Torch is imported only when something is measured, so that help and typing errors answer at once.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from foveate.cli.evaluate import Reading, finish, load_model
from foveate.clip.names import Head
from foveate.errors import InputError
from foveate.heads.panoptic.names import SHARES, Preset, Region, Templates
from foveate.io.files import check_target

if TYPE_CHECKING:
    from rich.table import Table

    from foveate.clip.vocabulary import Vocabulary
    from foveate.data.records import Dataset
    from foveate.heads.panoptic.fusion import Shares
    from foveate.heads.panoptic.segment import PanopticSegmenter
    from foveate.types import Category

ONE_PROMPT = ("photo", "none")  # templates of which an embedding of length 1 is the raw one, normalised
ALL_SHARES = ("odise-label", "clip", "generator")
ADE = "ade20k_panoptic_val"  # what Mask2Former's tools write into ADEChallengeData2016


@dataclass(frozen=True, kw_only=True)
class Panoptic(Reading):
    """Measure panoptic segmentation with any CLIP: PQ of things and stuff, of seen classes and of others (Tab. 5).

    Masks come from a generator (`foveate train-panoptic`), their classes from its words and from a CLIP, whose share is
    smaller for classes the generator has seen. The networks see each picture once, however many --shares are measured.
    """

    data: Path
    """COCO root with panoptic annotations, a world, or ADEChallengeData2016 with ade20k_panoptic_val and its .json."""
    model: Path | None = None
    """OUT/model of `foveate train-panoptic`, or a folder of transformers with a Mask2Former or MaskFormer, whose own
    classes are then matched with the data's by name; needed unless --from-results is given."""
    from_results: Path | None = None
    """Measure predictions that another program made, without any model: the folder of panoptic PNGs with their JSON, as
    COCO's server takes it, or that JSON. The images of --data need not be there. Each image needs a prediction, as in
    panopticapi."""
    clip: str | None = None
    """Where the CLIP lies that the generator was trained on, when it is no longer where it was."""
    encoder: Path | None = None
    """Where the folder lies that the generator's encoder was read from, when it is no longer where it was."""
    clip_with: str | None = None
    """The CLIP whose dense map classifies masks, such as OUT/model of a distillation; when not given, the one that the
    generator was trained on; none for a folder of transformers, which names its masks itself."""
    clip_with_pretrained: str | None = None
    """Weights file or open_clip tag, where --clip-with is the name of an architecture."""
    shares: tuple[str, ...] = ()
    """CLIP's share in the score of a class, one row each: odise-label (.3 of seen, .7 of other classes), odise-caption
    (.35, .65), fc-clip (.4, .8), clip (1, 1), generator (0, 0), or two numbers such as 0.2,0.9. When not given:
    odise-label, clip and generator; clip alone for a generator without words, and generator alone for a folder of
    transformers without --clip-with."""
    region: Region = "dense"
    """How the CLIP embeds a mask: the mean of its dense map, or masked attention (ODISE's own)."""
    head: Head = "value"
    """What becomes of the last block for the dense map; see `foveate evaluate regions`."""
    size: int | None = None
    """Side of the CLIP's input [pixels], a multiple of its patch; when not given, its own. For foveate-small 192, three
    times its own, is far better on the world."""
    squash: bool = True
    """Resize pictures to a square, as ODISE; else the aspect is kept and --size is of the longest side."""
    labels: Path | None = None
    """File of the words of each class, `id:word,synonym` a line, as OpenSeg's lists, by the data's ids or in their
    order; when not given, the names of the annotation file."""
    templates: Templates | None = None
    """What the words are written into for --clip-with; when not given, as in training."""
    min_score: float | None = None
    """Score that a mask must exceed to become a segment (object mask threshold); when not given, 0 (ODISE), and 0.8 for
    a folder of transformers (Mask2Former's for COCO)."""
    overlap: float = 0.8
    """Share of a mask that must be left where better masks lie over it, for it to become a segment."""
    input: tuple[int, int] | None = None
    """With a folder of transformers: the shortest edge of the input, and the most that the longest may have [pixels];
    when not given, the folder's, or 800 1333 where that asks for a fixed height and width."""
    semantic: bool = False
    """Also measure mIoU, of the sum of all masks."""
    instances: bool = False
    """Also measure AP of the masks of things, by COCO's rule, against the things of the panoptic annotation."""


def run(config: Panoptic) -> dict[str, Any]:
    """Measure, print a table, write JSON where asked, and return the result.

    Raises:
        InputError: a flag, the data, the generator or a CLIP is wrong.
    """
    if config.out is not None:
        check_target(config.out, flag="--out")
    if config.model is None:
        raise InputError("--model: need OUT/model of `foveate train-panoptic`; got none. To measure the predictions of "
                         "another program give --from-results DIR instead.")  # fmt: skip
    asked = [(name, *share_numbers(name)) for name in config.shares]
    started = time.perf_counter()
    from foveate.clip.vocabulary import Vocabulary
    from foveate.evaluate.shares import sweep_shares
    from foveate.heads.panoptic.fusion import Shares
    from foveate.train.panoptic import class_names

    names, named_by = _usual_shares(config.model, config)
    rows = asked or [(name, *share_numbers(name)) for name in names]
    refused = [name for name, *numbers in rows if numbers != [1, 1]]
    if refused and names == ("clip",):
        raise InputError(
            f"--shares: must be `clip` alone with {config.model}, which was trained with --no-words and knows no "
            f"class; got {refused[0]}."
        )
    dataset = open_panoptic(config.data, config.split)
    vocabulary = Vocabulary(class_names(dataset, config.labels, _tell).classes)
    segmenter = open_segmenter(
        config.model,
        vocabulary,
        [one.is_thing for one in dataset.categories],
        clip=config.clip,
        encoder=config.encoder,
        clip_with=config.clip_with,
        clip_with_pretrained=config.clip_with_pretrained,
        shares=Shares(*rows[0][1:]),
        region=config.region,
        head=config.head,
        size=config.size,
        squash=config.squash,
        templates=config.templates,
        min_score=config.min_score,
        overlap=config.overlap,
        input=config.input,
        device=config.device,
    )
    seen = int(segmenter.asked.is_seen.sum())
    _tell(f"{len(vocabulary.classes)} classes: {seen} that the generator learned from, and the rest that it did not")
    found = sweep_shares(
        segmenter,
        dataset,
        [Shares(*numbers) for _, *numbers in rows],
        semantic=config.semantic,
        instances=config.instances,
        batch=config.batch,
        limit=config.limit,
        workers=config.workers,
        strict=config.strict,
        progress=True,
    )
    named = [{"name": name, **one} for (name, *_), one in zip(rows, found["shares"], strict=True)]
    result = {
        "generator": str(config.model),
        "clip": named_by,
        "size": segmenter.size,
        "region": config.region if named_by else None,
        "min_score": segmenter.min_score,
        "overlap": segmenter.overlap,
        **({"input": _input_of(segmenter)} if _input_of(segmenter) else {}),
        "classes": {"all": len(vocabulary.classes), "seen": seen},
        **found,
        "shares": named,
    }
    return finish(result, _table(result, config), config, datasets=[dataset], started=started)


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
    from foveate.engine.distributed import choose_device
    from foveate.heads.common.text import embed_words
    from foveate.heads.panoptic.described import MIN_SCORE, is_published
    from foveate.heads.panoptic.fusion import PRESETS, seen_classes
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
        other = None if clip_with is None else load_model(clip_with, clip_with_pretrained, device)
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
    other = own if clip_with is None else load_model(clip_with, clip_with_pretrained, device)
    learned = embed_words(own, vocabulary, templates=chosen_templates(about.templates), length=about.words)
    wanted = templates or about.templates
    if other is own and wanted == about.templates and (about.words == "unit" or wanted in ONE_PROMPT):
        words = learned.normalized()
    else:
        words = embed_words(other, vocabulary, templates=chosen_templates(wanted))
    asked = Asked(words, learned, things, seen_classes(vocabulary, about.base))
    usual = PRESETS["odise-label" if about.knows_words else "clip"]
    return PanopticSegmenter(generator, other, asked, shares=shares or usual, min_score=min_score or 0.0, **rest)


def _usual_shares(model: Path, config: Panoptic) -> tuple[tuple[str, ...], str | None]:
    """The rows that are measured where none are given, and the CLIP that names masks; None: the model itself does.

    Raises:
        InputError: no generator.
    """
    from foveate.heads.panoptic.described import is_published
    from foveate.heads.panoptic.product import read_about

    if is_published(model):
        return ("generator",) if config.clip_with is None else ALL_SHARES, config.clip_with
    about = read_about(model)
    return ALL_SHARES if about.knows_words else ("clip",), config.clip_with or config.clip or about.model


def _input_of(segmenter: "PanopticSegmenter") -> list[int] | None:
    """Shortest and longest edge of a published model's input."""
    from foveate.heads.panoptic.published import Published

    model = segmenter.generator
    return [model.described.shortest, model.described.longest] if isinstance(model, Published) else None


def open_panoptic(root: Path, split: str, *, images: bool = True) -> "Dataset":
    """The pictures of a root with panoptic annotations, COCO's layout or ADE20K's; the images may be absent.

    Raises:
        InputError: it has none, or they are damaged.
    """
    from foveate.data import sources
    from foveate.data.coco import read_panoptic

    file = root / f"{ADE}.json"
    if not file.is_file():
        return sources.open_panoptic(root, split=split, images=images)
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


def _table(result: dict[str, Any], config: Panoptic) -> "Table":
    from rich.table import Table

    by = f" with {result['clip']}, {result['size']} px" if result["clip"] else ""
    title = f"{config.model}{by}: {result['pictures']} pictures [%]"
    table = Table(title=title, title_justify="left")
    table.add_column("CLIP's share", overflow="fold")  # a narrow terminal must not cut the names that --shares takes
    headings = ["PQ", "SQ", "RQ", "PQ\nthings", "PQ\nstuff", "PQ\nseen", "PQ\nunseen"]
    headings += [*(["mIoU"] if config.semantic else []), *(["AP\nmasks"] if config.instances else [])]
    for heading in headings:
        table.add_column(heading, justify="right")
    for one in result["shares"]:
        values = [*(one["all"][name] for name in ("PQ", "SQ", "RQ")), one["things"]["PQ"], one["stuff"]["PQ"]]
        values += [one["groups"][name]["PQ"] for name in ("seen", "unseen")]
        values += [one["semantic"]["mIoU"]] if config.semantic else []
        values += [one["instances"]["masks"]["AP"]] if config.instances else []
        table.add_row(one["name"], *("-" if value is None else f"{value:.1f}" for value in values))
    return table


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
