"""Predictions that another program wrote: a folder of panoptic PNGs with their JSON, or of label maps.

    panoptic    DIR/*.json of COCO's panoptic form, its PNGs in DIR or in a folder named like the JSON (what COCO's
                server and panopticapi take, what detectron2 and `foveate segment --panoptic` write)
    semantic    DIR/NAME.png for the image NAME, one number per pixel (what `foveate segment` and most programs write)

Deliberately absent: run lengths of label maps (detectron2's sem_seg_predictions.json).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from foveate.data.images import ImageError, header_size, read_values
from foveate.data.panoptic import read_colours
from foveate.data.records import Dataset, IgnoredEntries, Record
from foveate.data.semantic import MAP_SUFFIXES, NONE, UNKNOWN, SemanticData
from foveate.data.validation import UNTRUSTED_FILE, count_ignored, escapes, fail, is_id, parse, short
from foveate.errors import InputError, listed
from foveate.evaluate.detection_results import UNKNOWN_IMAGE
from foveate.evaluate.flags import MapIds
from foveate.types import LabelMap, PanopticMap, SegmentInfo, normalize_name

SEGMENTS = "segments.json"  # what `foveate segment` writes beside its label maps
NO_CLASS = (255, 65535)  # pixels without a class in maps of 8 and of 16 bits


@dataclass(frozen=True)
class MapResults:
    """Predictions that are decoded one by one."""

    maps: Iterator[tuple[str, Any]]  # (id of an image, its PanopticMap or LabelMap)
    rules: tuple[str, ...]  # how files and numbers were matched with the data, for people


# ------------------------------------------------------------------------------------------------------------- panoptic


def read_panoptic_results(path: Path, dataset: Dataset, *, skipped: dict[str, IgnoredEntries]) -> MapResults:
    """Open panoptic predictions; the maps are decoded one by one.

    Args:
        path: the folder with the JSON, or the JSON.
        skipped: receives the counts of predictions of images that are not measured.

    Raises:
        InputError: missing files, an image without a prediction (as in panopticapi), or a damaged entry; while the maps
            are read also a map of another size, or an unreadable one.
    """
    file, folder = _find_panoptic(path)
    content = parse(file, kind="a panoptic results")
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        fail(str(file), "an object with the list `annotations`, as COCO's panoptic form", f"a {type(content).__name__}",
             "Is this another kind of results?")  # fmt: skip
    names = {category.id: (_first_name(category.name), label) for label, category in enumerate(dataset.categories)}
    stems = {record.id: (record.path.stem, record.id) for record in dataset.records}
    labels, by_class = _match(content.get("categories"), "name", names, key=_first_name)
    images, by_image = _match(content.get("images"), "file_name", stems, key=_stem)
    records = {record.id: record for record in dataset.records}
    entries: dict[Any, tuple[str, dict[str, Any]]] = {}
    for number, entry in enumerate(content["annotations"]):
        where = f"{file}: annotation {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("segments_info"), list):
            fail(where, "`segments_info`, a list", short(entry), "Is this a file of boxes? Use `evaluate detection`.")
        key = images.get(entry.get("image_id")) if is_id(entry.get("image_id")) else None
        if key is None:
            count_ignored(skipped, UNKNOWN_IMAGE, where)
            continue
        if key in entries:
            fail(where, "one annotation per image", f"a second one of image {short(entry['image_id'])}")
        name = entry.get("file_name")
        if not isinstance(name, str) or not name or escapes(name):
            fail(where, f"`file_name`, a PNG inside {folder}", short(name), UNTRUSTED_FILE)
        entries[key] = (where, entry)
    _check_complete(file, folder, entries, records)
    categories = {number: (label, dataset.categories[label].is_thing) for number, label in labels.items()}

    def read() -> Iterator[tuple[str, PanopticMap]]:
        for key, (where, entry) in entries.items():
            segments = tuple(_segment(where, segment, categories) for segment in entry["segments_info"])
            ids = read_colours(folder / entry["file_name"], size=records[key].size).long()
            yield str(key), PanopticMap(ids, segments)

    return MapResults(read(), (f"images are matched by {by_image}, categories by {by_class}",))


def _find_panoptic(path: Path) -> tuple[Path, Path]:
    """The JSON and the folder of the PNGs."""
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if len(files) != 1:
            names = listed([entry.name for entry in files]) or "none"
            raise InputError(f"{path}: need a folder with one JSON file beside the PNGs; got {names}. Name the file.")
        path = files[0]
    elif not path.is_file():
        raise InputError(f"{path}: need a folder of panoptic PNGs with their JSON file; it does not exist. "
                         "Check the path.")  # fmt: skip
    beside = path.with_suffix("")
    return path, beside if beside.is_dir() else path.parent


def _first_name(name: str) -> str:
    """The first name of a category, normalised for comparison; ADE20K's are lists."""
    return normalize_name(name.split(",")[0].strip())


