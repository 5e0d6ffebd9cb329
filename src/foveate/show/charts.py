"""Line charts of results, as PNG files and as SVG for the report.

Every line is named where it ends, in its colour; names that would overlap are moved apart. No torch, and no pyplot with
its global figures.
"""

import re
from io import BytesIO, StringIO
from itertools import pairwise
from pathlib import Path
from textwrap import wrap

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from foveate.io.files import write_whole
from foveate.io.outputs import MARK
from foveate.show.palette import FRAME, GRID, INK, QUIET

WIDTH, HEIGHT = 6.6, 4.2  # [inches]
LEFT, TOP, BOTTOM = 0.7, 0.5, 0.6  # margins around the plot [inches]
NAMES = 2.0  # right margin, for the names of lines [inches]
POINTS = 72  # per inch
# of names: font size, height of one line, distance of further lines, distance from the plot [points]
FONT, SPACING, LINE, GAP = 8.5, 14.0, 10.5, 8.0


def new_chart(
    title: str, *, x_name: str, y_name: str, right: float = NAMES, size: tuple[float, float] = (WIDTH, HEIGHT)
) -> tuple[Figure, Axes]:
    """Lay out a chart with a right margin [inches] for the names of lines; `size` is width and height [inches].

    Without `title` or `y_name` their margins are narrow.
    """
    width, height = size
    left, top = LEFT if y_name else LEFT / 2, TOP if title else TOP / 4
    figure = Figure(figsize=size, dpi=160, facecolor="white")
    axes = figure.add_axes((left / width, BOTTOM / height, 1 - (left + right) / width, 1 - (top + BOTTOM) / height))
    axes.set_title(title, fontsize=10, color=INK, loc="left", pad=10)
    axes.set_xlabel(x_name, fontsize=9, color=QUIET)
    axes.set_ylabel(y_name, fontsize=9, color=QUIET)
    axes.tick_params(labelsize=8, colors=QUIET, length=3)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)
    return figure, axes


def name_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Write each line's name right of the plot, at the height of its end; call it after the limits are set.

    Long names are wrapped, and the chart grows if its height does not hold them all.

    Args:
        ends: (y of the end, name, colour) of each line.
    """
    figure = axes.figure
    assert isinstance(figure, Figure), f"need the axes of a figure, not of {type(figure).__name__}"
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: -end[0])  # from above
    room = (1 - axes.get_position().x1) * figure.get_figwidth() * POINTS  # [points]
    names = [wrap_name(name, room=room - 2 * GAP) for _, name, _ in ends]
    heights = [SPACING + LINE * name.count("\n") for name in names]
    tall = _grow(figure, axes, sum(heights))
    centres = spread([(high - y) / (high - low) * tall for y, _, _ in ends], heights, limit=tall)
    for (_, _, colour), name, centre in zip(ends, names, centres, strict=True):
        axes.annotate(
            name, (1.0, 1 - centre / tall), xycoords="axes fraction", xytext=(GAP, 0), textcoords="offset points",
            va="center", fontsize=FONT, color=colour, annotation_clip=False, parse_math=False,
        )  # fmt: skip


def wrap_name(name: str, *, room: float) -> str:
    """Wrap a name to lines no wider than the room [points], at spaces if it has any."""
    font = FontProperties(size=FONT)
    for characters in range(len(name), 1, -1):
        lines = wrap(name, characters)
        if all(text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] <= room for line in lines):
            return "\n".join(lines)
    return name


def spread(centres: list[float], heights: list[float], *, limit: float) -> list[float]:
    """Move ascending centres apart, so that items of these heights do not overlap; within 0..limit if they fit."""
    gaps = [(first + second) / 2 for first, second in pairwise(heights)]  # minimum distances of neighbours
    result: list[float] = []
    for index, centre in enumerate(centres):
        result.append(max(centre, result[-1] + gaps[index - 1]) if result else max(centre, 0.0))
    for index in reversed(range(len(result))):
        result[index] = min(result[index], limit)
        limit = result[index] - (gaps[index - 1] if index else 0)
    return result


def _grow(figure: Figure, axes: Axes, need: float) -> float:
    """Give the plot at least this height [points], with the same margins; return its height."""
    box, width, height = axes.get_position(), *figure.get_size_inches()
    tall = max(box.height * height, need / POINTS)  # [inches]
    total = height - box.height * height + tall
    figure.set_size_inches(width, total)
    axes.set_position((box.x0, box.y0 * height / total, box.width, tall / total))
    return tall * POINTS


def write_figure(figure: Figure, path: Path, *, made_by: str = "foveate") -> None:
    """Write a figure as a PNG with the mark of its command, atomically; its folder is created."""
    png = BytesIO()
    figure.savefig(png, format="png", metadata={MARK: made_by})
    write_whole(path, png.getvalue())


def inline_svg(figure: Figure, *, variables: dict[str, str]) -> str:
    """A figure as a transparent <svg> element for a page, with text as text.

    Args:
        variables: CSS variable -> the colour in the figure that it replaces, for light and dark pages.
    """
    content = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "foveate"}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    svg = content.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| ?font-family:[^;"]*;', "", svg)  # implied in HTML; the font is the page's
    for name, colour in variables.items():
        svg = re.sub(rf"{colour}\b", f"var(--{name})", svg)
    return svg
