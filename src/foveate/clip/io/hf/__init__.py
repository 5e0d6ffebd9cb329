"""Hugging Face transformers: its descriptions and names of weights, read and written."""
