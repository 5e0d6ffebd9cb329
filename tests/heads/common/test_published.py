"""Translation of names of published files."""

import torch

from foveate.heads.common.published import count_blocks, flipped, rename

TABLE = (("a", "x"), ("a.*.conv", "x.blocks.*.0"), ("a.*.conv.norm", "x.blocks.*.1"), ("b.*.c.*", "y.*.*"))


def test_the_longest_row_counts_and_the_rest_of_a_name_stays():
    names = {
        "a.weight": "x.weight",
        "a.3.conv.weight": "x.blocks.3.0.weight",
        "a.3.conv.norm.bias": "x.blocks.3.1.bias",
        "a.3.fc.weight": "x.3.fc.weight",
        "b.1.c.2.weight": "y.1.2.weight",
        "ab.weight": None,  # a prefix ends at a dot
        "b.1": None,
    }
    assert {name: rename(name, TABLE) for name in names} == names
    assert rename("x.blocks.3.1.bias", flipped(TABLE)) == "a.3.conv.norm.bias"
    assert count_blocks({"a.0.w": torch.zeros(1), "a.3.w": torch.zeros(1), "b.4.w": torch.zeros(1)}, "a.") == 2
