"""Files of one split in COCO's standard layout, and in those that annotation tools export.

    COCO        {train,val,test}2017/    annotations/{instances,panoptic,captions}_SPLIT2017.json + panoptic_SPLIT2017/
    CVAT        images/{SUBSET,}/        annotations/instances_SUBSET.json; SUBSET is a split or "default"
    FiftyOne    data/                    labels.json
    Roboflow    {train,valid,test}/      _annotations.coco.json in each
    YOLO        images/{SUBSET,}/ + labels/{SUBSET,}/, or {train,valid,test}/{images,labels}/

A split may be called otherwise in the exports, as in `ALIASES`.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from foveate.errors import InputError, listed

Export = Literal["CVAT", "FiftyOne", "Roboflow", "YOLO"]
ALIASES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


class Subset(NamedTuple):
    """The annotations of some images, and the folder of these."""

    annotations: Path  # a file; of YOLO a folder
    images: Path


@dataclass(frozen=True)
class CocoFiles:
    """The files of one split of a COCO root; None: the file does not exist."""

    images: Path
    instances: Path | None
    captions: Path | None


def find_images(root: Path | str, split: str) -> Path:
    """Find the image folder of one split ("train", "val" or "test"), such as ROOT/train2017.

    Raises:
        InputError: another split, or the folder does not exist.
    """
    if split not in ("train", "val", "test"):
        raise InputError(f'split: must be "train", "val" or "test"; got "{split}".')
    images = Path(root) / f"{split}2017"
    if not images.is_dir():
        raise InputError(
            f"{root}: need a COCO root with the images of split {split} in {images}; the folder does not exist. "
            f"The root contains: {_listing(Path(root))}. Check the path and the split."
        )
    return images


def find_coco(root: Path | str, split: str) -> CocoFiles:
    """Find the files of one split ("train", "val" or "test").

    Raises:
        InputError: the image folder or every annotation file of the split is missing; names the paths tried.
    """
    images, folder = find_images(root, split), Path(root) / "annotations"
    paths = {kind: folder / f"{kind}_{split}2017.json" for kind in ("instances", "panoptic", "captions")}
    found = {kind: path if path.is_file() else None for kind, path in paths.items()}
    if not any(found.values()):
        raise InputError(
            f"{root}: need an annotation file of split {split}; found none of {', '.join(map(str, paths.values()))}. "
            f"{folder} contains: {_listing(folder)}. Check the path and the split."
        )
    return CocoFiles(images, instances=found["instances"], captions=found["captions"])


def box_files(root: Path, split: str) -> tuple[Path, Path]:
    """Paths of COCO's and LVIS's annotation files of a split, whether or not they exist."""
    return root / "annotations" / f"instances_{split}2017.json", root / "annotations" / f"lvis_v1_{split}.json"


def find_exports(root: Path) -> dict[Export, dict[str, Subset]]:
    """Find the subsets of each layout that a tool may have exported into a folder, by their names ("": all images)."""
    images, labels = root / "images", root / "labels"
    splits = [root / name for names in ALIASES.values() for name in names]
    cvat = {path.stem.removeprefix("instances_"): path for path in root.glob("annotations/instances_*.json")}
    found: dict[Export, dict[str, Subset]] = {
        "CVAT": {
            name: Subset(path, images / name if (images / name).is_dir() else images)
            for name, path in cvat.items()
            if images.is_dir() and not name.endswith("2017")
        },
        "FiftyOne": {"": Subset(root / "labels.json", root / "data")} if (root / "data").is_dir() else {},
        "Roboflow": {
            "" if folder == root else folder.name: Subset(folder / "_annotations.coco.json", folder)
            for folder in (root, *splits)
        },
        "YOLO": {folder.name: Subset(folder / "labels", folder / "images") for folder in splits},
    }
    if labels.is_dir():
        with os.scandir(labels) as entries:
            inner = [name for name in (entry.name for entry in entries if entry.is_dir()) if _is_split(name)]
        found["YOLO"] |= {name: Subset(labels / name, images / name) for name in inner} or {"": Subset(labels, images)}
    return {
        layout: {name: subset for name, subset in subsets.items() if _is_subset(layout, subset)}
        for layout, subsets in found.items()
    }


def choose_subset(root: Path, layout: Export, split: str) -> Subset:
    """Choose the subset of a split of a layout that a tool exported; one without splits is used for each.

    Raises:
        InputError: there is none.
    """
    subsets = find_exports(root)[layout]
    chosen = [name for name in subsets if _is_split(name, ALIASES.get(split, (split,)))]
    chosen = chosen or [name for name in subsets if name in ("", "default")]
    if len(chosen) != 1:
        raise InputError(
            f"{root}: need the images of split {split} in the layout of {layout}; it has "
            f"{listed(sorted(chosen or subsets))}. Give another split, or the folder of the images and --annotations."
        )
    return subsets[chosen[0]]


def _is_split(name: str, aliases: Iterable[str] = (*chain(*ALIASES.values()),)) -> bool:
    """Whether a folder is called as a split is, also with a year."""
    return name.lower().rstrip("0123456789") in aliases


def _is_subset(layout: Export, subset: Subset) -> bool:
    if layout != "YOLO":
        return subset.annotations.is_file()
    return subset.images.is_dir() and subset.annotations.is_dir() and any(subset.annotations.glob("*.txt"))


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return "nothing, it does not exist"
    return listed(sorted(path.name for path in folder.iterdir()), 12) or "nothing"
