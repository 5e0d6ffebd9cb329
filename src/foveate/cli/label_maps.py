"""Flags that say where label maps lie and which of their classes are novel; what `train-catseg` and `evaluate semantic`
have in common."""

from typing import TYPE_CHECKING

from foveate.cli.recipe_data import check_recipe_data
from foveate.evaluate.flags import LabelMapFlags

if TYPE_CHECKING:
    from foveate.cli.training import Tell
    from foveate.data.semantic import SemanticData


def open_truth_maps(config: LabelMapFlags, *, split: str, images: bool = True) -> "SemanticData":
    """Open the pictures of a split with all their classes; without `images` these need not be there.

    Raises:
        InputError: no such data, or a file of it is wrong.
    """
    from foveate.data.label_maps import open_semantic

    return open_semantic(
        config.data,
        split=split,
        kind=config.kind,
        labels=config.labels,
        maps=config.maps,
        names=config.names,
        images=images,
    )


def open_base_maps(
    config: LabelMapFlags, *, split: str, tell: "Tell", recipe: str | None = None
) -> "tuple[SemanticData, tuple[str, ...], str]":
    """Open the pictures of a split with the classes that may be learned from.

    Returns:
        The data, in which pixels of other classes have none; the names of the novel classes; the rule, for people.

    Raises:
        InputError: as `open_truth_maps`, no class is left, or the recipe's numbers are for other data.
    """
    from foveate.data.semantic import only_classes
    from foveate.data.splits import split_semantic

    data = open_truth_maps(config, split=split)
    check_recipe_data(recipe, data.dataset.categories, root=config.data)
    parts = split_semantic(data.dataset, config.data, file=config.novel)
    if parts is None:
        tell(f"{config.data}: has no base and novel classes of its own; all are learned from. See --novel.")
        return data, (), "all classes"
    return only_classes(data, parts.base), parts.novel, parts.rule


def classes_of(data: "SemanticData") -> tuple[tuple[str, ...], ...]:
    """The words of each class."""
    return tuple((one.name, *one.synonyms) for one in data.dataset.categories)
