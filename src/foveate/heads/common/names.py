"""Names that the command line offers and several heads know; here, so that they are read without importing torch."""

from typing import Literal

PyramidKind = Literal["taps", "simple", "fpn"]
"""Feature pyramids (Tab. A6); see `foveate.heads.common.pyramid`."""

Length = Literal["raw", "unit"]
"""Text embeddings as a mask generator gets them: as the text tower gives them (ODISE), or L2-normalised."""
