"""What the trainers of F-ViT, CAT-Seg and mask generators share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.clip.model import Clip
from foveate.data.records import Dataset
from foveate.engine.checkpoint import digest_module
from foveate.engine.distributed import Processes
from foveate.engine.fit import Update
from foveate.engine.optim import PartlyTrained
from foveate.errors import InputError
from foveate.train.batches import Source, count_images, held_out_batches, listings_of, training_batches
from foveate.train.flags import HeadFlags
from foveate.train.run import Trainable
from foveate.types import Category


def head_trainable(
    config: HeadFlags,
    processes: Processes,
    head: nn.Module,
    *,
    clip: Clip,
    groups: list[dict[str, Any]],
    learning_rate: Callable[[int], float],
    partly: Sequence[PartlyTrained] = (),
    dataset: Dataset,
    sources: tuple[Source, Source | None],
    note: str,
    metadata: dict[str, Any],
    save: Callable[[dict[str, Tensor]], str],
) -> Trainable:
    """A head as it is trained: by AdamW, its losses being means over images, written to OUT/model.

    Args:
        head: a scalar loss of a batch; its `parts` are the terms.
        groups: parameter groups of AdamW.
        sources: of the images of `dataset`, and of held-out ones.

    The others are fields of `Update` and `Trainable`.
    """
    source, held_out = sources
    return Trainable(
        name=clip.name,
        objective=head,
        optimizer=torch.optim.AdamW(groups, lr=0.0, fused=True),
        update=Update(
            learning_rate,
            accumulate=config.accumulate,
            weight_decay=config.weight_decay,
            partly=partly,
            clip=config.clip_gradient,
        ),
        count=count_images,
        images=len(source),
        listings=listings_of(source, held_out),
        batches=training_batches(config, source, processes),
        held_out=held_out_batches(config, held_out, processes),
        held_out_source=held_out,
        save=save,
        product=config.out / "model",
        metadata={"weights": digest_module(head), **metadata},
        dataset=dataset,
        notes=[note],
        autocast=config.precision == "bfloat16",
        parts=lambda: head.parts,  # pyright: ignore[reportArgumentType]  a dict in every head
    )


def require_same_categories(held_out: Sequence[Category], trained: Sequence[Category], *, root: str) -> None:
    """Refuse held-out data whose class names or their order differ, with an InputError."""
    names, needed = ([category.name for category in categories] for categories in (held_out, trained))
    if names != needed:
        raise InputError(
            f"--validate {root}: needs the {len(needed)} classes of --data, in their order; got {len(names)}, "
            f"{sorted({*names} ^ {*needed})[:3] or 'in another order'}. Give another split of the same data."
        )
