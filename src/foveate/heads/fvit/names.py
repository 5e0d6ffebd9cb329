"""Choices of F-ViT, in a module that imports no torch."""

from typing import Literal

Benchmark = Literal["ov-coco", "ov-lvis-b", "ov-lvis-l", "transfer-coco", "transfer-objects365", "transfer-voc"]
"""Fusion of scores; see `foveate.heads.fvit.fusion.PRESETS`."""

Statistics = Literal["imagenet", "clip"]
"""Mean and deviation that images are normalised with; the published detectors use ImageNet's."""

Resize = Literal["bilinear", "bicubic"]
"""Filter; see `foveate.ops.jitter.jitter_image`. The published detectors use bilinear, as cv2."""
