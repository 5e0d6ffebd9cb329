"""`foveate evaluate panoptic`: PQ of masks whose classes come from a generator's words and from a CLIP (Tab. 5).

Torch is imported only when something is measured, so that help and typing errors answer at once.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.cli.evaluate import Reading, finish
from foveate.errors import InputError
from foveate.heads.panoptic.names import Templates
from foveate.io.files import check_target
from foveate.predict.flags import MaskFlags

if TYPE_CHECKING:
    from rich.table import Table

    from foveate.heads.panoptic.segment import PanopticSegmenter

ALL_SHARES = ("odise-label", "clip", "generator")


@dataclass(frozen=True, kw_only=True)
class Panoptic(MaskFlags, Reading):
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
    shares: tuple[str, ...] = ()
    """CLIP's share in the score of a class, one row each: odise-label (.3 of seen, .7 of other classes), odise-caption
    (.35, .65), fc-clip (.4, .8), clip (1, 1), generator (0, 0), or two numbers such as 0.2,0.9. When not given:
    odise-label, clip and generator; clip alone for a generator without words, and generator alone for a folder of
    transformers without --clip-with."""
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
    started = time.perf_counter()
    from foveate.clip.vocabulary import Vocabulary
    from foveate.data.labels import class_names
    from foveate.data.sources import open_panoptic
    from foveate.evaluate.shares import sweep_shares
    from foveate.heads.panoptic.fusion import Shares
    from foveate.predict.masks import open_segmenter, share_numbers

    asked = [(name, *share_numbers(name)) for name in config.shares]
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
        config,
        config.model,
        vocabulary,
        [one.is_thing for one in dataset.categories],
        shares=Shares(*rows[0][1:]),
        squash=config.squash,
        templates=config.templates,
        min_score=config.min_score,
        overlap=config.overlap,
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
