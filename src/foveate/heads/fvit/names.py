"""Names that the command line offers and the detector knows; here, so that they are read without importing torch."""

from typing import Literal

Benchmark = Literal["ov-coco", "ov-lvis-b", "ov-lvis-l", "transfer-coco", "transfer-objects365", "transfer-voc"]
"""Whose numbers scores are fused with; see `foveate.heads.fvit.fusion.PRESETS`."""

Statistics = Literal["imagenet", "clip"]
"""Whose mean and deviation images are normalised with; the published detectors take ImageNet's."""

Resize = Literal["bilinear", "bicubic"]
"""How images are resized; see `foveate.ops.jitter.jitter_image`. The published detectors are bilinear, as cv2 is."""
