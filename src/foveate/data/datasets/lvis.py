"""LVIS v1 annotation files -> records: COCO's images with the boxes of 1,203 categories (Sec. 4.3).

    {"images": [{"id", "coco_url", "height", "width"}, ...], "annotations": [{"id", "image_id", "category_id", "bbox"}],
     "categories": [{"id", "name", "synonyms", "frequency"}, ...]}

The last two parts of an image's URL are its path below a COCO root: LVIS splits the images differently, so both of its
files name images of train2017. Copies of LVIS's files, such as minival, often have `file_name` too, and other folders.
The categories that were checked in an image (`neg_category_ids` ...) are read by its evaluation.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from foveate.data.annotation_file import load
from foveate.data.datasets.coco import list_things
from foveate.data.records import Dataset
from foveate.data.validation import check_entry, escapes, fail, field, file_name, list_categories, short
from foveate.types import Category

FREQUENCIES = ("r", "c", "f")  # rare, common, frequent
FOLDERS = ("", "train2017", "val2017")  # below the root, of images with a `file_name`
MAX_PROBED = 100  # images looked for to find the folder of all


def read_lvis(
    json_path: Path | str, coco_root: Path | str, *, content: dict[str, Any] | None = None, with_masks: bool = False
) -> Dataset:
    """Read an LVIS v1 file: images with the boxes of things.

    Args:
        json_path: the annotation file; xywh boxes, pixels of the image.
        coco_root: the folder of `train2017/` and `val2017/`.
        content: of the file, if it is parsed already.
        with_masks: read the masks too.

    Returns:
        One record per image, also without boxes; categories sorted by id, with their synonyms and frequency.

    Raises:
        InputError: the file is malformed; names the file, the entry and the field.
    """
    path, root = Path(json_path), Path(coco_root)
    content = load(path, kind="an LVIS") if content is None else content
    categories = list_lvis_categories(path, content)
    naming, name_of = _naming(root, content)
    return list_things(
        path, content, root, categories=categories, name_of=name_of, naming=naming, with_masks=with_masks
    )


def is_lvis(content: dict[str, Any]) -> bool:
    """Whether the content of an annotation file is LVIS's.

    It is if categories have a `frequency`, images have `neg_category_ids`, or images have a URL but no file name.
    """
    category, image = next(iter(content["categories"]), None), next(iter(content["images"]), None)
    if isinstance(category, dict) and category.get("frequency") in FREQUENCIES:
        return True
    if not isinstance(image, dict):
        return False
    return "neg_category_ids" in image or ("coco_url" in image and "file_name" not in image)


def _naming(root: Path, content: dict[str, Any]) -> tuple[str, Callable[[str, dict[str, Any]], str]]:
    """How the file names its images: by URL, or by `file_name` if only that leads to existing images."""
    images = [image for image in islice(content["images"], MAX_PROBED) if isinstance(image, dict)]
    urls = [image["coco_url"].split("/") for image in images if isinstance(image.get("coco_url"), str)]
    names = [image["file_name"] for image in images if isinstance(image.get("file_name"), str)]
    if not names or _any_file(root, ["/".join(parts[-2:]) for parts in urls]):
        return "coco_url", _path_in_url
    folder = next((folder for folder in FOLDERS if _any_file(root / folder, names)), None)
    if folder is None:
        return ("coco_url", _path_in_url) if urls else ("file_name", file_name)
    return f"{folder}/file_name", lambda where, entry: (Path(folder) / file_name(where, entry)).as_posix()


def _any_file(root: Path, names: list[str]) -> bool:
    return any(not escapes(name) and (root / name).is_file() for name in names)


def _path_in_url(where: str, entry: dict[str, Any]) -> str:
    url = field(where, entry, "coco_url", str, "the URL of a COCO image")
    parts = url.split("/")
    if len(parts) < 2 or not all(parts[-2:]):
        fail(where, "`coco_url` that ends in FOLDER/FILE, as .../train2017/000000391895.jpg", short(url))
    return "/".join(parts[-2:])


def file_categories(path: Path, content: dict[str, Any]) -> tuple[Category, ...]:
    """Read the categories of an annotation file, LVIS's or another, sorted by id."""
    return (list_lvis_categories if is_lvis(content) else list_categories)(path, content)


def list_lvis_categories(path: Path, content: dict[str, Any]) -> tuple[Category, ...]:
    """Read the categories of an LVIS file, sorted by id, with their synonyms and frequency."""
    extras: dict[int, dict[str, Any]] = {}
    seen: set[int | str] = set()
    for entry in content["categories"]:
        where = check_entry(path, entry, "category", seen)
        synonyms, frequency = entry.get("synonyms", []), entry.get("frequency")
        if not isinstance(synonyms, list) or not all(isinstance(name, str) and name for name in synonyms):
            fail(where, "`synonyms`, a list of names", short(synonyms))
        if frequency not in FREQUENCIES:
            fail(where, '`frequency`, "r", "c" or "f" (rare, common, frequent)', short(frequency))
        extras[entry["id"]] = {"synonyms": tuple(synonyms), "frequency": frequency}
    return tuple(replace(category, **extras[category.id]) for category in list_categories(path, content))
