"""What the trainers of heads share: the optimizer, and the check of held-out data."""

from collections.abc import Sequence
from typing import Any

import torch

from foveate.errors import InputError
from foveate.types import Category


def adamw(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """One fused AdamW over parameter groups; the learning rate is set in each step."""
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def require_same_categories(held_out: Sequence[Category], trained: Sequence[Category], *, root: str) -> None:
    """Refuse held-out data whose class names or their order differ, with an InputError."""
    names, needed = ([category.name for category in categories] for categories in (held_out, trained))
    if names != needed:
        raise InputError(
            f"--validate {root}: needs the {len(needed)} classes of --data, in their order; got {len(names)}, "
            f"{sorted({*names} ^ {*needed})[:3] or 'in another order'}. Name another part of the same data."
        )
