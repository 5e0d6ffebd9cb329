"""ADE20K -> label maps of 150 classes, or of those of the full release (A-150 and A-847).

    ADEChallengeData2016/{images,annotations}/{training,validation}/ID.{jpg,png}    objectInfo150.txt
    ADE20K_2021_17_01/images/ADE/{training,validation}/SCENE/.../ID.jpg  ID_seg.png  ID.json

In maps of the 150, 1 to 150 are the classes and 0 is no class (in annotations_detectron2, as prepared for CAT-Seg, they
are 0 to 149 and 255). The maps of the full release have colours; `convert_ade_full` converts them to 16 bits, 65535 for
no class. `list_ade_full` derives their classes, the whole objects that occur in both splits, from the JSON files beside
the images. `index_ade20k.pkl` has the same content but is never opened, since a pickle can run code.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.data.images import check_inside, read_image
from foveate.data.labels import Labels
from foveate.data.semantic import (
    NONE,
    PREPARED,
    Coding,
    SemanticData,
    coding_of,
    pair_files,
    start_maps,
    write_maps,
)
from foveate.data.validation import fail, short
from foveate.errors import InputError
from foveate.progress import image_bar
from foveate.types import normalize_name

SPLITS = {"train": "training", "val": "validation"}
NO_CLASS = 65535  # in a converted map
IMAGES = Path("images", "ADE")  # of the full release
MAX_JSON = 50_000_000  # bytes


def read_ade150(
    root: Path | str, *, split: str, labels: Labels, maps: Path | None = None, with_images: bool = True
) -> SemanticData:
    """Read one split of the scene parsing data with 150 classes.

    Args:
        root: the folder ADEChallengeData2016.
        split: "train" or "val".
        labels: of `labels.read_object_info`, or another list with the ids 1..150.
        maps: the folder that contains the label maps of both splits; default: `annotations`, or else the prepared ones.
        with_images: as for `pair_files`.

    Raises:
        InputError: a folder or a map is missing, or the list has other classes.
    """
    root, folder = Path(root), _folder(split)
    if labels.ids != tuple(range(1, 151)):
        raise InputError(f"labels: need ADE20K's 150 classes with the ids 1 to 150 in order; got {len(labels.ids)}.")
    if maps is None:
        only_prepared = not (root / "annotations" / folder).is_dir() and (root / PREPARED / folder).is_dir()
        maps = root / (PREPARED if only_prepared else "annotations")
    return pair_files(
        f"ADE20K-150 {split}",
        image_folder=root / "images" / folder,
        maps=maps / folder,
        labels=labels,
        coding=coding_of(labels.ids, none=0, maps=maps),
        with_images=with_images,
    )


def read_ade_full(
    image_folder: Path | str, maps: Path | str, *, split: str, labels: Labels, with_images: bool = True
) -> SemanticData:
    """Read one split of the converted full release.

    Args:
        image_folder: the folder that contains the images of both splits, such as ADE20K_2021_17_01/images/ADE.
        maps: the same of the maps that `convert_ade_full` wrote, or of those prepared for CAT-Seg (`.tif`).
        split: "train" or "val".
        labels: the classes, in the order of the maps' values.
        with_images: as for `pair_files`.

    Raises:
        InputError: a folder or a map is missing.
    """
    folder = _folder(split)
    return pair_files(
        f"ADE20K-{len(labels.ids)} {split}",
        image_folder=Path(image_folder) / folder,
        maps=Path(maps) / folder,
        labels=labels,
        coding=Coding({**{label: label for label in range(len(labels.ids))}, NO_CLASS: NONE}, bits=16),
        with_images=with_images,
    )


def list_ade_full(root: Path | str, *, progress: bool = False) -> Labels:
    """Derive the classes of the full release from its JSON files: whole objects that occur in both splits.

    Args:
        root: the folder ADE20K_2021_17_01.

    Returns:
        The classes sorted by id (the index in the release's own list, from 1), names as in the files.

    Raises:
        InputError: no JSON files, or a malformed one.
    """
    by_split: dict[str, dict[int, str]] = {}
    for split in SPLITS:
        folder = Path(root) / IMAGES / _folder(split)
        files = sorted(folder.rglob("*.json")) if folder.is_dir() else []
        if not files:
            raise InputError(f"{folder}: need the JSON files beside the images of {split}; found none. Check the path.")
        by_split[split] = {}
        with image_bar(show=progress) as bar:
            for path in bar.track(files, description=f"objects of {split}"):
                check_inside(path, folder)
                for number, name in _read_objects(path):
                    by_split[split].setdefault(number, name)
    ids = sorted(by_split["train"].keys() & by_split["val"].keys())
    if not ids:
        raise InputError(f"{root}: need objects that occur in both splits; found none. Is the release complete?")
    classes = [by_split["train"][number].split(",") for number in ids]
    unique = [{normalize_name(name): name.strip() for name in names if name.strip()} for names in classes]
    return Labels(tuple(ids), tuple(tuple(names.values()) for names in unique))


def convert_ade_full(root: Path | str, out: Path | str, *, split: str, labels: Labels, progress: bool = False) -> int:
    """Convert the maps of the full release to 16-bit TIFF files in the same folders, and write the list of classes.

    Maps that exist and are not older than their files are skipped, so that a stopped conversion is resumed.

    Args:
        root: the folder ADE20K_2021_17_01.
        out: parent of the split's folder.
        split: "train" or "val".
        labels: the classes, ids as in `list_ade_full`; pixels of other objects become 65535, no class.

    Returns:
        Number of maps written.

    Raises:
        InputError: no maps, a damaged one, or `out` contains something else.
    """
    home = Path(root) / IMAGES / _folder(split)
    files = sorted(home.rglob("*_seg.png")) if home.is_dir() else []
    if not files:
        raise InputError(f"{home}: need the maps `ID_seg.png` of ADE20K's full release; found none. Check the path.")
    table = torch.full((26 * 256,), NO_CLASS)  # red and green hold the object's id: red // 10 * 256 + green
    for label, number in enumerate(labels.ids):
        if not 1 <= number < len(table):
            raise InputError(f"labels: need ids of the full release, in 1..{len(table) - 1}; got {number}.")
        table[number] = label
    start_maps(Path(out), labels)

    def target_of(path: Path) -> Path:
        name = path.name.removesuffix("_seg.png") + ".tif"
        return Path(out) / _folder(split) / path.relative_to(home).with_name(name)

    def read(path: Path) -> Tensor:
        red, green, _ = read_image(path).long()  # (H, W) each
        return table[red // 10 * 256 + green]

    title = f"maps of {split}" if progress else None
    return write_maps({path: target_of(path) for path in files}, read, home=home, bits=16, progress=title)


def _folder(split: str) -> str:
    if split not in SPLITS:
        raise InputError(f'split: must be "train" or "val" for ADE20K; got "{split}".')
    return SPLITS[split]


def _read_objects(path: Path) -> list[tuple[int, str]]:
    """(id, names) of an image's whole objects; bytes that are not UTF-8, which a few files have, are replaced."""
    if path.stat().st_size > MAX_JSON:
        fail(str(path), f"at most {MAX_JSON:,} bytes of JSON", f"{path.stat().st_size:,}")
    try:
        content: Any = json.loads(path.read_bytes().decode("utf-8", errors="replace"))
        entries = content["annotation"]["object"]
        rows = [(entry["name_ndx"], entry["name"], entry["parts"]["part_level"]) for entry in entries]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        need = "`annotation`, its `object`s with `name`, `name_ndx`, `parts`"
        fail(str(path), need, f"{type(error).__name__} {error}")
    objects = []
    for number, name, level in rows:
        if isinstance(number, bool) or not isinstance(number, int) or number < 1 or not isinstance(name, str):
            fail(str(path), "`name_ndx`, at least 1, and `name`, a string", f"{short(number)}, {short(name)}")
        if str(level) == "0" and any(part.strip() for part in name.split(",")):  # level 0: not a part of an object
            objects.append((number, name))
    return objects
