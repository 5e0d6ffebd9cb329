"""`foveate evaluate panoptic`: PQ of a mask generator with a CLIP (Tab. 5), or of another program's files."""

from pathlib import Path
from typing import Any

from rich.table import Table

from foveate.clip.vocabulary import Vocabulary
from foveate.data.labels import class_names
from foveate.data.records import IgnoredEntries
from foveate.data.sources import open_panoptic
from foveate.errors import InputError
from foveate.evaluate.commands.results import check_results_flags, with_notes
from foveate.evaluate.flags import Panoptic
from foveate.evaluate.fusion_sweep import sweep_fusion
from foveate.evaluate.map_results import read_panoptic_results
from foveate.evaluate.panoptic import evaluate_panoptic
from foveate.evaluate.report import finish, first_images, loading_of, log, start, table
from foveate.heads.panoptic.described import is_published
from foveate.heads.panoptic.fusion import FusionWeights
from foveate.heads.panoptic.product import read_about
from foveate.heads.panoptic.published import PublishedModel
from foveate.heads.panoptic.segment import PanopticSegmenter
from foveate.predict.masks import open_segmenter, share_numbers

ROWS = ("odise-label", "clip", "generator")  # fusion weights that are measured when no --fusion is given


def run_panoptic(config: Panoptic) -> dict[str, Any]:
    """Measure a segmenter or panoptic PNGs; print and write the result, and return it."""
    if config.from_results is not None:
        return _run_results(config, config.from_results)
    started = start(config)
    if config.model is None:
        raise InputError("--model: need OUT/model of `foveate train-panoptic`; got none. To measure the predictions of "
                         "another tool give --from-results DIR instead.")  # fmt: skip
    requested = [(name, FusionWeights(*share_numbers(name))) for name in config.fusion]
    # the fusion weights; with a mask generator without classes, CLIP alone classifies
    names, clip_name = _default_rows(config.model, config)
    rows = requested or [(name, FusionWeights(*share_numbers(name))) for name in names]
    refused = [name for name, weights in rows if (weights.seen, weights.unseen) != (1, 1)]
    if refused and names == ("clip",):
        raise InputError(
            f"--fusion: must be `clip` alone with {config.model}, which was trained with --no-class-names and has no "
            f"classes; got {refused[0]}."
        )
    dataset = open_panoptic(config.data, config.split, accept=config.accept_annotations)
    vocabulary = Vocabulary(class_names(dataset.categories, config.labels, name=dataset.name, report=log).classes)
    segmenter = open_segmenter(
        config,
        config.model,
        vocabulary,
        [category.is_thing for category in dataset.categories],
        shares=rows[0][1],
        squash=config.squash,
        templates=config.templates,
        min_score=config.min_score,
        overlap=config.overlap,
        device=config.device,
    )
    seen = int(segmenter.query.is_seen.sum())
    log(f"{len(vocabulary.classes)} classes, of which the mask generator was trained on {seen}")
    measured = sweep_fusion(
        segmenter,
        dataset,
        [weights for _, weights in rows],
        semantic="miou" in config.metrics,
        instances="ap" in config.metrics,
        loading=loading_of(config),
    )
    named = [{"name": name, **row} for (name, _), row in zip(rows, measured["shares"], strict=True)]
    result = {
        "generator": str(config.model),
        "clip": clip_name,
        "size": segmenter.size,
        "region": config.mask_pooling if clip_name else None,
        "min_score": segmenter.min_score,
        "overlap": segmenter.overlap,
        **_input_of(segmenter),
        "classes": {"all": len(vocabulary.classes), "seen": seen},
        **measured,
        "shares": named,
    }
    return finish(result, _table(result, config), config, datasets=[dataset], started=started)


def _default_rows(model: Path, config: Panoptic) -> tuple[tuple[str, ...], str | None]:
    """The default rows, and the CLIP that classifies masks; None: the model itself."""
    if is_published(model):
        return ("generator",) if config.classifier is None else ROWS, config.classifier
    about = read_about(model)
    return ROWS if about.knows_words else ("clip",), config.classifier or config.clip or about.model


def _input_of(segmenter: PanopticSegmenter) -> dict[str, list[int]]:
    """Shortest and longest edge of the input of a model of transformers; empty for a mask generator."""
    model = segmenter.mask_generator
    return {"input": [model.described.shortest, model.described.longest]} if isinstance(model, PublishedModel) else {}


def _table(result: dict[str, Any], config: Panoptic) -> Table:
    rows = []
    for row in result["shares"]:
        cells = [*(row["all"][name] for name in ("PQ", "SQ", "RQ")), row["things"]["PQ"], row["stuff"]["PQ"]]
        cells += [row["groups"][name]["PQ"] for name in ("seen", "unseen")]
        cells += [row["semantic"]["mIoU"]] if "miou" in config.metrics else []
        cells += [row["instances"]["masks"]["AP"]] if "ap" in config.metrics else []
        rows.append([row["name"], *cells])
    columns = ["CLIP's weight", "PQ", "SQ", "RQ", "PQ\nthings", "PQ\nstuff", "PQ\nseen", "PQ\nunseen"]
    columns += [*(["mIoU"] if "miou" in config.metrics else []), *(["AP\nmasks"] if "ap" in config.metrics else [])]
    clip = f" with {result['clip']}, {result['size']} px" if result["clip"] else ""
    return table(f"{config.model}{clip}: {result['images']} images [%]", columns, rows)


def _run_results(config: Panoptic, path: Path) -> dict[str, Any]:
    """Measure panoptic PNGs, without a model."""
    check_results_flags(config)
    started = start(config)
    dataset = open_panoptic(config.data, config.split, with_images=False, accept=config.accept_annotations)
    dataset = first_images(dataset, config.limit)
    skipped: dict[str, IgnoredEntries] = {}
    predictions = read_panoptic_results(path, dataset, skipped=skipped)
    measured = evaluate_panoptic(predictions.maps, dataset)
    result = {"results": str(path), **measured, "rules": [measured["rule"], *predictions.rules], "bad": []}
    rows = [
        [group, *(result[group][name] for name in ("classes", "PQ", "SQ", "RQ"))]
        for group in ("all", "things", "stuff")
    ]
    title = f"{path.name}: {result['images']} images of {result['data']} [%]"
    shown = table(title, ("classes", "number", "PQ", "SQ", "RQ"), rows, digits=4)
    return finish(result, shown, config, datasets=[with_notes(dataset, skipped, result)], started=started)
