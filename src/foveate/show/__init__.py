"""Floor 3: pictures for people."""
