"""Drawn detections: positions and colours."""

import numpy as np
import torch
from pycocotools import mask as coco

from foveate.show.detections import draw_detections
from foveate.show.palette import BASE, NOVEL
from foveate.types import Detections


def found(masks=None) -> Detections:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 38.0], [40.0, 30.0, 60.0, 38.0]])
    return Detections(boxes, torch.tensor([0.9, 0.4]), torch.tensor([0, 1]), masks)


def draw(detections: Detections, **more) -> np.ndarray:
    image = torch.full((3, 40, 64), 255, dtype=torch.uint8)
    return np.asarray(draw_detections(image, detections, names=["cat", "dog"], is_novel=[False, True], **more))


def test_base_is_blue_novel_is_red_and_small_images_are_enlarged():
    drawn = draw(found())
    assert drawn.shape == (400, 640, 3)  # ten times as large: 640 / 64
    assert tuple(drawn[300, 100]) == BASE and tuple(drawn[350, 400]) == NOVEL  # left edges of the two boxes
    assert tuple(drawn[300, 200]) == (255, 255, 255)  # inside a box


def test_detections_below_the_score_are_not_drawn():
    drawn = draw(found(), min_score=0.5)
    assert tuple(drawn[350, 400]) == (255, 255, 255) and tuple(drawn[300, 100]) == BASE


def test_masks_are_tinted():
    pixels = np.zeros((40, 64), np.uint8)
    pixels[25:30, 15:20] = 1
    encoded = coco.encode(np.asfortranarray(pixels))
    drawn = draw(found((encoded, encoded)), min_score=0.5)
    # 0.65 * 255 + 0.35 * (0, 92, 197) = (165.75, 197.95, 234.7)
    assert abs(drawn[275, 175].astype(int) - (166, 198, 235)).max() <= 2
    assert tuple(drawn[275, 250]) == (255, 255, 255)
