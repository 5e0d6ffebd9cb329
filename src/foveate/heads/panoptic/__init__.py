"""Panoptic segmentation of any vocabulary: masks from a generator, classes from it and from CLIP (ODISE; Tab. 5)."""
