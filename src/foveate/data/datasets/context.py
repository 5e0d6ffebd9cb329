"""PASCAL Context -> label maps of 459 or 59 classes (PC-459 and PC-59).

    VOC2010/JPEGImages/ID.jpg    lists of ids, one per line
    trainval/ID.mat, labels.txt ("1: accordion")              the 459; `convert_context` converts them to 16-bit maps
    59_context_labels/ID.png, 59_labels.txt                   the 59, 8 bits, 0 for everything else
    annotations_detectron2/{pc59,pc459}_SPLIT                 as prepared for CAT-Seg: labels from 0

The 59 are among the 459 names, so the `.mat` files can be converted to maps of the 59 too. In maps of 459, 65535 is no
class, and so is 459, as in prepared maps; in prepared maps of 59, 255 is. Prepared maps number the 59 in alphabetical
order, for which there is no official list: it must be given.
"""

from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from foveate.data.datasets.voc import read_list
from foveate.data.labels import Labels, Repeated, read_labels
from foveate.data.matlab import read_matrix
from foveate.data.semantic import NONE, Coding, SemanticData, coding_of, pair_files, start_maps, write_maps
from foveate.errors import InputError
from foveate.types import normalize_name

MATRIX = "LabelMap"
NO_CLASS = 65535  # in a map of 16 bits
COUNT = 459


def read_context_labels(path: Path | str, *, repeated: Repeated = "refuse") -> Labels:
    """Read `labels.txt` (459) or `59_labels.txt`, whose ids are 1, 2, 3 ...; 0 is no class.

    Raises:
        InputError: as `read_labels`, or other ids.
    """
    labels = read_labels(path, repeated=repeated)
    labels = labels.choose(number for number in labels.ids if number)
    if labels.ids != tuple(range(1, len(labels.ids) + 1)):
        raise InputError(f"{path}: need the ids 1, 2, 3 ... in order; got others. Give PASCAL Context's own list.")
    return labels


def read_context(
    folder: Path | str,
    maps: Path | str,
    *,
    count: int,
    names: Path | str | None,
    labels: Labels,
    with_images: bool = True,
) -> SemanticData:
    """Read maps of 459 or 59 classes: official, prepared, or written by `convert_context`.

    Args:
        folder: of the year, VOC2010.
        count: number of classes, 459 or 59.
        names: file with the ids of the images; None: all that have a map.
        labels: of `read_context_labels`, `count` classes.
        with_images: as for `pair_files`.

    Raises:
        InputError: a folder or a map is missing, or the list has other classes.
    """
    maps = Path(maps)
    if labels.ids != tuple(range(1, count + 1)):
        raise InputError(f"labels: need PASCAL Context's {count} classes; got {len(labels.ids)}.")
    if count == COUNT:
        coding = Coding({label: label for label in range(COUNT)} | {COUNT: NONE, NO_CLASS: NONE}, bits=16)
    else:
        coding = coding_of(labels.ids, none=0, maps=maps)
    if names is not None:
        only = read_list(Path(names))
    else:
        only = sorted(path.stem for path in maps.glob("*") if path.suffix in (".png", ".tif"))
    return pair_files(
        f"PASCAL Context-{count}",
        image_folder=Path(folder) / "JPEGImages",
        maps=maps,
        labels=labels,
        coding=coding,
        only=only,
        with_images=with_images,
    )


def convert_context(
    mats: Path | str, out: Path | str, *, labels: Labels, only: Labels | None = None, progress: bool = False
) -> int:
    """Convert PASCAL Context's `.mat` files to label maps, and write the list of classes beside them.

    Maps that exist and are not older than their files are skipped, so that a stopped conversion is resumed.

    Args:
        mats: folder of the `.mat` files.
        out: folder of the maps, created if missing.
        labels: all classes, ids as in the files.
        only: write 8-bit maps of these classes, matched by name, with their ids and 0 for everything else. None: 16-bit
            maps of all classes, labels from 0, 65535 for no class.

    Returns:
        Number of maps written.

    Raises:
        InputError: no files, a malformed file, a value without a class, a class of `only` that `labels` lacks, or `out`
            contains something else.
    """
    files = sorted(Path(mats).glob("*.mat"))
    if not files:
        raise InputError(f"{mats}: need PASCAL Context's files ID.mat; found none. Check the path.")
    # id in the files -> value in the maps; -1: not in the list
    table = torch.full((max(labels.ids) + 1,), -1)
    ids = torch.tensor(labels.ids)
    if only is None:
        table[0], table[ids] = NO_CLASS, ids - 1
    else:
        table[0] = table[ids] = 0
        for number, value in _match_names(labels, only):
            table[number] = value
    start_maps(Path(out), only or labels)
    suffix, bits = (".tif", 16) if only is None else (".png", 8)
    return write_maps(
        {path: Path(out) / f"{path.stem}{suffix}" for path in files},
        lambda path: _look_up(path, table, count=len(labels.ids)),
        home=Path(mats),
        bits=bits,
        progress="maps" if progress else None,
    )


def _look_up(path: Path, table: Int64[Tensor, " N"], *, count: int) -> Int64[Tensor, "H W"]:
    values = read_matrix(path, MATRIX)  # (H, W)
    unknown = values[values >= len(table)]
    if not len(unknown):
        unknown = values[table[values] < 0]
    if len(unknown):
        raise InputError(f"{path}: need values of the {count} classes; got {int(unknown[0])}. Is this the list of "
                         "another release?")  # fmt: skip
    return table[values]


def _match_names(labels: Labels, only: Labels) -> list[tuple[int, int]]:
    """(id in `labels`, id in `only`) of each class of `only`."""
    rows = zip(labels.ids, labels.classes, strict=True)
    ids = {normalize_name(name): number for number, names in rows for name in names}
    pairs = []
    for number, names in zip(only.ids, only.classes, strict=True):
        matches = [ids[normalize_name(name)] for name in names if normalize_name(name) in ids]
        if not matches:
            raise InputError(f"labels: need each of the {len(only.ids)} classes among the {len(labels.ids)} by name; "
                             f"{names[0]!r} is not. Add the other list's name as a synonym.")  # fmt: skip
        pairs.append((matches[0], number))
    return pairs
