"""What the `train-...` commands, `distill`, `proposals` and `pretrain` do: one driver (`run.py`), one file each."""
