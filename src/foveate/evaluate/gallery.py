"""Who chooses among what: the random streams and the galleries of retrieval (Tab. A1).

A choice depends on the seed and a name alone, and is made out of the names in an order of their own, so that neither
the order of reading nor the batches matter. Deliberately absent: any embedding; the protocols rank by themselves.
"""

import hashlib
from collections.abc import Sequence

import torch


def named_stream(seed: int, purpose: str, name: str) -> torch.Generator:
    """Derive a random stream from the seed, what it is for and a picture's or region's name, the same everywhere."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def draw_others(names: Sequence[str], place: int, *, count: int, seed: int, purpose: str = "gallery") -> list[int]:
    """Draw whom one of the names has to tell itself from.

    Args:
        names: of all, each once, in an order that follows from them alone (regions are sorted by their picture's name
            and their number in it, "a/2" before "a/10").
        place: of the one that draws, in 0..len(names)-1.
        count: how many others at most.
        seed: with the name and the purpose it decides the choice.
        purpose: names the stream.

    Returns:
        Places of different others, all of them where there are no more than `count`.
    """
    order = torch.randperm(len(names) - 1, generator=named_stream(seed, purpose, names[place]))[:count]
    return [index + (index >= place) for index in order.tolist()]  # its own place is skipped
