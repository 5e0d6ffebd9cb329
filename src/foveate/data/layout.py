"""Files of one split in COCO's standard layout.

ROOT/{train,val,test}2017/    ROOT/annotations/{instances,panoptic,captions}_SPLIT2017.json + panoptic_SPLIT2017/
"""

from dataclasses import dataclass
from pathlib import Path

from foveate.errors import InputError, listed


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


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return "nothing, it does not exist"
    return listed(sorted(path.name for path in folder.iterdir()), 12) or "nothing"
