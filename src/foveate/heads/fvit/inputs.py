"""Mean and deviation that F-ViT's input is normalised with (A.3).

The published detectors use ImageNet's, though CLIP's image tower was trained with its own; the paper does not say.
"""

from foveate.clip.model import Clip
from foveate.heads.fvit.names import Statistics

Colours = tuple[float, float, float]

IMAGENET: tuple[Colours, Colours] = (  # grey levels, as in the published configurations
    (123.675 / 255, 116.28 / 255, 103.53 / 255),
    (58.395 / 255, 57.12 / 255, 57.375 / 255),
)


def input_statistics(clip: Clip, statistics: Statistics) -> tuple[Colours, Colours]:
    """Mean and deviation of the RGB channels, in [0, 1]: ImageNet's (published), or those of the CLIP."""
    return IMAGENET if statistics == "imagenet" else (clip.mean, clip.std)
