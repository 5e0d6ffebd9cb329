"""A CLIP's image tower as a file other runtimes open, compared with PyTorch before it is renamed: ONNX, torch.export."""
