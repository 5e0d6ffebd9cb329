"""From measurements to one JSON file a row, and from those to the page: published beside measured, and the verdicts.

What stands on the page below `BY_HAND` is left as it is when the page is written again: why a row contradicts the paper
is for people to say. Deliberately absent: anything that is not in the JSON files; they are all the page is made of.
"""

import json
import shlex
from pathlib import Path
from statistics import fmean
from typing import Any

from foveate.errors import InputError
from foveate.io.files import check_target, write_whole
from foveate.ledger.jobs import DRAWN, Job, Stage, is_trained, job_name, measured, seeds_of
from foveate.ledger.results import MARGIN, Compared, Values, judge, read_metrics, spread, verdict_of
from foveate.ledger.rows import TABLES, Row, claims_of, rows_of
from foveate.ledger.scale import Scale

RULES = 2  # raised when a default changes what rows measure; 2: padding, pooling and heads as the public code has them
BY_HAND = "<!-- below this line the page is written by hand, and kept when it is made again -->"
TITLES = {
    "tab1": "Tab. 1: what the method is made of",
    "tab2": "Tab. 2: patches or proposals",
    "tab8": "Tab. 8: other supervision, windows, other pictures",
    "tabA1": "Tab. A1: what each location retrieves",
    "tabA3": "Tab. A3: masked attention",
    "figs": "Fig. 2, 3, A1, 4: crops and places over input sizes",
    "global": "What is kept of whole pictures",
    "terms": "Options of the objective that are ours",
    "ovd": "Tab. 3: open-vocabulary detection, AP50 of boxes",
    "ovss": "Open-vocabulary semantic segmentation, mIoU",
    "ovps": "Open-vocabulary panoptic segmentation, PQ",
}
FIGURES = {
    "figs": ("sizes.png", "kmeans.png"),
    "global": ("pareto.png",),
    "ovd": tuple(f"ovd/{number:012d}.jpg" for number in DRAWN),
    "ovss": tuple(f"ovss-{name}/{number:012d}.jpg" for number in DRAWN for name in ("untouched", "patches")),
    "ovps": tuple(f"ovps/{number:012d}.jpg" for number in DRAWN),
}


# --------------------------------------------------------------------------------------------------------------- files


def write_results(
    stage: Stage, rows: tuple[Row, ...], jobs: dict[str, Job], folder: Path, *, stamps: dict[str, dict[str, Any]]
) -> list[Path]:
    """Write one JSON file a row whose commands are done with every seed.

    Args:
        stage: what the rows were run on.
        rows: of the tables asked for; those not done are passed over.
        jobs: the commands that are done, by name.
        folder: receives NAME.json.
        stamps: "seconds" and "versions" of each command, by its name.

    Returns:
        The files written.
    """
    written = []
    for row in rows:
        seeds = seeds_of(stage, row)
        if not all(job_name(stage, row, seed) in jobs for seed in seeds):
            continue
        found = [read_metrics(row, measured(stage, row, seed)) for seed in seeds]
        first = [jobs[name] for name in _chain(job_name(stage, row, seeds[0]), jobs)]
        content = {
            "row": row.name,
            "table": row.table,
            "title": row.title,
            "settings": settings_of(stage),
            "seeds": list(seeds),
            "values": {metric: [_rounded(one[metric]) for one in found] for metric in row.metrics},
            "published": dict(row.published),
            "commands": [shlex.join(("foveate", *(_shown(stage, word) for word in job.words))) for job in first],
            "seconds": [stamps[job.name]["seconds"] for job in first],
            "versions": stamps[first[-1].name]["versions"],
        }
        path = folder / f"{row.name}.json"
        write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
        written.append(path)
    return written


def settings_of(stage: Stage) -> dict[str, Any]:
    """What all rows of one page share; rows of other settings, or of former rules, are not compared with them."""
    on = "world" if stage.is_world else Path(stage.on).name
    pretrained = stage.pretrained and _named(stage.pretrained)
    model = {"model": _named(stage.model), "pretrained": pretrained}
    return {"rules": RULES, "on": on, **model, "steps": stage.scale.steps, "limit": stage.limit}


def _named(model: str) -> str:
    """A model's name, or the end of its path."""
    return "/".join(Path(model).parts[-2:]) if Path(model).is_absolute() else model


def _shown(stage: Stage, word: str) -> str:
    """A word of a command as others may read it: places on this machine by what they are."""
    places = {str(stage.out): "OUT", str(stage.figures): "PAGE", stage.on: "DATA", stage.model: _named(stage.model)}
    for place, name in places.items():
        if Path(place).is_absolute():
            word = word.replace(place, name)
    return word


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _chain(name: str, jobs: dict[str, Job]) -> list[str]:
    """What has to be run for a job, in order, itself last."""
    chain: list[str] = []
    for need in jobs[name].needs:
        chain += [one for one in _chain(need, jobs) if one not in chain]
    return [*chain, name]


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Every row's file, by the row's name.

    Raises:
        InputError: a file is not a row's.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_bytes())
            if not isinstance(content, dict) or "row" not in content:
                continue  # somebody else's
            found[content["row"]] = {key: content[key] for key in ("settings", "seeds", "values", "commands")}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: need a row of the ledger; {type(error).__name__}: {error}. Delete it."
            ) from error
    return found


# ---------------------------------------------------------------------------------------------------------------- page


