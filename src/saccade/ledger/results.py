"""What the rows' measurements say: numbers by seed, their mean and spread, and whether what is claimed of them holds.

Deliberately absent: p-values. With three seeds a difference counts where it is more than twice its standard error.
"""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from saccade.errors import InputError
from saccade.ledger.rows import Claim, Row

Verdict = Literal["holds", "not told apart", "contradicted", "not run"]
Values = dict[str, list[float]]  # a metric's value with each seed


@dataclass(frozen=True)
class Compared:
    """One pair of a claim."""

    more: str
    less: str
    difference: float | None  # of the means
    verdict: Verdict


def read_metrics(row: Row, path: Path) -> dict[str, float]:
    """Take a row's metrics out of the JSON that its measurement wrote.

    Args:
        row: says which they are.
        path: of the JSON.

    Raises:
        InputError: the file is not such a measurement.
    """
    try:
        found = _metrics(row, json.loads(path.read_bytes()))
        return {metric: float(found[metric]) for metric in row.metrics}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"{path}: need the result of `saccade evaluate` for row {row.name}; {type(error).__name__}: {error}. "
            "Delete it, and the same command measures again."
        ) from error


def _metrics(row: Row, content: dict[str, Any]) -> dict[str, Any]:
    match row.measure:
        case "regions" | "sweep" | "masked":
            return _regions(content)
        case "retrieval":
            return {f"{gallery}{k}": content[gallery][f"r{k}"] for gallery in ("image", "region") for k in (1, 5, 10)}
        case "global":
            return _global(content["model"])
        case "pareto":
            return {
                f"{shown}@{point['alpha']:g}": point[name]
                for point in content["points"]
                for shown, name in (("boxes", "boxes"), ("classes", "classification"))
                if point["model"] == row.run
            }


def _regions(content: dict[str, Any]) -> dict[str, Any]:
    """Top-1 mAcc at the largest size; boxes at the smallest and the largest; crops, where they were embedded."""
    sizes = sorted(content["dense"], key=int)
    found = {kind: content["dense"][sizes[-1]][kind]["top1"] for kind in ("boxes", "things", "stuff")}
    found |= {"smallest": content["dense"][sizes[0]]["boxes"]["top1"], "largest": found["boxes"]}
    if content.get("crop"):
        found["crops"] = content["crop"]["boxes"]["top1"]
    if content.get("masked"):
        masked = content["masked"][sizes[-1]]
        found |= {f"masked-{kind}": masked[kind]["top1"] for kind in ("boxes", "things", "stuff")}
    return found


def _global(content: dict[str, Any]) -> dict[str, Any]:
    """Top-1 of crops by class, and R@1 of captions and pictures."""
    return {
        "classes": content["classification"]["mean"]["top1"],
        "image-to-text": content["retrieval"]["image_to_text"]["r1"],
        "text-to-image": content["retrieval"]["text_to_image"]["r1"],
    }


def spread(values: list[float]) -> float:
    """Standard deviation over seeds; 0 for one."""
    return stdev(values) if len(values) > 1 else 0.0


def judge(claim: Claim, measured: dict[str, Values], *, trained: Collection[str]) -> list[Compared]:
    """Compare the pairs of a claim.

    Args:
        claim: with pairs of "row.metric".
        measured: every row's values by metric.
        trained: the rows that have a spread; from one seed alone nothing is concluded.
    """
    return [_compare(more, less, measured, trained) for more, less in claim.pairs]


def _compare(more: str, less: str, measured: dict[str, Values], trained: Collection[str]) -> Compared:
    sides = []
    for side in (more, less):
        row, metric = side.split(".", 1)
        sides.append(measured.get(row, {}).get(metric))
    if not sides[0] or not sides[1]:
        return Compared(more, less, None, "not run")
    difference = fmean(sides[0]) - fmean(sides[1])
    error = math.sqrt(sum(spread(values) ** 2 / len(values) for values in sides))
    names = (more.split(".")[0], less.split(".")[0])
    is_one_seed = any(name in trained and len(values) < 2 for name, values in zip(names, sides, strict=True))
    if is_one_seed or abs(difference) <= 2 * error:
        return Compared(more, less, difference, "not told apart")
    return Compared(more, less, difference, "holds" if difference > 0 else "contradicted")


def verdict_of(pairs: list[Compared]) -> Verdict:
    """Of a whole claim: it holds where every pair does, and is contradicted where one is."""
    verdicts = {pair.verdict for pair in pairs}
    for one in ("not run", "contradicted", "not told apart"):
        if one in verdicts:
            return one
    return "holds"
