"""`foveate evaluate detection`: AP of a trained detector, or of the detections of another program."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from foveate.clip.vocabulary import Vocabulary, named_as, read_vocabulary
from foveate.data.records import Dataset, IgnoredEntries
from foveate.data.sources import open_annotations, open_data
from foveate.data.splits import OV_COCO_NOVEL, SPLITS, BaseNovel, split_of
from foveate.engine.stop import keeping
from foveate.errors import InputError
from foveate.evaluate.commands.results import check_results_flags, with_notes
from foveate.evaluate.detection import evaluate_detection
from foveate.evaluate.detection_results import check_categories, read_results, write_results
from foveate.evaluate.detection_sweep import find_candidates, proposal_recall, sweep
from foveate.evaluate.flags import Detection, Style
from foveate.evaluate.ground_truth import GroundTruth, counting_names, open_ground_truth
from foveate.evaluate.report import finish, first_images, loading_of, log, start, table
from foveate.heads.fvit.fusion import detect
from foveate.predict.detect import (
    candidates_identity,
    choose_fusions,
    embed_classes,
    open_detector,
    report_vocabulary,
    trained_on,
)

RESULTS_FLAGS = ("annotations", "benchmark", "novel", "vocab", "style", "masks")  # used with --from-results
MEASURES = {
    "coco": ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR@1", "AR@10", "AR@100", "AR@1000",
             "AR_small", "AR_medium", "AR_large"),
    "lvis": ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "APr", "APc", "APf", "AR@300", "AR_small",
             "AR_medium", "AR_large"),
    "voc07": ("AP50", "AP75"),
    "voc12": ("AP50", "AP75"),
}  # fmt: skip


def run_detection(config: Detection) -> dict[str, Any]:
    """Measure a detector or a list of results; print and write the result, and return it."""
    if config.from_results is not None:
        return _run_results(config, config.from_results)
    started = start(config)
    dataset, split, model = _open_data(config)
    detector, about = open_detector(model, clip=config.clip, device=config.device)
    if config.masks and not about.network.masks:
        raise InputError(f"--masks: need a detector that predicts masks; {model} was trained without --masks.")
    # the classes that are detected, and which of them the detector was trained on
    vocabulary = _vocabulary(config, dataset, split)
    is_base = trained_on(vocabulary, about)
    report_vocabulary(vocabulary.names, is_base, about)
    text = embed_classes(detector, vocabulary, templates=config.templates or about.templates)
    # the ground truth before the network's pass, which may take hours
    measured = first_images(dataset, config.limit)
    names = _names(vocabulary, dataset)
    truth = _open_truth(config, measured, names, split)
    if config.results is not None:
        check_categories(config.results, dataset, vocabulary=names)
    if not truth.objects:
        what = "annotated objects with masks" if config.masks else "annotated objects of these classes"
        raise InputError(f"--data {config.data}: need {what} in the {len(measured.records)} images; got none."
                         f"{dataset.ignored_sentence()}")  # fmt: skip
    fusions = choose_fusions(config, about.benchmark, config.fusion)
    base, scale = torch.tensor(is_base, dtype=torch.bool), float(detector.scale.detach())
    with ExitStack() as stack:
        folder = config.candidates or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "candidates"
        identity = candidates_identity(detector, about)
        if config.candidates is not None:
            kept = "the candidates of all finished images are in"
            stack.enter_context(keeping(lambda: f"{kept} {folder}"))
        store = find_candidates(detector, measured, folder, made_by=identity, loading=loading_of(config))
        results = sweep(store, text, fusions, truth, base, detector_scale=scale)
        recall = proposal_recall(store, measured, split=split)
        if config.results is not None:
            predictions = (
                (candidates.id, detect(candidates, text, base, scale, fusions[0], masks=config.masks))
                for candidates in store
            )
            write_results(config.results, predictions, dataset, vocabulary=names)
            print(f"wrote {config.results}")
        bad = [{"id": sample.id, "reason": sample.reason} for sample in store.bad]
    result = {"detector": str(model), "fusions": results, "recall": recall, "bad": bad, "images": len(store.ids)}
    return finish(result, _table(result, config), config, datasets=[dataset], started=started)


def _open_data(config: Detection) -> tuple[Dataset, BaseNovel | None, Path]:
    """The annotated images, their base and novel categories, and the path to the detector."""
    if config.data is None or config.model is None:
        raise InputError(
            "--data and --model: need a data set and OUT/model of `foveate train-fvit`; got "
            f"{config.data or 'no --data'} and {config.model or 'no --model'}. To measure the detections of another "
            "program give --from-results FILE --annotations FILE instead."
        )
    dataset = open_data(
        config.data, split=config.split, annotation_file=config.annotations, accept=config.accept_annotations
    )
    if not any(record.boxes for record in dataset.records):
        raise InputError(
            f"--data {config.data}: need annotated boxes in split {config.split}; got none. Is this the right root and "
            f"split?{dataset.ignored_sentence()}"
        )
    is_transfer = (config.benchmark or "").startswith("transfer-") and config.novel is None  # all categories count
    return dataset, None if is_transfer else split_of(dataset, config.data, file=config.novel), config.model


def _vocabulary(config: Detection, dataset: Dataset, split: BaseNovel | None) -> Vocabulary:
    """The classes of --vocab, or all that the split counts."""
    if config.vocab is not None:
        return read_vocabulary(config.vocab)
    return Vocabulary(tuple((name,) for name in counting_names(dataset, split)))


def _names(vocabulary: Vocabulary, dataset: Dataset) -> tuple[str, ...]:
    """The name of each class of a vocabulary among those of the categories, as far as it is one."""
    return named_as(vocabulary, (category.name for category in dataset.categories))


def _open_truth(config: Detection, dataset: Dataset, names: tuple[str, ...], split: BaseNovel | None) -> GroundTruth:
    """Open the ground truth, and print what of it was replaced, ignored or is not measured."""
    truth = open_ground_truth(
        dataset,
        vocabulary=names,
        split=split,
        style=config.style or style_of(dataset, benchmark=config.benchmark),
        masks=config.masks,
        only_present=config.vocab is not None,
    )
    log("\n".join(line for line in truth.notable if line not in dataset.ignored_lines()))
    return truth


def style_of(dataset: Dataset, *, benchmark: str | None) -> Style:
    """The default of --style: the rule of the published results on a data set."""
    if any(category.frequency is not None for category in dataset.categories):
        return "lvis"
    if benchmark == "transfer-voc" or dataset.name.upper().startswith("VOC2007"):
        return "voc07"
    return "voc12" if dataset.name.upper().startswith("VOC") else "coco"


def _table(result: dict[str, Any], config: Detection) -> Table:
    first = result["fusions"][0]
    kinds = [kind for kind in ("boxes", "masks") if first[kind] is not None]
    measure = "AP" if first["style"] == "lvis" else "AP50"  # APr, APc and APf; OV-COCO's are AP50
    groups = [name for name in first["boxes"]["groups"] if name != "all"]
    rows = []
    for fusion in result["fusions"]:
        weights = f"{fusion['fusion']['base']:g}, {fusion['fusion']['novel']:g}"
        for kind in kinds:
            scores = fusion[kind]
            by_group = (scores["groups"][name].get(measure) for name in groups)
            rows.append([weights, kind, scores.get("AP"), scores.get("AP50"), *by_group])
    columns = ["tower's\nweight", "of", "AP", "AP50", *(f"{measure}\n{name}" for name in groups)]
    title = f"{config.model}: {result['images']} images, {first['style']}'s rule [%]"
    return table(title, columns, rows, names=2)


# ------------------------------------------------------------------------------------------------------- --from-results


def _run_results(config: Detection, path: Path) -> dict[str, Any]:
    """Measure a list of results, without a model."""
    check_results_flags(config, RESULTS_FLAGS)
    started = start(config)
    dataset = open_annotations(
        config.data, split=config.split, annotation_file=config.annotations, accept=config.accept_annotations
    )
    dataset = first_images(dataset, config.limit)
    split = _results_split(config, dataset)
    names = _names(_vocabulary(config, dataset, split), dataset)
    skipped: dict[str, IgnoredEntries] = {}
    detections = read_results(path, dataset, vocabulary=names, skipped=skipped)
    predictions = [(key, prediction) for key, prediction in detections if len(prediction.scores)]
    measured = evaluate_detection(predictions, _open_truth(config, dataset, names, split))
    if not config.masks and any(prediction.masks is not None for _, prediction in predictions):
        log(f"{path}: also has masks; add --masks to measure them")
    result = {"results": str(path), **measured, "bad": []}
    dataset = with_notes(dataset, skipped, result)
    return finish(result, _results_table(result), config, datasets=[dataset], started=started)


def _results_split(config: Detection, dataset: Dataset) -> BaseNovel | None:
    """Base and novel categories; OV-COCO's of plain COCO annotations only with --benchmark ov-coco."""
    benchmark = config.benchmark or ""
    if benchmark.startswith("transfer-") and config.novel is None:
        return None
    folder = Path(config.annotations or ".").parent
    root = config.data or (folder.parent if folder.name == SPLITS.parent.name else folder)
    split = split_of(dataset, root, file=config.novel)
    if benchmark == "ov-coco" and split is None:
        raise InputError(f"--benchmark ov-coco: need COCO's 80 categories, or --novel FILE; {dataset.name} has "
                         f"{len(dataset.categories)} other ones. Remove it.")  # fmt: skip
    is_requested = config.novel is not None or (root / SPLITS).is_file() or benchmark == "ov-coco"
    if split is None or is_requested or split.novel != OV_COCO_NOVEL:
        return split
    log("measuring all 80 categories, as in COCO; --benchmark ov-coco measures OV-COCO's 48 base and 17 novel ones")
    return None


def _results_table(result: dict[str, Any]) -> Table:
    kinds = [kind for kind in ("boxes", "masks") if result[kind] is not None]
    rows = [
        [name, *(result[kind][name] for kind in kinds)] for name in MEASURES[result["style"]] if name in result["boxes"]
    ]
    groups = result["boxes"]["groups"]
    rows += [
        [f"{name} {group}", *(result[kind]["groups"][group][name] for kind in kinds)]
        for group in groups
        if group in ("base", "novel")
        for name in ("AP", "AP50")
        if name in groups[group]
    ]
    title = f"{Path(result['results']).name}: {result['detections']} detections in {result['images']} images, "
    return table(f"{title}{result['style']}'s rule [%]", ["measure", *kinds], rows, digits=4)
