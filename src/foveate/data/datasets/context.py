"""PASCAL Context as it lies on disk -> 459 or 59 classes a pixel (PC-459 and PC-59).

    VOC2010/JPEGImages/ID.jpg    lists of ids, one a line
    trainval/ID.mat, labels.txt ("1: accordion")              the 459; `convert_context` makes maps of 16 bits of them
    59_context_labels/ID.png, 59_labels.txt                   the 59, of 8 bits, 0 for all else
    annotations_detectron2/{pc59,pc459}_SPLIT                 as prepared for Cat-Seg: numbers from 0

The 59 can be made of the `.mat` files too: they are 59 of the 459 names. In maps of 459, 65535 is none, and so is 459,
as prepared files have it; in prepared maps of 59, 255 is. These are in the alphabet's order, as the 459 are, and no
official list says so: it must be given. Deliberately absent: the class "background" of 60, `trainval_merged.json`.
"""

from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from foveate.data.datasets.voc import read_list
from foveate.data.labels import Labels, Repeated, normalise_name, read_labels
from foveate.data.matlab import read_matrix
from foveate.data.semantic import NONE, Coding, SemanticData, coding_of, pair_files, start_maps, write_maps
from foveate.errors import InputError

MATRIX = "LabelMap"
NOTHING = 65535
COUNT = 459


def read_context_labels(path: Path | str, *, repeated: Repeated = "refuse") -> Labels:
    """Read `labels.txt` (459) or `59_labels.txt`: the ids count from 1 without a hole; 0 is none.

    Raises:
        InputError: as `read_labels`, or other ids.
    """
    labels = read_labels(path, repeated=repeated)
    labels = labels.choose(number for number in labels.ids if number)
    if labels.ids != tuple(range(1, len(labels.ids) + 1)):
        raise InputError(f"{path}: need the ids 1, 2, 3 ... in order; got others. Name PASCAL Context's own list.")
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
    """Read the maps of 459 classes that `convert_context` wrote, or those of 59, the official ones or written by it.

    Args:
        folder: of the year, VOC2010.
        maps: their folder.
        count: of the classes, 459 or 59.
        names: file with the ids of the images that count; None: all that have a map.
        labels: of `read_context_labels`, so many classes.
        with_images: as for `pair_files`.

    Raises:
        InputError: a folder or a map is missing, or the list is of other classes.
    """
    maps = Path(maps)
    if labels.ids != tuple(range(1, count + 1)):
        raise InputError(f"labels: need PASCAL Context's {count} classes; got {len(labels.ids)}.")
    if count == COUNT:
        coding = Coding({place: place for place in range(COUNT)} | {COUNT: NONE, NOTHING: NONE}, bits=16)
    else:
        coding = coding_of(labels.ids, none=0, maps=maps)
    if names is not None:
        only = read_list(Path(names))
    else:
        only = sorted(path.stem for path in maps.glob("*") if path.suffix in (".png", ".tif"))
    image_folder = Path(folder) / "JPEGImages"
    title = f"PASCAL Context-{count}"
    return pair_files(
        title, image_folder=image_folder, maps=maps, labels=labels, coding=coding, only=only, with_images=with_images
    )


def convert_context(
    mats: Path | str, out: Path | str, *, labels: Labels, only: Labels | None = None, progress: bool = False
) -> int:
    """Write PASCAL Context's `.mat` files as maps, and the list of their classes beside them.

    Maps that exist and are not older than their files are kept, so that a run that was stopped is resumed.

    Args:
        mats: folder of the `.mat` files.
        out: folder of the maps, which is made.
        labels: all classes, ids as in the files.
        only: write maps of 8 bits of these classes alone, by their names: their ids, 0 for all else. None: maps of 16
            bits of all, ids less one, 65535 for none.
        progress: show a bar.

    Returns:
        How many maps were written.

    Raises:
        InputError: no file, one that is not what it must be, a number without a class, a name that is none of all, or
            `out` holds something else.
    """
    files = sorted(Path(mats).glob("*.mat"))
    if not files:
        raise InputError(f"{mats}: need the files ID.mat of PASCAL Context; there are none. Check the path.")
    nothing = NOTHING if only is None else 0
    table = torch.full((max(labels.ids) + 1,), -1)
    table[0] = nothing
    if only is None:
        table[torch.tensor(labels.ids)] = torch.tensor(labels.ids) - 1
    else:
        table[torch.tensor(labels.ids)] = nothing
        for number, wanted in _by_name(labels, only):
            table[number] = wanted
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
    strange = values[values >= len(table)]
    if not len(strange):
        strange = values[table[values] < 0]
    if len(strange):
        raise InputError(f"{path}: need numbers of the {count} classes; got {int(strange[0])}. Is this the list of "
                         "another release?")  # fmt: skip
    return table[values]


def _by_name(labels: Labels, only: Labels) -> list[tuple[int, int]]:
    """(id among all, id among the few) of each class of the few."""
    known = {
        normalise_name(word): number for number, words in zip(labels.ids, labels.classes, strict=True) for word in words
    }
    found = []
    for number, words in zip(only.ids, only.classes, strict=True):
        there = [known[normalise_name(word)] for word in words if normalise_name(word) in known]
        if not there:
            raise InputError(f"labels: need each of the {len(only.ids)} classes among the {len(labels.ids)} by name; "
                             f"{words[0]!r} is none. Add the other list's name as a synonym.")  # fmt: skip
        found.append((there[0], number))
    return found
