"""Where the name of a region is written: in its largest connected part, at the position with the most room.

Needs neither SciPy nor OpenCV.
"""

import numpy as np
from jaxtyping import Bool, Int64

STEPS = 10  # of the bisection for the most room: it ends within a thousandth of the largest


def connected_parts(labels: Int64[np.ndarray, "H W"]) -> Int64[np.ndarray, "H W"]:
    """Number the connected parts of a map from 0, in the order of their first pixels; connected pixels share an edge.

    Rows are cut into runs of one label; touching runs of neighbouring rows with the same label are merged.
    """
    starts = np.ones(labels.shape, bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    runs = starts.ravel().cumsum().reshape(labels.shape) - 1  # (H, W)
    touch = (labels[1:] == labels[:-1]) & (starts[1:] | starts[:-1])  # once per pair: where the later of the two starts
    above, below = runs[:-1][touch], runs[1:][touch]  # (E,) each
    parts = np.arange(int(runs[-1, -1]) + 1)  # each run points to itself or an earlier run of its part
    while (parts[above] != parts[below]).any():
        first, second = parts[above], parts[below]
        np.minimum.at(parts, np.maximum(first, second), np.minimum(first, second))
        while (parts[parts] != parts).any():
            parts = parts[parts]
    return np.unique(parts, return_inverse=True)[1].reshape(-1)[runs]


def largest_parts(labels: Int64[np.ndarray, "H W"]) -> dict[int, Bool[np.ndarray, "H W"]]:
    """The largest connected part of each label of at least 0; the first one wins ties."""
    parts = connected_parts(labels)
    sizes = np.bincount(parts.ravel())
    _, firsts = np.unique(parts.ravel(), return_index=True)
    owners = labels.ravel()[firsts]
    return {
        int(label): parts == np.where(owners == label, sizes, 0).argmax() for label in np.unique(owners) if label >= 0
    }


def roomiest_place(
    inside: Bool[np.ndarray, "H W"], *, height: float, width: float, free: Bool[np.ndarray, "H W"] | None = None
) -> tuple[int, int] | None:
    """Row and column of the centre of the largest rectangle of a name's shape within a region; None: none is free.

    It is the region's pole of inaccessibility with distances in units of the name's height and width [pixels]. Of
    several positions the one nearest to the region's centre is taken.

    Args:
        inside: the region; beyond the map is outside.
        free: allowed centres of the name; None: everywhere.
    """
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return None
    top, left = int(rows[0]), int(columns[0])
    box = (slice(top, int(rows[-1]) + 1), slice(left, int(columns[-1]) + 1))
    region = inside[box]
    sums = np.pad(region.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))  # (h + 1, w + 1): of pixels above and left
    best = region if free is None else region & free[box]
    if not best.any():
        return None
    low, high = 0.0, max(region.shape[0] / height, region.shape[1] / width)
    for _ in range(STEPS):
        middle = (low + high) / 2
        fits = best & _holds(sums, rows=int(middle * height / 2), columns=int(middle * width / 2))
        if fits.any():
            low, best = middle, fits
        else:
            high = middle
    ys, xs = best.nonzero()
    all_ys, all_xs = region.nonzero()
    nearest = int(np.argmin((ys - all_ys.mean()) ** 2 + (xs - all_xs.mean()) ** 2))
    return int(ys[nearest]) + top, int(xs[nearest]) + left


def _holds(sums: np.ndarray, *, rows: int, columns: int) -> np.ndarray:
    """Around which pixels all pixels are inside, within this many rows above and below and columns left and right."""
    high, wide = 2 * rows + 1, 2 * columns + 1
    held = np.zeros((sums.shape[0] - 1, sums.shape[1] - 1), bool)
    if high <= held.shape[0] and wide <= held.shape[1]:
        counts = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
        held[rows : rows + counts.shape[0], columns : columns + counts.shape[1]] = counts == high * wide
    return held
