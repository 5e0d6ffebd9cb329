"""`foveate evaluate detection`, `panoptic`, `semantic`: of a model, or, with --from-results, of files.

For files no model is loaded. What of them is not measured is counted and told; flags that are for models are refused.
Torch is imported only when something is measured.
"""

import sys
import time
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.cli import detection, panoptic, semantic
from foveate.cli.detection import Detection, names_of, style_of
from foveate.cli.evaluate import Reading, finish
from foveate.cli.panoptic import Panoptic, open_panoptic
from foveate.cli.semantic import Semantic, base_classes, table_of
from foveate.errors import InputError
from foveate.io.files import check_target

if TYPE_CHECKING:
    from rich.table import Table

    from foveate.data.records import Dataset, Dropped
    from foveate.data.splits import BaseNovel

# the flags that files of results understand; every other one is a model's
COMMON = ("from_results", "data", "split", "limit", "out")
OF_DETECTION = (*COMMON, "annotations", "benchmark", "novel", "vocab", "style", "masks")
OF_SEMANTIC = (*COMMON, "kind", "labels", "maps", "names", "novel", "numbers")
NUMBERS = {
    "coco": ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR@1", "AR@10", "AR@100", "AR@1000",
             "AR_small", "AR_medium", "AR_large"),
    "lvis": ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "APr", "APc", "APf", "AR@300", "AR_small",
             "AR_medium", "AR_large"),
    "voc07": ("AP50", "AP75"),
    "voc12": ("AP50", "AP75"),
}  # fmt: skip


def run_detection(config: Detection) -> dict[str, Any]:
    """Measure a model, or the files of --from-results, print a table, write JSON where asked, and return the result.

    Raises:
        InputError: a flag, the data, the model or the files of results are wrong.
    """
    return detection.run_detection(config) if config.from_results is None else _score_detection(config)


def _score_detection(config: Detection) -> dict[str, Any]:
    """Measure a list of detections, print a table, write JSON where asked, and return the result.

    Raises:
        InputError: a flag, the annotations or the file of results is wrong.
    """
    path = _check(config, OF_DETECTION)
    started = time.perf_counter()
    from foveate.clip.vocabulary import read_vocabulary
    from foveate.data.sources import open_annotations
    from foveate.evaluate.detection import evaluate_detection
    from foveate.evaluate.results import read_results

    dataset = _first(open_annotations(config.data, split=config.split, annotation_file=config.annotations), config)
    split = _split_of(config, dataset)
    names = names_of(dataset, split) if config.vocab is None else list(read_vocabulary(config.vocab).names)
    skipped: dict[str, Dropped] = {}
    found = [one for one in read_results(path, dataset, vocabulary=names, skipped=skipped) if len(one[1].scores)]
    measured = evaluate_detection(
        found,
        dataset,
        vocabulary=names,
        split=split,
        style=config.style or style_of(dataset, benchmark=config.benchmark),
        masks=config.masks,
        only_present=config.vocab is not None,
    )
    if not config.masks and any(one.masks is not None for _, one in found):
        _tell(f"{path}: has masks too, which --masks measures")
    result = {"results": str(path), **measured, "bad": []}
    return finish(result, _detection_table(result), config, datasets=[_with(dataset, skipped, result)], started=started)


def run_panoptic(config: Panoptic) -> dict[str, Any]:
    """Measure a model, or the files of --from-results, print a table, write JSON where asked, and return the result.

    Raises:
        InputError: a flag, the data, the model or the files of results are wrong.
    """
    return panoptic.run(config) if config.from_results is None else _score_panoptic(config)


def _score_panoptic(config: Panoptic) -> dict[str, Any]:
    """Measure panoptic PNGs, print a table, write JSON where asked, and return the result.

    Raises:
        InputError: a flag, the data or the files of results are wrong.
    """
    path = _check(config, COMMON)
    started = time.perf_counter()
    from foveate.evaluate.map_results import read_panoptic_results
    from foveate.evaluate.panoptic import evaluate_panoptic

    dataset = _first(open_panoptic(config.data, config.split, images=False), config)
    skipped: dict[str, Dropped] = {}
    found = read_panoptic_results(path, dataset, skipped=skipped)
    measured = evaluate_panoptic(found.maps, dataset)
    result = {"results": str(path), **measured, "rules": [measured["rule"], *found.rules], "bad": []}
    return finish(result, _panoptic_table(result), config, datasets=[_with(dataset, skipped, result)], started=started)


def run_semantic(config: Semantic) -> dict[str, Any]:
    """Measure a model, or the files of --from-results, print a table, write JSON where asked, and return the result.

    Raises:
        InputError: a flag, the data, the model or the files of results are wrong.
    """
    return semantic.run(config) if config.from_results is None else _score_semantic(config)


