"""The one place that opens semantic ground truth, a class for each pixel, by what lies on disk.

    kind          root                   found by                                        its list of classes
    panoptic      COCO, the world        annotations/panoptic_SPLIT2017.json             that file
    stuff         COCO-Stuff             {annotations,stuffthingmaps ...}/SPLIT2017/     labels.txt
    ade150        ADEChallengeData2016   images/ and annotations/{training,validation}/  objectInfo150.txt
    ade-full      ADE20K_2021_17_01      images/ADE/, maps that were converted           labels.txt beside the maps
    context59     VOC2010                59_context_labels/, or maps made of .mat files  beside the maps; 59_labels.txt
    context459    VOC2010                maps made of .mat files                         beside the maps; labels.txt
    voc20, voc20b, voc21    VOC2012      SegmentationClass/                              VOC's names

The folders `annotations_detectron2` that Cat-Seg's programs prepare are known too, but for VOC's. voc20 ignores the
background, voc20b and voc21 have it as their last and first class. Cat-Seg's published 20b also asks for words of
PASCAL Context and counts them as background: that is the vocabulary's business, as are synonyms (a list in OpenSeg's
form, `--labels`). Deliberately absent: reading a map (`semantic.py`), guessing between two kinds.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from foveate.data.datasets import ade, stuff
from foveate.data.datasets.context import read_context, read_context_labels
from foveate.data.datasets.voc import NAMES, Background, find_years, only_year, read_voc_maps
from foveate.data.flags import LabelMapFlags
from foveate.data.labels import Labels, compared, labels_of, read_labels, read_object_info
from foveate.data.names import SemanticKind
from foveate.data.semantic import LIST, PREPARED, SemanticData, from_panoptic, is_prepared, with_labels
from foveate.data.sources import open_panoptic
from foveate.errors import InputError

OBJECT_INFO = "objectInfo150.txt"
MAPS_OF_59 = "59_context_labels"
BACKGROUND: dict[str, Background] = {"voc20": "none", "voc20b": "last", "voc21": "first"}
VOC: tuple[SemanticKind, ...] = ("voc20", "voc20b", "voc21")
CONTEXT: tuple[SemanticKind, ...] = ("context59", "context459")


def open_truth_maps(
    config: LabelMapFlags, *, split: str, with_images: bool = True, root: Path | None = None
) -> SemanticData:
    """Open the images of a split with all their classes; without `with_images` these need not exist.

    Args:
        config: where the classes are.
        split: of the root.
        with_images: whether they are needed.
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
        names=config.image_list if root is None else None,
        with_images=with_images,
    )


def classes_of(data: SemanticData) -> tuple[tuple[str, ...], ...]:
    """The names of each class."""
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
    """Read a split of semantic data of any kind that the module's table shows.

    Args:
        root: its folder.
        split: "train" or "val" ("test" of panoptic data, "trainval" of VOC).
        kind: which one; None: recognised by what lies there.
        labels: list of the classes, `id:word,word` a line, or a JSON list in order, or ADE20K's own table; when not
            given, the one that the table names. Panoptic data and VOC have names of their own, and get synonyms by a
            list.
        maps: folder of the maps where they lie elsewhere, such as converted ones; of COCO-Stuff and ADE20K the folder
            that holds those of the splits.
        names: file with the ids of the images that count, one a line; PASCAL Context alone. When not given,
            pascalcontext_SPLIT.txt, or else ImageSets/Main/SPLIT.txt.
        with_images: False: the images need not be there; each map stands for one.

    Raises:
        InputError: nothing or more than one is recognised, a file or folder is missing or not what it must be, or the
            list is in another order than the data set's own.
    """
    root = Path(root)
    kind = kind or _recognise(root, split, maps, with_images)
    if maps is not None and kind == "panoptic":
        raise InputError(f"--maps {maps}: need none for panoptic annotations, which name their maps. Leave it out.")
    if names is not None and kind not in CONTEXT:
        raise InputError(
            f"--image-list {names}: need none for {kind}, whose splits are folders or lists. Leave it out."
        )
    match kind:
        case "panoptic":
            return _open_segments(root, split, labels, with_images)
        case "stuff":
            places = [root / LIST, root / "annotations" / LIST]
            chosen = _choose(kind, labels, places, lambda path: stuff.read_stuff_labels(path, repeated="keep"))
            return stuff.read_stuff(root, split=split, labels=chosen, maps=maps, with_images=with_images)
        case "ade150":
            chosen = _choose(kind, labels, [root / OBJECT_INFO], _read_any)
            return ade.read_ade150(root, split=split, labels=chosen, maps=maps, with_images=with_images)
        case "ade-full":
            return _open_ade_full(root, split, labels, maps, with_images)
        case "context59" | "context459":
            return _open_context(root, split, kind, labels, maps, names, with_images)
        case "voc20" | "voc20b" | "voc21":
            return _open_voc(root, split, kind, labels, maps, with_images)
    raise InputError(f"kind: need one of those that the table of `foveate.data.label_maps` shows; got {kind!r}.")


