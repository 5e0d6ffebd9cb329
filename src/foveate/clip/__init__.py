"""Floor 1: the towers."""
