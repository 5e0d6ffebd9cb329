"""`foveate evaluate detection`: what a trained detector finds, measured.

Torch is imported only when something is measured, so that help and typing errors answer at once.
"""

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foveate.cli.evaluate import Reading, finish
from foveate.errors import InputError
from foveate.io.files import check_target
from foveate.predict.flags import Fusing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table
    from torch import Tensor

    from foveate.data.records import Dataset
    from foveate.data.splits import BaseNovel
    from foveate.evaluate.detection import Style
    from foveate.heads.fvit.candidates import Candidates, CandidateStore
    from foveate.heads.fvit.fusion import Fusion
    from foveate.types import Detections


@dataclass(frozen=True, kw_only=True)
class Detection(Reading, Fusing):
    """Measure a detector: AP of base and novel categories on OV-COCO, LVIS, VOC, Objects365 or the world (Sec. 4.3).

    The network sees each picture once. Several --base-weights or --novel-weights measure every pair of them from what
    it left, and --candidates DIR keeps that for another command.
    """

    data: Path | None = None  # pyright: ignore[reportIncompatibleVariableOverride]  # not needed for --from-results
    """COCO, LVIS, VOC or Objects365 root with annotated boxes, or a world; needed unless --from-results and
    --annotations are given."""
    model: Path | None = None
    """OUT/model of `foveate train-fvit`; needed unless --from-results is given."""
    from_results: Path | None = None
    """Measure the detections that another program found, without any model: a list of results [{image_id, category_id,
    bbox, score, segmentation?}, ...] in JSON, as COCO's and LVIS's servers take it. The images need not be there.
    COCO's 80 categories then count alike, by COCO's twelve numbers; --benchmark ov-coco measures OV-COCO's."""
    annotations: Path | None = None
    """Annotation file to read in place of the one in the standard place: COCO, LVIS or Objects365 JSON."""
    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}; default: as for `foveate train-fvit`, and none with a transfer
    benchmark, which measures all categories."""
    vocab: str | None = None
    """Ask for these classes, and measure the categories among them; default: all categories of the data."""
    style: Literal["coco", "lvis", "voc07", "voc12"] | None = None
    """Whose rule; default: LVIS's for its data, VOC's of the year for its own (voc07 with transfer-voc, as published:
    mmdet's AP50 and AP75 at 11 points), COCO's (with a split: OV-COCO's) for all other."""
    masks: bool = False
    """Also measure masks, of a detector that finds them."""
    base_weights: tuple[float, ...] = ()
    """The tower's share of the score of base classes, in [0, 1]; default: the benchmark's."""
    novel_weights: tuple[float, ...] = ()
    """The tower's share of the score of novel classes, in [0, 1]; default: the benchmark's."""
    candidates: Path | None = None
    """Keep here what the network left of each picture, or find it here; default: a temporary folder."""
    results: Path | None = None
    """Also write the detections of the first fusion as a COCO list of results."""


def run_detection(config: Detection) -> dict[str, Any]:
    """Measure, print a table, write JSON where asked, and return the result.

    Raises:
        InputError: a flag, the data, the detector or its CLIP is wrong.
    """
    for path, flag in ((config.out, "--out"), (config.results, "--results")):
        if path is not None:
            check_target(path, flag=flag)
    if config.limit is not None and config.limit < 1:
        raise InputError(f"--limit: need at least 1 picture; got {config.limit}.")
    if config.data is None or config.model is None:
        raise InputError(
            "--data and --model: need a data set and OUT/model of `foveate train-fvit`; got "
            f"{config.data or 'no --data'} and {config.model or 'no --model'}. To measure the detections of another "
            "program give --from-results FILE --annotations FILE instead."
        )
    started = time.perf_counter()
    import torch

    from foveate.clip.vocabulary import Vocabulary, read_vocabulary
    from foveate.data.loader import open_data
    from foveate.data.splits import split_of
    from foveate.evaluate.candidates import find_candidates
    from foveate.evaluate.detection import open_truth
    from foveate.evaluate.results import check_categories
    from foveate.evaluate.sweep import proposal_recall, sweep
    from foveate.predict.detect import (
        candidates_identity,
        choose_fusions,
        embed_classes,
        open_detector,
        report_vocabulary,
        trained_on,
    )

    asked = None if config.vocab is None else read_vocabulary(config.vocab)
    dataset = open_data(config.data, split=config.split, annotation_file=config.annotations)
    if not any(record.boxes for record in dataset.records):
        raise InputError(
            f"--data {config.data}: need annotated boxes to measure against in split {config.split}; there is none. Is "
            "this the right root and split?"
        )
    benchmark = config.benchmark or ""
    is_transfer = benchmark.startswith("transfer-") and config.novel is None  # all categories count alike
    split = None if is_transfer else split_of(dataset, config.data, file=config.novel)
    detector, about = open_detector(config.model, clip=config.clip, device=config.device)
    if config.masks and not about.network.masks:
        raise InputError(f"--masks: need a detector that finds masks; {config.model} was trained without --masks.")
    vocabulary = asked or Vocabulary(tuple((name,) for name in names_of(dataset, split)))
    is_base = trained_on(vocabulary, about)
    report_vocabulary(vocabulary.names, is_base, about)
    fusions = choose_fusions(config, about.benchmark, config.base_weights, config.novel_weights)
    text = embed_classes(detector, vocabulary, templates=config.templates or about.templates)
    style = config.style or style_of(dataset, benchmark=config.benchmark)
    measured = dataset if config.limit is None else replace(dataset, records=tuple(dataset.records[: config.limit]))
    truth = open_truth(  # before the network's pass, which may take hours: whatever does not fit is told at once
        measured,
        vocabulary=vocabulary.names,
        split=split,
        style=style,
        masks=config.masks,
        annotations=dataset.file,
        only_present=config.vocab is not None,
    )
    if config.results is not None:
        check_categories(config.results, dataset, vocabulary=vocabulary.names)
    if not truth.objects:
        what = "annotated objects with masks" if config.masks else "annotated objects of these classes"
        raise InputError(f"--data {config.data}: need {what} in the {len(measured.records)} pictures; there is none.")
    with ExitStack() as stack:
        folder = config.candidates or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "candidates"
        store = find_candidates(
            detector,
            measured,
            folder,
            made_by=candidates_identity(detector, about),
            batch=config.batch,
            workers=config.workers,
            strict=config.strict,
            progress=True,
        )
        scale = float(detector.scale.detach())
        known = torch.tensor(is_base)
        swept = sweep(store, text, fusions, truth, known, detector_scale=scale, style=style, masks=config.masks)
        recall = proposal_recall(store, measured, split=split)
        if config.results is not None:
            _write_results(config, store, text, vocabulary.names, known, scale, fusions[0], dataset)
        bad = [{"id": one.id, "reason": one.reason} for one in store.bad]
    result = {"detector": str(config.model), "fusions": swept, "recall": recall, "bad": bad, "pictures": len(store.ids)}
    return finish(result, _table(result, config), config, datasets=[dataset], started=started)


def names_of(dataset: "Dataset", split: "BaseNovel | None") -> list[str]:
    """The categories that are asked for."""
    left_out = set() if split is None else set(split.left_out)
    return [category.name for category in dataset.categories if category.name not in left_out]


def style_of(dataset: "Dataset", *, benchmark: str | None) -> "Style":
    """Whose rule a data set is measured by when nobody says: that of what was published on it."""
    if any(category.frequency is not None for category in dataset.categories):
        return "lvis"
    if benchmark == "transfer-voc" or dataset.name.upper().startswith("VOC2007"):
        return "voc07"
    return "voc12" if dataset.name.upper().startswith("VOC") else "coco"


def _write_results(
    config: Detection,
    store: "CandidateStore",
    text: "Tensor",
    names: tuple[str, ...],
    is_base: "Tensor",
    scale: float,
    fusion: "Fusion",
    dataset: "Dataset",
) -> None:
    from foveate.evaluate.results import write_results
    from foveate.heads.fvit.fusion import detect

    assert config.results is not None, "a file to write"

    def found() -> "Iterator[tuple[str, Detections]]":
        one: Candidates
        for one in store:
            yield one.id, detect(one, text, is_base, scale, fusion, masks=config.masks)

    write_results(config.results, found(), dataset, vocabulary=names)
    print(f"wrote {config.results}")


def _table(result: dict[str, Any], config: Detection) -> "Table":
    from rich.table import Table

    first = result["fusions"][0]
    kinds = ["boxes", *(["masks"] if first["masks"] is not None else [])]
    of_groups = "AP" if first["style"] == "lvis" else "AP50"  # APr, APc and APf; OV-COCO's are AP50
    groups = [name for name in first["boxes"]["groups"] if name != "all"]
    title = f"{config.model}: {result['pictures']} pictures, {first['style']}'s rule [%]"
    table = Table(title=title, title_justify="left")
    table.add_column("tower's\nshare")
    table.add_column("of")
    for heading in ("AP", "AP50", *(f"{of_groups}\n{name}" for name in groups)):
        table.add_column(heading, justify="right")
    for one in result["fusions"]:
        for kind in kinds:
            found = one[kind]
            values = [found.get("AP"), found.get("AP50"), *(found["groups"][name].get(of_groups) for name in groups)]
            cells = ["-" if value is None else f"{value:.1f}" for value in values]
            table.add_row(f"{one['fusion']['base']:g}, {one['fusion']['novel']:g}", kind, *cells)
    return table
