"""`foveate convert-maps`: label maps of the full release of ADE20K (colours) and of PASCAL Context (MATLAB files)."""

from pathlib import Path

from foveate.convert.flags import AdeFull, Context
from foveate.data.datasets.ade import convert_ade_full, list_ade_full
from foveate.data.datasets.context import convert_context, read_context_labels
from foveate.data.labels import read_labels
from foveate.errors import InputError
from foveate.io.files import check_target


def run_ade_full(config: AdeFull) -> None:
    """Write the maps, and the derived list of classes if none is given, with progress bars.

    Raises:
        InputError: a file is missing or damaged, or OUT has other files.
    """
    _check_out(config.out, config.root)
    if config.labels is None:
        labels = list_ade_full(config.root, progress=True)
    else:
        labels = read_labels(config.labels, repeated="keep")
    written = convert_ade_full(config.root, config.out, split=config.split, labels=labels, progress=True)
    _report(config.out, written, len(labels.ids), f"--data {config.root} --kind ade-full --split {config.split}")


def run_context(config: Context) -> None:
    """Write the maps, with a progress bar.

    Raises:
        InputError: a file is missing or damaged, a class of --only is not in --labels, or OUT has other files.
    """
    _check_out(config.out, config.mats)
    labels = read_context_labels(config.labels, repeated="keep")
    only = None if config.only is None else read_context_labels(config.only, repeated="keep")
    written = convert_context(config.mats, config.out, labels=labels, only=only, progress=True)
    kind = "context459" if only is None else "context59"
    _report(config.out, written, len((only or labels).ids), f"--data VOC2010 --kind {kind}")


def _check_out(out: Path, source: Path) -> None:
    if not source.is_dir():
        raise InputError(f"{source}: need the folder to convert; not found. Check the path.")
    if out.exists() and out.resolve() == source.resolve():
        raise InputError(f"--out {out}: must differ from the folder to convert. Choose a new folder.")
    check_target(out / "labels.txt", flag="--out")


def _report(out: Path, written: int, classes: int, flags: str) -> None:
    count = sum(1 for path in out.rglob("*") if path.suffix in (".tif", ".png"))
    print(f"{out}: {count} maps, {written} of them written now; labels.txt has their {classes} classes")
    print(f"measure with {flags} --maps {out}")
