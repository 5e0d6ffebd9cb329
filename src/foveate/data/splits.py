"""Base and novel categories: those that a detector is trained on, and those held out (Sec. 4.3; A.3).

    the user's JSON file, or ROOT/annotations/splits.json     {"base": [names], "novel": [names]}
    LVIS                                                      rare = novel, common and frequent = base
    COCO's 80 categories                                      OV-COCO: 17 novel, 15 excluded, the other 48 base
    classes of label maps (`split_semantic`)                  as in a file; stuff that it does not name is base

Everything but the 17 + 15 names of OV-COCO is derived from the annotation files. Other splits of COCO are given as a
file.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from foveate.data.annotation_file import load
from foveate.data.annotations import REMOVED, RelabelledRecords, objects_of
from foveate.data.datasets.lvis import file_categories, list_lvis_categories
from foveate.data.fetch import is_pattern
from foveate.data.labels import refuse_repeated
from foveate.data.layout import box_files
from foveate.data.records import Dataset
from foveate.data.validation import list_categories, parse, short
from foveate.errors import InputError
from foveate.types import Category, normalize_name

COCO_COUNT = 80
SPLITS = Path("annotations", "splits.json")  # in a root
OBJECT, IGNORED = 0, 1  # labels of `as_objects`
OV_COCO_NOVEL = (
    *("airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard", "skateboard", "cup"),
    *("knife", "cake", "couch", "keyboard", "sink", "scissors"),
)
OV_COCO_EXCLUDED = (
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "sports ball", "baseball bat", "baseball glove"),
    *("tennis racket", "wine glass", "hot dog", "potted plant", "dining table", "cell phone", "teddy bear"),
    "hair drier",
)


@dataclass(frozen=True)
class BaseNovel:
    """The category names of a data set, sorted by id (of a file: in its order), each in one of three parts."""

    base: tuple[str, ...]  # trained on
    novel: tuple[str, ...]  # held out in training, queried in the evaluation
    excluded: tuple[str, ...]  # neither trained on nor queried
    rule: str  # the origin of the split, for messages


def split_of(dataset: Dataset, root: Path | str, *, file: Path | None = None) -> BaseNovel | None:
    """Find the base and novel categories of a data set.

    Args:
        root: the folder of the data set, for `annotations/splits.json`.
        file: JSON to read instead.

    Returns:
        The split; None if the data set has none.

    Raises:
        InputError: as `read_split`.
    """
    return _decide(dataset.categories, Path(root), file)


def split_semantic(dataset: Dataset, root: Path | str, *, file: Path | None = None) -> BaseNovel | None:
    """Find the base and novel classes of a segmenter's training data.

    Only a file defines them: CAT-Seg and ODISE are trained on all of COCO-Stuff and COCO, whose boxes OV-COCO splits.
    Stuff that the file does not name is base, since most such files are made for detectors.

    Args:
        root: the folder of the data set, for `annotations/splits.json`.
        file: JSON to read instead.

    Returns:
        The split, named base classes before other stuff; None without a file.

    Raises:
        InputError: as `read_split`.
    """
    file = Path(root) / SPLITS if file is None and (Path(root) / SPLITS).is_file() else file
    if file is None:
        return None
    split = read_split(file, dataset.categories)
    stuff = tuple(item.name for item in dataset.categories if not item.is_thing and item.name in split.excluded)
    excluded = tuple(name for name in split.excluded if name not in stuff)
    return BaseNovel((*split.base, *stuff), split.novel, excluded, f"{split.rule}; {len(stuff)} of stuff are base")


def split_of_root(root: Path | str, *, split: str, annotations: Path | None = None) -> BaseNovel | None:
    """Find the base and novel categories of a root of which only the images were read.

    `annotations/splits.json` is read without checking its names against an annotation file, which VOC lacks and which
    for COCO has hundreds of megabytes. Without it, the annotation file of the split is read.

    Args:
        root: a folder, or a pattern or URL of shards, which have no split.
        split: "train", "val" or "test".
        annotations: annotation file to read instead of that of the split.

    Raises:
        InputError: as `read_split`, the annotation file is malformed, or there are both COCO's and LVIS's.
    """
    root = Path(root)
    if is_pattern(str(root)) or not root.is_dir():
        return None
    if (root / SPLITS).is_file():
        return read_split(root / SPLITS, None)
    path = annotations or _annotations_of(root, split)
    if path is None:
        return None
    content = load(path, kind="an annotation")
    return _decide(file_categories(path, content), root, None)


def classes_of_annotations(path: Path, *, file: Path | None = None) -> tuple[tuple[str, ...], BaseNovel]:
    """Read the classes of a detector from an annotation file, COCO's or LVIS's, without its images.

    Args:
        path: the annotation file.
        file: JSON of base and novel categories, as for `split_of`.

    Returns:
        Base and novel names in the order of the categories, and the split; without one, all are base.

    Raises:
        InputError: as `read_split`, or the annotation file is malformed.
    """
    content = load(path, kind="an annotation")
    has_frequency = any(isinstance(entry, dict) and "frequency" in entry for entry in content["categories"])
    categories = (list_lvis_categories if has_frequency else list_categories)(path, content)
    names = tuple(category.name for category in categories)
    split = _decide(categories, path.parent.parent, file) or BaseNovel(names, (), (), "all categories")
    return tuple(name for name in names if name not in split.excluded), split


def classes_of_ov_coco() -> tuple[tuple[str, ...], BaseNovel]:
    """The 65 classes of OV-COCO in the order of COCO's categories, which torchvision lists, and the split."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    names = [name for name in categories if name not in ("__background__", "N/A")]
    split = _ov_coco([Category(number, name, True) for number, name in enumerate(names, start=1)])
    return tuple(name for name in names if name not in split.excluded), split


