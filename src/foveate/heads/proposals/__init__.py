"""Region proposals of no class: a small pyramid, and an RPN on it."""
