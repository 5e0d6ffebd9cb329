"""Objects365 annotation files, v1 and v2 -> records: COCO's form with other file and folder names.

    v1    objects365_SPLIT.json         "file_name": "obj365_train_000000000001.jpg"
    v2    zhiyuan_objv2_SPLIT.json      "file_name": "images/v1/patch8/objects365_v1_00420917.jpg"

The archives are unpacked in several ways: the images are looked for under the whole name, its last two parts and its
last part, in ROOT, ROOT/SPLIT, ROOT/images and ROOT/images/SPLIT. The first combination that leads to one of the first
images is used for all. Images that the official archives lack are unreadable images, counted when they are read.
"""

from itertools import islice, product
from pathlib import Path, PurePosixPath
from typing import Any

from foveate.data.annotation_file import load
from foveate.data.datasets.coco import list_things
from foveate.data.records import Dataset
from foveate.data.validation import escapes, fail, file_name, list_categories
from foveate.errors import InputError

MAX_PROBED = 200  # images looked for to find the folder of all; some are missing in the archives
FILE_NAMES = ("zhiyuan_objv2_{split}.json", "objv2_{split}.json", "objects365_{split}.json")


def read_objects365(
    json_path: Path | str, root: Path | str, *, split: str, content: dict[str, Any] | None = None
) -> Dataset:
    """Read an Objects365 file: images with the boxes of things.

    Args:
        json_path: the annotation file; xywh boxes, pixels of the image.
        root: the folder of the images, or of the folders they are in.
        split: "train" or "val": the folder that the images may be in.
        content: of the file, if it is parsed already.

    Returns:
        One record per image, also without boxes; categories sorted by id.

    Raises:
        InputError: the file is malformed, or no image is found; names the file, the entry and the field.
    """
    path, root = Path(json_path), Path(root)
    content = load(path, kind="an Objects365") if content is None else content
    folder, depth = _find_images(path, content["images"], root, split)

    def name_of(where: str, entry: dict[str, Any]) -> str:
        name = file_name(where, entry)
        if escapes(name):
            fail(where, f"`file_name` inside {folder}", repr(name))
        return "/".join(PurePosixPath(name).parts[-depth:])

    categories = list_categories(path, content)
    return list_things(
        path, content, folder, categories=categories, name_of=name_of, naming=f"last {depth} of file_name"
    )


def find_objects365(root: Path, split: str) -> list[Path]:
    """Find the annotation files of a split by their names: in ROOT, ROOT/annotations, ROOT/SPLIT."""
    names = [name.format(split=split) for name in FILE_NAMES]
    files = [folder / name for folder in (root, root / "annotations", root / split) for name in names]
    return [file for file in files if file.is_file()]


def is_objects365(content: dict[str, Any]) -> bool:
    """Whether the content of an annotation file names its images as Objects365 does."""
    first = next(iter(content["images"]), None)
    name = first.get("file_name") if isinstance(first, dict) else None
    return isinstance(name, str) and PurePosixPath(name).name.startswith(("objects365_", "obj365_"))


def _find_images(path: Path, entries: list[Any], root: Path, split: str) -> tuple[Path, int]:
    """The folder of the images, and how many of the last parts of their names are below it."""
    first = list(islice(entries, MAX_PROBED))
    names = [
        PurePosixPath(entry["file_name"])
        for entry in first
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str) and not escapes(entry["file_name"])
    ]
    folders = (root, root / split, root / "images", root / "images" / split)
    max_depth = max((len(name.parts) for name in names), default=1)
    for depth, folder in product((max_depth, 2, 1), folders):
        if any(folder.joinpath(*name.parts[-depth:]).is_file() for name in names):
            return folder, depth
    if len(names) < len(first) or not names:
        return root, max_depth  # no image to look for, or a malformed entry, which `list_things` reports
    raise InputError(
        f"{path}: need the images it names in {', '.join(map(str, folders))}; none of the first {len(names)} exists "
        f"(the first: {names[0]}). Check the path and the split, and whether the archives are unpacked."
    )
