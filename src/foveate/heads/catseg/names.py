"""Choices of CAT-Seg, in a module that imports no torch."""

from typing import Literal

Version = Literal["2024", "2023"]
"""See `foveate.heads.catseg.model`."""

Residual = Literal["token", "cls"]
"""What the values of the tower's last block are added to: each token, or the class token."""

PUBLISHED: dict[Version, Residual] = {"2024": "cls", "2023": "token"}
"""The residual in CAT-Seg's own code."""