# ---------------------------------------------------------------------------------------------------- each of the kinds


def _open_segments(root: Path, split: str, labels: Path | None, with_images: bool) -> SemanticData:
    data = from_panoptic(open_panoptic(root, split, with_images=with_images))
    if labels is None:
        return data
    given = _read_any(labels)
    _check_order(given, labels_of(data.dataset.categories), path=labels, own_name="the annotation file")
    return with_labels(data, given)


def _open_ade_full(root: Path, split: str, labels: Path | None, maps: Path | None, with_images: bool) -> SemanticData:
    if maps is None:
        maps = root / PREPARED
        if not maps.is_dir():
            raise InputError(
                f"{root}: need maps of numbers, which the full release of ADE20K does not have; {maps} is not there. "
                f"Make them with `foveate convert-maps ade-full {root} --out DIR` and give --maps DIR."
            )
    chosen = _choose("ade-full", labels, [maps / LIST], _read_any)
    copies = root / "images_detectron2"  # of the images, which some programs make beside their maps
    image_folder = copies if is_prepared(maps) and copies.is_dir() else root / ade.HOME
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
    few = kind == "context59"
    year = _only_year(root, kind, maps, with_images)
    if maps is None:
        usual = [year / MAPS_OF_59] if few else []
        usual.append(year / PREPARED / f"{'pc59' if few else 'pc459'}_{split}")
        found = [one for one in usual if one.is_dir()]
        if not found:
            raise InputError(
                f"{year}: need the maps of {kind}; looked for {_listed(usual)}. Make them of the .mat files with "
                "`foveate convert-maps context MATS --out DIR --labels labels.txt` and give --maps DIR."
            )
        maps = found[0]
    file = "59_labels.txt" if few else LIST
    places = [maps / LIST]
    if not (few and is_prepared(maps)):  # their numbers are in another order than the official list
        places += [year / file, year / "trainval" / file]
    chosen = _choose(kind, labels, places, lambda path: read_context_labels(path, repeated="keep"))
    if names is None:
        lists = [year / f"pascalcontext_{split}.txt", year / "ImageSets" / "Main" / f"{split}.txt"]
        found = [one for one in lists if one.is_file()]
        if not found:
            raise InputError(f"{year}: need the list of the images of split {split}; looked for {_listed(lists)}. "
                             "Give a file with an id per line with --image-list.")  # fmt: skip
        names = found[0]
    return read_context(year, maps, count=59 if few else 459, names=names, labels=chosen, with_images=with_images)


def _open_voc(
    root: Path, split: str, kind: SemanticKind, labels: Path | None, maps: Path | None, with_images: bool
) -> SemanticData:
    year = _only_year(root, kind, maps, with_images)
    if maps is not None and is_prepared(maps):
        raise InputError(f"--maps {maps}: need VOC's own maps, 0 for the background; these were prepared for Cat-Seg. "
                         "Leave it out, or name SegmentationClass.")  # fmt: skip
    chosen = None if labels is None else _read_any(labels)
    if chosen is not None and kind == "voc20b" and 0 not in chosen.ids:
        chosen = _with_background(chosen)
    if labels is not None and chosen is not None:
        own = Labels(tuple(range(1, 21)), tuple((name,) for name in NAMES))
        _check_order(chosen, own, path=labels, own_name="VOC")
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
        "background is asked for by this one word; Cat-Seg's published numbers also ask for 39 words of PASCAL Context "
        'and count them as background: give its list of 59 names as --labels, or synonyms, "0:background,word,word '
        '...", and ask with --all-synonyms'
    )
    return replace(data, dataset=replace(data.dataset, notes=(*data.dataset.notes, note)))


def _with_background(labels: Labels) -> Labels:
    """The 20 classes, and as words of the background all that a list names beside them, as CAT-Seg's of 59 does."""
    own = [place for place, number in enumerate(labels.ids) if number <= len(NAMES)]
    beside = [place for place, number in enumerate(labels.ids) if number > len(NAMES)]
    if not beside:
        return labels
    words = tuple(word for place in beside for word in labels.classes[place])
    ids, classes = (labels.ids[place] for place in own), (labels.classes[place] for place in own)
    note = f"background is the {len(words)} names beside VOC's 20, {words[0]!r} and others: ask with --all-synonyms"
    return Labels((*ids, 0), (*classes, words), notes=(*labels.notes, note))


