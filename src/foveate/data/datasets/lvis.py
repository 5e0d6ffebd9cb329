"""LVIS v1 annotation files -> records: COCO's images with the boxes of 1,203 categories (Sec. 4.3).

    {"images": [{"id", "coco_url", "height", "width"}, ...], "annotations": [{"id", "image_id", "category_id", "bbox"}],
     "categories": [{"id", "name", "synonyms", "frequency"}, ...]}

An image is named by its address, whose last two parts say where it lies below a COCO root: LVIS has another split than
COCO, so both of its files name images of train2017. Copies of LVIS's files, such as minival, often have `file_name`
beside it, and their images elsewhere. Held to the same rules as COCO's (`validation.py`).
Deliberately absent: which categories were looked for in an image (`neg_category_ids` ...: its evaluation).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.data.datasets.coco import list_things
from foveate.data.records import Dataset
from foveate.data.validation import check_entry, escapes, fail, field, file_name, list_categories, load, short
from foveate.types import Category

FREQUENCIES = ("r", "c", "f")  # rare, common, frequent
FOLDERS = ("", "train2017", "val2017")  # where an image that is named by `file_name` may lie below the root
TRIED = 100  # images by which the place of all is found


def read_lvis(json_path: Path | str, coco_root: Path | str, *, with_masks: bool = False) -> Dataset:
    """Read an LVIS v1 file: images with the boxes of things.

    Args:
        json_path: the annotation file; xywh boxes, pixels of the image.
        coco_root: the folder that holds `train2017/` and `val2017/`.
        with_masks: read the masks too.

    Returns:
        One record an image, also those without a box; categories by id, with their synonyms and frequency.

    Raises:
        InputError: the file is not what it must be; names the file, the entry and the field.
    """
    path = Path(json_path)
    return list_lvis(path, load(path, kind="an LVIS"), Path(coco_root), with_masks=with_masks)


def list_lvis(path: Path, content: dict[str, Any], coco_root: Path, *, with_masks: bool = False) -> Dataset:
    """Turn the parsed content of an LVIS file into records; see `read_lvis`."""
    categories = list_lvis_categories(path, content["categories"])
    name_of = _names_below(coco_root, content)
    return list_things(path, content, coco_root, categories=categories, name_of=name_of, with_masks=with_masks)


def is_lvis(content: dict[str, Any]) -> bool:
    """Whether the content of an annotation file is LVIS's.

    That is what has categories with a `frequency`, images with `neg_category_ids`, or images named by address alone.
    """
    category, image = next(iter(content["categories"]), None), next(iter(content["images"]), None)
    if isinstance(category, dict) and category.get("frequency") in FREQUENCIES:
        return True
    if not isinstance(image, dict):
        return False
    return "neg_category_ids" in image or ("coco_url" in image and "file_name" not in image)


def _names_below(root: Path, content: dict[str, Any]) -> Callable[[str, dict[str, Any]], str]:
    """How the file names its images: by address, or, where none lies there but where `file_name` says, by that."""
    some = [one for one in content["images"][:TRIED] if isinstance(one, dict)]
    urls = [one["coco_url"].split("/") for one in some if isinstance(one.get("coco_url"), str)]
    names = [one["file_name"] for one in some if isinstance(one.get("file_name"), str)]
    if not names or _any_file(root, ["/".join(parts[-2:]) for parts in urls]):
        return _address
    folder = next((one for one in FOLDERS if _any_file(root / one, names)), None)
    if folder is None:
        return _address if urls else file_name
    return lambda where, entry: (Path(folder) / file_name(where, entry)).as_posix()


def _any_file(root: Path, names: list[str]) -> bool:
    return any(not escapes(name) and (root / name).is_file() for name in names)


def _address(where: str, entry: dict[str, Any]) -> str:
    url = field(where, entry, "coco_url", str, "the address of a COCO image")
    parts = url.split("/")
    if len(parts) < 2 or not all(parts[-2:]):
        fail(where, "`coco_url` that ends in FOLDER/FILE, as .../train2017/000000391895.jpg", short(url))
    return "/".join(parts[-2:])


def file_categories(path: Path, content: dict[str, Any]) -> tuple[Category, ...]:
    """Read the categories of an annotation file, LVIS's or another, by id."""
    return (list_lvis_categories if is_lvis(content) else list_categories)(path, content["categories"])


def list_lvis_categories(path: Path, entries: list[Any]) -> tuple[Category, ...]:
    """Read the categories of an LVIS file, by id, with their synonyms and frequency."""
    words: dict[int, tuple[tuple[str, ...], str]] = {}
    seen: set[int | str] = set()
    for entry in entries:
        where = check_entry(path, entry, "category", seen)
        synonyms, frequency = entry.get("synonyms", []), entry.get("frequency")
        if not isinstance(synonyms, list) or not all(isinstance(word, str) and word for word in synonyms):
            fail(where, "`synonyms`, a list of words", short(synonyms))
        if frequency not in FREQUENCIES:
            fail(where, '`frequency`, "r", "c" or "f" (rare, common, frequent)', short(frequency))
        words[entry["id"]] = (tuple(synonyms), frequency)
    return tuple(
        replace(category, synonyms=words[category.id][0], frequency=words[category.id][1])
        for category in list_categories(path, entries)
    )
