"""Captions of images: what the text-supervised baselines learn from (Tab. 1, row 5; A.4).

    COCO     {"images": [{"id", "file_name", ...}], "annotations": [{"id", "image_id", "caption"}]}, at the standard
             path annotations/captions_SPLIT2017.json or in any file
    shards   KEY.txt beside KEY.jpg, read on demand
    plain    {"file name": ["caption", ...], ...}

A file that contradicts itself is refused; blank captions, and captions of images that are not in the data, are ignored
and counted. Captions are not cleaned; their nouns are found in `nouns.py`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.data.datasets.shards import ShardRecords, ShardTexts
from foveate.data.layout import find_coco
from foveate.data.records import Dataset, IgnoredEntries, Item, LazySequence
from foveate.data.regions import match_images
from foveate.data.validation import (
    check_entry,
    check_lists,
    count_ignored,
    fail,
    field,
    known_id,
    list_images,
    parse,
    short,
)
from foveate.errors import InputError

BLANK = "caption is blank"
UNKNOWN_IMAGE = "image of the captions file is not in the data"
NO_CAPTION = "image has no caption"


def with_captions(dataset: Dataset, *, root: Path | str, split: str, file: Path | None = None) -> Dataset:
    """Give the images of a data set their captions.

    Args:
        dataset: of any kind, from `open_data`.
        root: the folder or shards that `dataset` was read from.
        split: of a COCO root.
        file: captions in COCO's or the plain form, instead of those in the root.

    Raises:
        InputError: there are no captions, or a file is malformed; names the file, the entry and the reason.
    """
    if file is not None:
        return _from_file(dataset, file)
    if isinstance(dataset.records, ShardRecords):
        texts = dataset.records.texts()
        if not texts.has_text().any():
            raise InputError(f"{dataset.name}: need KEY.txt beside KEY.jpg in the shards; got no text. "
                             "Give a file of captions with --captions.")  # fmt: skip
        return replace(dataset, captions=texts)
    if (Path(root) / "annotations").is_dir():
        captions = find_coco(root, split).captions
        if captions is not None:
            return _from_file(dataset, captions)
    raise InputError(
        f"{root}: need captions; found neither annotations/captions_{split}2017.json nor tar shards with KEY.txt. "
        "Give a file of captions with --captions."
    )


def only_captioned(dataset: Dataset) -> Dataset:
    """Ignore and count the images without a caption, in a data set from `with_captions`."""
    captions = dataset.captions
    has = captions.has_text() if isinstance(captions, ShardTexts) else np.array([bool(texts) for texts in captions])
    if has.all():
        return dataset
    first = dataset.records[int(np.flatnonzero(~has)[0])]
    ignored = {**dataset.ignored, NO_CAPTION: IgnoredEntries(int((~has).sum()), str(first.id))}
    indices = np.flatnonzero(has)
    records, captions = _Subset(dataset.records, indices), _Subset(captions, indices)
    return replace(dataset, records=records, captions=captions, ignored=ignored)


def draw_caption(captions: tuple[str, ...], *, generator: torch.Generator) -> str:
    """Draw one of an image's captions; InputError if it has none."""
    if not captions:
        raise InputError("need a caption; this image has none, or a blank one.")
    return captions[int(torch.randint(len(captions), (), generator=generator))]


def read_captions(path: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, IgnoredEntries]]:
    """Read a JSON file of captions in COCO's or the plain form.

    Returns:
        The captions by the image's file name, stripped; and what was ignored.

    Raises:
        InputError: another form, a repeated id or name, a caption that is not a string, or no caption at all; names the
            file, the entry and the reason.
    """
    content = parse(path, kind="a captions")
    ignored: dict[str, IgnoredEntries] = {}
    annotations = content.get("annotations") if isinstance(content, dict) else None
    # a plain file may have an image called "annotations"
    is_captions = isinstance(annotations, list) and annotations and all(isinstance(text, str) for text in annotations)
    is_coco = isinstance(content, dict) and "annotations" in content and not is_captions
    captions = _read_coco(path, content, ignored) if is_coco else _read_plain(path, content, ignored)
    if not any(captions.values()):
        raise InputError(f"{path}: need at least one caption; got none. Is this the right file?")
    return captions, ignored


def _read_coco(path: Path, content: Any, ignored: dict[str, IgnoredEntries]) -> dict[str, tuple[str, ...]]:
    check_lists(path, content, kind="a COCO captions", lists=("images", "annotations"))
    names = {key: image.name for key, image in list_images(path, content["images"]).items()}
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    if repeated:
        fail(str(path), "a unique `file_name` per image", f"{short(repeated[0])} twice")
    captions: dict[str, list[str]] = {name: [] for name in names.values()}
    seen: set[int | str] = set()
    for entry in content["annotations"]:
        where = check_entry(path, entry, "annotation", seen)
        name = names[known_id(where, entry, "image_id", names)]
        text = field(where, entry, "caption", str, "a string (is this an instances file?)")
        _add(captions[name], text, where, ignored)
    return {name: tuple(texts) for name, texts in captions.items()}


def _read_plain(path: Path, content: Any, ignored: dict[str, IgnoredEntries]) -> dict[str, tuple[str, ...]]:
    if not isinstance(content, dict) or not content:
        fail(str(path), '{"file name": ["caption", ...], ...}, or COCO\'s images and annotations', short(content))
    captions: dict[str, list[str]] = {}
    for name, texts in content.items():
        where = f"{path}: image {short(name)}"
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            fail(where, "a list of strings", short(texts))
        captions[name] = []
        for text in texts:
            _add(captions[name], text, where, ignored)
    return {name: tuple(texts) for name, texts in captions.items()}


def _add(texts: list[str], text: str, where: str, ignored: dict[str, IgnoredEntries]) -> None:
    if text.strip():
        texts.append(text.strip())
    else:
        count_ignored(ignored, BLANK, where)


def _from_file(dataset: Dataset, path: Path) -> Dataset:
    """The data set with the captions of a file, in the order of its images."""
    by_name, ignored = read_captions(path)
    ignored, notes = {**dataset.ignored, **ignored}, list(dataset.notes)
    matched = match_images(by_name, dataset.records, path, ignored, reason=UNKNOWN_IMAGE, notes=notes)
    by_index = {index: by_name[name] for index, name in matched.items()}
    if not any(by_index.values()):
        raise InputError(
            f"{path}: need captions of the data's images; none of its {len(by_name)} (such as "
            f"{next(iter(by_name))!r}) is among the {len(dataset.records)} (such as {str(dataset.records[0].id)!r}), "
            "or these have none. Is this the file of another split or data set?"
        )
    captions = tuple(by_index.get(index, ()) for index in range(len(dataset.records)))
    return replace(dataset, captions=captions, ignored=ignored, notes=tuple(notes))


class _Subset(LazySequence[Item]):
    """Some items of a sequence."""

    def __init__(self, items: Sequence[Item], indices: np.ndarray) -> None:
        self._items, self._indices = items, indices

    def __len__(self) -> int:
        return len(self._indices)

    def item(self, index: int) -> Item:
        return self._items[int(self._indices[index])]
