"""Open-vocabulary panoptic segmentation: a mask generator, whose masks it and CLIP classify (ODISE; Tab. 5)."""
