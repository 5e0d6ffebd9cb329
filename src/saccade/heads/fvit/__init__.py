"""F-ViT: a detector of any vocabulary on a frozen CLIP ViT (Sec. 3.3, A.3)."""
