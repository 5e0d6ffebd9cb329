"""Floor 0: geometry; tensors in, tensors out."""
