"""Maps that others made -> predictions: a folder of panoptic PNGs with their JSON, or of label maps.

    panoptic    DIR/*.json of COCO's panoptic form, its PNGs in DIR or in a folder called like the JSON (what COCO's
                server and panopticapi take, what detectron2 and `foveate segment --panoptic` write)
    semantic    DIR/NAME.png for the image NAME, a number a pixel (what `foveate segment` and most programs write)

Deliberately absent: run lengths of label maps (detectron2's sem_seg_predictions.json), and the measures themselves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from foveate.data.labels import compared
from foveate.data.panoptic import read_colours
from foveate.data.pictures import PictureError, read_values, stated_size
from foveate.data.records import Dataset, Dropped, Record
from foveate.data.semantic import MAP_SUFFIXES, NONE, UNKNOWN, SemanticData
from foveate.data.strict import DISTRUST, drop, escapes, fail, parse, short
from foveate.errors import InputError, listed
from foveate.evaluate.results import UNKNOWN_IMAGE
from foveate.types import LabelMap, PanopticMap, SegmentInfo

SEGMENTS = "segments.json"  # what `foveate segment` writes beside its label maps
NO_CLASS = (255, 65535)  # numbers of pixels without a class, of 8 and of 16 bits

Numbers = Literal["index", "dataset"]


@dataclass(frozen=True)
class MapResults:
    """Predictions that are read when they are asked for."""

    maps: Iterator[tuple[str, Any]]  # (id of an image, its PanopticMap or LabelMap)
    rules: tuple[str, ...]  # how files and numbers were matched with the data, for people


# ------------------------------------------------------------------------------------------------------------- panoptic


def read_panoptic_results(path: Path, dataset: Dataset, *, skipped: dict[str, Dropped]) -> MapResults:
    """Open panoptic predictions; the maps are decoded one by one.

    Args:
        path: the folder with the JSON, or the JSON.
        dataset: what they were made for; from `data.coco.read_panoptic`.
        skipped: where to count predictions of images that are not measured.

    Raises:
        InputError: no such files, an image without a prediction (as panopticapi has it), or an entry that is not what
            it must be; while the maps are read also a map of another size, or one that cannot be decoded.
    """
    file, folder = _find_panoptic(path)
    content = parse(file, kind="a panoptic results")
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        fail(str(file), "an object with the list `annotations`, as COCO's panoptic form", f"a {type(content).__name__}",
             "Is this another kind of results?")  # fmt: skip
    labels, by_class = _match(content.get("categories"), "name", _names_of_categories(dataset), key=_as_word)
    images, by_image = _match(content.get("images"), "file_name", _stems_of_images(dataset), key=_stem)
    records = {record.id: record for record in dataset.records}
    entries: dict[Any, tuple[str, dict[str, Any]]] = {}
    for place, entry in enumerate(content["annotations"]):
        where = f"{file}: annotation {place}"
        if not isinstance(entry, dict) or not isinstance(entry.get("segments_info"), list):
            fail(where, "`segments_info`, a list", short(entry), "Is this a file of boxes? Use `evaluate detection`.")
        key = images.get(entry.get("image_id")) if _is_id(entry.get("image_id")) else None
        if key is None:
            drop(skipped, UNKNOWN_IMAGE, where)
            continue
        if key in entries:
            fail(where, "one annotation an image", f"a second one of image {short(entry['image_id'])}")
        name = entry.get("file_name")
        if not isinstance(name, str) or not name or escapes(name):
            fail(where, f"`file_name`, a PNG inside {folder}", short(name), DISTRUST)
        entries[key] = (where, entry)
    _check_all_there(file, folder, entries, records)
    categories = {number: (label, dataset.categories[label].is_thing) for number, label in labels.items()}

    def read() -> Iterator[tuple[str, PanopticMap]]:
        for key, (where, entry) in entries.items():
            segments = tuple(_segment(where, one, categories) for one in entry["segments_info"])
            ids = read_colours(folder / entry["file_name"], size=records[key].size).long()
            yield str(key), PanopticMap(ids, segments)

    rules = [f"images are matched by {by_image}, categories by {by_class}"]
    return MapResults(read(), tuple(rules))


def _find_panoptic(path: Path) -> tuple[Path, Path]:
    """The JSON of panoptic predictions, and the folder of their PNGs."""
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if len(files) != 1:
            names = listed([one.name for one in files]) or "none"
            raise InputError(f"{path}: need a folder with one JSON file beside the PNGs; got {names}. Name the file.")
        path = files[0]
    elif not path.is_file():
        raise InputError(f"{path}: need a folder of panoptic PNGs with their JSON file; it does not exist. "
                         "Check the path.")  # fmt: skip
    beside = path.with_suffix("")
    return path, beside if beside.is_dir() else path.parent


def _names_of_categories(dataset: Dataset) -> dict[Any, tuple[str, int]]:
    return {one.id: (_as_word(one.name), label) for label, one in enumerate(dataset.categories)}


def _stems_of_images(dataset: Dataset) -> dict[Any, tuple[str, Any]]:
    return {one.id: (one.path.stem, one.id) for one in dataset.records}


def _as_word(name: str) -> str:
    """A category's name to compare; ADE20K's are lists of words."""
    return compared(name.split(",")[0].strip())


def _stem(name: str) -> str:
    return Path(name).stem


def _match(
    listed: Any, field: str, own: Mapping[Any, tuple[str, Any]], *, key: Callable[[str], str]
) -> tuple[dict[Any, Any], str]:
    """What the ids of a file mean: the data's ids, or, where the file numbers otherwise, what has the same name.

    Args:
        listed: the file's own list of images or categories, where it has one.
        field: of an entry, its name.
        own: id -> (name, what it means) of the data.
        key: makes names comparable.
    """
    by_id = {number: meaning for number, (_, meaning) in own.items()}
    entries = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    names = {one["id"]: key(one[field]) for one in entries if _is_id(one.get("id")) and isinstance(one.get(field), str)}
    if all(number in own and own[number][0] == name for number, name in names.items()):
        return by_id, "id"
    by_name = dict(own.values())
    if len(by_name) < len(own) or not any(name in by_name for name in names.values()):
        return by_id, "id"
    matched = {number: by_name[name] for number, name in names.items() if name in by_name}
    return matched, "name, as the file's ids differ"


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _check_all_there(file: Path, folder: Path, entries: Mapping[Any, Any], records: Mapping[Any, Record]) -> None:
    """Refuse predictions of a part of the images, as panopticapi does."""
    without = [str(key) for key in records if key not in entries]
    if without:
        raise InputError(
            f"{file}: need a prediction for each of the {len(records)} images, as panopticapi; {len(without)} have "
            f"none: {listed(without)}. Add them (an image may have no segments), or check whether the file is of other "
            "data."
        )
    gone = [entry["file_name"] for _, entry in entries.values() if not (folder / entry["file_name"]).is_file()]
    if gone:
        raise InputError(
            f"{folder}: need the PNG of each of the {len(entries)} predictions; {len(gone)} are not there: "
            f"{listed(gone)}. Copy them beside {file.name}."
        )


def _segment(where: str, info: Any, categories: Mapping[Any, tuple[int, bool]]) -> SegmentInfo:
    number = info.get("id") if isinstance(info, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        fail(where, "segments with an `id` of at least 1", short(info))
    category: Any = info.get("category_id")
    if not _is_id(category) or category not in categories:
        fail(f"{where}: segment {number}", f"`category_id`, one of the {len(categories)} of the data", short(category),
             "Was it made for other classes?")  # fmt: skip
    return SegmentInfo(number, *categories[category])


# ------------------------------------------------------------------------------------------------------------- semantic


def read_label_maps(
    folder: Path, data: SemanticData, *, numbers: Numbers = "index", skipped: dict[str, Dropped]
) -> MapResults:
    """Open label maps; they are decoded one by one. Images without one are left to the measure, which misses them.

    Args:
        folder: of PNG or TIFF files, called like the images.
        data: what they were made for.
        numbers: "index": a number is the class's place in the data's list, from 0, and 255 or 65535 no class;
            "dataset": it is that of the data's own maps, as benchmark servers take them. Maps of `foveate segment` are
            told by their segments.json, and their classes matched by name.
        skipped: where to count maps of no image.

    Raises:
        InputError: no such folder, or none of its maps is of an image; while the maps are read also a map of another
            size than the image, or with a number that means nothing.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: need a folder of label maps; it does not exist or is a file. Check the path.")
    there = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in MAP_SUFFIXES
    }
    meaning, rule = _meaning(data, numbers), f"numbers in the maps are read as {numbers}"
    own = folder / SEGMENTS
    if own.is_file():
        there, meaning, rule = _of_segment(own, there, data)
    found: dict[str, tuple[Record, Path]] = {}
    for record in data.dataset.records:
        path = there.pop(str(record.id), None) or there.pop(record.path.stem, None)
        if path is not None:
            found[str(record.id)] = (record, path)
    if not found:
        record = data.dataset.records[0]
        raise InputError(
            f"{folder}: need label maps called like the images of {data.dataset.name}, such as "
            f"{record.path.stem}.png; none of its {len(there)} maps is. Was it made for other data?"
        )
    for path in there.values():
        drop(skipped, UNKNOWN_IMAGE, str(path))

    table = torch.full((2**16,), UNKNOWN, dtype=torch.int64)
    table[torch.tensor([*meaning], dtype=torch.int64)] = torch.tensor([*meaning.values()], dtype=torch.int64)

    def read() -> Iterator[tuple[str, LabelMap]]:
        for key, (record, path) in found.items():
            size = stated_size(record.semantic) if record.size is None and record.semantic else record.size
            yield key, _read_map(path, table, classes=len(data.names), size=size)

    return MapResults(read(), (rule,))


