"""Line charts as inline SVG for the report.

The SVG names classes instead of colours, so that the page decides how they look, in light and in dark. Every line is
named where it ends; a reader needs no legend. Deliberately absent: interaction beyond the browser's own tooltips.
"""

import math
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 390.0, 250.0  # of a chart [SVG units, about pixels]
LEFT, RIGHT, TOP, BOTTOM = 36.0, 122.0, 12.0, 40.0  # margins around the plot; names stand in the right one
SPACING = 14.0  # least distance of two names [SVG units]


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str  # written where it ends; empty for a line that explains itself
    kind: str  # CSS class: its colour and dashes
    points: list[tuple[float, float]]  # by rising x
    dots: bool = False  # mark every point
    decimals: int = 1  # of values written out


@dataclass(frozen=True)
class Scale:
    """Where values lie in the drawing; y starts at 0."""

    low: float
    high: float
    top: float
    is_log: bool  # equal factors of x take equal room

    def x(self, value: float) -> float:
        """Distance from the left [SVG units]."""
        low, high, value = ((math.log(v) if self.is_log else v) for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Distance from above [SVG units]."""
        return HEIGHT - BOTTOM - min(max(value / self.top, 0), 1) * (HEIGHT - TOP - BOTTOM)


def svg_chart(
    lines: list[Line], *, label: str, x_name: str, x_ticks: list[float], top: float, is_log: bool = False
) -> str:
    """Draw lines as inline SVG, named where they end.

    Args:
        lines: drawn in this order, the last on top.
        label: what the chart shows, for those who cannot see it.
        x_name: of the x axis.
        x_ticks: where the x axis is labelled, rising; the first and the last are its ends.
        top: upper end of the y axis; the lower is 0.
        is_log: equal factors of x take equal room.

    Returns:
        An <svg> element that grows with its container.
    """
    scale = Scale(x_ticks[0], x_ticks[-1], top, is_log)
    parts = [f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(label)}">']
    parts += _axes(scale, x_name, x_ticks)
    for line in lines:
        corners = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="line {line.kind}" points="{corners}"/>')
        parts += [_dot(scale, line, x, y, x_name) for x, y in line.points if line.dots]
    parts += _names(scale, [line for line in lines if line.name])
    return "\n".join([*parts, "</svg>"])


def _axes(scale: Scale, x_name: str, x_ticks: list[float]) -> list[str]:
    parts = []
    for value in nice_ticks(scale.top):
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        parts.append(f'<text x="{scale.x(value):.1f}" y="{HEIGHT - 23}" text-anchor="middle">{value:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_name)}</text>')
    return parts


def _dot(scale: Scale, line: Line, x: float, y: float, x_name: str) -> str:
    tip = f"{line.name}: {y:.{line.decimals}f} at {x_name} {x:g}"
    place = f'cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}"'
    return f'<circle class="dot {line.kind}" {place} r="3.5"><title>{escape(tip)}</title></circle>'


def _names(scale: Scale, lines: list[Line]) -> list[str]:
    """Write each line's name and last value at its end."""
    lines = sorted(lines, key=lambda line: scale.y(line.points[-1][1]))
    places = spread([scale.y(line.points[-1][1]) for line in lines], low=TOP, high=HEIGHT - BOTTOM)
    return [
        f'<text class="name {line.kind}" x="{WIDTH - RIGHT + 9}" y="{y + 4:.1f}">'
        f"{escape(line.name)} <tspan>{line.points[-1][1]:.{line.decimals}f}</tspan></text>"
        for line, y in zip(lines, places, strict=True)
    ]


def spread(places: list[float], *, low: float, high: float, heights: list[float] | None = None) -> list[float]:
    """Push rising places apart, within low..high where they fit: by `SPACING`, or so that things of these heights
    around them do not overlap."""
    heights = [SPACING] * len(places) if heights is None else heights
    apart = [(one + other) / 2 for one, other in pairwise(heights)]  # least distances of neighbours
    result: list[float] = []
    for index, place in enumerate(places):
        result.append(max(place, result[-1] + apart[index - 1]) if result else max(place, low))
    limit = high
    for index in reversed(range(len(result))):
        result[index] = min(result[index], limit)
        limit = result[index] - (apart[index - 1] if index else 0)
    return result


def nice_ticks(top: float) -> list[float]:
    """Choose 3 to 6 round numbers from 0 to at most `top`."""
    assert 1e-6 < top < 1e6, f"a chart needs a positive upper end, got {top}"
    steps = (factor * 10.0**power for power in range(-8, 7) for factor in (1, 2, 2.5, 5))
    step = next(step for step in steps if top / step <= 5)
    return [round(index * step, 9) for index in range(int(top / step + 1e-9) + 1)]