# ------------------------------------------------------------------------------------------------ what lies in a folder


def _recognise(root: Path, split: str, maps: Path | None, with_images: bool) -> SemanticKind:
    """The only kind that a folder can be."""
    if not root.is_dir():
        raise InputError(f"{root}: need the folder of a data set; there is none. Check the path.")
    found = _candidates(root, split, maps, with_images)
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{root}: may be read as {' or as '.join(found)}. Say which with --kind.")
    held = sorted(path.name for path in root.iterdir())
    raise InputError(
        f"{root}: need semantic ground truth of split {split}: panoptic annotations, or maps of COCO-Stuff, ADE20K, "
        f"PASCAL Context or VOC in their own layout; it holds {', '.join(held[:12]) or 'nothing'}. Check the path and "
        "the split, or say what it is with --kind, which tells what is missing."
    )


def _candidates(root: Path, split: str, maps: Path | None, with_images: bool) -> list[SemanticKind]:
    found: list[SemanticKind] = []
    if (root / "annotations" / f"panoptic_{split}2017.json").is_file():
        found.append("panoptic")
    if any((root / home / f"{split}2017").is_dir() for home in stuff.HOMES):
        found.append("stuff")
    folder = ade.SPLITS.get(split, split)
    has_maps = any((root / one / folder).is_dir() for one in ("annotations", PREPARED))
    if has_maps and (not with_images or (root / "images" / folder).is_dir()):
        found.append("ade150")
    if (root / ade.HOME).is_dir() or (root / "images_detectron2").is_dir():
        found.append("ade-full")
    years = find_years(root, "JPEGImages" if with_images else "ImageSets")
    if any((year / MAPS_OF_59).is_dir() or (year / PREPARED / f"pc59_{split}").is_dir() for year in years):
        found.append("context59")
    if any((year / PREPARED / f"pc459_{split}").is_dir() for year in years):
        found.append("context459")
    if years and maps is not None:
        found.extend(one for one in CONTEXT if one not in found)
    if any((year / "SegmentationClass").is_dir() for year in years):
        found.extend(VOC)
    return found


def _only_year(root: Path, kind: SemanticKind, maps: Path | None, with_images: bool) -> Path:
    folder = "JPEGImages" if with_images else "ImageSets"
    years = find_years(root, folder)
    if not years:
        raise InputError(f"{root}: need a year of Pascal VOC with its folder {folder}; there is none. Check the path.")
    if kind not in CONTEXT and maps is None and len(years) > 1:
        years = find_years(root, folder, "SegmentationClass") or years
    return only_year(root, years)


# ------------------------------------------------------------------------------------------------- the lists of classes


def _choose(kind: SemanticKind, given: Path | None, places: Sequence[Path], read: Callable[[Path], Labels]) -> Labels:
    """The list that the user gave, held against the data set's own where that is there; else that one."""
    there = [path for path in places if path.is_file()]
    if given is None:
        if there:
            return read(there[0])
        raise InputError(f"{kind}: need the list of its classes; looked for {_listed(places)}. Give a file with "
                         "`id:word,word` a line with --labels.")  # fmt: skip
    labels = read(given)
    if not there:
        return labels
    own = read(there[0])
    _check_order(labels, own, path=given, own_name=str(there[0]))
    same = own.ids == labels.ids and not labels.is_thing
    return replace(labels, is_thing=own.is_thing) if same else labels


def _read_any(path: Path) -> Labels:
    """A list in OpenSeg's form, a JSON list, or ADE20K's own table; words that two classes share, as these do, stay."""
    try:
        with path.open("rb") as file:
            table = b"\t" in file.readline(10_000)
    except OSError:
        table = False  # the reader says what is wrong
    return read_object_info(path) if table else read_labels(path, repeated="keep")


def _check_order(labels: Labels, own: Labels, *, path: Path, own_name: str) -> None:
    """Refuse a list that numbers the classes otherwise: half of them have the words of others, and not their own."""
    words = {number: {*map(compared, one)} for number, one in zip(own.ids, own.classes, strict=True)}
    known = {word for one in words.values() for word in one}
    moved = [
        f"{number} is {one[0]!r}, not {min(words[number])!r}"
        for number, one in zip(labels.ids, labels.classes, strict=True)
        if number in words and not words[number] & {*map(compared, one)} and known & {*map(compared, one)}
    ]
    if 2 * len(moved) > len(labels.ids):
        raise InputError(
            f"--labels {path}: need the classes under the numbers that {own_name} gives them; {len(moved)} of "
            f"{len(labels.ids)} have another's, such as {moved[0]}. Is this the list of another release?"
        )


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))
