"""What stands in for flags that are not given: the paper's hyperparameters, or the small CLIP's. No torch."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from foveate.train.flags import SMALL_CLIP, DistillConfig, TrainPanoptic

SMALL_SIDE = 64  # a CLIP of images no larger than this gets a head in proportion [pixels]


@dataclass(frozen=True)
class Hyperparameters:
    """What a distillation trains with where a flag was left to the model."""

    lr: float
    weight_decay: float
    warmup: int
    size: int


def hyperparameters(config: DistillConfig, *, patch_size: int) -> Hyperparameters:
    """The flags' own values, and for those not given the paper's (Sec. 4.1), or the small CLIP's.

    Args:
        config: flags.
        patch_size: of the student [pixels].
    """
    paper = Hyperparameters(1e-5, 0.1, warmup=min(1000, config.steps // 10), size=min(64 * patch_size, 1024))
    usual = Hyperparameters(1e-3, 0.05, warmup=20, size=192) if config.model == SMALL_CLIP else paper
    given = {name: getattr(config, name) for name in asdict(usual) if getattr(config, name) is not None}
    return replace(usual, **given)


def regions_of(config: DistillConfig) -> Literal["grid", "boxes"]:
    """What is distilled: grid patches, or boxes of annotations or of a file."""
    return "grid" if config.regions == "grid" else "boxes"


def boxes_file(config: DistillConfig) -> Path | None:
    """The file of boxes that --regions names, if any."""
    return None if config.regions in ("grid", "annotations") else Path(config.regions)


def nouns_file(config: DistillConfig) -> Path | None:
    """The file of --captions where it is a list of nouns: a .txt, or JSON that begins as a list."""
    path = config.captions
    if path is None or not path.is_file():
        return None
    if path.suffix.lower() == ".txt":
        return path
    with path.open("rb") as file:
        return path if file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[") else None


def learns_from_captions(config: DistillConfig) -> bool:
    """Whether the captions of the training images are needed."""
    return config.objective == "image-text" or (config.objective == "region-text" and nouns_file(config) is None)


@dataclass(frozen=True)
class MaskGeneratorDefaults:
    """Hyperparameters of a mask generator: of flags that are not given, and of what has no flag."""

    size: int
    channels: int
    queries: int
    width: int
    feedforward: int
    pixel_layers: int
    depth: int
    joint: int
    points: int
    jitter: tuple[float, float]
    lr: float
    clip_gradient: float


LARGE = MaskGeneratorDefaults(
    size=1024, channels=256, queries=100, width=256, feedforward=2048, pixel_layers=6, depth=9, joint=256,
    points=12544, jitter=(0.1, 2.0), lr=1e-4, clip_gradient=0.01,
)  # fmt: skip
"""ODISE's, as far as the encoder allows."""
SMALL = MaskGeneratorDefaults(
    size=128, channels=64, queries=30, width=64, feedforward=256, pixel_layers=1, depth=2, joint=64,
    points=1024, jitter=(1.0, 1.0), lr=4e-4, clip_gradient=10.0,
)  # fmt: skip
"""For a CLIP of 64 pixels and one core, tried on the world: of the rates 1e-3 and 4e-4 the second ends better (PQ of
the generator alone 4.4 after 1,000 steps, 9.9 after 800). The others were not varied one by one."""
RESOLVED = ("size", "channels", "queries", "depth", "jitter", "lr", "clip_gradient")
"""The flags of a mask generator that may be left to the CLIP."""


def resolve_defaults(config: TrainPanoptic, usual: MaskGeneratorDefaults) -> TrainPanoptic:
    """Fill in what was not given, but for the size, which has to fit the encoder."""
    is_diffusion = config.encoder is not None and (config.encoder / "model_index.json").is_file()
    special = {"channels": 512} if is_diffusion else {}
    values: dict[str, Any] = {**asdict(usual), **special, "size": config.size}
    missing = {name: values[name] for name in RESOLVED if getattr(config, name) is None}
    return replace(config, **missing)
