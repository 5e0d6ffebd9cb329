"""Choices of mask generators and their segmenter, in a module that imports no torch."""

from typing import Literal

Preset = Literal["odise-label", "odise-caption", "fc-clip", "clip", "generator"]
"""Fusion weights of a system."""

FUSION_WEIGHTS: dict[Preset, tuple[float, float]] = {
    "odise-label": (0.3, 0.7),
    "odise-caption": (0.35, 0.65),
    "fc-clip": (0.4, 0.8),
    "clip": (1.0, 1.0),
    "generator": (0.0, 0.0),
}
"""CLIP's weight, of seen classes and of others. "clip" is "CLIP score only" of Tab. 5 as we read it: "no object" still
comes from the mask generator."""

Region = Literal["dense", "masked"]
"""CLIP's embedding of a mask: the mean of its dense feature map, or masked attention."""

Templates = Literal["photo", "vild", "clip", "none"]
"""Prompt templates: ODISE's one, or a set of `foveate.clip.templates`."""
