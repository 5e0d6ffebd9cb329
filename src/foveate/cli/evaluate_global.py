"""`foveate evaluate global` and `foveate evaluate pareto`: what whole pictures still say, and what dense gain costs.

Torch is imported only when something is measured, so that help and typing errors answer at once.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foveate.cli.evaluate import Cropping, finish, load_model
from foveate.cli.show import check_png, split_named
from foveate.clip.names import Head, Pad, TemplateName
from foveate.errors import InputError
from foveate.io.files import check_target, default_cache

if TYPE_CHECKING:
    from rich.table import Table

    from foveate.data.records import Dataset
    from foveate.evaluate.labelled import Labelled


@dataclass(frozen=True, kw_only=True)
class GlobalReading(Cropping):
    """The flags of both verbs."""

    reference: str | None = None
    """CLIP before distillation, measured in the same run."""
    reference_pretrained: str | None = None
    """Weights file or open_clip tag, where `reference` is the name of an architecture."""
    names: Path | None = None
    """JSON of what class folders are called, {folder: name or [name, synonym, ...]}; default: as they are."""
    view: Literal["centre", "whole"] = "centre"
    """Of whole pictures: their central square, as CLIP's own evaluations; or all of it in a padded square."""
    templates: TemplateName = "vild"
    """What class names are written into: ViLD's 63 templates, CLIP's 80 for ImageNet, or nothing."""


@dataclass(frozen=True, kw_only=True)
class Global(GlobalReading):
    """Classify and retrieve with image embeddings: what a model still knows of whole pictures."""

    data: Path
    """Folder of class folders (ImageNet's layout), COCO root (crops of things; captions), or tar shards with texts."""
    model: str
    """Name of a CLIP, or a folder with one (OUT/model of a run)."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where `model` is the name of an architecture."""
    classify: bool = True
    """Classify, where the data has classes."""
    retrieve: bool = True
    """Retrieve, where the data has captions."""


@dataclass(frozen=True, kw_only=True)
class Pareto(GlobalReading):
    """Mix student and teacher weights, and measure what each mix gains in the dense map and loses in whole pictures."""

    data: Path
    """COCO root with panoptic annotations, or a world written by `foveate world`."""
    model: tuple[str, ...]
    """Distilled models, each FOLDER or NAME=FOLDER (OUT/model of a run with --alpha 1)."""
    reference: str | None = None
    """The CLIP they were distilled from; needed."""
    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Shares of the student; 0 is the teacher."""
    size: int | None = None
    """Side of the dense input [pixels]; default: four times the model's own size."""
    head: Head = "value"
    """What becomes of the last block; value is the paper's."""
    pad: Pad | None = None
    """Padding of the dense input: black before colour normalisation, or zero after it; default: each model's own."""
    global_data: Path | None = None
    """Measure whole pictures on this data, such as a folder of class folders, instead of on `data`."""
    plot: Path | None = None
    """PNG to draw: dense accuracy against global accuracy."""


def open_global(
    data: Path, *, split: str, names: Path | None, classify: bool = True, retrieve: bool = True
) -> "tuple[Labelled | None, Dataset | None]":
    """Find classes and captions in data of any of the kinds that `Global.data` names.

    Args:
        data: see there.
        split: of a COCO root.
        names: see `GlobalReading.names`.
        classify: look for classes.
        retrieve: look for captions.

    Raises:
        InputError: the data are none of these, or neither of the two is there.
    """
    from foveate.data.captions import only_captioned, with_captions
    from foveate.data.sources import open_data
    from foveate.evaluate.labelled import annotated_things, class_folders

    if names is not None and (data / "annotations").is_dir():
        raise InputError(f"--names {names}: names class folders; {data} has annotations, and their categories' names.")
    labelled = pictures = None
    has_captions = retrieve and (data / "annotations" / f"captions_{split}2017.json").is_file()
    if classify or not has_captions:
        dataset = open_data(data, split=split, annotations="instances")
        if len(dataset.records) and dataset.records[0].member is not None:
            pictures = dataset if retrieve else None
        elif classify:
            labelled = annotated_things(dataset) if dataset.categories else class_folders(dataset, names=names)
            pictures = replace(dataset, dropped={}, notes=()) if has_captions else None  # told once, with the classes
    elif has_captions:
        pictures = open_data(data, split=split, annotations="none")
    captioned = None if pictures is None else only_captioned(with_captions(pictures, root=data, split=split))
    if labelled is None and captioned is None:
        raise InputError(
            f"{data}: need class folders, annotated things, or captions to measure by; found none of those asked for."
        )
    return labelled, captioned