def _meaning(data: SemanticData, numbers: Numbers) -> dict[int, int]:
    """Number in a map -> place of its class, or NONE."""
    if numbers == "index":
        return dict.fromkeys(NO_CLASS, NONE) | {place: place for place in range(len(data.names))}
    if data.coding is not None:
        return dict(data.coding.places)
    return {0: NONE} | {one.id: place for place, one in enumerate(data.dataset.categories)}


def _of_segment(
    file: Path, there: Mapping[str, Path], data: SemanticData
) -> tuple[dict[str, Path], dict[int, int], str]:
    """Match what `foveate segment` wrote: maps by the names of their images, classes by their own."""
    content = parse(file, kind="a segments")
    classes = content.get("classes") if isinstance(content, dict) else None
    pictures = content.get("pictures") if isinstance(content, dict) else None
    if not isinstance(classes, list) or not isinstance(pictures, list) or not all(map(_is_words, classes)):
        fail(str(file), "the lists `classes` and `pictures`, as `foveate segment` writes them", short(content))
    named: dict[str, Path] = {}
    for place, one in enumerate(pictures):
        key, name = (one.get("id"), one.get("file_name")) if isinstance(one, dict) else (None, None)
        if not isinstance(key, str) or not isinstance(name, str):
            fail(f"{file}: picture {place}", "`id` and `file_name`", short(one))
        if _stem(name) in there:
            named[Path(key).with_suffix("").as_posix()] = there[_stem(name)]
    stems = {Path(key).name: path for key, path in named.items()}
    places = [_class_of(words, data) for words in classes]
    foreign = [words[0] for words, place in zip(classes, places, strict=True) if place == NONE]
    rule = f"classes of {SEGMENTS} are matched by name"
    if foreign:
        rule += f"; {len(foreign)} are none of the data's, such as {foreign[0]!r}: their pixels have no class"
    if len(foreign) == len(classes):
        raise InputError(f"{file}: need classes of {data.dataset.name}, such as {data.names[0]!r}; none of its "
                         f"{len(classes)} is. Segment with --vocab of the data's class names.")  # fmt: skip
    meaning = dict.fromkeys(NO_CLASS, NONE) | dict(enumerate(places))
    return ({**stems, **named} if len(stems) == len(named) else named), meaning, rule


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)


def _class_of(words: Sequence[str], data: SemanticData) -> int:
    """The class of the data that has the same name, or else shares a word; NONE: there is none."""
    asked = [compared(word) for word in words]
    classes = [[compared(word) for word in (one.name, *one.synonyms)] for one in data.dataset.categories]
    for fits in (lambda own: own == asked, lambda own: own[0] == asked[0], lambda own: {*own} & {*asked}):
        place = next((place for place, own in enumerate(classes) if fits(own)), None)
        if place is not None:
            return place
    return NONE


def _read_map(path: Path, table: Int64[Tensor, " numbers"], *, classes: int, size: tuple[int, int] | None) -> LabelMap:
    values = read_values(path, bits=None, expected_size=size)  # (H, W)
    labels = table[values]  # (H, W)
    wrong = (labels == UNKNOWN).nonzero()  # (pixels, 2)
    if len(wrong):
        row, column = wrong[0].tolist()
        raise PictureError(
            f"{path}: need numbers of the data's {classes} classes; got {int(values[row, column])} in row {row}, "
            f"column {column}, {len(wrong)} such pixels in all. See --numbers: index counts classes from 0, dataset "
            "takes the numbers of the data's own maps."
        )
    return LabelMap(labels)
