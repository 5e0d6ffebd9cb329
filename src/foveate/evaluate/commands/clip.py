"""`foveate evaluate regions`, `agreement`, `retrieval`, `global` and `pareto`: dense and global accuracy of a CLIP."""

from pathlib import Path
from typing import Any

from rich.table import Table

from foveate.data.records import Dataset
from foveate.data.sources import open_data
from foveate.errors import InputError
from foveate.evaluate.agreement import evaluate_agreement
from foveate.evaluate.flags import Agreement, Global, Pareto, Regions, Retrieval
from foveate.evaluate.labelled_images import open_labelled
from foveate.evaluate.pareto import check_unmixed, evaluate_pareto
from foveate.evaluate.regions import evaluate_regions
from foveate.evaluate.report import finish, load_model, loading_of, start, table
from foveate.evaluate.retrieval import evaluate_retrieval
from foveate.evaluate.zero_shot import evaluate_global
from foveate.io.files import default_cache
from foveate.show.flags import check_png, split_named
from foveate.show.pareto import pareto_chart

KINDS = ("boxes", "things", "stuff", "stuff_boxes")


def run_regions(config: Regions) -> dict[str, Any]:
    """Classify annotated regions; print and write the result (`report.finish`), and return it."""
    started = start(config)
    dataset = open_data(config.data, split=config.split, annotations="panoptic", accept=config.accept_annotations)
    clip = load_model(config.model, config.pretrained, config.device, pad=config.pad)
    result = evaluate_regions(
        clip,
        dataset,
        sizes=list(config.size) or [clip.native_size, 2 * clip.native_size, 4 * clip.native_size],
        crops=config.crops,
        masked=config.masked,
        crowd=config.crowd,
        head=config.head,
        templates=config.templates,
        text_cache=default_cache(),
        loading=loading_of(config),
    )
    return finish(result, _regions_table(result, config.model), config, datasets=[dataset], started=started)


def _regions_table(result: dict[str, Any], model: str) -> Table:
    scores = {f"dense, {size} px": by_kind for size, by_kind in result["dense"].items()}
    scores |= {f"masked attention, {size} px": by_kind for size, by_kind in (result["masked"] or {}).items()}
    if result["crop"] is not None:
        scores["crops"] = result["crop"]
    rows = [
        [name, *(by_kind[kind][top] for kind in KINDS for top in ("top1", "top5"))] for name, by_kind in scores.items()
    ]
    counts = next(iter(scores.values()))
    rows.append(["regions", *(cell for kind in KINDS for cell in (counts[kind]["count"], ""))])
    columns = [f"{kind.replace('_', ' ')}\n{top}" for kind in KINDS for top in ("top-1", "top-5")]
    title = f"mAcc [%] of {model}: {result['images']} images, {result['classes']} classes, head {result['head']}"
    return table(title, ["region features", *columns], rows)


def run_reference(config: Agreement | Retrieval) -> dict[str, Any]:
    """Compare the dense map with a reference's image embeddings: agreement with crops, or retrieval by locations."""
    started = start(config)
    if isinstance(config, Retrieval) and config.crops:
        dataset = open_data(config.data, split=config.split, annotations="panoptic", accept=config.accept_annotations)
    else:
        dataset = open_data(config.data, split=config.split, annotations="none")
    student = load_model(config.model, config.pretrained, config.device, pad=config.pad)
    reference = student
    if config.reference is not None:
        reference = load_model(config.reference, None, config.device)
    shared: dict[str, Any] = {
        "size": 4 * student.native_size if config.size is None else config.size,
        "head": config.head,
        "gallery": config.gallery,
        "seed": config.seed,
        "loading": loading_of(config),
    }
    if isinstance(config, Retrieval):
        result = evaluate_retrieval(student, reference, dataset, regions=config.crops, crowd=config.crowd, **shared)
        shown = _retrieval_table(result, config)
    else:
        result = evaluate_agreement(student, reference, dataset, grid=config.grid, keep=config.max_regions, **shared)
        shown = _agreement_table(result, config)
    return finish(result, shown, config, datasets=[dataset], started=started)


def _agreement_table(result: dict[str, Any], config: Agreement) -> Table:
    columns = ("dense features", "mean cosine", f"R@1 [%]\namong {result['crops']:.0f} crops", "regions", "images")
    row = (
        f"{result['size']} px, head {result['head']}",
        f"{result['cosine']:.3f}",
        result["recall"],
        result["regions"],
        result["images"],
    )
    return table(f"{config.model} against crops of {config.reference or config.model}", columns, [row])


def _retrieval_table(result: dict[str, Any], config: Retrieval) -> Table:
    title = (
        f"R@K [%] of the locations of {config.model}, {result['size']} px, head {result['head']}: "
        f"{result['images']} images embedded by {config.reference or config.model}"
    )
    recalls = {f"its image among {result['gallery']}": result["image"]}
    if result["region"] is not None:
        recalls[f"its region's crop among {result['region_gallery']}"] = result["region"]
    rows = [[name, *(recall[key] for key in ("r1", "r5", "r10", "count"))] for name, recall in recalls.items()]
    return table(title, ("a location retrieves", "R@1", "R@5", "R@10", "queries"), rows)


