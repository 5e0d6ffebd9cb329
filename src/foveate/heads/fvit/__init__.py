"""F-ViT: an open-vocabulary detector on the frozen tower, fused with its own scores (Sec. 3.3; A.3)."""
