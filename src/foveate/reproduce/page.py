"""Measurements -> one JSON file per row -> the page with published and measured values, and verdicts on claims.

A difference is significant if it is outside its 95 % confidence interval over seeds (Student's t, wide for few seeds).
Pretrained CLIPs have no seeds: their difference must exceed `MARGIN`, which ignores the variance of their training.
Text below `BY_HAND` is preserved when the page is written again. Deliberately absent: p-values, and correction for the
number of claims.
"""

import json
import math
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from foveate.errors import InputError
from foveate.io.files import check_target, write_whole
from foveate.reproduce.commands import EXAMPLE_IDS, Job, Stage, is_trained, job_name, measured, seeds_of
from foveate.reproduce.rows import CLAIMS, DENSE, PQ, TABLES, Row, Scale, rows_of

RULES = 2  # increased when a default changes the measured values; 2: padding, pooling and heads of the public code
MARGIN = 3.0  # points; about twice the sampling error of the accuracy of some 1,000 regions
T_QUANTILES = {1: 12.7, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31}  # 97.5 %, by degrees of freedom
TITLES = {
    "tab1": "Tab. 1: components of the method",
    "tab2": "Tab. 2: patches or proposals",
    "tab8": "Tab. 8: other supervision, windows, other images",
    "tabA1": "Tab. A1: retrieval by locations",
    "tabA3": "Tab. A3: masked attention",
    "figs": "Fig. 2, 3, A1, 4: crops and locations over input sizes",
    "global": "Accuracy on whole images",
    "terms": "Additional options of the objective",
    "ovd": "Tab. 3: open-vocabulary detection, AP50 of boxes",
    "ovss": "Open-vocabulary semantic segmentation, mIoU",
    "ovps": "Open-vocabulary panoptic segmentation, PQ",
}
FIGURES = {
    "figs": ("sizes.png", "kmeans.png"),
    "global": ("pareto.png",),
    "ovd": tuple(f"ovd/{number:012d}.jpg" for number in EXAMPLE_IDS),
    "ovss": tuple(f"ovss-{name}/{number:012d}.jpg" for number in EXAMPLE_IDS for name in ("untouched", "patches")),
    "ovps": tuple(f"ovps/{number:012d}.jpg" for number in EXAMPLE_IDS),
}
COMMON_FLAGS = {"--data", "--out", "--model", "--pretrained", "--seed", "--workers", "--device"}
COMMON_FLAGS |= {"--split", "--limit", "--plot"}  # not shown on the page
BY_HAND = "<!-- below this line the page is written by hand, and kept when it is made again -->"  # of existing pages
PAGE = """\
# Results

Written by `foveate reproduce`; every value comes from the JSON file of its row, which holds the commands, the
value with each seed, and the time. Measured: {model} on {data}, {steps} steps per training. Published: EVA-02
B/16 on COCO, where known. Top-1 mAcc [%] unless stated; mean and standard deviation over {seeds} (none for a
pretrained CLIP).

A claim *holds* if each difference is outside its 95 % confidence interval over seeds (Student's t), is
*contradicted* if one of them is so in the other direction, and is *not significant* otherwise. Rows without
seeds (a pretrained CLIP, the CNN) are compared with a margin of {margin:g} points.

{tables}{by_hand}{kept}"""
Verdict = Literal["holds", "not significant", "contradicted", "not run"]
WORST_FIRST: tuple[Verdict, ...] = ("contradicted", "not run", "not significant")
Values = dict[str, list[float | None]]  # a metric's value with each seed; None: nothing to measure

# -------------------------------------------------------------------------------------------------------- measurements


def read_metrics(row: Row, path: Path) -> dict[str, float | None]:
    """A row's metrics from the JSON of its measurement."""
    try:
        metrics = _metrics(row, json.loads(path.read_bytes()))
        return {name: None if metrics[name] is None else float(metrics[name]) for name in row.metrics}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"{path}: need the result of `foveate evaluate` for row {row.name}; {type(error).__name__}: {error}. "
            "Delete it, and the same command measures again."
        ) from error