def _stem(name: str) -> str:
    return Path(name).stem


def _match(
    in_file: Any, field: str, in_data: Mapping[Any, tuple[str, Any]], *, key: Callable[[str], str]
) -> tuple[dict[Any, Any], str]:
    """Map the ids of a file to the data's: by id, or, if the ids differ, by name.

    Args:
        in_file: the list of images or categories in the file, if it has one.
        in_data: id -> (name, label or id) of the data.
    """
    by_id = {number: value for number, (_, value) in in_data.items()}
    names = {
        entry["id"]: key(entry[field])
        for entry in (in_file if isinstance(in_file, list) else [])
        if isinstance(entry, dict) and is_id(entry.get("id")) and isinstance(entry.get(field), str)
    }
    if all(number in in_data and in_data[number][0] == name for number, name in names.items()):
        return by_id, "id"
    by_name = dict(in_data.values())
    if len(by_name) < len(in_data) or not any(name in by_name for name in names.values()):
        return by_id, "id"
    matched = {number: by_name[name] for number, name in names.items() if name in by_name}
    return matched, "name, as the file's ids differ"


def _check_complete(file: Path, folder: Path, entries: Mapping[Any, Any], records: Mapping[Any, Record]) -> None:
    """Refuse predictions of only some images, as panopticapi does."""
    without = [str(key) for key in records if key not in entries]
    if without:
        raise InputError(
            f"{file}: need a prediction for each of the {len(records)} images, as panopticapi; {len(without)} have "
            f"none: {listed(without)}. Add them (an image may have no segments), or check whether the file belongs to "
            "other data."
        )
    missing = [entry["file_name"] for _, entry in entries.values() if not (folder / entry["file_name"]).is_file()]
    if missing:
        raise InputError(
            f"{folder}: need the PNG of each of the {len(entries)} predictions; {len(missing)} do not exist: "
            f"{listed(missing)}. Copy them beside {file.name}."
        )


