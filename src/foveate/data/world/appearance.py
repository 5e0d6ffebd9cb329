"""The appearance of the rendered world: textures, shapes, stuff and colours.

A thing category is one texture, which no other category has, on one of eight shapes. A texture is a motif that repeats
a few times across the object, so that a part of the object shows its class, as a zebra's flank does; the shape is a
second cue. Colour, position and outline are random. Textures are two-tone patterns in [0, 1] as functions of cell
coordinates (u, v), in units of the motif's period; v points downwards.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Texture = Callable[[Array, Array], Array]
Shape = Callable[[Array, Array], Mask]
Stuff = Callable[[np.random.Generator, int, int, float], Array]  # (generator, height, width, scale) -> (H, W)

# ------------------------------------------------------------------------------------------- two-tone textures, things


def _cell(x: Array) -> Array:
    """Position within a cell, in [-0.5, 0.5)."""
    return x - np.floor(x) - 0.5


def _triangle_wave(x: Array) -> Array:
    return np.abs(_cell(x)) * 2  # 0..1..0 over one period


def _tone(inside: Mask) -> Array:
    return inside.astype(np.float32)


def _band(x: Array) -> Array:
    return _tone(np.abs(_cell(x)) < 0.25)


def _checked(u: Array, v: Array) -> Array:
    return _tone((_cell(u) > 0) ^ (_cell(v) > 0))


def _plaid(u: Array, v: Array) -> Array:
    return _tone((np.abs(_cell(u)) < 0.13) | (np.abs(_cell(v)) < 0.13))


def _plussed(u: Array, v: Array) -> Array:
    a, b = np.abs(_cell(u)), np.abs(_cell(v))
    return _tone((np.minimum(a, b) < 0.12) & (np.maximum(a, b) < 0.36))


def _crossed(u: Array, v: Array) -> Array:
    a, b = _cell(u), _cell(v)
    return _plussed((a + b) * 0.71 + 0.5, (a - b) * 0.71 + 0.5)


def _zigzag(u: Array, v: Array) -> Array:
    return _band(v + 0.7 * _triangle_wave(u))


def _scaled(u: Array, v: Array) -> Array:
    """Fish scales: each row of discs hides the upper half of the row below; only the rims are drawn."""
    tone = np.zeros_like(u)
    row = np.floor(v * 2)
    for k in (1.0, 0.0):  # the lower row first, the upper one over it
        r = row - k
        a, b = _cell(u + 0.5 * (r % 2)), v - r / 2
        distance = np.hypot(a, b)
        tone = np.where(distance < 0.52, _tone(distance > 0.36), tone)
    return tone


def _honeycomb(u: Array, v: Array) -> Array:
    """Outlines of hexagons: points nearly as near to a second centre as to the first."""
    h = np.float32(np.sqrt(3.0))
    first = np.hypot(_cell(u), _cell(v / h) * h)
    second = np.hypot(_cell(u + 0.5), _cell(v / h + 0.5) * h)
    near = np.minimum(first, second)
    far_u = np.where(first < second, _cell(u), _cell(u + 0.5))
    far_v = np.where(first < second, _cell(v / h) * h, _cell(v / h + 0.5) * h)
    edge = np.maximum(np.abs(far_u), np.abs(far_u) * 0.5 + np.abs(far_v) * (h / 2))
    return _tone((edge > 0.36) & (near > 0))


def _woven(u: Array, v: Array) -> Array:
    across = (np.floor(u) + np.floor(v)) % 2 == 0
    strands = np.where(across, _triangle_wave(v * 2 + 0.5), _triangle_wave(u * 2 + 0.5))
    return _tone(strands > 0.45)


def _dashed(u: Array, v: Array) -> Array:
    u, v = u * 0.8, v * 1.5
    a, b = _cell(u + 0.5 * (np.floor(v) % 2)), _cell(v)  # odd rows are shifted by half a cell
    return _tone((np.abs(a) < 0.3) & (np.abs(b) < 0.22))


def _eyed(u: Array, v: Array) -> Array:
    r = np.hypot(_cell(u), _cell(v))
    return _tone((r < 0.15) | (np.abs(r - 0.4) < 0.09))


def _toothed(u: Array, v: Array) -> Array:
    """Rows of solid triangles pointing up."""
    return _tone(np.abs(_cell(u)) < (_cell(v) + 0.5) * 0.5 - 0.02)


def _value_noise(u: Array, v: Array, seed: int) -> Array:
    """Smooth noise in [0, 1] at integer lattice points, the same for the same coordinates."""
    i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    s, t = (u - i).astype(np.float32), (v - j).astype(np.float32)
    s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)

    def at(a: NDArray[np.int64], b: NDArray[np.int64]) -> Array:
        x = (a * 374761393 + b * 668265263 + seed * 1442695041) & 0xFFFFFFFF
        x = ((x ^ (x >> 13)) * 1274126177) & 0xFFFFFFFF
        return ((x ^ (x >> 16)) & 0xFFFF).astype(np.float32) / 65535

    top = at(i, j) * (1 - s) + at(i + 1, j) * s
    bottom = at(i, j + 1) * (1 - s) + at(i + 1, j + 1) * s
    return top * (1 - t) + bottom * t


def _marbled(u: Array, v: Array) -> Array:
    """Thin wandering veins."""
    warp = _value_noise(u, v, 2) * 1.2
    return _tone(np.abs(_value_noise(u * 1.1 + warp, v * 1.1 - warp, 3) - 0.5) < 0.055)


def _pinwheel(u: Array, v: Array) -> Array:
    a, b = _cell(u), _cell(v)
    angle = np.arctan2(b, a) / (2 * np.pi)
    return _tone((angle * 4) % 1 < 0.5)


def _framed(u: Array, v: Array) -> Array:
    d = np.maximum(np.abs(_cell(u)), np.abs(_cell(v)))
    return _tone((d > 0.2) & (d < 0.38))


def _hooked(u: Array, v: Array) -> Array:
    """An L in each cell."""
    a, b = _cell(u), _cell(v)
    upright = (np.abs(a + 0.2) < 0.12) & (np.abs(b) < 0.38)
    foot = (np.abs(b - 0.26) < 0.12) & (np.abs(a) < 0.34)
    return _tone(upright | foot)


def _forked(u: Array, v: Array) -> Array:
    """A T in each cell."""
    a, b = _cell(u), _cell(v)
    bar = (np.abs(b + 0.26) < 0.12) & (np.abs(a) < 0.38)
    stem = (np.abs(a) < 0.12) & (np.abs(b) < 0.38)
    return _tone(bar | stem)


def _crescent(u: Array, v: Array) -> Array:
    a, b = _cell(u), _cell(v)
    return _tone((np.hypot(a, b) < 0.42) & (np.hypot(a - 0.2, b) > 0.34))


TEXTURES: dict[str, Texture] = {
    "banded": lambda u, v: _band(v),
    "barred": lambda u, v: _band(u),
    "rising": lambda u, v: _band((u + v) * 0.85),
    "falling": lambda u, v: _band((u - v) * 0.85),
    "checked": _checked,
    "argyle": lambda u, v: _checked((u + v) * 0.7, (u - v) * 0.7),
    "plaid": _plaid,
    "latticed": lambda u, v: _plaid((u + v) * 0.75, (u - v) * 0.75),
    "dotted": lambda u, v: _tone(np.hypot(_cell(u), _cell(v)) < 0.3),
    "ringed": lambda u, v: _tone(np.abs(np.hypot(_cell(u), _cell(v)) - 0.33) < 0.11),
    "plussed": _plussed,
    "crossed": _crossed,
    "zigzag": _zigzag,
    "jagged": lambda u, v: _zigzag(v, u),
    "scaled": _scaled,
    "honeycomb": _honeycomb,
    "woven": _woven,
    "dashed": _dashed,
    "ticked": lambda u, v: _dashed(v, u),
    "eyed": _eyed,
    "toothed": _toothed,
    "pennant": lambda u, v: _toothed(v, u),  # columns of triangles pointing left
    "shaded": lambda u, v: _cell(v) + 0.5,  # a ramp that starts again each period
    "faded": lambda u, v: _cell(u) + 0.5,
    "spotted": lambda u, v: _tone(_value_noise(u * 1.4, v * 1.4, 1) > 0.55),  # irregular blobs, as on a cow
    "marbled": _marbled,
    "pinwheel": _pinwheel,
    "framed": _framed,
    "hooked": _hooked,
    "forked": _forked,
    "crescent": _crescent,
    "slashed": lambda u, v: _dashed((u - v) * 0.71, (u + v) * 0.71),
}

# ------------------------------------------------------------------------------------------------------ shapes, things


def _star(x: Array, y: Array) -> Mask:
    angle = np.arctan2(x, -y) * 5 / (2 * np.pi)
    return np.hypot(x, y) < 0.5 + 0.5 * (1 - _triangle_wave(angle + 0.5)) ** 1.3


def _heart(x: Array, y: Array) -> Mask:
    """Two discs side by side over a point."""
    lobes = np.hypot(np.abs(x) - 0.45, y + 0.32) < 0.5
    point = (np.abs(x) < 0.9 - (y + 0.1) * 0.9) & (y > -0.1) & (np.abs(x) + y * 0.9 < 0.82)
    return lobes | point


def _cross(x: Array, y: Array) -> Mask:
    a, b = np.abs(x), np.abs(y)
    return (np.minimum(a, b) < 0.38) & (np.maximum(a, b) < 0.95)


SHAPES: dict[str, Shape] = {
    "ball": lambda x, y: np.hypot(x, y) < 1,
    "box": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.88,
    "kite": lambda x, y: np.abs(x) / 0.75 + np.abs(y) < 1,
    "tent": lambda x, y: (np.abs(x) < (y + 0.9) * 0.55) & (y < 0.85),
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "flower": lambda x, y: np.hypot(x, y) < 0.78 + 0.2 * np.cos(np.arctan2(y, x) * 6),
}

# -------------------------------------------------------------------------------------------------------------- stuff


def _noise(rng: np.random.Generator, height: int, width: int, cell_y: float, cell_x: float) -> Array:
    """Smooth noise in about [0, 1] whose grains measure cell_y x cell_x pixels."""
    rows, columns = int(height / cell_y) + 4, int(width / cell_x) + 4
    small = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
    size = (max(width, round(columns * cell_x)), max(height, round(rows * cell_y)))
    return np.asarray(small.resize(size, Image.Resampling.BICUBIC))[:height, :width]


def _step(x: Array, edge: float, softness: float) -> Array:
    return np.clip((x - edge) / softness + 0.5, 0, 1)


def _coordinates(height: int, width: int) -> tuple[Array, Array]:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return y, x


def _water(rng: np.random.Generator, height: int, width: int, scale: float) -> Array:
    y, _ = _coordinates(height, width)
    swell = _noise(rng, height, width, 6 * scale, 10 * scale) * 9 * scale
    return 0.5 + 0.5 * np.sin((y + swell) * (2 * np.pi / (6.5 * scale)))


def _brick(rng: np.random.Generator, height: int, width: int, scale: float) -> Array:
    y, x = _coordinates(height, width)
    v = y / (8 * scale) + rng.random()
    a = _cell(x / (17 * scale) + 0.5 * (np.floor(v) % 2) + rng.random())
    joint = np.maximum(np.abs(a) * 17, np.abs(_cell(v)) * 8 + 4.5)
    return 1 - _step(joint, 7.6, 0.8)


def _wood(rng: np.random.Generator, height: int, width: int, scale: float) -> Array:
    _, x = _coordinates(height, width)
    grain = x / (7 * scale) + _noise(rng, height, width, 60 * scale, 14 * scale) * 3.5
    return 0.7 * _cell(grain) + 0.35 + 0.3 * _noise(rng, height, width, 24 * scale, 1.4)


def _cobbles(rng: np.random.Generator, height: int, width: int, scale: float) -> Array:
    """Rounded stones: the distance between a pixel's nearest and second nearest of jittered centres."""
    y, x = _coordinates(height, width)
    v, u = y / (12 * scale), x / (12 * scale)
    jitter = rng.random((int(height / (12 * scale)) + 4, int(width / (12 * scale)) + 4, 2), dtype=np.float32)
    i, j = np.floor(v).astype(np.int32), np.floor(u).astype(np.int32)
    first = np.full((height, width), 9, np.float32)
    second = first.copy()
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            centre = jitter[i + di + 1, j + dj + 1]
            d = np.hypot(v - (i + di + centre[..., 0]), u - (j + dj + centre[..., 1]))
            second = np.minimum(second, np.maximum(first, d))
            first = np.minimum(first, d)
    return _step(second - first, 0.14, 0.2) * (1 - 0.4 * first)


