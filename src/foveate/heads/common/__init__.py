"""What the heads share: the frozen tower and the pyramid on it, anchors, text embeddings, groups, product folders."""
