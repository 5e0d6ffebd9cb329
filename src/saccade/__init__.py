"""Saccade: CLIPSelf for any CLIP; dense features, their evaluation and their applications."""