def read_split(path: Path, categories: Sequence[Category] | None) -> BaseNovel:
    """Read base and novel categories from a JSON file {"base": [names], "novel": [names]}; the others are excluded.

    Args:
        categories: of the data set; None: not known, so that names are not checked and none is excluded.

    Raises:
        InputError: another form, an unknown or repeated name, two categories of the same name, or no base category.
    """
    content = parse(path, kind="a base and novel names")
    parts = [content.get(key) if isinstance(content, dict) else None for key in ("base", "novel")]
    for part in parts:
        if not isinstance(part, list) or not all(isinstance(name, str) for name in part):
            raise InputError(
                f'{path}: need {{"base": [names], "novel": [names]}}; got {short(content)}. Correct the file.'
            )
    base, novel = (tuple(part) for part in parts if part is not None)
    names = (*base, *novel)
    refuse_repeated(str(path), names, do="Write every name once, in base or in novel.")
    if categories is not None:
        own = _own_names(categories, path)
        _check_known(path, names, own)
        base, novel = (tuple(own[normalize_name(name)] for name in part) for part in (base, novel))
    if not base:
        raise InputError(f'{path}: need at least one name in "base", which is trained on; got none.')
    return BaseNovel(base, novel, _others(categories or (), {*base, *novel}), f"as in {path.name}")


def as_objects(dataset: Dataset, names: Collection[str]) -> Dataset:
    """Make a class-agnostic data set, on which region proposals are trained.

    Args:
        dataset: with annotated boxes.
        names: of the categories whose boxes are used.

    Returns:
        The same images with two categories: "object", and "ignored" for crowds of these categories, which are neither
        object nor background. Crowds of the other categories are removed: a novel one must not affect the loss.
    """
    objects = objects_of(dataset.records)
    labels = np.where(_is_used(dataset, names)[objects.labels], np.where(objects.crowd, IGNORED, OBJECT), REMOVED)
    records = RelabelledRecords(dataset.records, labels)
    categories = (Category(OBJECT, "object", True), Category(IGNORED, "ignored", True))
    return replace(dataset, categories=categories, file=None, records=records)


