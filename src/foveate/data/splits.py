"""Which categories a detector may learn from and which it must not see: base and novel (Sec. 4.3; A.3).

    the user's JSON file, or ROOT/annotations/splits.json     {"base": [names], "novel": [names]}
    LVIS                                                      rare = novel, common and frequent = base
    COCO's 80 categories                                      OV-COCO: 17 novel, 15 left out, the other 48 base
    classes of pixels (`split_semantic`)                      as a file says; stuff that it does not name is base

Everything but the 17 + 15 names of OV-COCO is derived from the annotation files. Deliberately absent: which images a
split holds, and other splits of COCO (name them in a file).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from foveate.data.datasets.lvis import file_categories, list_lvis_categories
from foveate.data.fetch import is_pattern
from foveate.data.layout import box_files
from foveate.data.records import Dataset, Record
from foveate.data.validation import list_categories, load, parse, short
from foveate.errors import InputError
from foveate.types import Category

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
    """The categories of a data set by name, in the order of their ids (of a file: in its own), each in one part."""

    base: tuple[str, ...]  # boxes may be learned from these
    novel: tuple[str, ...]  # never seen in training, asked for in the end
    excluded: tuple[str, ...]  # neither learned from nor asked for
    rule: str  # where this comes from, for people


def split_of(dataset: Dataset, root: Path | str, *, file: Path | None = None) -> BaseNovel | None:
    """Find which categories of a data set are base and which are novel.

    Args:
        dataset: with its categories.
        root: its folder, for `annotations/splits.json`.
        file: JSON to read instead, {"base": [names], "novel": [names]}.

    Returns:
        The split; None where the data set has none: nobody says what is novel in it.

    Raises:
        InputError: a file that is not of this form, or that names what is no category or the same one twice.
    """
    return _decide(dataset.categories, Path(root), file)


def split_semantic(dataset: Dataset, root: Path | str, *, file: Path | None = None) -> BaseNovel | None:
    """Find which classes of pixels are base, which a segmenter may learn from, and which are novel.

    Only a file says so: Cat-Seg and ODISE learn from all of COCO-Stuff and COCO, whose boxes OV-COCO splits. Stuff that
    the file does not name is base: most lists of base and novel categories are made for detectors.

    Args:
        dataset: its categories say what is a thing.
        root: its folder, for `annotations/splits.json`.
        file: JSON to read instead, {"base": [names], "novel": [names]}.

    Returns:
        The split, named base classes before other stuff; None where no file speaks of it.

    Raises:
        InputError: as `split_of`.
    """
    file = Path(root) / SPLITS if file is None and (Path(root) / SPLITS).is_file() else file
    if file is None:
        return None
    found = read_split(file, dataset.categories)
    stuff = tuple(one.name for one in dataset.categories if not one.is_thing and one.name in found.excluded)
    excluded = tuple(name for name in found.excluded if name not in stuff)
    return BaseNovel((*found.base, *stuff), found.novel, excluded, f"{found.rule}; {len(stuff)} of stuff are base")


def split_of_root(root: Path | str, *, split: str, annotations: Path | None = None) -> BaseNovel | None:
    """The same of a root of which only the images were read.

    `annotations/splits.json` comes first and is taken at its word: no annotation file is opened, which VOC does not
    have and COCO has hundreds of megabytes of. Without it, the one of the split is.

    Args:
        root: as `--data` takes it: a folder, or a pattern or URL of shards, which have no split.
        split: "train", "val" or "test".
        annotations: annotation file to read instead of that of the split.

    Raises:
        InputError: as `split_of`, the annotation file is not what it must be, or there are COCO's and LVIS's.
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
    """Read which classes a detector of a data set asks for, from an annotation file alone.

    Args:
        path: COCO's or LVIS's; its images are not looked at.
        file: JSON of base and novel categories, as for `split_of`.

    Returns:
        Base and novel names in the order of the categories, and the split; without one, all are base.

    Raises:
        InputError: as `split_of`, or the annotation file is not what it must be.
    """
    entries = load(path, kind="an annotation")["categories"]
    has_frequency = any(isinstance(one, dict) and "frequency" in one for one in entries)  # whatever it says of images
    categories = (list_lvis_categories if has_frequency else list_categories)(path, entries)
    names = tuple(category.name for category in categories)
    split = _decide(categories, path.parent.parent, file) or BaseNovel(names, (), (), "all categories")
    return tuple(name for name in names if name not in split.excluded), split


def classes_of_ov_coco() -> tuple[tuple[str, ...], BaseNovel]:
    """The 65 classes of OV-COCO in the order of COCO's categories, as torchvision names these, and the split."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    listed = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    names = [name for name in listed if name not in ("__background__", "N/A")]
    split = _ov_coco([Category(number, name, True) for number, name in enumerate(names, start=1)])
    return tuple(name for name in names if name not in split.excluded), split


def read_split(path: Path, categories: Sequence[Category] | None) -> BaseNovel:
    """Read the names of base and novel categories from a JSON file; those it does not name are left out.

    Args:
        path: {"base": [names], "novel": [names]}.
        categories: of the data set; None: not known, then any name may stand there and none is known to be left out.

    Raises:
        InputError: another form, a name that is no category, or one that stands twice.
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
    _check_names(path, names, set(names) if categories is None else {category.name for category in categories})
    if not base:
        raise InputError(f'{path}: need at least one name in "base", else there is nothing to learn from; got none.')
    return BaseNovel(base, novel, _others(categories or (), {*base, *novel}), f"as {path.name} says")