def _metrics(row: Row, content: dict[str, Any]) -> dict[str, Any]:
    match row.measure:
        case "regions" | "sweep" | "masked":
            return _region_metrics(content)
        case "retrieval":
            return {f"{gallery}{k}": content[gallery][f"r{k}"] for gallery in ("image", "region") for k in (1, 5, 10)}
        case "global":  # None if the data has no boxes or no captions
            classes, retrieval = (content["model"][key] for key in ("classification", "retrieval"))
            metrics = {"classes": classes and classes["mean"]["top1"]}
            for direction in ("image_to_text", "text_to_image"):
                metrics[direction.replace("_", "-")] = retrieval and retrieval[direction]["r1"]
            return metrics
        case "detection":
            groups = content["fusions"][0]["boxes"]["groups"]
            return {name: groups[name]["AP50"] if name in groups else None for name in row.metrics}
        case "cosines" | "semantic":
            miou = {name: group["mIoU"] for name, group in content["groups"].items()}  # empty without a split
            return {"all": content["mIoU"], "novel": miou.get("unseen"), "base": miou.get("seen")}
        case "panoptic":
            (fused,) = (fused for fused in content["shares"] if fused["name"] == row.shares)
            groups = {"novel": fused["groups"]["unseen"], "base": fused["groups"]["seen"], **fused}
            return {name: groups[name]["PQ"] for name in PQ}
        case "pareto":
            points = [point for point in content["points"] if point["model"] == row.run]
            boxes = {f"boxes@{point['alpha']:g}": point["boxes"] for point in points}
            return boxes | {f"classes@{point['alpha']:g}": point["classification"] for point in points}


def _region_metrics(content: dict[str, Any]) -> dict[str, Any]:
    """Top-1 mAcc at the largest size; of boxes at the smallest and the largest; of crops, if they were embedded."""
    sizes = sorted(content["dense"], key=int)
    metrics = {kind: content["dense"][sizes[-1]][kind]["top1"] for kind in DENSE}
    metrics |= {"smallest": content["dense"][sizes[0]]["boxes"]["top1"], "largest": metrics["boxes"]}
    if content.get("crop"):
        metrics["crops"] = content["crop"]["boxes"]["top1"]
    if content.get("masked"):
        metrics |= {f"masked-{kind}": content["masked"][sizes[-1]][kind]["top1"] for kind in DENSE}
    return metrics


# ------------------------------------------------------------------------------------------------------------ verdicts


