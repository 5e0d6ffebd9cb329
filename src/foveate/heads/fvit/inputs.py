"""What the detector's input is normalised with (A.3).

The published detectors take ImageNet's statistics, as detectors on ImageNet's networks do, though CLIP's image tower
was trained with its own; the paper does not say. Deliberately absent: resizing and padding (`foveate.ops.jitter`).
"""

from foveate.clip.model import Clip
from foveate.heads.fvit.names import Statistics

Colours = tuple[float, float, float]

IMAGENET: tuple[Colours, Colours] = (  # grey levels, as the published configurations state them
    (123.675 / 255, 116.28 / 255, 103.53 / 255),
    (58.395 / 255, 57.12 / 255, 57.375 / 255),
)


def input_statistics(clip: Clip, statistics: Statistics) -> tuple[Colours, Colours]:
    """Mean and deviation of the RGB channels, in [0, 1].

    Args:
        clip: whose tower sees the input.
        statistics: "imagenet" (published), or "clip": those the tower was trained with.
    """
    return IMAGENET if statistics == "imagenet" else (clip.mean, clip.std)
