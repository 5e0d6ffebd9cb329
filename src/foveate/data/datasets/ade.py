"""ADE20K as it lies on disk -> 150 classes a pixel, or those of the full release (A-150 and A-847).

    ADEChallengeData2016/{images,annotations}/{training,validation}/ID.{jpg,png}    objectInfo150.txt
    ADE20K_2021_17_01/images/ADE/{training,validation}/SCENE/.../ID.jpg  ID_seg.png  ID.json

The 150: a map's number is the class's, from 1; 0 is none (in annotations_detectron2, as prepared for Cat-Seg, they
count from 0 and 255 is none). The full release has colours, from which `convert_ade_full`
makes maps of 16 bits, 65535 for none. Its classes are derived from the JSON files beside the images
(`list_ade_full`): the whole objects that occur in both splits. `index_ade20k.pkl` holds the same, but a pickle runs
what its writer wanted and is never opened. Deliberately absent: parts, instances.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.data.images import check_inside, read_image
from foveate.data.labels import Labels, normalise_name
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

SPLITS = {"train": "training", "val": "validation"}
NOTHING = 65535  # in a converted map
HOME = Path("images", "ADE")
MAX_JSON = 50_000_000  # bytes


def read_ade150(
    root: Path | str, *, split: str, labels: Labels, maps: Path | None = None, with_images: bool = True
) -> SemanticData:
    """Read one split of the scene parsing data with 150 classes.

    Args:
        root: the folder ADEChallengeData2016.
        split: "train" or "val".
        labels: of `labels.read_object_info`, or another list with the ids 1..150.
        maps: folder with the maps' folders of both splits; `annotations`, or else the prepared ones, when not given.
        with_images: as for `pair_files`.

    Raises:
        InputError: a folder or a map is missing, or the list is of other classes.
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
        image_folder: a folder with the folders of the images of both splits, such as ADE20K_2021_17_01/images/ADE.
        maps: the same of the maps that `convert_ade_full` wrote, or of those prepared for Cat-Seg (`.tif`).
        split: "train" or "val".
        labels: the classes, in the order of the maps' numbers.
        with_images: as for `pair_files`.

    Raises:
        InputError: a folder or a map is missing.
    """
    folder = _folder(split)
    places = {place: place for place in range(len(labels.ids))}
    return pair_files(
        f"ADE20K-{len(labels.ids)} {split}",
        image_folder=Path(image_folder) / folder,
        maps=Path(maps) / folder,
        labels=labels,
        coding=Coding({**places, NOTHING: NONE}, bits=16),
        with_images=with_images,
    )


def list_ade_full(root: Path | str, *, progress: bool = False) -> Labels:
    """Derive the classes of the full release from its JSON files: whole objects that occur in both splits.

    Args:
        root: the folder ADE20K_2021_17_01.
        progress: show a bar.

    Returns:
        The classes by id (the place in the release's own index, from 1), words as the files have them.

    Raises:
        InputError: no such files, or one that is not what it must be.
    """
    found: dict[str, dict[int, str]] = {}
    for split in SPLITS:
        home = Path(root) / HOME / _folder(split)
        files = sorted(home.rglob("*.json")) if home.is_dir() else []
        if not files:
            raise InputError(f"{home}: need the JSON files beside the images of {split}; there are none.")
        found[split] = {}
        with image_bar(show=progress) as bar:
            for path in bar.track(files, description=f"objects of {split}"):
                check_inside(path, home)
                for number, name in _objects(path):
                    found[split].setdefault(number, name)
    both = sorted(found["train"].keys() & found["val"].keys())
    if not both:
        raise InputError(f"{root}: need objects that occur in both splits; there are none.")
    names = [found["train"][number].split(",") for number in both]
    words = [{normalise_name(one): one.strip() for one in name if one.strip()} for name in names]
    return Labels(tuple(both), tuple(tuple(one.values()) for one in words))


def convert_ade_full(root: Path | str, out: Path | str, *, split: str, labels: Labels, progress: bool = False) -> int:
    """Write the maps of the full release as TIFF files of 16 bits, in the same folders, and the list beside them.

    Maps that exist and are not older than what they are made of are kept, so that a run that was stopped is resumed.

    Args:
        root: the folder ADE20K_2021_17_01.
        out: where the folder of the split is made.
        split: "train" or "val".
        labels: the classes, ids as in `list_ade_full`; pixels of other objects get 65535, no class.
        progress: show a bar.

    Returns:
        How many maps were written.

    Raises:
        InputError: there is no map, one is damaged, or `out` holds something else.
    """
    home = Path(root) / HOME / _folder(split)
    files = sorted(home.rglob("*_seg.png")) if home.is_dir() else []
    if not files:
        raise InputError(f"{home}: need the maps `ID_seg.png` of ADE20K's full release; there are none.")
    table = torch.full((26 * 256,), NOTHING)  # what two channels can hold
    for place, number in enumerate(labels.ids):
        if not 1 <= number < len(table):
            raise InputError(f"labels: need ids of the full release, in 1..{len(table) - 1}; got {number}.")
        table[number] = place
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


def _objects(path: Path) -> list[tuple[int, str]]:
    """(id, words) of the whole objects of an image; letters that are no UTF-8, which a few files have, are marked."""
    if path.stat().st_size > MAX_JSON:
        fail(str(path), f"at most {MAX_JSON:,} bytes of JSON", f"{path.stat().st_size:,}")
    try:
        content: Any = json.loads(path.read_bytes().decode("utf-8", errors="replace"))
        entries = content["annotation"]["object"]
        rows = [(one["name_ndx"], one["name"], one["parts"]["part_level"]) for one in entries]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        fail(
            str(path), "`annotation`, its `object`s with `name`, `name_ndx`, `parts`", f"{type(error).__name__} {error}"
        )
    found = []
    for number, name, level in rows:
        if isinstance(number, bool) or not isinstance(number, int) or number < 1 or not isinstance(name, str):
            fail(str(path), "`name_ndx`, at least 1, and `name`, a text", f"{short(number)}, {short(name)}")
        if str(level) == "0" and any(word.strip() for word in name.split(",")):
            found.append((number, name))
    return found
