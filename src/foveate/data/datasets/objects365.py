"""Objects365 annotation files, v1 and v2 -> records: COCO's form with names of its own for files and folders.

    v1    objects365_SPLIT.json         "file_name": "obj365_train_000000000001.jpg"
    v2    zhiyuan_objv2_SPLIT.json      "file_name": "images/v1/patch8/objects365_v1_00420917.jpg"

The archives unpack in several ways, so the images are looked for under the whole name, then under its last two parts
and its last one, in ROOT, ROOT/SPLIT, ROOT/images and ROOT/images/SPLIT; the first way that finds one of the first
images serves for all of them.
Deliberately absent: downloading, and repairing images that the official archives lack (each is counted in its step).
"""

from itertools import islice, product
from pathlib import Path, PurePosixPath
from typing import Any

from foveate.data.datasets.coco import list_things
from foveate.data.records import Dataset
from foveate.data.validation import escapes, fail, file_name, list_categories, load
from foveate.errors import InputError

TRIED = 200  # images that are looked for; some are missing everywhere
NAMES = ("zhiyuan_objv2_{split}.json", "objv2_{split}.json", "objects365_{split}.json")


def read_objects365(json_path: Path | str, root: Path | str, *, split: str) -> Dataset:
    """Read an Objects365 file: images with the boxes of things.

    Args:
        json_path: the annotation file; xywh boxes, pixels of the image.
        root: the folder that holds the images, or the folders they are in.
        split: "train" or "val": the folder that the split's images may lie in.

    Returns:
        One record an image, also those without a box; categories by id.

    Raises:
        InputError: the file is not what it must be, or no image is found; names the file, the entry and the field.
    """
    path = Path(json_path)
    return list_objects365(path, load(path, kind="an Objects365"), Path(root), split=split)


def list_objects365(path: Path, content: dict[str, Any], root: Path, *, split: str) -> Dataset:
    """Turn the parsed content of an Objects365 file into records; see `read_objects365`."""
    folder, kept = _find_form(path, content["images"], root, split)

    def name_of(where: str, entry: dict[str, Any]) -> str:
        name = file_name(where, entry)
        if escapes(name):
            fail(where, f"`file_name` inside {folder}", repr(name))
        return "/".join(PurePosixPath(name).parts[-kept:])

    categories = list_categories(path, content["categories"])
    return list_things(path, content, folder, categories=categories, name_of=name_of)


def find_objects365(root: Path, split: str) -> list[Path]:
    """Find the annotation files of a split by their names: in ROOT, ROOT/annotations, ROOT/SPLIT."""
    names = [name.format(split=split) for name in NAMES]
    files = [folder / name for folder in (root, root / "annotations", root / split) for name in names]
    return [file for file in files if file.is_file()]


def is_objects365(content: dict[str, Any]) -> bool:
    """Whether the content of an annotation file names its images as Objects365 does."""
    first = next(iter(content["images"]), None)
    name = first.get("file_name") if isinstance(first, dict) else None
    return isinstance(name, str) and PurePosixPath(name).name.startswith(("objects365_", "obj365_"))


def _find_form(path: Path, entries: list[Any], root: Path, split: str) -> tuple[Path, int]:
    """The folder that the images lie in, and how many of the last parts of their names lead to them."""
    first = list(islice(entries, TRIED))
    names = [
        PurePosixPath(entry["file_name"])
        for entry in first
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str) and not escapes(entry["file_name"])
    ]
    folders = (root, root / split, root / "images", root / "images" / split)
    longest = max((len(name.parts) for name in names), default=1)
    for kept, folder in product((longest, 2, 1), folders):
        if any(folder.joinpath(*name.parts[-kept:]).is_file() for name in names):
            return folder, kept
    if len(names) < len(first) or not names:
        return root, longest  # nothing to find, or a damaged entry: the strict reader says which
    raise InputError(
        f"{path}: need the images it names in {', '.join(map(str, folders))}; none of the first {len(names)} is "
        f"there (the first: {names[0]}). Check the path and the split, and whether the archives are unpacked."
    )