def run_global(config: Global) -> dict[str, Any]:
    """Classify and retrieve, print a table, write JSON where asked, and return the result."""
    if config.out is not None:
        check_target(config.out, flag="--out")
    started = time.perf_counter()
    from foveate.evaluate.global_ import evaluate_global

    labelled, captioned = open_global(
        config.data,
        split=config.split,
        names=config.names,
        classify=config.classify,
        retrieve=config.retrieve,
    )
    clips = {"model": load_model(config.model, config.pretrained, config.device)}
    if config.reference is not None:
        reference = load_model(config.reference, config.reference_pretrained, config.device)
        clips = {"reference": reference, **clips}
    result = evaluate_global(
        clips,
        labelled=labelled,
        captioned=captioned,
        view=config.view,
        templates=config.templates,
        text_cache=default_cache(),
        **config.reading(),
    )
    datasets = [*([] if labelled is None else [labelled.dataset]), *([] if captioned is None else [captioned])]
    return finish(result, _global_table(result, config), config, datasets=datasets, started=started)


def _global_table(result: dict[str, Any], config: Global) -> "Table":
    from rich.table import Table

    titles, rows = [], []
    if result["classification"] is not None:
        about = result["classification"]
        titles.append(f"{about['of']} of {about['pictures']} pictures in {about['classes']} classes")
        rows += [(f"classification, {word}, top-{top}", ("classification", kind, f"top{top}"))
                 for word, kind in (("mean over classes", "mean"), ("overall", "overall"))
                 for top in (1, 5)]  # fmt: skip
    if result["retrieval"] is not None:
        about = result["retrieval"]
        titles.append(f"{about['captions']} captions of {about['pictures']} pictures, view {result['view']}")
        rows += [(f"{word}, R@{top}", ("retrieval", way, f"r{top}"))
                 for word, way in (("image to text", "image_to_text"), ("text to image", "text_to_image"))
                 for top in (1, 5, 10)]  # fmt: skip
    beside = "" if config.reference is None else f" beside {config.reference}"
    title = f"image embeddings of {config.model}{beside} [%]: {'; '.join(titles)}"
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    shown = [name for name in ("reference", "model") if name in result]
    for name in shown:
        table.add_column(name, justify="right")
    for word, (first, second, third) in rows:
        values = [result[name][first][second][third] for name in shown]
        table.add_row(word, *("-" if value is None else f"{value:.1f}" for value in values))
    return table


def run_pareto(config: Pareto) -> dict[str, Any]:
    """Sweep alpha, print a table, write JSON and a plot where asked, and return the result."""
    if config.out is not None:
        check_target(config.out, flag="--out")
    if config.plot is not None:
        check_png(config.plot, flag="--plot")
    if config.reference is None:
        raise InputError("--reference: need the CLIP that the models were distilled from; got none.")
    started = time.perf_counter()
    from foveate.data.sources import open_data
    from foveate.evaluate.pareto import check_unmixed, evaluate_pareto

    named = [split_named(entry) for entry in config.model]
    if len({name for name, _ in named}) < len(named):
        raise InputError("--model: need different names; write NAME=FOLDER for each.")
    for _, folder in named:
        check_unmixed(folder)
    dataset = open_data(config.data, split=config.split, annotations="panoptic")
    whole = config.data if config.global_data is None else config.global_data
    labelled, captioned = open_global(whole, split=config.split, names=config.names)
    if labelled is None:
        raise InputError(
            f"{whole}: need class folders or annotated things for the global axis; it holds captions alone."
        )
    teacher = load_model(config.reference, config.reference_pretrained, config.device)
    students = {name: load_model(str(folder), None, config.device, pad=config.pad) for name, folder in named}
    result = evaluate_pareto(
        students,
        teacher,
        dataset,
        labelled=labelled,
        captioned=captioned,
        alphas=list(config.alphas),
        size=4 * teacher.native_size if config.size is None else config.size,
        head=config.head,
        view=config.view,
        templates=config.templates,
        text_cache=default_cache(),
        **config.reading(),
    )
    datasets: list[Dataset] = [dataset, labelled.dataset, *([] if captioned is None else [captioned])]
    finish(result, _pareto_table(result, config), config, datasets=datasets, started=started)
    if config.plot is not None:
        from foveate.show.pareto import pareto_chart

        kind = "pictures" if labelled.by_picture is not None else "thing crops"
        pareto_chart(config.plot, result["points"], size=result["size"], whole=kind)
        print(f"wrote {config.plot}")
    return result


def _pareto_table(result: dict[str, Any], config: Pareto) -> "Table":
    from rich.table import Table

    title = f"alpha * student + (1 - alpha) * {config.reference} [%], {result['size']} px, head {result['head']}"
    table = Table(title=title, title_justify="left")
    table.add_column("model", overflow="fold")
    columns = (
        "alpha",
        "dense\nboxes",
        "dense\nthings",
        "dense\nstuff",
        "global\nmean",
        "global\nall",
        "texts\nR@1",
        "front",
    )
    for heading in columns:
        table.add_column(heading, justify="right")
    for point in result["points"]:
        keys = ("boxes", "things", "stuff", "classification", "overall", "retrieval")
        values = ("-" if point[key] is None else f"{point[key]:.1f}" for key in keys)
        table.add_row(point["model"], f"{point['alpha']:g}", *values, "*" if point["front"] else "")
    return table
