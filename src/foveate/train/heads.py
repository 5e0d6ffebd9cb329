"""What the heads have in common when they are trained: their optimizer, and that held-out data has their classes."""

from collections.abc import Sequence
from typing import Any

import torch

from foveate.errors import InputError
from foveate.types import Category


def adamw(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """One fused AdamW over parameter groups; the learning rate is set at each step."""
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def require_same_categories(found: Sequence[Category], trained: Sequence[Category], *, root: str) -> None:
    """Refuse held-out data of other classes, whose labels would mean something else.

    Raises:
        InputError: the names differ, or their order.
    """
    names, needed = ([category.name for category in categories] for categories in (found, trained))
    if names != needed:
        raise InputError(
            f"--validate {root}: needs the {len(needed)} classes of --data, in their order; got {len(names)}, "
            f"{sorted({*names} ^ {*needed})[:3] or 'in another order'}. Name another part of the same data."
        )
