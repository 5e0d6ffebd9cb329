"""`foveate convert-maps`: make maps of numbers of semantic ground truth that comes in other forms.

Only what needs it: the full release of ADE20K (colours) and PASCAL Context (MATLAB files). All else is read as it lies.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from foveate.errors import InputError
from foveate.io.files import check_target


@dataclass(frozen=True)
class AdeFull:
    """Convert the full release of ADE20K, for A-847: maps of 16 bits and the list of their classes.

    The classes are derived from the JSON files beside the pictures: the whole objects, no parts, that occur in both
    splits. They stand in OUT/labels.txt, "id:word,word" a line; map number 0 is the first line, 65535 no class. Convert
    the other split into the same folder. Measure then with --data ROOT --kind ade-full --maps OUT.

    Typing the same again goes on where a run stopped.
    """

    root: Positional[Path]
    """The folder ADE20K_2021_17_01, with images/ADE/{training,validation}."""
    out: Path
    """Folder to write; new, empty, or holding maps of the same classes."""
    split: Literal["train", "val"] = "val"
    """Which pictures."""
    labels: Path | None = None
    """List of the classes instead of the derived one, "id:word,word" a line, ids as the release's index counts them,
    from 1. Pixels of other objects get no class."""


@dataclass(frozen=True)
class Context:
    """Convert the .mat files of PASCAL Context, for PC-459 or, with --only, PC-59.

    The list of the classes comes to lie in OUT/labels.txt. Measure then with --data VOC2010 --maps OUT and --kind
    context459 or context59.

    Typing the same again goes on where a run stopped.
    """

    mats: Positional[Path]
    """Folder of the files ID.mat, `trainval` of the download."""
    out: Path
    """Folder to write; new, empty, or holding maps of the same classes."""
    labels: Path
    """labels.txt of the download, the 459 classes: "1: accordion" ..."""
    only: Path | None = None
    """59_labels.txt: write maps of 8 bits of these classes alone, found among the 459 by their words. Without it, maps
    of 16 bits of all."""


def run_ade_full(config: AdeFull) -> None:
    """Derive the list of classes where none is given, and write the maps, with progress bars.

    Raises:
        InputError: a file is missing or damaged, or OUT holds something else.
    """
    _check_out(config.out, config.root)
    from foveate.data.ade import convert_ade_full, list_ade_full
    from foveate.data.labels import read_labels

    if config.labels is None:
        labels = list_ade_full(config.root, progress=True)
    else:
        labels = read_labels(config.labels, repeated="keep")
    written = convert_ade_full(config.root, config.out, split=config.split, labels=labels, progress=True)
    _tell(config.out, written, len(labels.ids), f"--data {config.root} --kind ade-full --split {config.split}")


def run_context(config: Context) -> None:
    """Write the maps, with a progress bar.

    Raises:
        InputError: a file is missing or damaged, a class of --only is none of --labels, or OUT holds something else.
    """
    _check_out(config.out, config.mats)
    from foveate.data.context import convert_context, read_context_labels

    labels = read_context_labels(config.labels, repeated="keep")
    only = None if config.only is None else read_context_labels(config.only, repeated="keep")
    written = convert_context(config.mats, config.out, labels=labels, only=only, progress=True)
    kind = "context459" if only is None else "context59"
    _tell(config.out, written, len((only or labels).ids), f"--data VOC2010 --kind {kind}")


def _check_out(out: Path, source: Path) -> None:
    if not source.is_dir():
        raise InputError(f"{source}: need the folder of what is to be converted; there is none. Check the path.")
    if out.exists() and out.resolve() == source.resolve():
        raise InputError(f"--out {out}: need another folder than the one that is converted. Name a new one.")
    check_target(out / "labels.txt", flag="--out")


def _tell(out: Path, written: int, classes: int, flags: str) -> None:
    there = sum(1 for path in out.rglob("*") if path.suffix in (".tif", ".png"))
    print(f"{out}: {there} maps, {written} of them written now; labels.txt has their {classes} classes")
    print(f"measure with {flags} --maps {out}")
