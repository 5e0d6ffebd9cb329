"""Captions of images: what the text-supervised baselines learn from (Tab. 1, row 5; A.4).

    COCO     {"images": [{"id", "file_name", ...}], "annotations": [{"id", "image_id", "caption"}]}, in the standard
             place annotations/captions_SPLIT2017.json or anywhere
    shards   KEY.txt beside KEY.jpg, read when it is asked for
    plain    {"file name": ["caption", ...], ...}

A file that contradicts itself is refused, as `validation.py` does with annotations; a caption of nothing but blanks is left
out and counted, and so are those of images that are not in the data.
Deliberately absent: nouns (`nouns.py`), languages other than what a text tower reads, cleaning of web captions.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch

from foveate.data.datasets.shards import ShardRecords, ShardTexts
from foveate.data.layout import find_coco
from foveate.data.records import Dataset, IgnoredEntries
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
        dataset: of any kind, as `open_data` reads it.
        root: where it was read from; a COCO root's captions lie in the standard place.
        split: of a COCO root.
        file: captions in COCO's or the plain form, in place of those that come with the data.

    Returns:
        The same images with `captions`; what was left out is in `dropped`.

    Raises:
        InputError: there are no captions, or a file is not what it must be; names the file, the entry and the reason.
    """
    if file is not None:
        return _from_file(dataset, file)
    if isinstance(dataset.records, ShardRecords):
        texts = dataset.records.texts()
        if not texts.has_text().any():
            raise InputError(f"{dataset.name}: need KEY.txt beside KEY.jpg in the shards; they hold no text.")
        return replace(dataset, captions=texts)
    if (Path(root) / "annotations").is_dir():
        found = find_coco(root, split).captions
        if found is not None:
            return _from_file(dataset, found)
    raise InputError(
        f"{root}: need captions; looked for annotations/captions_{split}2017.json and for tar shards with KEY.txt. "
        "Name a file of them with --captions."
    )


def only_captioned(dataset: Dataset) -> Dataset:
    """Leave out, and count, the images without a caption.

    Args:
        dataset: of `with_captions`.
    """
    captions = dataset.captions
    has = captions.has_text() if isinstance(captions, ShardTexts) else np.array([bool(one) for one in captions])
    if has.all():
        return dataset
    first = dataset.records[int(np.flatnonzero(~has)[0])]
    ignored = {**dataset.ignored, NO_CAPTION: IgnoredEntries(int((~has).sum()), str(first.id))}
    places = np.flatnonzero(has)
    return replace(dataset, records=_Part(dataset.records, places), captions=_Part(captions, places), ignored=ignored)


def draw_caption(captions: tuple[str, ...], *, generator: torch.Generator) -> str:
    """Draw one of an image's captions.

    Args:
        captions: of one image.
        generator: of this image and epoch.

    Raises:
        InputError: it has none.
    """
    if not captions:
        raise InputError("need a caption; this image has none, or a blank one.")
    return captions[int(torch.randint(len(captions), (), generator=generator))]


def read_captions(path: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, IgnoredEntries]]:
    """Read the captions of each image from a file.

    Args:
        path: a JSON file in COCO's or the plain form.

    Returns:
        The captions by the image's file name, without blanks around them; and what was left out, by reason.

    Raises:
        InputError: not such a file, an id or a name twice, a caption that is no text, or no caption at all; names the
            file, the entry and the reason.
    """
    content = parse(path, kind="a captions", unique=True)
    ignored: dict[str, IgnoredEntries] = {}
    is_coco = isinstance(content, dict) and "annotations" in content and not _is_list_of_texts(content["annotations"])
    found = _read_coco(path, content, ignored) if is_coco else _read_plain(path, content, ignored)
    if not any(found.values()):
        raise InputError(f"{path}: need at least one caption; there is none. Is this the right file?")
    return found, ignored


def _read_coco(path: Path, content: Any, ignored: dict[str, IgnoredEntries]) -> dict[str, tuple[str, ...]]:
    check_lists(path, content, kind="a COCO captions", lists=("images", "annotations"))
    names = {key: image.name for key, image in list_images(path, content["images"]).items()}
    if len(set(names.values())) < len(names):
        twice = next(name for name in names.values() if list(names.values()).count(name) > 1)
        fail(str(path), "every `file_name` once", f"{short(twice)} twice")
    found: dict[str, list[str]] = {name: [] for name in names.values()}
    seen: set[int | str] = set()
    for entry in content["annotations"]:
        where = check_entry(path, entry, "annotation", seen)
        known_id(where, entry, "image_id", names)
        text = field(where, entry, "caption", str, "a text (is this an instances file?)")
        _take(found[names[entry["image_id"]]], text, where, ignored)
    return {name: tuple(texts) for name, texts in found.items()}


def _read_plain(path: Path, content: Any, ignored: dict[str, IgnoredEntries]) -> dict[str, tuple[str, ...]]:
    need = '{"file name": ["caption", ...], ...}, or COCO\'s images and annotations'
    if not isinstance(content, dict) or not content:
        fail(str(path), need, short(content))
    found = {}
    for name, texts in content.items():
        where = f"{path}: image {short(name)}"
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            fail(where, "a list of texts", short(texts))
        found[name] = []
        for text in texts:
            _take(found[name], text, where, ignored)
    return {name: tuple(texts) for name, texts in found.items()}


def _is_list_of_texts(value: Any) -> bool:
    """Whether this may be the captions of an image called "annotations"."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _take(texts: list[str], text: str, where: str, ignored: dict[str, IgnoredEntries]) -> None:
    if text.strip():
        texts.append(text.strip())
    else:
        count_ignored(ignored, BLANK, where)


def _from_file(dataset: Dataset, path: Path) -> Dataset:
    """Bring the captions of a file to the places of the images they are about."""
    found, more = read_captions(path)
    ignored = {**dataset.ignored, **more}
    matched = match_images(found, dataset.records, path, ignored, reason=UNKNOWN_IMAGE)
    taken = {index: found[name] for index, name in matched.items()}
    if not any(taken.values()):
        raise InputError(
            f"{path}: need captions of the data's images; none of its {len(found)} (such as {next(iter(found))!r}) "
            f"is among the {len(dataset.records)} (such as {str(dataset.records[0].id)!r}), or these have none. "
            "Is it about another split or data set?"
        )
    captions = tuple(taken.get(place, ()) for place in range(len(dataset.records)))
    return replace(dataset, captions=captions, ignored=ignored)


Item = TypeVar("Item")


class _Part(Sequence[Item]):
    """Some items of a sequence that makes them when they are asked for."""

    def __init__(self, whole: Sequence[Item], places: np.ndarray) -> None:
        self._whole, self._places = whole, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Item, ...]: ...
    def __getitem__(self, place: int | slice) -> Item | tuple[Item, ...]:
        if isinstance(place, slice):
            return tuple(self._whole[one] for one in self._places[place].tolist())
        return self._whole[int(self._places[place])]