@dataclass(frozen=True)
class Comparison:
    """One pair of a claim."""

    more: str
    less: str
    difference: float | None  # of the means
    verdict: Verdict


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 for one."""
    return stdev(values) if len(values) > 1 else 0.0


def compare(more: str, less: str, values: dict[str, Values], *, trained: Collection[str]) -> Comparison:
    """Compare two metrics, each a "row.metric", of which `more` is claimed to be larger.

    Args:
        trained: rows with a variance over seeds; one seed is not sufficient for them.
    """
    sides = []
    for side in (more, less):
        row, metric = side.split(".", 1)
        seeds = [value for value in values.get(row, {}).get(metric, []) if value is not None]
        if not seeds or (row in trained and len(seeds) < 2):
            return Comparison(more, less, None, "not significant" if seeds else "not run")
        sides.append(seeds)
    difference = fmean(sides[0]) - fmean(sides[1])
    if abs(difference) <= _margin(sides):
        return Comparison(more, less, difference, "not significant")
    return Comparison(more, less, difference, "holds" if difference > 0 else "contradicted")


def _margin(sides: list[list[float]]) -> float:
    """Half the confidence interval of the difference of two means; `MARGIN` for sides of one value."""
    freedom = sum(len(values) - 1 for values in sides)
    if freedom == 0:
        return MARGIN
    error = math.sqrt(sum(spread(values) ** 2 / len(values) for values in sides))
    return T_QUANTILES.get(freedom, 2.3) * error


def verdict_of(pairs: list[Comparison]) -> Verdict:
    """The verdict on a claim: contradicted if one pair is, holds if every pair does."""
    verdicts: set[Verdict] = {pair.verdict for pair in pairs}
    for verdict in WORST_FIRST:
        if verdict in verdicts:
            return verdict
    return "holds"


# ---------------------------------------------------------------------------------------------------------- JSON files


def write_results(
    stage: Stage, rows: Iterable[Row], jobs: dict[str, Job], folder: Path, *, stamps: dict[str, dict[str, Any]]
) -> list[Path]:
    """Write FOLDER/NAME.json for each row whose commands are done with every seed; return these files.

    Args:
        jobs: the commands that are done, by name.
        stamps: "seconds" and "versions" of each command, by its name.
    """
    written = []
    for row in rows:
        seeds = seeds_of(stage, row)
        if not all(job_name(stage, row, seed) in jobs for seed in seeds):
            continue
        by_seed = [read_metrics(row, measured(stage, row, seed)) for seed in seeds]
        first = [jobs[name] for name in _chain(job_name(stage, row, seeds[0]), jobs)]
        content = {
            "row": row.name,
            "table": row.table,
            "title": row.title,
            "settings": settings_of(stage),
            "seeds": list(seeds),
            "values": {metric: [_rounded(metrics[metric]) for metrics in by_seed] for metric in row.metrics},
            "published": dict(row.published),
            "commands": [shlex.join(("foveate", *(_public(stage, word) for word in job.words))) for job in first],
            "seconds": [stamps[job.name]["seconds"] for job in first],
            "versions": stamps[first[-1].name]["versions"],
        }
        path = folder / f"{row.name}.json"
        write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
        written.append(path)
    return written


def settings_of(stage: Stage) -> dict[str, Any]:
    """The settings that all rows of one page share; rows with other settings, or earlier rules, are ignored."""
    return {
        "rules": RULES,
        "on": "world" if stage.is_world else Path(stage.on).name,
        "model": _short_path(stage.model),
        "pretrained": stage.pretrained and _short_path(stage.pretrained),
        "steps": stage.scale.steps,
        "limit": stage.limit,
    }


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The content of every row's file, by the row's name."""
    results = {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_bytes())
            if isinstance(content, dict) and "row" in content:  # other files are ignored
                results[content["row"]] = {key: content[key] for key in ("settings", "seeds", "values", "commands")}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: need a row written by `foveate reproduce`; {type(error).__name__}: {error}. Delete it."
            ) from error
    return results


def _chain(name: str, jobs: dict[str, Job]) -> list[str]:
    """A job's requirements, in order, and the job."""
    needs = [name for need in jobs[name].needs for name in _chain(need, jobs)]
    return [*dict.fromkeys(needs), name]


def _short_path(model: str) -> str:
    """A model's name, or the end of its path."""
    return "/".join(Path(model).parts[-2:]) if Path(model).is_absolute() else model


def _public(stage: Stage, word: str) -> str:
    """A word of a command with absolute paths replaced by OUT, PAGE and DATA."""
    names = {str(stage.out): "OUT", str(stage.figures): "PAGE", stage.on: "DATA", stage.model: _short_path(stage.model)}
    for path, name in names.items():
        if Path(path).is_absolute():
            word = word.replace(path, name)
    return word


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


# ---------------------------------------------------------------------------------------------------------------- page


def check_page(page: Path) -> None:
    """Refuse to overwrite a file that is not a page of `foveate reproduce`."""
    check_target(page, flag="--page")
    if page.exists() and BY_HAND not in page.read_text(errors="replace"):
        raise InputError(
            f"--page {page}: need a new file or a page of `foveate reproduce`; this is another file. Choose another."
        )


