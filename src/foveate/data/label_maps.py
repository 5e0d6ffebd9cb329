"""Recognises and opens semantic ground truth.

    kind          root                   recognised by                                   its list of classes
    panoptic      COCO, the world        annotations/panoptic_SPLIT2017.json             that file
    stuff         COCO-Stuff             {annotations,stuffthingmaps ...}/SPLIT2017/     labels.txt
    ade150        ADEChallengeData2016   images/ and annotations/{training,validation}/  objectInfo150.txt
    ade-full      ADE20K_2021_17_01      images/ADE/, converted maps                     labels.txt beside the maps
    context59     VOC2010                59_context_labels/, or converted .mat files     beside the maps; 59_labels.txt
    context459    VOC2010                converted .mat files                            beside the maps; labels.txt
    voc20, voc20b, voc21    VOC2012      SegmentationClass/                              VOC's names

The folders `annotations_detectron2` that CAT-Seg's programs prepare are recognised too, except VOC's. voc20 ignores the
background; voc20b and voc21 have it as their last and first class. CAT-Seg's published 20b also queries names of PASCAL
Context and counts them as background: give them as synonyms (a list in OpenSeg's form, `--labels`). A folder that may
be two kinds is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from foveate.data.datasets import ade, coco_stuff
from foveate.data.datasets.context import read_context, read_context_labels
from foveate.data.datasets.voc import NAMES, Background, find_years, only_year, read_voc_maps
from foveate.data.flags import LabelMapFlags
from foveate.data.labels import Labels, labels_of, read_labels, read_object_info
from foveate.data.names import SemanticKind
from foveate.data.semantic import LIST, PREPARED, SemanticData, from_panoptic, is_prepared, with_labels
from foveate.data.sources import open_panoptic
from foveate.errors import InputError
from foveate.types import normalize_name

OBJECT_INFO = "objectInfo150.txt"
MAPS_OF_59 = "59_context_labels"
BACKGROUND: dict[str, Background] = {"voc20": "none", "voc20b": "last", "voc21": "first"}
VOC: tuple[SemanticKind, ...] = ("voc20", "voc20b", "voc21")
CONTEXT: tuple[SemanticKind, ...] = ("context59", "context459")


def open_label_maps(
    config: LabelMapFlags, *, split: str, with_images: bool = True, root: Path | None = None
) -> SemanticData:
    """Open the label maps of a split as the flags say.

    Args:
        with_images: False: the images need not exist.
        root: use all images of this root instead of `config.data`.

    Raises:
        InputError: as `open_semantic`.
    """
    return open_semantic(
        config.data if root is None else root,
        split=split,
        kind=config.kind,
        labels=config.labels,
        maps=config.maps,
        names=config.image_list if root is None else None,
        with_images=with_images,
    )


def classes_of(data: SemanticData) -> tuple[tuple[str, ...], ...]:
    """The names of each class, with synonyms."""
    return tuple((category.name, *category.synonyms) for category in data.dataset.categories)


def open_semantic(
    root: Path | str,
    *,
    split: str,
    kind: SemanticKind | None = None,
    labels: Path | None = None,
    maps: Path | None = None,
    names: Path | None = None,
    with_images: bool = True,
) -> SemanticData:
    """Read a split of semantic data of any kind in the module's table.

    Args:
        root: folder of the data set.
        split: "train" or "val" ("test" of panoptic data, "trainval" of VOC).
        kind: of the data set; None: recognised by its files.
        labels: list of classes in any form of `labels.py`; default: the one in the table. For panoptic data and VOC,
            which have class names, a list adds synonyms.
        maps: folder of label maps that are not in the root, such as converted ones; of COCO-Stuff and ADE20K the folder
            that contains those of the splits.
        names: file with the ids of the images to use, one per line; PASCAL Context only. Default:
            pascalcontext_SPLIT.txt, or else ImageSets/Main/SPLIT.txt.
        with_images: False: the images need not exist; each map stands for one.

    Raises:
        InputError: no kind or more than one is recognised, a file or folder is missing or malformed, or the list is in
            another order than the data set's own.
    """
    root = Path(root)
    kind = kind or _recognise(root, split, maps, with_images)
    if maps is not None and kind == "panoptic":
        raise InputError(f"--maps {maps}: need none for panoptic annotations, which name their maps. Remove it.")
    if names is not None and kind not in CONTEXT:
        raise InputError(f"--image-list {names}: need none for {kind}, whose splits are folders or lists. Remove it.")
    match kind:
        case "panoptic":
            return _open_segments(root, split, labels, with_images)
        case "stuff":
            lists = [root / LIST, root / "annotations" / LIST]
            chosen = _choose(kind, labels, lists, lambda path: coco_stuff.read_stuff_labels(path, repeated="keep"))
            return coco_stuff.read_stuff(root, split=split, labels=chosen, maps=maps, with_images=with_images)
        case "ade150":
            chosen = _choose(kind, labels, [root / OBJECT_INFO], _read_any)
            return ade.read_ade150(root, split=split, labels=chosen, maps=maps, with_images=with_images)
        case "ade-full":
            return _open_ade_full(root, split, labels, maps, with_images)
        case "context59" | "context459":
            return _open_context(root, split, kind, labels, maps, names, with_images)
        case "voc20" | "voc20b" | "voc21":
            return _open_voc(root, split, kind, labels, maps, with_images)
    raise InputError(f"kind: must be one of {', '.join(get_args(SemanticKind))}; got {kind!r}.")


# ---------------------------------------------------------------------------------------------------- each of the kinds


def _open_segments(root: Path, split: str, labels: Path | None, with_images: bool) -> SemanticData:
    data = from_panoptic(open_panoptic(root, split, with_images=with_images, accept=True))
    if labels is None:
        return data
    given = _read_any(labels)
    _check_order(given, labels_of(data.dataset.categories), path=labels, official_name="the annotation file")
    return with_labels(data, given)


def _open_ade_full(root: Path, split: str, labels: Path | None, maps: Path | None, with_images: bool) -> SemanticData:
    if maps is None:
        maps = root / PREPARED
        if not maps.is_dir():
            raise InputError(
                f"{root}: need label maps, which the full release of ADE20K does not have; {maps} not found. Convert "
                f"its maps with `foveate convert-maps ade-full {root} --out DIR` and give --maps DIR."
            )
    chosen = _choose("ade-full", labels, [maps / LIST], _read_any)
    copies = root / "images_detectron2"  # copies of the images beside prepared maps
    image_folder = copies if is_prepared(maps) and copies.is_dir() else root / ade.IMAGES
    return ade.read_ade_full(image_folder, maps, split=split, labels=chosen, with_images=with_images)


def _open_context(
    root: Path,
    split: str,
    kind: SemanticKind,
    labels: Path | None,
    maps: Path | None,
    names: Path | None,
    with_images: bool,
) -> SemanticData:
    is_59 = kind == "context59"
    year = _only_year(root, kind, maps, with_images)
    if maps is None:
        folders = [year / MAPS_OF_59] if is_59 else []
        folders.append(year / PREPARED / f"{'pc59' if is_59 else 'pc459'}_{split}")
        maps = next((folder for folder in folders if folder.is_dir()), None)
        if maps is None:
            raise InputError(
                f"{year}: need the maps of {kind}; found none of {_joined(folders)}. Convert the .mat files with "
                "`foveate convert-maps context MATS --out DIR --labels labels.txt` and give --maps DIR."
            )
    file = "59_labels.txt" if is_59 else LIST
    lists = [maps / LIST]
    if not (is_59 and is_prepared(maps)):  # prepared maps of 59 are in another order than the official list
        lists += [year / file, year / "trainval" / file]
    chosen = _choose(kind, labels, lists, lambda path: read_context_labels(path, repeated="keep"))
    if names is None:
        paths = [year / f"pascalcontext_{split}.txt", year / "ImageSets" / "Main" / f"{split}.txt"]
        names = next((path for path in paths if path.is_file()), None)
        if names is None:
            raise InputError(f"{year}: need the list of the images of split {split}; found none of {_joined(paths)}. "
                             "Give a file with one id per line with --image-list.")  # fmt: skip
    return read_context(year, maps, count=59 if is_59 else 459, names=names, labels=chosen, with_images=with_images)


def _open_voc(
    root: Path, split: str, kind: SemanticKind, labels: Path | None, maps: Path | None, with_images: bool
) -> SemanticData:
    year = _only_year(root, kind, maps, with_images)
    if maps is not None and is_prepared(maps):
        raise InputError(f"--maps {maps}: need VOC's own maps, 0 for the background; these were prepared for CAT-Seg. "
                         "Remove it, or give SegmentationClass.")  # fmt: skip
    chosen = None
    if labels is not None:
        chosen = _read_any(labels)
        if kind == "voc20b" and 0 not in chosen.ids:
            chosen = _with_background(chosen)
        official = Labels(tuple(range(1, 21)), tuple((name,) for name in NAMES))
        _check_order(chosen, official, path=labels, official_name="VOC")
    data = read_voc_maps(
        year,
        split=split,
        background=BACKGROUND[kind],
        labels=chosen,
        maps="SegmentationClass" if maps is None else maps.absolute(),
        with_images=with_images,
    )
    if kind != "voc20b" or data.dataset.categories[-1].synonyms:
        return data
    note = (
        "the background is queried by one name only; CAT-Seg's published results query 39 names of PASCAL Context too "
        'and count them as background: give its list of 59 names as --labels, or synonyms, "0:background,name,name '
        '...", and use --all-synonyms'
    )
    return replace(data, dataset=replace(data.dataset, notes=(*data.dataset.notes, note)))


def _with_background(labels: Labels) -> Labels:
    """VOC's 20 classes, and all further names of the list, such as CAT-Seg's of 59, as names of the background."""
    rows = list(zip(labels.ids, labels.classes, strict=True))
    voc = [(number, names) for number, names in rows if number <= len(NAMES)]
    synonyms = tuple(name for number, names in rows if number > len(NAMES) for name in names)
    if not synonyms:
        return labels
    note = f"background is the {len(synonyms)} names beside VOC's 20, such as {synonyms[0]!r}: use --all-synonyms"
    ids, classes = (number for number, _ in voc), (names for _, names in voc)
    return Labels((*ids, 0), (*classes, synonyms), notes=(*labels.notes, note))


# ---------------------------------------------------------------------------------------------------------- recognition


def _recognise(root: Path, split: str, maps: Path | None, with_images: bool) -> SemanticKind:
    """The kind of a data set, by its files."""
    if not root.is_dir():
        raise InputError(f"{root}: need the folder of a data set; not found. Check the path.")
    kinds = _candidates(root, split, maps, with_images)
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        raise InputError(f"{root}: need one data set; this may be {' or '.join(kinds)}. Give one with --kind.")
    names = sorted(path.name for path in root.iterdir())
    raise InputError(
        f"{root}: need semantic ground truth of split {split}: panoptic annotations, or maps of COCO-Stuff, ADE20K, "
        f"PASCAL Context or VOC in their own layout; it contains {', '.join(names[:12]) or 'nothing'}. Check the path "
        "and the split, or give --kind, whose error names the missing files."
    )


def _candidates(root: Path, split: str, maps: Path | None, with_images: bool) -> list[SemanticKind]:
    kinds: list[SemanticKind] = []
    if (root / "annotations" / f"panoptic_{split}2017.json").is_file():
        kinds.append("panoptic")
    if any((root / home / f"{split}2017").is_dir() for home in coco_stuff.HOMES):
        kinds.append("stuff")
    folder = ade.SPLITS.get(split, split)
    has_maps = any((root / home / folder).is_dir() for home in ("annotations", PREPARED))
    if has_maps and (not with_images or (root / "images" / folder).is_dir()):
        kinds.append("ade150")
    if (root / ade.IMAGES).is_dir() or (root / "images_detectron2").is_dir():
        kinds.append("ade-full")
    years = find_years(root, "JPEGImages" if with_images else "ImageSets")
    if any((year / MAPS_OF_59).is_dir() or (year / PREPARED / f"pc59_{split}").is_dir() for year in years):
        kinds.append("context59")
    if any((year / PREPARED / f"pc459_{split}").is_dir() for year in years):
        kinds.append("context459")
    if years and maps is not None:
        kinds.extend(kind for kind in CONTEXT if kind not in kinds)
    if any((year / "SegmentationClass").is_dir() for year in years):
        kinds.extend(VOC)
    return kinds


def _only_year(root: Path, kind: SemanticKind, maps: Path | None, with_images: bool) -> Path:
    folder = "JPEGImages" if with_images else "ImageSets"
    years = find_years(root, folder)
    if not years:
        raise InputError(f"{root}: need a year of Pascal VOC with its folder {folder}; found none. Check the path.")
    if kind not in CONTEXT and maps is None and len(years) > 1:
        years = find_years(root, folder, "SegmentationClass") or years
    return only_year(root, years)


# ------------------------------------------------------------------------------------------------- the lists of classes


def _choose(kind: SemanticKind, given: Path | None, paths: Sequence[Path], read: Callable[[Path], Labels]) -> Labels:
    """The user's list, checked against the data set's own if that exists; without a user's list, the data set's own."""
    own = next((path for path in paths if path.is_file()), None)
    if given is None:
        if own is not None:
            return read(own)
        raise InputError(f"{kind}: need the list of its classes; found none of {_joined(paths)}. Give a file of lines "
                         "`id:name,synonym` with --labels.")  # fmt: skip
    labels = read(given)
    if own is None:
        return labels
    official = read(own)
    _check_order(labels, official, path=given, official_name=str(own))
    add_things = official.ids == labels.ids and not labels.is_thing
    return replace(labels, is_thing=official.is_thing) if add_things else labels


def _read_any(path: Path) -> Labels:
    """Read a list in any form of `labels.py`; names that two classes share stay, since official lists have some."""
    try:
        with path.open("rb") as file:
            is_table = b"\t" in file.readline(10_000)
    except OSError:
        is_table = False  # `read_labels` reports the error
    return read_object_info(path) if is_table else read_labels(path, repeated="keep")


def _check_order(labels: Labels, official: Labels, *, path: Path, official_name: str) -> None:
    """Refuse a list with other ids: more than half of its classes have the names of other official classes."""
    names_of = {
        number: {*map(normalize_name, names)} for number, names in zip(official.ids, official.classes, strict=True)
    }
    known = {name for names in names_of.values() for name in names}
    moved = []
    for number, names in zip(labels.ids, labels.classes, strict=True):
        given = {*map(normalize_name, names)}
        if number in names_of and not names_of[number] & given and known & given:
            moved.append(f"{number} is {names[0]!r}, not {min(names_of[number])!r}")
    if 2 * len(moved) > len(labels.ids):
        raise InputError(
            f"--labels {path}: need the classes with the ids of {official_name}; {len(moved)} of {len(labels.ids)} "
            f"have another class's, such as {moved[0]}. Is this the list of another release?"
        )


def _joined(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))
