"""Line charts of results as PNG: what the sweep of sizes and the Pareto front share.

Every line is named where it ends, in its own colour; names that would overlap are pushed apart. Needs no torch.
Deliberately absent: pyplot and its global figures, and the report's charts, which are SVG (`chart.py`).
"""

from io import BytesIO
from pathlib import Path
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from foveate.io.files import write_whole
from foveate.show.chart import SPACING, spread

INK, QUIET = "#1f2328", "#59636e"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#8C564B")
WIDTH, HEIGHT = 6.6, 4.2  # [inches]
LEFT, TOP, BOTTOM = 0.7, 0.5, 0.6  # margins around the plot [inches]
NAMES = 2.0  # the right one, where names stand in it [inches]
POINTS = 72  # an inch
FONT, LINE, GAP = 8.5, 10.5, 8.0  # of names: size, distance of the lines of one, distance from the plot [points]


def new_chart(title: str, *, x_name: str, y_name: str, right: float = NAMES) -> tuple[Figure, Axes]:
    """Lay out a chart with a margin at its right [inches] for the names of lines."""
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=160, facecolor="white")
    room = (LEFT / WIDTH, BOTTOM / HEIGHT, 1 - (LEFT + right) / WIDTH, 1 - (TOP + BOTTOM) / HEIGHT)
    axes = figure.add_axes(room)
    axes.set_title(title, fontsize=10, color=INK, loc="left", pad=10)
    axes.set_xlabel(x_name, fontsize=9, color=QUIET)
    axes.set_ylabel(y_name, fontsize=9, color=QUIET)
    axes.tick_params(labelsize=8, colors=QUIET, length=3)
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c8ccd1")
    return figure, axes


def name_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Write each line's name right of the plot, at the height of its end; call it once the limits are set.

    Long names are broken into lines, and the chart grows where its height does not hold them all.

    Args:
        axes: of `new_chart`.
        ends: (y of the end, name, colour) of each line.
    """
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: -end[0])  # from above
    names = [wrap_name(name, room=NAMES * POINTS - 2 * GAP) for _, name, _ in ends]
    heights = [SPACING + LINE * name.count("\n") for name in names]
    tall = _make_tall(axes, sum(heights))
    wished = [(high - y) / (high - low) * tall for y, _, _ in ends]
    places = spread(wished, low=0.0, high=tall, heights=heights)
    for (_, _, colour), name, place in zip(ends, names, places, strict=True):
        axes.annotate(
            name, (1.0, 1 - place / tall), xycoords="axes fraction", xytext=(GAP, 0), textcoords="offset points",
            va="center", fontsize=FONT, color=colour, annotation_clip=False, parse_math=False,
        )  # fmt: skip


def wrap_name(name: str, *, room: float) -> str:
    """Break a name into lines no wider than there is room [points], at blanks where it has some."""
    font = FontProperties(size=FONT)
    for characters in range(len(name), 1, -1):
        lines = wrap(name, characters)
        if all(text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] <= room for line in lines):
            return "\n".join(lines)
    return name


def _make_tall(axes: Axes, need: float) -> float:
    """Give the plot at least so much height [points], and say how much it has."""
    tall = max((HEIGHT - TOP - BOTTOM) * POINTS, need)
    height = TOP + BOTTOM + tall / POINTS  # [inches]
    place = axes.get_position()
    assert isinstance(axes.figure, Figure), f"a chart of its own, not of {type(axes.figure).__name__}"
    axes.figure.set_size_inches(WIDTH, height)
    axes.set_position((place.x0, BOTTOM / height, place.width, tall / POINTS / height))
    return tall


def write_chart(figure: Figure, path: Path) -> None:
    """Write a chart as a PNG, all of it or nothing; its folder is made where missing."""
    png = BytesIO()
    figure.savefig(png, format="png")
    write_whole(path, png.getvalue())
