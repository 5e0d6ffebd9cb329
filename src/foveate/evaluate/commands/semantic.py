"""`foveate evaluate semantic`: mIoU of any model that classifies pixels, or of the label maps of another program."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from foveate.clip.vocabulary import Vocabulary, share_words
from foveate.data.batches import Batches
from foveate.data.label_maps import open_semantic
from foveate.data.records import IgnoredEntries
from foveate.data.semantic import SemanticData
from foveate.data.splits import split_semantic
from foveate.engine.distributed import choose_device
from foveate.errors import InputError
from foveate.evaluate.commands.results import check_results_flags, with_notes
from foveate.evaluate.flags import Semantic
from foveate.evaluate.map_results import read_label_maps
from foveate.evaluate.report import finish, first_images, loading_of, start, table
from foveate.evaluate.semantic import evaluate_semantic
from foveate.predict.segmenters import check_segmenting, open_pixels

RESULTS_FLAGS = ("kind", "labels", "maps", "image_list", "novel", "map_ids")  # used with --from-results


def run_semantic(config: Semantic) -> dict[str, Any]:
    """Measure a model or label maps; print and write the result, and return it."""
    if config.from_results is not None:
        return _run_results(config, config.from_results)
    started = start(config)
    if config.model is None:
        raise InputError("--model: need OUT/model of a training run, or a CLIP; got none. To measure the label maps of "
                         "another tool give --from-results DIR instead.")  # fmt: skip
    check_segmenting(config)
    data = _open_data(config)
    # with --all-synonyms each name is a class to predict, which `class_of` maps back
    classes = Vocabulary(tuple((item.name, *item.synonyms) for item in data.dataset.categories))
    vocabulary, class_of = classes, None
    if config.all_synonyms:
        class_of = [label for label, names in enumerate(classes.classes) for _ in names]
        vocabulary = Vocabulary(tuple((name,) for names in classes.classes for name in names))
    segmenter = open_pixels(config, vocabulary, device=choose_device(config.device, local_rank=None))
    seen = base_classes(config, data) if segmenter.trained is None else share_words(classes, segmenter.trained)
    batches = Batches(data.dataset, loading_of(config))
    predictions = (
        (sample.id, label_map)
        for samples in batches
        for sample, label_map in zip(samples, segmenter.label_maps(samples), strict=True)
    )
    measured = evaluate_semantic(predictions, data, class_of=class_of, seen=seen)
    result = {"model": config.model, "kind": segmenter.kind, **measured, "bad": batches.bad_listed()}
    return finish(result, _table(result, config.model), config, datasets=[data.dataset], started=started)


def _open_data(config: Semantic, *, with_images: bool = True) -> SemanticData:
    """The images of --limit with all their classes; their files are needed only `with_images`."""
    data = open_semantic(
        config.data,
        split=config.split,
        kind=config.kind,
        labels=config.labels,
        maps=config.maps,
        names=config.image_list,
        with_images=with_images,
    )
    return replace(data, dataset=first_images(data.dataset, config.limit))


def base_classes(config: Semantic, data: SemanticData) -> list[bool] | None:
    """Which classes are base in the data's split; None: it has no split."""
    parts = split_semantic(data.dataset, config.data, file=config.novel)
    return None if parts is None else [name in parts.base for name in data.names]


def _run_results(config: Semantic, path: Path) -> dict[str, Any]:
    """Measure label maps, without a model."""
    check_results_flags(config, RESULTS_FLAGS)
    started = start(config)
    data = _open_data(config, with_images=False)
    skipped: dict[str, IgnoredEntries] = {}
    predictions = read_label_maps(path, data, numbers=config.map_ids, skipped=skipped)
    measured = evaluate_semantic(predictions.maps, data, seen=base_classes(config, data))
    result = {"results": str(path), **measured, "rules": [measured["rule"], *predictions.rules], "bad": []}
    dataset = with_notes(data.dataset, skipped, result)
    shown = _table(result, str(path), missing="have no label map")
    return finish(result, shown, config, datasets=[dataset], started=started)


def _table(result: dict[str, Any], measured: str, *, missing: str = "could not be read") -> Table:
    """A result as a table; `missing` is why images have no prediction."""
    count = result["images_without_result"]["count"]
    title = f"{measured}: {result['images']} images of {result['data']} [%]"
    title += f"; {count} of them {missing}, and all their pixels count as missed" if count else ""
    means = (result["mIoU"], result["mean_accuracy"], result["pixel_accuracy"])
    rows = [["all", result["classes"]["with_ground_truth"], *means]]
    rows += [[name, group["classes"], group["mIoU"], "", ""] for name, group in result["groups"].items()]
    return table(title, ("classes", "with pixels", "mIoU", "mean accuracy", "pixel accuracy"), rows)
