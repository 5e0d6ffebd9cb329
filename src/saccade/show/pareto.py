"""Dense accuracy against global accuracy along the mix of weights, with the Pareto front marked.

Deliberately absent: measuring (`saccade.evaluate.pareto` does it) and smoothing between the measured mixes.
"""

from pathlib import Path
from typing import Any

from saccade.errors import InputError
from saccade.show.lines import COLOURS, INK, QUIET, new_chart, write_chart


def pareto_chart(path: Path, points: list[dict[str, Any]], *, size: int, whole: str) -> None:
    """Draw a line a model through its mixes, each with its alpha; rings mark the front.

    Args:
        path: of the PNG.
        points: {"model", "alpha", "boxes", "classification", "front"} each, in percent.
        size: side of the dense input [pixels].
        whole: what global accuracy was measured on ("pictures").
    """
    names = list(dict.fromkeys(point["model"] for point in points))
    if not 1 <= len(names) <= len(COLOURS):
        raise InputError(f"--model: need 1 to {len(COLOURS)} models in one chart; got {len(names)}.")
    figure, axes = new_chart(
        "What dense gain costs: alpha * student + (1 - alpha) * teacher",
        x_name=f"global: top-1 of {whole} by image embeddings, mean over classes [%]",
        y_name=f"dense: top-1 mAcc of thing boxes at {size} px [%]",
        right=0.7,
    )
    axes.grid(axis="x", color="#e3e6ea", linewidth=0.8)
    for number, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        own = sorted((point for point in points if point["model"] == name), key=lambda point: point["alpha"])
        x, y = [point["classification"] for point in own], [point["boxes"] for point in own]
        axes.plot(x, y, "-o", color=colour, ms=4.5, lw=1.6, zorder=3)
        side = {"ha": "left", "xytext": (7, 6)} if number % 2 == 0 else {"ha": "right", "xytext": (-7, -11)}
        for point in own:
            side |= {"ha": "left", "xytext": (7, -13)} if point is own[-1] and number % 2 else {}  # a name stays inside
            is_end, alpha = point["alpha"] == own[-1]["alpha"], f"{point['alpha']:g}"
            if point["alpha"] > 0 or number == 0:  # alpha 0 is the teacher, the same place for all
                axes.annotate(
                    f"{name}, {alpha}" if is_end else alpha, (point["classification"], point["boxes"]),
                    textcoords="offset points", fontsize=8.5 if is_end else 7.5, color=colour, **side,
                )  # fmt: skip
    front = [(point["classification"], point["boxes"]) for point in points if point["front"]]
    axes.plot(*zip(*front, strict=True), "o", ms=11, mfc="none", mec=INK, mew=1.1, zorder=4)
    axes.margins(0.12, 0.12)
    axes.text(
        0.02, 0.03, "numbers: alpha; rings: no other mix is as good in both and better in one",
        transform=axes.transAxes, fontsize=7, color=QUIET,
    )  # fmt: skip
    write_chart(figure, path)