def as_classes(dataset: Dataset, names: Collection[str]) -> Dataset:
    """Make a data set on which a detector is trained.

    Args:
        dataset: with annotated boxes.
        names: of the categories whose boxes are used.

    Returns:
        The same images and categories and a last one, "crowd": crowds of these categories, which are neither object nor
        background.
    """
    objects, crowd = objects_of(dataset.records), len(dataset.categories)
    labels = np.where(_is_used(dataset, names)[objects.labels], np.where(objects.crowd, crowd, objects.labels), REMOVED)
    categories = (*dataset.categories, Category(max(item.id for item in dataset.categories) + 1, "crowd", True))
    return replace(dataset, categories=categories, file=None, records=RelabelledRecords(dataset.records, labels))


def only_with_objects(dataset: Dataset, *, crowd: int = IGNORED) -> Dataset:
    """Remove the images without an object, as detectors on OV-COCO are trained, and note their number.

    Args:
        dataset: of `as_objects` or `as_classes`.
        crowd: label of crowds, which are no objects.
    """
    objects = objects_of(dataset.records)
    images = np.flatnonzero(objects.any_per_image(objects.labels != crowd))
    without = len(dataset.records) - len(images)
    if not without:
        return dataset
    note = f"{without} of {len(dataset.records)} images ignored: no object of a base category"
    records = RelabelledRecords(dataset.records, objects.labels, images=images)
    return replace(dataset, records=records, notes=(*dataset.notes, note))


def _is_used(dataset: Dataset, names: Collection[str]) -> np.ndarray:
    return np.array([category.name in names for category in dataset.categories], dtype=np.bool_)


def _decide(categories: Sequence[Category], root: Path, file: Path | None) -> BaseNovel | None:
    if file is not None or (root / SPLITS).is_file():
        return read_split(file or root / SPLITS, categories)
    if any(category.frequency is not None for category in categories):
        novel = tuple(category.name for category in categories if category.frequency == "r")
        return BaseNovel(_others(categories, novel), novel, (), "LVIS: rare categories are novel")
    names = {normalize_name(category.name) for category in categories}
    if len(categories) == COCO_COUNT and names >= {*OV_COCO_NOVEL, *OV_COCO_EXCLUDED}:
        return _ov_coco(categories)
    return None


def _ov_coco(categories: Sequence[Category]) -> BaseNovel:
    own = {normalize_name(category.name): category.name for category in categories}
    novel, excluded = (tuple(own[name] for name in part) for part in (OV_COCO_NOVEL, OV_COCO_EXCLUDED))
    base = _others(categories, {*novel, *excluded})
    return BaseNovel(base, novel, excluded, "OV-COCO: 48 base, 17 novel, 15 excluded")


def _annotations_of(root: Path, split: str) -> Path | None:
    """COCO's or LVIS's annotation file of a split; other data sets have no base and novel categories."""
    files = [path for path in box_files(root, split) if path.is_file()]
    if len(files) > 1:
        raise InputError(
            f"{root}: need one annotation file; found {files[0]} and {files[1]}. Give one with --annotations."
        )
    return files[0] if files else None


def _others(categories: Sequence[Category], names: Collection[str]) -> tuple[str, ...]:
    return tuple(category.name for category in categories if category.name not in names)


def _own_names(categories: Sequence[Category], path: Path) -> dict[str, str]:
    """The name of each category by its form for comparison; InputError for two that are compared as the same."""
    names = [category.name for category in categories]
    refuse_repeated(f"{path}: the categories of the data", names)
    return {normalize_name(name): name for name in names}


def _check_known(path: Path, names: Sequence[str], own: Mapping[str, str]) -> None:
    unknown = [name for name in names if normalize_name(name) not in own]
    if unknown:
        raise InputError(
            f"{path}: need names among the {len(own)} categories of the data; {len(unknown)} are not, such as "
            f"{unknown[0]!r}. Write the names as in the annotation file, such as {min(own.values(), default='')!r}."
        )