def _segment(where: str, info: Any, categories: Mapping[Any, tuple[int, bool]]) -> SegmentInfo:
    number = info.get("id") if isinstance(info, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        fail(where, "segments with an `id` of at least 1", short(info))
    category: Any = info.get("category_id")
    if not is_id(category) or category not in categories:
        fail(f"{where}: segment {number}", f"`category_id`, one of the {len(categories)} of the data", short(category),
             "Was it made for other classes?")  # fmt: skip
    return SegmentInfo(number, *categories[category])


# ------------------------------------------------------------------------------------------------------------- semantic


def read_label_maps(
    folder: Path, data: SemanticData, *, numbers: MapIds = "index", skipped: dict[str, IgnoredEntries]
) -> MapResults:
    """Open label maps; they are decoded one by one. Images without one count as missed.

    Args:
        folder: of PNG or TIFF files, named like the images.
        numbers: "index": the class's index in the data's list, from 0, and 255 or 65535 for no class; "dataset": the
            numbers of the data's own maps, as benchmark servers take them. Maps of `foveate segment` are recognised by
            their segments.json, and their classes matched by name.
        skipped: receives the counts of maps without an image.

    Raises:
        InputError: the folder does not exist, or none of its maps belongs to an image; while the maps are read also a
            map of another size than the image, or with an unknown number.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: need a folder of label maps; it does not exist or is a file. Check the path.")
    files = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in MAP_SUFFIXES
    }
    labels, rule = _labels_of(data, numbers), f"numbers in the maps are read as {numbers}"
    if (folder / SEGMENTS).is_file():
        files, labels, rule = _match_segments(folder / SEGMENTS, files, data)
    matched: dict[str, tuple[Record, Path]] = {}
    for record in data.dataset.records:
        path = files.pop(str(record.id), None) or files.pop(record.path.stem, None)
        if path is not None:
            matched[str(record.id)] = (record, path)
    if not matched:
        record = data.dataset.records[0]
        raise InputError(
            f"{folder}: need label maps named like the images of {data.dataset.name}, such as "
            f"{record.path.stem}.png; none of its {len(files)} maps is. Was it made for other data?"
        )
    for path in files.values():
        count_ignored(skipped, UNKNOWN_IMAGE, str(path))

    table = torch.full((2**16,), UNKNOWN, dtype=torch.int64)
    table[torch.tensor([*labels], dtype=torch.int64)] = torch.tensor([*labels.values()], dtype=torch.int64)

    def read() -> Iterator[tuple[str, LabelMap]]:
        for key, (record, path) in matched.items():
            size = header_size(record.semantic) if record.size is None and record.semantic else record.size
            yield key, _read_map(path, table, classes=len(data.names), size=size)

    return MapResults(read(), (rule,))


def _labels_of(data: SemanticData, numbers: MapIds) -> dict[int, int]:
    """Number in a map -> label of its class, or NONE."""
    if numbers == "index":
        return dict.fromkeys(NO_CLASS, NONE) | {label: label for label in range(len(data.names))}
    if data.coding is not None:
        return dict(data.coding.labels)
    return {0: NONE} | {category.id: label for label, category in enumerate(data.dataset.categories)}


def _match_segments(
    file: Path, files: Mapping[str, Path], data: SemanticData
) -> tuple[dict[str, Path], dict[int, int], str]:
    """Match the output of `foveate segment`: maps by the names of their images, classes by their names."""
    content = parse(file, kind="a segments")
    classes = content.get("classes") if isinstance(content, dict) else None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(classes, list) or not isinstance(images, list) or not all(map(_is_names, classes)):
        fail(str(file), "the lists `classes` and `images`, as `foveate segment` writes them", short(content))
    named: dict[str, Path] = {}
    for number, entry in enumerate(images):
        key, name = (entry.get("id"), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
        if not isinstance(key, str) or not isinstance(name, str):
            fail(f"{file}: image {number}", "`id` and `file_name`", short(entry))
        if _stem(name) in files:
            named[Path(key).with_suffix("").as_posix()] = files[_stem(name)]
    stems = {Path(key).name: path for key, path in named.items()}
    labels = [_class_of(names, data) for names in classes]
    unknown = [names[0] for names, label in zip(classes, labels, strict=True) if label == NONE]
    rule = f"classes of {SEGMENTS} are matched by name"
    if unknown:
        rule += f"; {len(unknown)} are none of the data's, such as {unknown[0]!r}: their pixels have no class"
    missing = [name for label, name in enumerate(data.names) if label not in labels]
    if missing:
        rule += (
            f"; {len(missing)} of the data are none of its classes, and all their pixels are missed: {listed(missing)}"
        )
    if len(unknown) == len(classes):
        raise InputError(f"{file}: need classes of {data.dataset.name}, such as {data.names[0]!r}; none of its "
                         f"{len(classes)} is. Segment with --vocab of the data's class names.")  # fmt: skip
    label_of = dict.fromkeys(NO_CLASS, NONE) | dict(enumerate(labels))
    return ({**stems, **named} if len(stems) == len(named) else named), label_of, rule


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _class_of(names: Sequence[str], data: SemanticData) -> int:
    """The class of the data with the same names, else with the same first name, else with a common name; else NONE."""
    compared_names = [normalize_name(name) for name in names]
    synonyms = [[normalize_name(name) for name in (item.name, *item.synonyms)] for item in data.dataset.categories]
    for fits in (
        lambda entry: entry == compared_names,
        lambda entry: entry[0] == compared_names[0],
        lambda entry: {*entry} & {*compared_names},
    ):
        label = next((label for label, entry in enumerate(synonyms) if fits(entry)), None)
        if label is not None:
            return label
    return NONE


def _read_map(path: Path, table: Int64[Tensor, " numbers"], *, classes: int, size: tuple[int, int] | None) -> LabelMap:
    values = read_values(path, bits=None, expected_size=size)  # (H, W)
    labels = table[values]  # (H, W)
    wrong = (labels == UNKNOWN).nonzero()  # (pixels, 2)
    if len(wrong):
        row, column = wrong[0].tolist()
        raise ImageError(
            f"{path}: need numbers of the data's {classes} classes; got {int(values[row, column])} in row {row}, "
            f"column {column}, {len(wrong)} such pixels in all. See --map-ids: index counts classes from 0, dataset "
            "takes the numbers of the data's own maps."
        )
    return LabelMap(labels)
