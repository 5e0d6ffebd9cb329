"""Floor 3: what is measured, and how."""
