"""Floor 2: what is learned."""
