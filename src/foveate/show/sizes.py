"""Accuracy against input size: the dense map beside the model's own crops (Fig. 2, 3, A1).

Read from the JSON of `foveate evaluate regions`. Crops are embedded at the model's own size for every dense input: a
horizontal line.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.data.validation import parse
from foveate.errors import InputError
from foveate.show.charts import name_ends, new_chart, write_figure
from foveate.show.palette import COLOURS

KIND_NAMES = {"boxes": "thing boxes", "things": "thing masks", "stuff": "stuff masks"}


@dataclass(frozen=True)
class Sweep:
    """Top-1 mAcc of one model by input size [pixels], and of its crops; in percent."""

    dense: dict[int, float]
    masked: dict[int, float]  # by masked attention (Tab. A3); empty where it was not measured
    crop: float | None


def read_sweep(path: Path, *, kind: str) -> Sweep:
    """Read the JSON of `foveate evaluate regions --out`.

    Raises:
        InputError: the file does not exist, is no such result, has an invalid entry, or no region of that kind.
    """
    content = parse(path, kind="a regions result")
    try:
        where = f"{path}: "
        dense = _by_size(content["dense"], kind, where=f"{where}dense")
        masked = _by_size(content.get("masked") or {}, kind, where=f"{where}masked")
        crop = None if content["crop"] is None else _top1(content["crop"], kind, where=f"{where}crop")
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: need a result of `foveate evaluate regions --out`; got another file ({error!r})."
        ) from error
    if not dense:
        raise InputError(f"{path}: need {KIND_NAMES[kind]} to show; it has none. Try another --what.")
    return Sweep(dense, masked, crop)


def _by_size(sizes: dict[str, Any], kind: str, *, where: str) -> dict[int, float]:
    values = {int(size): _top1(scores, kind, where=f"{where}[{size}]") for size, scores in sizes.items()}
    if min(values, default=1) < 1:
        raise InputError(f"{where}: need sizes of at least 1 pixel; got {min(values)}. Measure again.")
    return {size: value for size, value in sorted(values.items()) if value is not None}


def _top1(scores: dict[str, Any], kind: str, *, where: str) -> float | None:
    value = scores[kind]["top1"]
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= 100:  # NaN is not
        raise InputError(f"{where}[{kind}][top1]: need a number of percent, 0 to 100; got {value!r}. Measure again.")
    return float(value)


def sizes_chart(path: Path, sweeps: dict[str, Sweep], *, kind: str) -> None:
    """Draw one line per model for its dense map, dashed for its crops, dotted for masked attention (Fig. 2, 3, A1)."""
    if not 1 <= len(sweeps) <= len(COLOURS):
        raise InputError(f"need 1 to {len(COLOURS)} models in one chart; got {len(sweeps)}.")
    title = f"Top-1 mAcc of {KIND_NAMES[kind]}"
    figure, axes = new_chart(title, x_name="side of the dense input [pixels], log scale", y_name="mAcc [%]")
    ticks = sorted({size for sweep in sweeps.values() for size in (*sweep.dense, *sweep.masked)})
    ends = []
    for (name, sweep), colour in zip(sweeps.items(), COLOURS, strict=False):
        for way, values, style, mark in (("dense", sweep.dense, "-", "o"), ("masked", sweep.masked, ":", "s")):
            if values:
                axes.plot([*values], [*values.values()], style, color=colour, marker=mark, ms=4, lw=1.8, zorder=3)
                ends.append((values[max(values)], f"{name}, {way} {values[max(values)]:.1f}", colour))
        if sweep.crop is not None:
            axes.plot([ticks[0], ticks[-1]], [sweep.crop] * 2, "--", color=colour, lw=1.3)
            ends.append((sweep.crop, f"{name}, crops {sweep.crop:.1f}", colour))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(size) for size in ticks])
    axes.minorticks_off()
    top = max(y for y, _, _ in ends)
    axes.set_ylim(0, min(100, max(5, 1.08 * top)))
    name_ends(axes, ends)
    write_figure(figure, path, made_by="foveate show sizes")