def as_objects(dataset: Dataset, names: Collection[str]) -> Dataset:
    """Make a data set one of objects of no class, as region proposals are learned from.

    Args:
        dataset: with annotated boxes.
        names: of the categories whose boxes count; of the others no box is kept.

    Returns:
        The same images with two categories: "object", and "ignored" for crowds of these categories, which are neither
        object nor background. Crowds of the others have no box either: a novel one must not shape the loss.
    """
    wanted = [category.name in names for category in dataset.categories]
    categories = (Category(OBJECT, "object", True), Category(IGNORED, "ignored", True))
    return replace(
        dataset,
        categories=categories,
        file=None,
        records=tuple(
            _keep(record, [IGNORED if is_crowd else OBJECT for _, is_crowd in _labelled(record)], wanted)
            for record in dataset.records
        ),
    )


def as_classes(dataset: Dataset, names: Collection[str]) -> Dataset:
    """Make a data set one that a detector learns from.

    Args:
        dataset: with annotated boxes.
        names: of the categories whose boxes count; of the others no box is kept.

    Returns:
        The same images and categories with one more, "crowd", the last: crowds of these categories, which are neither
        object nor background.
    """
    wanted = [category.name in names for category in dataset.categories]
    categories = (*dataset.categories, Category(max(one.id for one in dataset.categories) + 1, "crowd", True))
    crowd = len(dataset.categories)
    records = tuple(
        _keep(record, [crowd if is_crowd else label for label, is_crowd in _labelled(record)], wanted)
        for record in dataset.records
    )
    return replace(dataset, categories=categories, file=None, records=records)


def only_with_objects(dataset: Dataset, *, crowd: int = IGNORED) -> Dataset:
    """Leave out the images without an object, as detectors are trained on OV-COCO, and note how many these are.

    Args:
        dataset: of `as_objects`, or of `as_classes`.
        crowd: label of what is neither object nor background.
    """
    records = tuple(record for record in dataset.records if any(label != crowd for label in record.labels))
    without = len(dataset.records) - len(records)
    if not without:
        return dataset
    note = f"{without} of {len(dataset.records)} images have no object of a base category and are not learned from"
    return replace(dataset, records=records, notes=(*dataset.notes, note))


def _keep(record: Record, labels: Sequence[int], wanted: Sequence[bool]) -> Record:
    """The annotations of wanted categories, each with its new label."""
    places = [place for place, label in enumerate(record.labels) if wanted[label]]
    return replace(
        record,
        boxes=tuple(record.boxes[place] for place in places),
        labels=tuple(labels[place] for place in places),
        crowd=tuple(record.crowd[place] for place in places),
        masks=tuple(record.masks[place] for place in places) if record.masks else (),
    )


def _labelled(record: Record) -> list[tuple[int, bool]]:
    return [*zip(record.labels, record.crowd, strict=True)]


def _decide(categories: Sequence[Category], root: Path, file: Path | None) -> BaseNovel | None:
    own = root / SPLITS
    if file is not None or own.is_file():
        return read_split(file or own, categories)
    if any(category.frequency is not None for category in categories):
        rare = {category.name for category in categories if category.frequency == "r"}
        novel = tuple(category.name for category in categories if category.frequency == "r")
        return BaseNovel(_others(categories, rare), novel, (), "LVIS: rare categories are novel")
    names = {category.name for category in categories}
    if len(categories) == COCO_COUNT and names >= {*OV_COCO_NOVEL, *OV_COCO_EXCLUDED}:
        return _ov_coco(categories)
    return None


def _ov_coco(categories: Sequence[Category]) -> BaseNovel:
    base = _others(categories, {*OV_COCO_NOVEL, *OV_COCO_EXCLUDED})
    return BaseNovel(base, OV_COCO_NOVEL, OV_COCO_EXCLUDED, "OV-COCO: 48 base, 17 novel, 15 left out")


def _annotations_of(root: Path, split: str) -> Path | None:
    """COCO's or LVIS's annotation file of a split, which says what the categories are; the others' have no split."""
    there = [path for path in box_files(root, split) if path.is_file()]
    if len(there) > 1:
        raise InputError(f"{root}: holds {there[0]} and {there[1]}. Say which with --annotations.")
    return there[0] if there else None


def _others(categories: Sequence[Category], names: Collection[str]) -> tuple[str, ...]:
    return tuple(category.name for category in categories if category.name not in names)


def _check_names(path: Path, names: Sequence[str], known: Collection[str]) -> None:
    strange = [name for name in names if name not in known]
    if strange:
        raise InputError(
            f"{path}: need names among the {len(known)} categories of the data; {len(strange)} are not, such as "
            f"{strange[0]!r}. Names are written as in the annotation file, such as {min(known, default='')!r}."
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{path}: need every name once, in base or in novel; {twice[0]!r} stands there twice.")
