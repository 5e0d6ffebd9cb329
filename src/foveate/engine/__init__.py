"""Floor 3: long runs."""