def _score_semantic(config: Semantic) -> dict[str, Any]:
    """Measure label maps, print a table, write JSON where asked, and return the result.

    Raises:
        InputError: a flag, the data or the files of results are wrong.
    """
    path = _check(config, OF_SEMANTIC)
    started = time.perf_counter()
    from foveate.evaluate.map_results import read_label_maps
    from foveate.evaluate.semantic import evaluate_semantic
    from foveate.train.label_maps import open_truth_maps

    data = open_truth_maps(config, split=config.split, images=False)
    data = replace(data, dataset=_first(data.dataset, config))
    skipped: dict[str, Dropped] = {}
    found = read_label_maps(path, data, numbers=config.numbers, skipped=skipped)
    measured = evaluate_semantic(found.maps, data, seen=base_classes(config, data))
    result = {"results": str(path), **measured, "rules": [measured["rule"], *found.rules], "bad": []}
    table = table_of(result, str(path), missing="have no label map")
    return finish(result, table, config, datasets=[_with(data.dataset, skipped, result)], started=started)


def _check(config: Detection | Panoptic | Semantic, known: tuple[str, ...]) -> Path:
    """Hold the flags to what measures files; return where the results are."""
    for flag in fields(config):
        default = flag.default_factory() if flag.default_factory is not MISSING else flag.default
        if flag.name not in known and getattr(config, flag.name) != default:
            raise InputError(
                f"--{flag.name.replace('_', '-')}: is for measuring a model, and takes no part in measuring "
                f"--from-results; got {getattr(config, flag.name)}. Leave one of them out."
            )
    if config.limit is not None and config.limit < 1:
        raise InputError(f"--limit: need at least 1 picture; got {config.limit}.")
    if config.out is not None:
        check_target(config.out, flag="--out")
    assert config.from_results is not None, "main.run comes here with it alone"
    return config.from_results


def _first(dataset: "Dataset", config: Reading) -> "Dataset":
    """The first images of --limit."""
    return dataset if config.limit is None else replace(dataset, records=tuple(dataset.records[: config.limit]))


def _split_of(config: Detection, dataset: "Dataset") -> "BaseNovel | None":
    """Base and novel categories; OV-COCO's of plain COCO annotations only where they are asked for."""
    from foveate.data.splits import OV_COCO_NOVEL, SPLITS, split_of

    benchmark = config.benchmark or ""
    if benchmark.startswith("transfer-") and config.novel is None:
        return None
    folder = Path(config.annotations or ".").parent
    root = config.data or (folder.parent if folder.name == SPLITS.parent.name else folder)
    split = split_of(dataset, root, file=config.novel)
    if benchmark == "ov-coco" and split is None:
        raise InputError(f"--benchmark ov-coco: need COCO's 80 categories, or --novel FILE; {dataset.name} has "
                         f"{len(dataset.categories)} others. Leave it out.")  # fmt: skip
    own = config.novel is not None or (root / SPLITS).is_file() or benchmark == "ov-coco"
    if split is None or own or split.novel != OV_COCO_NOVEL:
        return split
    _tell("all 80 categories count alike, as COCO's; --benchmark ov-coco measures OV-COCO's 48 base and 17 novel ones")
    return None


def _with(dataset: "Dataset", skipped: "dict[str, Dropped]", result: dict[str, Any]) -> "Dataset":
    """Tell what was measured how, and let the data say what of the results was not."""
    for rule in result["rules"]:
        _tell(f"rule: {rule}")
    without = result["pictures_without_result"]["count"]
    told = [
        (without, "images have no result: whatever is annotated there is missed"),
        (result.get("not_measured", 0), "results are of images that the rule leaves out, and are not measured"),
        (result.get("beyond_cap", 0), "results exceed the most that the rule takes of an image, and are not measured"),
    ]
    notes = tuple(f"{count} {text}" for count, text in told if count)
    return replace(dataset, dropped={**dataset.dropped, **skipped}, notes=(*dataset.notes, *notes))


def _detection_table(result: dict[str, Any]) -> "Table":
    from rich.table import Table

    kinds = ["boxes", *(["masks"] if result["masks"] is not None else [])]
    title = f"{Path(result['results']).name}: {result['detections']} detections in {result['pictures']} pictures, "
    title += f"{result['style']}'s rule [%]"
    table = Table(title=title, title_justify="left", min_width=min(len(title), 79))
    for heading in ("measure", *kinds):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for name in NUMBERS[result["style"]]:
        if name in result["boxes"]:
            table.add_row(name, *(_cell(result[kind][name]) for kind in kinds))
    for group in result["boxes"]["groups"]:
        for name in ("AP", "AP50"):
            if group in ("base", "novel") and name in result["boxes"]["groups"][group]:
                table.add_row(f"{name} {group}", *(_cell(result[kind]["groups"][group][name]) for kind in kinds))
    return table


def _panoptic_table(result: dict[str, Any]) -> "Table":
    from rich.table import Table

    title = f"{Path(result['results']).name}: {result['pictures']} pictures of {result['data']} [%]"
    table = Table(title=title, title_justify="left", min_width=min(len(title), 79))
    for heading in ("classes", "number", "PQ", "SQ", "RQ"):
        table.add_column(heading, justify="left" if heading == "classes" else "right")
    for group in ("all", "things", "stuff"):
        one = result[group]
        table.add_row(group, str(one["classes"]), *(_cell(one[name]) for name in ("PQ", "SQ", "RQ")))
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"  # results files are compared with official tools, to the digit


def _tell(message: str) -> None:
    print(message, file=sys.stderr)
