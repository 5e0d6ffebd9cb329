"""Flags that say where label maps lie and which of their classes are novel; what `train-catseg` and `evaluate semantic`
have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.cli.recipe_data import check_recipe_data
from foveate.data.names import SemanticKind

if TYPE_CHECKING:
    from foveate.cli.training import Tell
    from foveate.data.semantic import SemanticData


@dataclass(frozen=True, kw_only=True)
class LabelMapFlags:
    """Where the classes of pixels are."""

    data: Path
    """Root of pictures with a class for each pixel: COCO with panoptic annotations or a world, COCO-Stuff, ADE20K,
    PASCAL Context or VOC."""
    kind: SemanticKind | None = None
    """What the root is; when not given, found by what lies there. VOC's maps are 20, 20b or 21 classes: say which."""
    labels: Path | None = None
    """List of classes, with other words for the data's classes, or where it has none itself: `id:word,word` a line, or
    a JSON list of names in the data set's order, as CAT-Seg's are."""
    maps: Path | None = None
    """Folder of label maps that `foveate convert-maps` wrote, of the full ADE20K or PASCAL Context."""
    names: Path | None = None
    """File of the ids of the pictures that count, one a line (PASCAL Context)."""
    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}; when not given, what annotations/splits.json of the root says."""


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
