"""Floor 1: images and annotations."""
