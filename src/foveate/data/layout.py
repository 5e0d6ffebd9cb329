"""Where the files of one split lie in COCO's standard layout.

    ROOT/{train,val,test}2017/    ROOT/annotations/{instances,panoptic,captions}_SPLIT2017.json + panoptic_SPLIT2017/

Deliberately absent: reading any of them (`coco.py`), other layouts.
"""

from dataclasses import dataclass
from pathlib import Path

from foveate.errors import InputError, listed


@dataclass(frozen=True)
class CocoFiles:
    """Where one split of a COCO root lies; None: that file is not there."""

    images: Path
    instances: Path | None
    captions: Path | None


def find_images(root: Path | str, split: str) -> Path:
    """Find the folder of one split's images in COCO's standard layout.

    Args:
        root: the folder that holds `train2017/`, `val2017/` ...
        split: "train", "val" or "test".

    Raises:
        InputError: another split, or there is no such folder; says what was looked for.
    """
    if split not in ("train", "val", "test"):
        raise InputError(f'split: must be "train", "val" or "test"; got "{split}".')
    images = Path(root) / f"{split}2017"
    if not images.is_dir():
        raise InputError(
            f"{root}: need a COCO root with the images of split {split} in {images}; there is no such folder. "
            f"It holds: {_listing(Path(root))}. Check the path and the split."
        )
    return images


def find_coco(root: Path | str, split: str) -> CocoFiles:
    """Find the files of one split in COCO's standard layout.

    Args:
        root: the folder that holds `train2017/`, `val2017/`, `annotations/` ...
        split: "train", "val" or "test".

    Raises:
        InputError: the images' folder or every annotation file of the split is missing; says what was looked for.
    """
    root = Path(root)
    images, notes = find_images(root, split), root / "annotations"
    wanted = {kind: notes / f"{kind}_{split}2017.json" for kind in ("instances", "panoptic", "captions")}
    there = {kind: path if path.is_file() else None for kind, path in wanted.items()}
    if not any(there.values()):
        raise InputError(
            f"{root}: need an annotation file of split {split}; looked for {', '.join(map(str, wanted.values()))}. "
            f"{notes} holds: {_listing(notes)}."
        )
    return CocoFiles(images, instances=there["instances"], captions=there["captions"])


def box_files(root: Path, split: str) -> tuple[Path, Path]:
    """Where COCO's and LVIS's annotation files of a split are in a root, whether or not they are there."""
    return root / "annotations" / f"instances_{split}2017.json", root / "annotations" / f"lvis_v1_{split}.json"


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return "nothing, there is no such folder"
    names = sorted(path.name for path in folder.iterdir())
    return listed(names, 12) or "nothing"
