"""What `foveate proposals` learns from and measures recall on: refused where there are no boxes, told where no split.

Deliberately absent: reading the data (`foveate.data`), and everything after it (`proposals.py`).
"""

import sys
from typing import TYPE_CHECKING

from foveate.errors import InputError

if TYPE_CHECKING:  # torch costs seconds: --help must not pay it
    from foveate.cli.proposals import Proposals
    from foveate.data.records import Dataset
    from foveate.data.splits import BaseNovel


def split_or_all(dataset: "Dataset", found: "BaseNovel | None", *, told: str) -> "BaseNovel":
    """The split of a data set; where it has none, everything is learned from, and the user is told."""
    from foveate.data.splits import BaseNovel

    if found is not None:
        return found
    tell(f"{told}: has no base and novel categories of its own; learning from all. See --novel.")
    return BaseNovel(tuple(category.name for category in dataset.categories), (), (), "all categories")


def require_categories(dataset: "Dataset", config: "Proposals") -> None:
    """Refuse pictures alone.

    Raises:
        InputError: the data has no annotations.
    """
    if not dataset.categories:
        raise InputError(
            f"--data {config.data}: need pictures with annotated boxes, which proposals are learned from; these have "
            "none. Name a root of COCO, LVIS, Pascal VOC or Objects365, a world, or pictures with their COCO, LVIS "
            "or Objects365 JSON in --annotations. Pictures to make proposals for go into --pictures, and need no "
            "boxes."
        )


def require_boxes(objects: "Dataset", config: "Proposals") -> None:
    """Refuse to learn from nothing.

    Raises:
        InputError: no picture has a box of a base category.
    """
    if all(crowd for record in objects.records for crowd in record.crowd):
        raise InputError(
            f"--data {config.data}: need annotated boxes of base categories in split {config.split}; there is none. "
            "Is this the right root, split and --novel?"
        )


def find_held_out(config: "Proposals", dataset: "Dataset") -> "Dataset | None":
    """The annotated pictures on which recall is measured, where there are any."""
    from foveate.data.sources import open_data

    wanted = config.validate_split or "val"
    if config.validate_split is None and config.split == wanted:
        return None
    try:
        found = open_data(config.data, split=wanted)
    except InputError as error:
        if config.validate_split is not None:
            raise InputError(f"--validate-split {wanted}: {error}") from error
        tell(f"no recall is measured: {error}")
        return None
    if {one.name for one in found.categories} != {one.name for one in dataset.categories}:
        tell(f"no recall is measured: {found.name} has other categories than {dataset.name}")
        return None
    return found


def tell(message: str) -> None:
    """Say something on the error stream."""
    print(message, file=sys.stderr, flush=True)
