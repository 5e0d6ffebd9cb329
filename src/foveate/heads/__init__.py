"""Heads on a CLIP: what is trained on top of its features, and what that finds in images."""
