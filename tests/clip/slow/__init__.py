"""Forward passes of every family written from the formulas, token by token, in float64: what the towers must give.

Slow and plain on purpose. Nothing here imports `foveate`, a library's forward pass, `interpolate` or torchvision, so
that a mistake there is not made here too. `tests/clip/test_slow.py` holds these loops against open_clip and timm,
`tests/clip/test_parity.py` and `benchmarks/parity.py` hold our towers against these loops.
"""
