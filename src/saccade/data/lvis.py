"""LVIS v1 annotation files -> records: COCO's pictures with the boxes of 1,203 categories (Sec. 4.3).

    {"images": [{"id", "coco_url", "height", "width"}, ...], "annotations": [{"id", "image_id", "category_id", "bbox"}],
     "categories": [{"id", "name", "synonyms", "frequency"}, ...]}

A picture is named by its address alone, whose last two parts say where it lies below a COCO root: LVIS has another
split than COCO, so both of its files name pictures of train2017. Held to the same rules as COCO's (`strict.py`).
Deliberately absent: which categories were looked for in a picture (`neg_category_ids` ...: its evaluation).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from saccade.data.coco import list_things
from saccade.data.records import Dataset
from saccade.data.strict import check_entry, fail, field, list_categories, load, short
from saccade.types import Category


def read_lvis(json_path: Path | str, coco_root: Path | str, *, outlines: bool = False) -> Dataset:
    """Read an LVIS v1 file: pictures with the boxes of things.

    Args:
        json_path: the annotation file; xywh boxes, pixels of the picture.
        coco_root: the folder that holds `train2017/` and `val2017/`.
        outlines: read the masks too.

    Returns:
        One record a picture, also those without a box; categories by id, with their synonyms and frequency.

    Raises:
        InputError: the file is not what it must be; names the file, the entry and the field.
    """
    path = Path(json_path)
    return list_lvis(path, load(path, kind="an LVIS"), Path(coco_root), outlines=outlines)


def list_lvis(path: Path, content: dict[str, Any], coco_root: Path, *, outlines: bool = False) -> Dataset:
    """Turn the parsed content of an LVIS file into records; see `read_lvis`."""
    categories = list_lvis_categories(path, content["categories"])
    return list_things(path, content, coco_root, categories=categories, name_of=_name_of, outlines=outlines)


def is_lvis(content: dict[str, Any]) -> bool:
    """Whether the content of an annotation file names its pictures as LVIS v1 does: by address alone."""
    first = next(iter(content["images"]), None)
    return isinstance(first, dict) and "coco_url" in first and "file_name" not in first


def _name_of(where: str, entry: dict[str, Any]) -> str:
    url = field(where, entry, "coco_url", str, "the address of a COCO picture")
    parts = url.split("/")
    if len(parts) < 2 or not all(parts[-2:]):
        fail(where, "`coco_url` that ends in FOLDER/FILE, as .../train2017/000000391895.jpg", short(url))
    return "/".join(parts[-2:])


def list_lvis_categories(path: Path, entries: list[Any]) -> tuple[Category, ...]:
    """Read the categories of an LVIS file, by id, with their synonyms and frequency."""
    words: dict[int, tuple[tuple[str, ...], str]] = {}
    seen: set[int | str] = set()
    for entry in entries:
        where = check_entry(path, entry, "category", seen)
        synonyms, frequency = entry.get("synonyms"), entry.get("frequency")
        if not isinstance(synonyms, list) or not all(isinstance(word, str) and word for word in synonyms):
            fail(where, "`synonyms`, a list of words", short(synonyms))
        if frequency not in ("r", "c", "f"):
            fail(where, '`frequency`, "r", "c" or "f" (rare, common, frequent)', short(frequency))
        words[entry["id"]] = (tuple(synonyms), frequency)
    return tuple(
        replace(category, synonyms=words[category.id][0], frequency=words[category.id][1])
        for category in list_categories(path, entries)
    )
