"""Floor 1: pictures and annotations."""
