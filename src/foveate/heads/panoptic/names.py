"""Names that the command line offers and this room knows; here, so that they are read without importing torch."""

from typing import Literal

Preset = Literal["odise-label", "odise-caption", "fc-clip", "clip", "generator"]
"""Whose shares in the score of a class."""

SHARES: dict[Preset, tuple[float, float]] = {
    "odise-label": (0.3, 0.7),
    "odise-caption": (0.35, 0.65),
    "fc-clip": (0.4, 0.8),
    "clip": (1.0, 1.0),
    "generator": (0.0, 0.0),
}
"""CLIP's share, of seen classes and of others. "clip" is "CLIP score only" of Tab. 5 as we read it: "no object" still
comes from the generator."""

Region = Literal["dense", "masked"]
"""How CLIP embeds a mask: by the mean of its dense map, or by masked attention."""

Templates = Literal["photo", "vild", "clip", "none"]
"""What class names are written into: ODISE's one template, or a set of `foveate.clip.templates`."""
