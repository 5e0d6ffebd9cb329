"""A CLIP's image tower as a file other runtimes open, compared with PyTorch: ONNX, torch.export."""
