"""All colours: of charts and pages, of clusters, and one per class, the same in every image.

The n-th class has the n-th colour for any length of the vocabulary. The first eight are the colours of the charts,
which colour-blind readers can distinguish; each further one has the maximum distance from all before it in Oklab
(Ottosson 2020), which is perceptually uniform.
"""

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

INK, QUIET, GRID, FRAME = "#1f2328", "#59636e", "#e3e6ea", "#c8ccd1"  # of titles, other text, grid lines, axes
# of the lines of charts: Okabe and Ito's, safe for colour-blind readers, and two more
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#8C564B")
# of the clusters of K-means: the same, and four more, ordered so that neighbours differ on a faded image
GROUPS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#56B4E9", "#8C6BB1", "#A6D854", "#8C564B",
          "#17344A", "#BDBDBD")  # fmt: skip
# of the report, by CSS variable, in light and in dark
LIGHT = {"paper": "#fbfbf9", "card": "#fff", "ink": INK, "quiet": QUIET, "rule": GRID, "before": "#76808d",
         "after": "#0b63ce", "crop": "#1b1f24", "student": "#b45309", "colour": "#a9b1bb",
         "wash": "#eaf2fd"}  # fmt: skip
DARK = {"paper": "#111417", "card": "#191d22", "ink": "#e9ecef", "quiet": "#9aa4b0", "rule": "#2d333b",
        "before": "#8d97a4", "after": "#66a8ff", "crop": "#e9ecef", "student": "#f0a04b", "colour": "#626c78",
        "wash": "#16263b"}  # fmt: skip

BASE, NOVEL = (0, 92, 197), (215, 38, 56)  # detections of classes that were trained on, and of others (App. D)
DARK_TEXT, LIGHT_TEXT = (20, 22, 26), (255, 255, 255)  # on a class's colour

LEVELS = 18  # of red, green and blue among the candidates
LIGHTNESS = (0.42, 0.90)  # in [0, 1]: neither black nor white, the colours of contours, text and pixels of no class
CHROMA = (0.06, 0.21)  # neither grey nor glaring
WEIGHT = 0.5  # of lightness in a distance: the image below a colour changes lightness more than hue
SHADES = (0.0, 0.35, -0.3, 0.18, -0.16, 0.5, -0.42)  # towards white, or below 0 towards black


def class_colours(count: int) -> UInt8[np.ndarray, "K 3"]:
    """RGB in 0..255 of K classes, by index; a shorter vocabulary has the first colours of a longer one.

    If there are more classes than colours, colours repeat.
    """
    palette = _spread_colours(min(2 ** max(8, (count - 1).bit_length()), len(_candidates())))
    return palette[np.arange(count) % len(palette)]


def shade_colour(colour: UInt8[np.ndarray, "3"], number: int) -> UInt8[np.ndarray, "3"]:
    """The n-th shade of a colour, alternately lighter and darker; the 0-th is the colour itself."""
    amount = SHADES[number % len(SHADES)]
    target = 255.0 if amount > 0 else 0.0
    return (colour + abs(amount) * (target - colour)).round().astype(np.uint8)


def oklab(colours: UInt8[np.ndarray, "K 3"]) -> Float[np.ndarray, "K 3"]:
    """Convert sRGB in 0..255 to Oklab: lightness in [0, 1], green to red, blue to yellow (Ottosson 2020)."""
    encoded = colours / 255.0
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(_TO_CONES).T
    return np.cbrt(cones) @ np.array(_TO_LAB).T


@cache
def _spread_colours(count: int) -> np.ndarray:
    """The colours of the charts, then greedily the candidate that is farthest from its nearest chosen colour."""
    scale = np.array([WEIGHT, 1.0, 1.0])
    candidates = oklab(_candidates()) * scale
    first = np.array([[int(name[start : start + 2], 16) for start in (1, 3, 5)] for name in COLOURS], np.uint8)
    nearest = np.full(len(candidates), np.inf)
    for point in oklab(first) * scale:
        nearest = np.minimum(nearest, ((candidates - point) ** 2).sum(axis=1))
    chosen = []
    for _ in range(count - len(first)):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((candidates - candidates[chosen[-1]]) ** 2).sum(axis=1))
    return np.concatenate([first, _candidates()[chosen]])


@cache
def _candidates() -> np.ndarray:
    levels = np.linspace(0, 255, LEVELS).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = oklab(colours)
    inside = np.ones(len(colours), bool)
    for values, (low, high) in ((lab[:, 0], LIGHTNESS), (np.hypot(lab[:, 1], lab[:, 2]), CHROMA)):
        inside &= (values >= low) & (values <= high)
    return colours[inside]


_TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
