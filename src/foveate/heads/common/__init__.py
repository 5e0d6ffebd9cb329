"""What the heads share: the frozen tower, its pyramid, anchor predictions, text embeddings, product folders."""
