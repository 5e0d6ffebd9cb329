"""Names that the command line offers and the detector knows; here, so that they are read without importing torch."""

from typing import Literal

Benchmark = Literal["ov-coco", "ov-lvis-b", "ov-lvis-l", "transfer-coco", "transfer-objects365", "transfer-voc"]
"""Whose numbers scores are fused with; see `saccade.heads.fvit.fusion.PRESETS`."""

Kind = Literal["taps", "simple", "fpn"]
"""Feature pyramids (Tab. A6); see `saccade.heads.fvit.pyramid`."""
