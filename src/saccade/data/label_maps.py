"""The one place that opens semantic ground truth, by what lies on disk (Tab. 5).

    kind        ROOT                                              classes from
    panoptic    COCO with annotations/panoptic_SPLIT2017, world   the annotation file
    stuff       COCO-Stuff                                        ROOT/labels.txt, or `labels`
    ade150      ADEChallengeData2016                              ROOT/objectInfo150.txt, or `labels`
    ade-full    ADE20K_2021_17_01, and `maps`                     MAPS/labels.txt, or `labels`
    context59   VOC2010, and `maps`                               MAPS/labels.txt, or `labels`
    context459  VOC2010, and `maps`                               MAPS/labels.txt, or `labels`
    voc20       VOC2012, or what holds it                         VOC's own, or `labels`
    voc20b      the same; all else is one more class, the last    likewise
    voc21       the same; all else is one more class, the first   likewise

Maps that need it are converted by `saccade convert-labels`. Deliberately absent: boxes and pictures without maps
(`sources`).
"""

from pathlib import Path
from typing import get_args

from saccade.data.ade import HOME, read_ade150, read_ade_full
from saccade.data.context import read_context59, read_context459, read_context_labels
from saccade.data.labels import read_labels, read_object_info
from saccade.data.names import SemanticKind
from saccade.data.semantic import SemanticData, from_panoptic, with_labels
from saccade.data.sources import open_data
from saccade.data.stuff import IDS, read_stuff, read_stuff_labels
from saccade.data.voc import Background, find_voc, read_voc_maps
from saccade.types import InputError

OWN_LIST = "labels.txt"
STUFF_HOMES = ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017")
BACKGROUNDS: dict[SemanticKind, Background] = {"voc20": "none", "voc20b": "last", "voc21": "first"}
NEED_MAPS = ("ade-full", "context59", "context459")


def open_semantic(
    root: Path | str,
    *,
    split: str,
    kind: SemanticKind | None = None,
    labels: Path | None = None,
    maps: Path | None = None,
    names: Path | None = None,
) -> SemanticData:
    """Open a split of any data set of the module's table.

    Args:
        root: see the table.
        split: "train", "val" or, of a world, "test".
        kind: what it is; None: found by what lies there.
        labels: list of classes in place of the data set's own, `id:word,word` a line.
        maps: folder of converted maps.
        names: file of the ids of the pictures that count (PASCAL Context); None: all that have a map.

    Raises:
        InputError: it is none of these or may be several, a list or a folder is missing, or as the readers.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: need a folder; there is none. Check the path.")
    kind = _recognise(root, split, maps) if kind is None else kind
    if kind not in get_args(SemanticKind):
        raise InputError(f"--kind: must be one of {', '.join(get_args(SemanticKind))}; got {kind!r}.")
    if (maps is None) == (kind in NEED_MAPS):
        without = "needs a folder of maps, such as `saccade convert-labels` writes; none was given."
        given = f"has its maps in {root}; got {maps}. Leave it out, or say another --kind."
        raise InputError(f"--maps: {kind} {without if maps is None else given}")
    if names is not None and not kind.startswith("context"):
        raise InputError(f"--names: goes with PASCAL Context; this is {kind}. Leave it out.")
    match kind:
        case "panoptic":
            data = from_panoptic(open_data(root, split=split, annotations="panoptic"))
            return data if labels is None else with_labels(data, read_labels(labels, repeated="keep"))
        case "stuff":
            own = _list(labels, root / OWN_LIST)
            chosen = read_stuff_labels(own) if labels is None else read_labels(own, repeated="keep").choose(IDS)
            return read_stuff(root, split=split, labels=chosen)
        case "ade150":
            own = _list(labels, root / "objectInfo150.txt")
            chosen = read_object_info(own) if labels is None else read_labels(own, repeated="keep")
            return read_ade150(root, split=split, labels=chosen)
        case "ade-full":
            assert maps is not None, "looked at above"
            chosen = read_labels(_list(labels, maps / OWN_LIST), repeated="keep")
            pictures = root / HOME if (root / HOME).is_dir() else root
            return read_ade_full(pictures, maps, split=split, labels=chosen)
        case "context59" | "context459":
            assert maps is not None, "looked at above"
            read = read_context59 if kind == "context59" else read_context459
            return read(root, maps, names=names, labels=read_context_labels(_list(labels, maps / OWN_LIST)))
    chosen = None if labels is None else read_labels(labels, repeated="keep")
    return read_voc_maps(_year(root), split=split, background=BACKGROUNDS[kind], labels=chosen)


def _recognise(root: Path, split: str, maps: Path | None) -> SemanticKind:
    """What a root is; what may be several things must be said."""
    if maps is not None:
        kinds = ["ade-full"] if (root / HOME).is_dir() else ["context59", "context459"]
    else:
        has_stuff = any((root / home / f"{split}2017").is_dir() for home in STUFF_HOMES)
        found = {
            "panoptic": (root / "annotations" / f"panoptic_{split}2017.json").is_file(),
            "stuff": has_stuff,
            "ade150": (root / "objectInfo150.txt").is_file() or (root / "annotations" / "validation").is_dir(),
            "ade-full": (root / HOME).is_dir(),
        }
        kinds = [name for name, there in found.items() if there] + (list(BACKGROUNDS) if find_voc(root) else [])
    match kinds:
        case [only]:
            return only  # pyright: ignore[reportReturnType]
        case []:
            raise InputError(
                f"{root}: need a root with a class for each pixel of split {split}: COCO with panoptic annotations, "
                "COCO-Stuff, ADE20K, PASCAL Context or VOC; it is none. Is this the right folder and --split?"
            )
    raise InputError(f"{root}: may be read as {', '.join(kinds)}. Say which with --kind.")


def _list(given: Path | None, own: Path) -> Path:
    """The list of classes."""
    if given is None and not own.is_file():
        raise InputError(
            f"--labels: need a list of classes, `id:word,word` a line; {own} is not there. Say where it is."
        )
    return own if given is None else given


def _year(root: Path) -> Path:
    years = find_voc(root)
    if len(years) != 1:
        raise InputError(
            f"{root}: need one year of VOC; {', '.join(map(str, years)) or 'none'} lies there. Name its folder."
        )
    return years[0]
