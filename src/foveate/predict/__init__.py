"""Trained models applied to images: segmentation, detection and features, written to files."""
