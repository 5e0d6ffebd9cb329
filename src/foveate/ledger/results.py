"""What the rows' measurements say: numbers by seed, their mean and spread, and whether what is claimed of them holds.

A difference counts where it lies outside its 95 % confidence interval over seeds (Student's t, large for so few seeds).
Two CLIPs as they come have no seeds: there it counts beyond `MARGIN`, which says nothing of chance in their training.
Deliberately absent: p-values, and correction for the number of claims.
"""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from foveate.errors import InputError
from foveate.ledger.rows import PQ, Claim, Row

Verdict = Literal["holds", "not told apart", "contradicted", "not run"]
Values = dict[str, list[float | None]]  # a metric's value with each seed; None: there was nothing to measure
MARGIN = 3.0  # points; about twice the sampling error of the accuracy of some 1,000 regions
T_QUANTILES = {1: 12.7, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31}  # 97.5 %, by degrees of freedom


@dataclass(frozen=True)
class Compared:
    """One pair of a claim."""

    more: str
    less: str
    difference: float | None  # of the means
    verdict: Verdict


def read_metrics(row: Row, path: Path) -> dict[str, float | None]:
    """Take a row's metrics out of the JSON that its measurement wrote.

    Args:
        row: says which they are.
        path: of the JSON.

    Raises:
        InputError: the file is not such a measurement.
    """
    try:
        found = _metrics(row, json.loads(path.read_bytes()))
        return {metric: None if found[metric] is None else float(found[metric]) for metric in row.metrics}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"{path}: need the result of `foveate evaluate` for row {row.name}; {type(error).__name__}: {error}. "
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
        case "detection":
            groups = content["fusions"][0]["boxes"]["groups"]
            return {name: groups[name]["AP50"] if name in groups else None for name in ("novel", "base", "all")}
        case "cosines" | "semantic":
            found = {name: group["mIoU"] for name, group in content["groups"].items()}  # none without a split
            return {"all": content["mIoU"], "novel": found.get("unseen"), "base": found.get("seen")}
        case "panoptic":
            (one,) = (one for one in content["shares"] if one["name"] == row.shares)
            groups = {"novel": one["groups"]["unseen"], "base": one["groups"]["seen"], **one}
            return {name: groups[name]["PQ"] for name in PQ}
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
    """Top-1 of crops by class, and R@1 of captions and pictures; None where the data has no such thing."""
    classes, retrieval = content["classification"], content["retrieval"]
    return {
        "classes": classes and classes["mean"]["top1"],
        "image-to-text": retrieval and retrieval["image_to_text"]["r1"],
        "text-to-image": retrieval and retrieval["text_to_image"]["r1"],
    }


def spread(values: Sequence[float]) -> float:
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
        values = [value for value in measured.get(row, {}).get(metric, []) if value is not None]
        if not values or (row in trained and len(values) < 2):
            verdict = "not told apart" if values else "not run"
            return Compared(more, less, None, verdict)
        sides.append(values)
    difference = fmean(sides[0]) - fmean(sides[1])
    if abs(difference) <= margin(sides):
        return Compared(more, less, difference, "not told apart")
    return Compared(more, less, difference, "holds" if difference > 0 else "contradicted")


def margin(sides: list[list[float]]) -> float:
    """How large the difference of two means must be to count.

    Args:
        sides: values with each seed; one value has no seeds.
    """
    freedom = sum(len(values) - 1 for values in sides)
    if freedom == 0:
        return MARGIN
    error = math.sqrt(sum(spread(values) ** 2 / len(values) for values in sides))
    return T_QUANTILES.get(freedom, 2.3) * error


def verdict_of(pairs: list[Compared]) -> Verdict:
    """Of a whole claim: it is contradicted where one pair is, and holds where every pair does."""
    verdicts = {pair.verdict for pair in pairs}
    for one in ("contradicted", "not run", "not told apart"):
        if one in verdicts:
            return one
    return "holds"
