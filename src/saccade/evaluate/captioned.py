"""Pictures with their captions: what image-text retrieval is measured on.

    COCO root       annotations/captions_SPLIT2017.json, the first 5 captions a picture in the file's order
    tar shards      KEY.jpg beside KEY.txt

Deliberately absent: captions for training, and splits of others' making (a captions file can be cut to any).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saccade.data.coco import Dataset, Record
from saccade.data.records import Dropped
from saccade.data.shards import MAX_TEXT, index_shard
from saccade.data.strict import check_entry, drop, fail, field, known_id, list_images, picture_paths
from saccade.types import InputError

FIRST = 5  # captions a picture; the published protocol of COCO and Flickr30k
NO_CAPTION = "picture has no caption"


@dataclass(frozen=True)
class Captioned:
    """Pictures and, by their id, what is said of each."""

    dataset: Dataset
    captions: dict[str, tuple[str, ...]]


def coco_captions(path: Path, folder: Path) -> Captioned:
    """Read a COCO captions file.

    Args:
        path: annotations/captions_SPLIT2017.json.
        folder: of the split's pictures.

    Returns:
        The pictures that have a caption, in the file's order; the others are counted in `dropped`.

    Raises:
        InputError: the file is not what it must be, or holds no caption.
    """
    content = _load(path)
    images = list_images(path, content["images"])
    found: dict[int | str, list[str]] = {key: [] for key in images}
    seen: set[int | str] = set()
    for entry in content["annotations"]:
        where = check_entry(path, entry, "annotation", seen)
        key = known_id(where, entry, "image_id", images)
        text = field(where, entry, "caption", str, "a sentence").strip()
        if not text:
            fail(where, "`caption`, a sentence", "blanks")
        found[key].append(text)
    paths = picture_paths(path, {key: image.name for key, image in images.items()}, folder)
    dropped: dict[str, Dropped] = {}
    records = []
    for key, image in images.items():
        if found[key]:
            records.append(Record(key, paths[key], image.height, image.width))
        else:
            drop(dropped, NO_CAPTION, f"{path}: image {key}")
    if not records:
        raise InputError(f"{path}: need captions of pictures; it holds none.")
    captions = {str(record.id): tuple(found[record.id][:FIRST]) for record in records}
    return Captioned(Dataset(path.stem, (), tuple(records), dropped), captions)


def shard_captions(dataset: Dataset, *, limit: int | None = None) -> Captioned:
    """Read the texts that lie beside the pictures of tar shards.

    Args:
        dataset: of `read_shards`.
        limit: only the first so many pictures; None = all.

    Returns:
        The pictures that have a text; the others are counted in `dropped`.

    Raises:
        InputError: no text at all, or one that is empty, too long or not UTF-8; names shard and key.
    """
    dropped, captions, records = dict(dataset.dropped), {}, []
    places: dict[Path, dict[str, tuple[int, int]]] = {}  # of the texts of a shard: first byte, bytes
    for record in _first(dataset.records, limit):
        assert record.member is not None, f"{record.id}: not a picture of a shard"
        if record.path not in places:
            index = index_shard(record.path)
            rows = ((int(first), int(size)) for first, size in index.texts)
            places[record.path] = dict(zip(index.keys, rows, strict=True))
        first, size = places[record.path][record.member.key]
        if size < 0:
            drop(dropped, NO_CAPTION, str(record.id))
        else:
            captions[str(record.id)] = (_read_text(record, first, size),)
            records.append(record)
    if not records:
        raise InputError(f"{dataset.name}: need a KEY.txt beside each KEY.jpg of the shards; there is none.")
    return Captioned(replace(dataset, records=tuple(records), dropped=dropped), captions)


def _first(records: Sequence[Record], limit: int | None) -> Sequence[Record]:
    return records if limit is None else records[:limit]


def _read_text(record: Record, first: int, size: int) -> str:
    if size > MAX_TEXT:
        raise InputError(f"{record.id}: need a caption of at most {MAX_TEXT:,} bytes; it has {size:,}. Shorten it.")
    with record.path.open("rb") as file:
        file.seek(first)
        content = file.read(size)
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{record.id}: need a caption in UTF-8; {error}. Write the text again.") from error
    if not text:
        raise InputError(f"{record.id}: need a caption; its text is empty. Write one, or take the text file out.")
    return text


def _load(path: Path) -> dict[str, Any]:
    """Parse a captions file, which unlike the other files of COCO lists no categories."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: need a COCO captions file in JSON; {type(error).__name__}: {error}.") from error
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("images", "annotations")
    ):
        fail(str(path), "a COCO captions file: an object with the lists `images` and `annotations`", "something else")
    return content
