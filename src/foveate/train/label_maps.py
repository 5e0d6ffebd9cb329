"""Opens images with a class for each pixel, as the flags of `train-catseg` and `evaluate semantic` name them."""

from pathlib import Path

from foveate.data.label_maps import open_semantic
from foveate.data.semantic import SemanticData
from foveate.train.flags import LabelMapFlags


def open_truth_maps(
    config: LabelMapFlags, *, split: str, images: bool = True, root: Path | None = None
) -> SemanticData:
    """Open the images of a split with all their classes; without `images` these need not exist.

    Args:
        config: where the classes are.
        split: of the root.
        images: whether they are needed.
        root: in place of --data, and then of all its images; None: that of the flags.

    Raises:
        InputError: no such data, or a file of it is wrong.
    """
    return open_semantic(
        config.data if root is None else root,
        split=split,
        kind=config.kind,
        labels=config.labels,
        maps=config.maps,
        names=config.names if root is None else None,
        images=images,
    )


def classes_of(data: SemanticData) -> tuple[tuple[str, ...], ...]:
    """The names of each class."""
    return tuple((category.name, *category.synonyms) for category in data.dataset.categories)
