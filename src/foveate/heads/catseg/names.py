"""Names that the command line offers and CAT-Seg knows; here, so that they are read without importing torch."""

from typing import Literal

Version = Literal["2024", "2023"]
"""Of CAT-Seg; see `foveate.heads.catseg.model`."""

Residual = Literal["token", "cls"]
"""What the values of the tower's last block are added to."""

PUBLISHED: dict[Version, Residual] = {"2024": "cls", "2023": "token"}
"""What CAT-Seg's own code adds them to: the class token, or each token itself."""
