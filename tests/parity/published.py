"""Weights in the layout of published files, drawn from their key names, and golden outputs of the public systems.

The golden numbers were made by the public code of each system (2026-11-28) with weights drawn by a hash of the key
names in its own checkpoints. A test here draws the same weights, hands them to the importer of this package, runs the
imported head and compares its output: so the key tables are checked together with the maths.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4


def golden(name: str) -> dict[str, np.ndarray]:
    """The golden arrays of one system."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def draw(name: str, shape: tuple[int, ...] | list[int]) -> Tensor:
    """The tensor that stands under a public key name: the same numbers on every machine."""
    random = _random(name)
    shape = tuple(shape)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    values = random.standard_normal(shape)
    if name.endswith("running_var"):
        values = 1 + 0.1 * np.tanh(values)
    elif name.endswith("detect_temperature"):
        values = np.full(shape, 43.7)
    elif len(shape) <= 1:
        values = (1.0 if name.endswith("weight") else 0.0) + 0.1 * values
    elif "padding_" in name or "embedding" in name:
        values = 0.3 * values
    else:
        values = values * (1.0 / np.prod(shape[1:])) ** 0.5
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def draw_state(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A whole published state dict."""
    return {name: draw(name, shape) for name, shape in shapes.items()}


def normal(name: str, *shape: int, scale: float = 1.0) -> Tensor:
    """A seeded input."""
    return torch.from_numpy((_random(name).standard_normal(shape) * scale).astype(np.float32))


def uniform(name: str, *shape: int) -> np.ndarray:
    """A seeded input in [0, 1)."""
    return _random(name).rand(*shape)


def image(height: int, width: int) -> np.ndarray:
    """A seeded RGB image (H, W, 3), uint8."""
    y, x = np.mgrid[0:height, 0:width]
    channels = []
    for k in range(3):
        waves = 60 * np.sin(x / (9.0 + 4 * k) + k) * np.cos(y / (7.0 + 3 * k)) + 60 * np.sin((x + y * (k + 1)) / 5.0)
        channels.append(127 + waves)
    return np.clip(np.stack(channels, 2), 0, 255).astype(np.uint8)


def gap(ours: object, theirs: object) -> float:
    """The largest absolute difference; infinite where the shapes differ."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (ours, theirs))
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a - b).max()) if a.size else 0.0


def _random(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
