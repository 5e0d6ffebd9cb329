"""The galleries of retrieval (Tab. A1): the distractors that an image or region is ranked among, drawn at random.

A draw depends only on the seed and a name, and is made from the sorted names, independent of the order of reading.
"""

import hashlib
from collections.abc import Sequence

import torch


def named_stream(seed: int, purpose: str, name: str) -> torch.Generator:
    """Derive a random stream from the seed, its purpose and an image's or region's name, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def draw_others(names: Sequence[str], index: int, *, count: int, seed: int, purpose: str = "gallery") -> list[int]:
    """Draw the distractors of one name.

    Args:
        names: each once, in an order that depends only on them (regions are sorted by their image's name and their
            number in it, "a/2" before "a/10").

    Returns:
        Different indices other than `index`, all of them where there are no more than `count`.
    """
    order = torch.randperm(len(names) - 1, generator=named_stream(seed, purpose, names[index]))[:count]
    return [number + (number >= index) for number in order.tolist()]  # skips `index`
