"""Scenes and object-centric images of the rendered world, drawn in memory.

A scene is one to three regions of stuff with curved borders and three to seven things of very different sizes that may
occlude each other in part. Every image is a pure function of its random generator, which is derived from (seed, split,
index), so that images can be drawn in any order and by any number of processes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.data.world.appearance import SHAPES, STUFF, TEXTURES, Array, two_tones

Labels = NDArray[np.int32]

SCENE_SIZES = ((192, 192), (192, 192), (160, 192), (192, 160))  # (height, width) [pixels]
THING_SIZES = (28.0, 100.0)  # extent of a thing in a scene [pixels], log-uniform
PAIR_SIZE = 64
MIN_VISIBLE = 0.6  # of a thing's area; a new thing that would occlude more of it is drawn at another position


@dataclass(frozen=True)
class Kind:
    """One category of the world: a thing (a texture on a shape) or a stuff texture."""

    id: int  # COCO category id, from 1
    name: str
    texture: str
    shape: str  # "" for stuff
    is_novel: bool = False

    @property
    def is_thing(self) -> bool:
        """Whether it is a thing; stuff has no shape."""
        return self.shape != ""


def _kinds() -> tuple[Kind, ...]:
    shapes = list(SHAPES)
    things = [
        Kind(i + 1, f"{texture} {shapes[i % 8]}", texture, shapes[i % 8], is_novel=i // 8 == i % 4)
        for i, texture in enumerate(TEXTURES)
    ]
    return (*things, *(Kind(len(things) + 1 + i, name, name, "") for i, name in enumerate(STUFF)))


KINDS = _kinds()  # things first; eight of the thirty-two things, one of each shape, are novel
THINGS = tuple(kind for kind in KINDS if kind.is_thing)
STUFFS = tuple(kind for kind in KINDS if not kind.is_thing)


@dataclass(frozen=True)
class Scene:
    """An image and its segments."""

    image: NDArray[np.uint8]  # (H, W, 3)
    segments: Labels  # (H, W): index into `kinds`
    kinds: tuple[Kind, ...]  # stuff first, then things from back to front


# --------------------------------------------------------------------------------------------------------- one thing


def _draw_thing(
    canvas: Array, kind: Kind, rng: np.random.Generator, *, centre: tuple[float, float], size: float
) -> tuple[NDArray[np.bool_], tuple[Array, Array, tuple[slice, slice]]]:
    """Render a thing at twice the resolution and average.

    Args:
        canvas: the image, (H, W, 3), in [0, 255]; only its extent is used.
        centre: (x, y) [pixels].
        size: extent of the thing [pixels].

    Returns:
        Its mask on the canvas, and the layer for `_paint`.
    """
    height, width = canvas.shape[:2]
    radius = size / 2
    # the window of the canvas that the thing may cover, and the coordinates of its pixels at twice the resolution
    x0, x1 = max(0, int(centre[0] - radius * 1.1)), min(width, int(centre[0] + radius * 1.1) + 2)
    y0, y1 = max(0, int(centre[1] - radius * 1.1)), min(height, int(centre[1] + radius * 1.1) + 2)
    window = (slice(y0, y1), slice(x0, x1))
    y, x = np.mgrid[2 * y0 : 2 * y1, 2 * x0 : 2 * x1].astype(np.float32) / 2 + 0.25
    # a small rotation and a stretch; `across` and `down` are in [-1, 1] on the thing
    turn, stretch = np.deg2rad(rng.uniform(-10, 10)), rng.uniform(0.85, 1.0)
    dx, dy = (x - centre[0]) / radius, (y - centre[1]) / radius
    if rng.random() < 0.5:
        dx = dx / stretch
    else:
        dy = dy / stretch
    across, down = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    inside = SHAPES[kind.shape](across, down)
    # texture, two colours and a gradient of light
    period = rng.uniform(0.4, 0.6) * (64 / size) ** 0.3  # in radii; small things have fewer, larger motifs
    u, v = across / period + rng.uniform(0, 97), down / period + rng.uniform(0, 97)
    tone = TEXTURES[kind.texture](u.astype(np.float32), v.astype(np.float32))
    ground, mark = two_tones(rng, contrast=(0.4, 0.8))
    light = 1 + rng.uniform(-0.15, 0.15) * across[..., None] + rng.uniform(-0.15, 0.15) * down[..., None]
    colour = (ground + (mark - ground) * tone[..., None]) * light
    # average to the canvas's resolution
    alpha = _halve(inside[..., None].astype(np.float32))
    painted = _halve(colour * inside[..., None]) / np.maximum(alpha, 1e-6)
    mask = np.zeros((height, width), bool)
    mask[window] = alpha[..., 0] > 0.5
    return mask, (painted, alpha, window)


def _halve(x: Array) -> Array:
    """Average 2 x 2 blocks: (2h, 2w, C) -> (h, w, C)."""
    return (x[0::2, 0::2] + x[1::2, 0::2] + x[0::2, 1::2] + x[1::2, 1::2]) / 4


def _paint(canvas: Array, layer: tuple[Array, Array, tuple[slice, slice]]) -> None:
    painted, alpha, window = layer
    canvas[window] += (painted - canvas[window]) * alpha


def _draw_stuff(kind: Kind, rng: np.random.Generator, height: int, width: int) -> Array:
    tone = np.clip(STUFF[kind.texture](rng, height, width, rng.uniform(0.8, 1.5)), 0, 1)
    ground, mark = two_tones(rng, contrast=(0.3, 0.7))
    return ground + (mark - ground) * tone[..., None]


def _finish(canvas: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Sensor noise, then 8 bits."""
    noise = rng.standard_normal(canvas.shape[:2], dtype=np.float32)[..., None] * rng.uniform(1, 5)
    return np.clip(canvas + noise + 0.5, 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------- scenes


def _stuff_regions(rng: np.random.Generator, height: int, width: int) -> tuple[Labels, int]:
    """Split the image by up to two curved lines."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    regions = np.zeros((height, width), np.int32)
    count = int(rng.choice([1, 2, 3], p=[0.3, 0.45, 0.25]))
    angle = rng.uniform(-0.5, 0.5) + (np.pi / 2) * rng.integers(0, 2)
    across, along = x * np.sin(angle) + y * np.cos(angle), x * np.cos(angle) - y * np.sin(angle)
    low, high = float(across.min()), float(across.max())
    for k in range(1, count):
        border = low + (high - low) * (k / count + rng.uniform(-0.08, 0.08))
        wave = np.sin(along * (2 * np.pi / rng.uniform(60, 200)) + rng.uniform(0, 6.28)) * rng.uniform(4, 14)
        regions[across + wave > border] = k
    return regions, count


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw one scene of the world (an image of the detection data set)."""
    height, width = SCENE_SIZES[rng.integers(len(SCENE_SIZES))]
    segments, count = _stuff_regions(rng, height, width)
    # the background: stuff
    kinds = [STUFFS[i] for i in rng.choice(len(STUFFS), count, replace=False)]
    canvas = np.empty((height, width, 3), np.float32)
    for k, kind in enumerate(kinds):
        region = segments == k
        canvas[region] = _draw_stuff(kind, rng, height, width)[region]
    # things from back to front; up to six positions are tried for each
    areas: dict[int, int] = {}  # index of a thing -> its area when it was drawn
    for _ in range(int(rng.integers(3, 8))):
        kind = THINGS[rng.integers(len(THINGS))]
        for _attempt in range(6):
            size = float(np.exp(rng.uniform(*np.log(THING_SIZES))))
            margin = size * 0.35
            centre = (rng.uniform(margin, width - margin), rng.uniform(margin, height - margin))
            mask, layer = _draw_thing(canvas, kind, rng, centre=centre, size=size)
            hidden = {k: int((mask & (segments == k)).sum()) for k in areas}
            visible = {k: int((segments == k).sum()) - hidden[k] for k in areas}
            if all(visible[k] >= MIN_VISIBLE * area for k, area in areas.items()):
                _paint(canvas, layer)
                segments[mask] = len(kinds)
                areas[len(kinds)] = int(mask.sum())
                kinds.append(kind)
                break
    return Scene(_finish(canvas, rng), segments, tuple(kinds))


# ----------------------------------------------------------------------------------------- image-caption pairs, 64 px

_PHRASES = (
    "a photo of {}.", "a photo of {} in the scene.", "there is {} in the scene.", "an image of {}.", "this is {}.",
    "a close-up photo of {}.", "a cropped photo of {}.", "a good photo of {}.", "a bad photo of {}.", "{}.",
    "a blurry photo of {}.", "a bright photo of {}.", "a dark photo of {}.", "a painting of {}.", "itap of {}.",
    "a low resolution photo of {}.", "a pixelated photo of {}.", "a jpeg corrupted photo of {}.",
)  # fmt: skip
_DETERMINERS = ("a", "a", "a", "the", "one", "my", "a small", "a large", "a toy", "a nice", "the cartoon")


def draw_pair(rng: np.random.Generator) -> tuple[NDArray[np.uint8], str]:
    """Draw one object-centric image of 64 x 64 pixels and its caption (for contrastive pretraining).

    One in five shows only stuff, one in four two to four things, the others one thing, from a whole object with a
    margin of background to a close-up of a part.
    """
    draw = rng.random()
    if draw < 0.2:
        kind = STUFFS[rng.integers(len(STUFFS))]
        return _stuff_image(kind, rng), _caption([kind], None, rng)
    ground = STUFFS[rng.integers(len(STUFFS))]
    canvas = _draw_stuff(ground, rng, PAIR_SIZE, PAIR_SIZE)
    kinds = _add_group(canvas, rng) if draw < 0.45 else [_add_thing(canvas, rng)]
    return _finish(canvas, rng), _caption(kinds, ground, rng)


def _stuff_image(kind: Kind, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Only stuff, at scales from a scene shrunk to 64 px to an enlarged patch."""
    extent = int(np.exp(rng.uniform(np.log(40), np.log(200))))
    image = Image.fromarray(np.clip(_draw_stuff(kind, rng, extent, extent), 0, 255).astype(np.uint8))
    image = image.resize((PAIR_SIZE, PAIR_SIZE), Image.Resampling.BICUBIC)
    return _finish(np.asarray(image, np.float32), rng)


def _add_thing(canvas: Array, rng: np.random.Generator) -> Kind:
    kind = THINGS[rng.integers(len(THINGS))]
    size = float(np.exp(rng.uniform(np.log(22), np.log(130))))
    slack = max(8.0, size * 0.3) * 0.7
    centre = (PAIR_SIZE / 2 + rng.uniform(-slack, slack), PAIR_SIZE / 2 + rng.uniform(-slack, slack))
    _paint(canvas, _draw_thing(canvas, kind, rng, centre=centre, size=size)[1])
    return kind


def _add_group(canvas: Array, rng: np.random.Generator) -> list[Kind]:
    kinds = [THINGS[i] for i in rng.choice(len(THINGS), int(rng.integers(2, 5)), replace=False)]
    for kind, corner in zip(kinds, rng.permutation(4), strict=False):
        centre = (18 + 28 * (corner % 2) + rng.uniform(-6, 6), 18 + 28 * (corner // 2) + rng.uniform(-6, 6))
        _paint(canvas, _draw_thing(canvas, kind, rng, centre=centre, size=rng.uniform(20, 36))[1])
    return kinds


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """A caption with the things of a scene, from back to front, and its stuff."""
    things = [kind for kind in scene.kinds if kind.is_thing]
    stuff = [kind.name for kind in scene.kinds if not kind.is_thing]
    named = " and ".join(_noun_phrase(kind, "a") for kind in things)
    return _PHRASES[rng.integers(len(_PHRASES))].format(f"{named} on {' and '.join(stuff)}")


def _caption(kinds: list[Kind], ground: Kind | None, rng: np.random.Generator) -> str:
    """A caption with the classes of an image; the background is in three of ten."""
    named = " and ".join(_noun_phrase(kind, _DETERMINERS[rng.integers(len(_DETERMINERS))]) for kind in kinds)
    if ground is not None and rng.random() < 0.3:
        named += f" on {ground.name}"
    return _PHRASES[rng.integers(len(_PHRASES))].format(named)


def _noun_phrase(kind: Kind, determiner: str) -> str:
    if not kind.is_thing:
        return kind.name
    if determiner == "a" and kind.name[0] in "aeiou":
        determiner = "an"
    return f"{determiner} {kind.name}"
