"""CAT-Seg: cost aggregation for open-vocabulary segmentation, on a CLIP whose attention learns slowly."""