def run_global(config: Global) -> dict[str, Any]:
    """Classify and retrieve with image embeddings."""
    started = start(config)
    labelled, captioned = open_labelled(
        config.data,
        split=config.split,
        names=config.labels,
        classify=config.task != "retrieve",
        retrieve=config.task != "classify",
        accept=config.accept_annotations,
    )
    clips = {"model": load_model(config.model, config.pretrained, config.device)}
    if config.reference is not None:
        reference = load_model(config.reference, None, config.device)
        clips = {"reference": reference, **clips}
    result = evaluate_global(
        clips,
        labelled=labelled,
        captioned=captioned,
        view=config.view,
        templates=config.templates,
        text_cache=default_cache(),
        loading=loading_of(config),
    )
    datasets = [*([] if labelled is None else [labelled.dataset]), *([] if captioned is None else [captioned])]
    return finish(result, _global_table(result, config), config, datasets=datasets, started=started)


def _global_table(result: dict[str, Any], config: Global) -> Table:
    titles, measures = [], []
    classification, retrieval = result["classification"], result["retrieval"]
    if classification is not None:
        counts = f"{classification['images']} images in {classification['classes']} classes"
        titles.append(f"{classification['of']} of {counts}")
        measures += [
            (f"classification, {name}, top-{top}", ("classification", mean, f"top{top}"))
            for name, mean in (("mean over classes", "mean"), ("overall", "overall"))
            for top in (1, 5)
        ]
    if retrieval is not None:
        titles.append(f"{retrieval['captions']} captions of {retrieval['images']} images, view {result['view']}")
        measures += [
            (f"{way.replace('_', ' ')}, R@{top}", ("retrieval", way, f"r{top}"))
            for way in ("image_to_text", "text_to_image")
            for top in (1, 5, 10)
        ]
    models = [name for name in ("reference", "model") if name in result]
    rows = [[name, *(result[model][task][kind][key] for model in models)] for name, (task, kind, key) in measures]
    beside = "" if config.reference is None else f" beside {config.reference}"
    return table(f"image embeddings of {config.model}{beside} [%]: {'; '.join(titles)}", ["task", *models], rows)


def run_pareto(config: Pareto) -> dict[str, Any]:
    """Sweep alpha, and draw the chart of --plot."""
    started = start(config)
    if config.plot is not None:
        check_png(config.plot, flag="--plot")
    if config.reference is None:
        raise InputError("--reference: need the CLIP that the models were distilled from; got none.")
    paths = _named_models(config.model)
    dataset = open_data(config.data, split=config.split, annotations="panoptic", accept=config.accept_annotations)
    whole = config.data if config.global_data is None else config.global_data
    labelled, captioned = open_labelled(
        whole, split=config.split, names=config.labels, accept=config.accept_annotations
    )
    if labelled is None:
        raise InputError(f"{whole}: need class folders or annotated things for the global axis; it has only captions.")
    teacher = load_model(config.reference, None, config.device)
    students = {name: load_model(str(path), None, config.device, pad=config.pad) for name, path in paths.items()}
    result = evaluate_pareto(
        students,
        teacher,
        dataset,
        labelled=labelled,
        captioned=captioned,
        alphas=list(config.alpha),
        size=4 * teacher.native_size if config.size is None else config.size,
        head=config.head,
        view=config.view,
        templates=config.templates,
        text_cache=default_cache(),
        loading=loading_of(config),
    )
    datasets: list[Dataset] = [dataset, labelled.dataset, *([] if captioned is None else [captioned])]
    finish(result, _pareto_table(result, config), config, datasets=datasets, started=started)
    if config.plot is not None:
        kind = "images" if labelled.by_image is not None else "thing crops"
        pareto_chart(config.plot, result["points"], size=result["size"], whole=kind)
        print(f"wrote {config.plot}")
    return result


def _named_models(entries: tuple[str, ...]) -> dict[str, Path]:
    """The models of --model by name; InputError for names given twice and products that are mixed already."""
    named = [split_named(entry) for entry in entries]
    if len({name for name, _ in named}) < len(named):
        raise InputError("--model: need different names; write NAME=FOLDER for each.")
    for _, path in named:
        check_unmixed(path)
    return dict(named)


def _pareto_table(result: dict[str, Any], config: Pareto) -> Table:
    keys = ("boxes", "things", "stuff", "classification", "overall", "retrieval")
    rows = [
        [point["model"], f"{point['alpha']:g}", *(point[key] for key in keys), "*" if point["front"] else ""]
        for point in result["points"]
    ]
    columns = ("model", "alpha", "dense\nboxes", "dense\nthings", "dense\nstuff", "global\nmean", "global\nall",
               "texts\nR@1", "front")  # fmt: skip
    title = f"alpha * student + (1 - alpha) * {config.reference} [%], {result['size']} px, head {result['head']}"
    return table(title, columns, rows)
