"""Choices of several heads, in a module that imports no torch."""

from typing import Literal

PyramidKind = Literal["taps", "simple", "fpn"]
"""Feature pyramids (Tab. A6); see `foveate.heads.common.pyramid`."""

Length = Literal["raw", "unit"]
"""Text embeddings of a mask generator: as the text tower returns them (ODISE), or L2-normalised."""