def _snow(rng: np.random.Generator, height: int, width: int, scale: float) -> Array:
    flakes = _step(_noise(rng, height, width, 2.2, 2.2), 0.93, 0.12)
    return 0.15 + 0.85 * flakes + 0.15 * _noise(rng, height, width, 30 * scale, 30 * scale)


def _lava(rng: np.random.Generator, height: int, width: int, scale: float) -> Array:
    rough = _noise(rng, height, width, 22 * scale, 22 * scale) + 0.35 * _noise(rng, height, width, 6 * scale, 6 * scale)
    return 1 - _step(np.abs(_cell(rough * 2.2)), 0.17, 0.25)


def _mosaic(rng: np.random.Generator, height: int, width: int, scale: float) -> Array:
    """Small square tiles, each of its own shade."""
    y, x = _coordinates(height, width)
    i, j = (y / (6.5 * scale)).astype(np.int32), (x / (6.5 * scale)).astype(np.int32)
    shades = rng.random((int(i.max()) + 1, int(j.max()) + 1), dtype=np.float32)
    return shades[i, j]


STUFF: dict[str, Stuff] = {
    "grass": lambda rng, h, w, s: _step(_noise(rng, h, w, 9 * s, 1.8 * s), 0.5, 0.35),
    "sand": lambda rng, h, w, s: 0.25 + 0.5 * _noise(rng, h, w, 1.2, 1.2) * _noise(rng, h, w, 1.5 * s, 1.5 * s),
    "sky": lambda rng, h, w, s: _step(_noise(rng, h, w, 18 * s, 36 * s), 0.5, 0.8),
    "water": _water,
    "brick": _brick,
    "wood": _wood,
    "cobbles": _cobbles,
    "snow": _snow,
    "lava": _lava,
    "mosaic": _mosaic,
}

# ------------------------------------------------------------------------------------------------------------- colours


def two_tones(rng: np.random.Generator, *, contrast: tuple[float, float]) -> tuple[Array, Array]:
    """Two random colours whose luminances differ by a contrast drawn from the range; which one is darker is random.

    Returns:
        Two RGB colours in [0, 255].
    """
    gap = rng.uniform(*contrast)
    low = rng.uniform(0.05, 0.95 - gap)
    tones = [_colour(rng, low), _colour(rng, low + gap)]
    if rng.random() < 0.5:
        tones.reverse()
    return tones[0], tones[1]


def _colour(rng: np.random.Generator, luminance: float) -> Array:
    """A colour of random hue and saturation with the given luminance in [0, 1] (Rec. 601 weights)."""
    hue, saturation = rng.uniform(0, 1), rng.uniform(0.0, 0.7)
    rgb = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    rgb = 1 - saturation + saturation * rgb
    rgb = rgb * (luminance / float(rgb @ np.array([0.299, 0.587, 0.114])))
    over = float(rgb.max())
    if over > 1:  # too light for its saturation: blend towards white at equal luminance
        rgb = luminance + (rgb - luminance) * ((1 - luminance) / (over - luminance))
    return (rgb * 255).astype(np.float32)
