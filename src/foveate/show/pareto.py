"""Dense accuracy against global accuracy along the mix of weights, with the Pareto front marked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from foveate.errors import InputError
from foveate.show.charts import POINTS, new_chart, write_figure
from foveate.show.palette import COLOURS, GRID, INK, QUIET

LINE, RING = 10.5, 11.0  # line height of labels, diameter of a ring [points]


@dataclass(frozen=True)
class Label:
    """The name of a point."""

    text: str
    x: float  # of the point, in the data's units
    y: float
    size: float  # of the font [points]
    colour: str


def pareto_chart(path: Path, points: list[dict[str, Any]], *, size: int, whole: str) -> None:
    """Draw one line per model through its mixes, labelled with alpha; rings mark the front.

    Args:
        points: {"model", "alpha", "boxes", "classification", "front"}, in percent.
        size: side of the dense input [pixels].
        whole: what global accuracy was measured on ("images").
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
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    labels: list[Label] = []
    for number, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        mixes = sorted((point for point in points if point["model"] == name), key=lambda point: point["alpha"])
        x, y = [point["classification"] for point in mixes], [point["boxes"] for point in mixes]
        axes.plot(x, y, "-o", color=colour, ms=4.5, lw=1.6, zorder=3)
        for point in mixes:
            is_end, alpha = point["alpha"] == mixes[-1]["alpha"], f"{point['alpha']:g}"
            if point["alpha"] > 0 or number == 0:  # alpha 0 is the teacher, the same point for all
                text = f"{name}, {alpha}" if is_end else alpha
                labels.append(Label(text, point["classification"], point["boxes"], 8.5 if is_end else 7.5, colour))
    front = [(point["classification"], point["boxes"]) for point in points if point["front"]]
    axes.plot(*zip(*front, strict=True), "o", ms=RING, mfc="none", mec=INK, mew=1.1, zorder=4)
    axes.margins(0.12, 0.12)
    for low, high, limit in ((*axes.get_xlim(), axes.set_xlim), (*axes.get_ylim(), axes.set_ylim)):
        limit(max(low, 0.0), high)  # accuracies are not negative
    write_labels(axes, labels)
    axes.text(
        0.02, 0.03, "numbers: alpha; rings: no other mix is as good in both and better in one",
        transform=axes.transAxes, fontsize=7, color=QUIET,
    )  # fmt: skip
    write_figure(figure, path, made_by="foveate evaluate pareto")


def write_labels(axes: Axes, labels: list[Label]) -> None:
    """Write the names of points beside them, at the nearest free position, inside the image if possible.

    Args:
        axes: with its limits set.
        labels: the first ones are nearest to their points.
    """
    scale = POINTS / axes.figure.dpi
    edges = axes.bbox.x0 * scale, axes.figure.bbox.x1 * scale  # [points] from the lower left corner of the image
    positions = [axes.transData.transform((label.x, label.y)) * scale for label in labels]
    occupied = [(x - RING / 2, y - RING / 2, RING, RING) for x, y in positions]
    for label, (x, y) in zip(labels, positions, strict=True):
        font = FontProperties(size=label.size)
        width, height, _ = text_to_path.get_text_width_height_descent(label.text, font, ismath=False)
        sides = [(side, 6.0 + LINE * far if up else -6.0 - height - LINE * far)
                 for far in range(2 * len(labels) + 1) for up in (True, False) for side in (1, -1)]  # fmt: skip
        boxes = [(x + (7 if side > 0 else -7 - width), y + down, width, height) for side, down in sides]
        free = [index for index, box in enumerate(boxes) if not any(_overlap(box, used) for used in occupied)]
        inside = [index for index in free if edges[0] <= boxes[index][0] <= edges[1] - width]
        best = [*inside, *free][0]  # with this many lines one is always free
        side, down = sides[best]
        occupied.append(boxes[best])
        axes.annotate(
            label.text, (label.x, label.y), xytext=(7 * side, down), textcoords="offset points", va="bottom",
            ha="left" if side > 0 else "right", fontsize=label.size, color=label.colour, parse_math=False,
        )  # fmt: skip


def _overlap(first: tuple[float, float, float, float], second: tuple[float, float, float, float]) -> bool:
    """Whether two boxes (left, bottom, width, height) overlap."""
    pairs = ((first, second), (second, first))
    return all(box[axis] < other[axis] + other[axis + 2] for box, other in pairs for axis in (0, 1))