def check_page(page: Path) -> None:
    """Refuse to write over a file that is no page of the ledger.

    Raises:
        InputError: it is one.
    """
    check_target(page, flag="--page")
    if page.exists() and BY_HAND not in page.read_text(errors="replace"):
        raise InputError(
            f"--page {page}: need a new file or a page of `foveate reproduce`; this is another. Name another."
        )


def write_page(page: Path, folder: Path, *, scale: Scale, settings: dict[str, Any]) -> None:
    """Write the page from the rows' files.

    Args:
        page: a Markdown file; what stands below `BY_HAND` is kept.
        folder: of the rows' files.
        scale: which rows and claims there are.
        settings: rows of others are passed over.
    """
    results = {name: one for name, one in read_results(folder).items() if one["settings"] == settings}
    kept = page.read_text().partition(BY_HAND)[2] if page.exists() else "\n"
    text = "\n".join([*_head(results, settings), *_tables(results, scale, page), BY_HAND])
    write_whole(page, (text + kept).encode())


def _head(results: dict[str, dict[str, Any]], settings: dict[str, Any]) -> list[str]:
    weights = f" ({settings['pretrained']})" if settings["pretrained"] else ""
    limit = f", the first {settings['limit']} pictures alone" if settings["limit"] else ""
    said = f"{settings['model']}{weights} on {settings['on']}{limit}, {settings['steps']} steps a training"
    most = max((len(one["seeds"]) for one in results.values()), default=0)
    seeds = "1 seed" if most == 1 else f"{most} seeds"
    return [
        "# Results",
        "",
        "Written by `foveate reproduce`; every number comes from the JSON file of its row, which holds the commands as",
        f"typed, the value with each seed, and the time. Measured: {said}.",
        "Published: EVA-02 B/16 on COCO, where we know the number. Top-1 mAcc [%] unless said; mean and standard",
        f"deviation over {seeds} (a CLIP as it comes has none).",
        "",
        "A claim *holds* where each difference lies outside its 95 % confidence interval over seeds (Student's t), is",
        "*contradicted* where one does so in the other direction, and is *not told apart* otherwise. Rows without",
        f"seeds (a CLIP as it comes, the CNN) are compared with a margin of {MARGIN:g} points.",
        "",
    ]


def _tables(results: dict[str, dict[str, Any]], scale: Scale, page: Path) -> list[str]:
    measured = {name: one["values"] for name, one in results.items()}
    lines: list[str] = []
    for table in TABLES:
        rows = [row for row in rows_of(scale) if row.table == table]
        if not any(row.name in results for row in rows):
            continue
        lines += [f"## {TITLES[table]}", ""]
        for metrics in dict.fromkeys(row.metrics for row in rows):
            lines += _table([row for row in rows if row.metrics == metrics], metrics, results)
        figures = [name for name in FIGURES.get(table, ()) if (page.with_suffix("") / name).exists()]
        lines += [f"![{name}]({page.stem}/{name})\n" for name in figures]
        lines += _verdicts(table, measured, scale)
    return lines


def _table(rows: list[Row], metrics: tuple[str, ...], results: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"| row | {' | '.join(metrics)} | published | command |", f"|{'---|' * (len(metrics) + 3)}"]
    for row in rows:
        one = results.get(row.name)
        if one is None:
            cells, command = ["not run"] + [""] * (len(metrics) - 1), ""
        else:
            cells = [_mean(one["values"][metric]) for metric in metrics]
            command = f"`{_short(one['commands'])}`"
        published = ", ".join(f"{metric} {value:g}" for metric, value in row.published) or "-"
        lines.append(f"| {row.title} | {' | '.join(cells)} | {published} | {command} |")
    return [*lines, ""]


def _mean(values: list[Any]) -> str:
    if None in values:
        return "-"
    return f"{fmean(values):.1f}" + (f" ± {spread(values):.1f}" if len(values) > 1 else "")


def _short(commands: list[str]) -> str:
    """The words of a row's own command that are not those of every run: the training's flags, or the measurement's."""
    head = [shlex.split(one) for one in commands if one.startswith("foveate train-")]
    training = head or [shlex.split(one) for one in commands if one.startswith("foveate distill")]
    words = training[0] if len(training) == 1 else shlex.split(commands[-1])
    common = {"--data", "--out", "--model", "--pretrained", "--seed", "--workers", "--device", "--keep-checkpoints"}
    common |= {"--split", "--limit", "--plot"}
    kept, skipping = [], False
    for word in words[1:]:
        if word.startswith("--"):
            skipping = word in common
        if not skipping:
            kept.append(word)
    return shlex.join(kept)


def _verdicts(table: str, measured: dict[str, Values], scale: Scale) -> list[str]:
    lines = []
    trained = {row.name for row in rows_of(scale) if is_trained(row)}
    for claim in claims_of(scale):
        if claim.table == table:
            pairs = judge(claim, measured, trained=trained)
            lines.append(f"- **{verdict_of(pairs)}**: {claim.text} ({claim.source}): {', '.join(map(_told, pairs))}.")
    return [*lines, ""]


def _told(pair: Compared) -> str:
    if pair.difference is None:
        return f"{pair.more} over {pair.less} {'not run' if pair.verdict == 'not run' else 'with one seed'}"
    doubt = "" if pair.verdict == "holds" else f" ({pair.verdict})"
    (row, metric), (other, metric_) = pair.more.split(".", 1), pair.less.split(".", 1)
    what = metric if metric == metric_ else f"{metric} over {metric_}"
    return f"{what} {pair.difference:+.1f}{f' ({row} over {other})' if row != other else ''}{doubt}"