def check_results(folder: Path, rows: Sequence[Row]) -> None:
    """Refuse to overwrite a file that is not the result of a row."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: need a folder for the rows; this is a file. Choose another --page.")
    for path in (folder / f"{row.name}.json" for row in rows):
        if path.exists() and not path.read_bytes().startswith(b'{\n  "row": '):
            raise InputError(
                f"{path}: need a new file or the result of a row of `foveate reproduce`; something else wrote it. "
                "Choose another --page."
            )


def write_page(page: Path, folder: Path, *, scale: Scale, settings: dict[str, Any]) -> None:
    """Write a page of Markdown from the rows' files in a folder; files with other settings are ignored."""
    results = {name: row for name, row in read_results(folder).items() if row["settings"] == settings}
    weights = f" ({settings['pretrained']})" if settings["pretrained"] else ""
    limit = f", only the first {settings['limit']} images" if settings["limit"] else ""
    seeds = max((len(row["seeds"]) for row in results.values()), default=0)
    text = PAGE.format(
        model=settings["model"] + weights,
        data=settings["on"] + limit,
        steps=settings["steps"],
        seeds="1 seed" if seeds == 1 else f"{seeds} seeds",
        margin=MARGIN,
        tables="".join(f"{line}\n" for table in TABLES for line in _section(table, results, scale, page)),
        by_hand=BY_HAND,
        kept=page.read_text().partition(BY_HAND)[2] if page.exists() else "\n",
    )
    write_whole(page, text.encode())


def _section(table: str, results: dict[str, dict[str, Any]], scale: Scale, page: Path) -> list[str]:
    """The lines of a table, its figures and its claims; empty if none of its rows was run."""
    rows = [row for row in rows_of(scale) if row.table == table]
    if not any(row.name in results for row in rows):
        return []
    lines = [f"## {TITLES[table]}", ""]
    for metrics in dict.fromkeys(row.metrics for row in rows):
        lines += [f"| row | {' | '.join(metrics)} | published | command |", f"|{'---|' * (len(metrics) + 3)}"]
        lines += [_line(row, results.get(row.name)) for row in rows if row.metrics == metrics]
        lines.append("")
    figures = [name for name in FIGURES.get(table, ()) if (page.with_suffix("") / name).exists()]
    lines += [f"![{name}]({page.stem}/{name})\n" for name in figures]
    values = {name: row["values"] for name, row in results.items()}
    trained = {row.name for row in rows_of(scale) if is_trained(row)}
    for claim in CLAIMS:
        if claim.table == table:
            pairs = [compare(more, less, values, trained=trained) for more, less in claim.pairs]
            described = ", ".join(map(_describe, pairs))
            lines.append(f"- **{verdict_of(pairs)}**: {claim.text} ({claim.source}): {described}.")
    return [*lines, ""]


def _line(row: Row, result: dict[str, Any] | None) -> str:
    if result is None:
        cells, command = ["not run"] + [""] * (len(row.metrics) - 1), ""
    else:
        cells = [_mean(result["values"][metric]) for metric in row.metrics]
        command = f"`{_specific_flags(result['commands'])}`"
    published = ", ".join(f"{metric} {value:g}" for metric, value in row.published) or "-"
    return f"| {row.title} | {' | '.join(cells)} | {published} | {command} |"


def _mean(values: list[Any]) -> str:
    if None in values:
        return "-"
    return f"{fmean(values):.1f}" + (f" ± {spread(values):.1f}" if len(values) > 1 else "")


def _specific_flags(commands: list[str]) -> str:
    """The specific flags of a row's command: those of its training, or of its measurement."""
    heads = [command for command in commands if command.startswith("foveate train-")]
    trainings = heads or [command for command in commands if command.startswith("foveate distill")]
    shown, is_common = [], False
    for word in shlex.split(trainings[0] if len(trainings) == 1 else commands[-1])[1:]:
        if word.startswith("--"):
            is_common = word in COMMON_FLAGS
        if not is_common:
            shown.append(word)
    return shlex.join(shown)


def _describe(pair: Comparison) -> str:
    if pair.difference is None:
        return f"{pair.more} over {pair.less} {'not run' if pair.verdict == 'not run' else 'with one seed'}"
    doubt = "" if pair.verdict == "holds" else f" ({pair.verdict})"
    (row, metric), (other_row, other_metric) = pair.more.split(".", 1), pair.less.split(".", 1)
    what = metric if metric == other_metric else f"{metric} over {other_metric}"
    rows = f" ({row} over {other_row})" if row != other_row else ""
    return f"{what} {pair.difference:+.1f}{rows}{doubt}"
