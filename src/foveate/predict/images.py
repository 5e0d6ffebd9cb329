"""The images of a command, listed by name and read in batches; the names of its output files, and its record."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from foveate.data.batches import Batches, Loading
from foveate.data.datasets.folder import read_folder
from foveate.data.images import is_unicode
from foveate.data.records import Dataset, IgnoredEntries, Record
from foveate.engine.stop import keeping
from foveate.errors import InputError
from foveate.io.files import bad_lines, versions, write_whole
from foveate.io.outputs import MARK, check_outputs, inputs_of
from foveate.predict.flags import Detect, Segment


def list_images(paths: Sequence[Path]) -> Dataset:
    """List the images of files and folders (recursively), in this order.

    An id is the path within the folder, or the name of the file.

    Raises:
        InputError: no path, a file or folder that does not exist, two images with one id, or an id that is not Unicode.
    """
    if not paths:
        raise InputError("IMAGES: need at least one image or folder; got none.")
    records: dict[str, Record] = {}
    ignored, notes = dict[str, IgnoredEntries](), list[str]()
    for path in paths:
        if (path / "annotations").is_dir():
            raise InputError(f"{path}: is a COCO root; name a folder of images in it, such as {path / 'val2017'}.")
        if not path.exists():
            raise InputError(f"{path}: need an image or a folder of images; it does not exist. Check the path.")
        folder = read_folder(path) if path.is_dir() else Dataset(path.name, (), (Record(path.name, path),), {})
        notes += folder.notes
        for reason, entries in folder.ignored.items():
            ignored[reason] = ignored[reason] + entries if reason in ignored else entries
        for record in folder.records:
            name = str(record.id)
            if name in records:
                raise InputError(
                    f"IMAGES: need different names; {records[name].path} and {record.path} are both {name!r}. Give "
                    "the folder above them."
                )
            if not is_unicode(name):
                raise InputError(f"{path}: need file names in UTF-8; got {name!r}. Rename the file.")
            records[name] = record
    return Dataset("images", (), tuple(records.values()), ignored, tuple(notes))


def open_images(paths: Sequence[Path], *, batch: int, workers: int, strict: bool) -> Batches:
    """Read the images of files and folders (`list_images`) in batches, with a progress bar."""
    return Batches(list_images(paths), Loading(batch=batch, workers=workers, strict=strict, progress=True))


def file_stems(ids: Sequence[str]) -> dict[str, str]:
    """The stem of each image's output files, by its id: the image's stem if those are unique, else a number."""
    stems = [Path(key).stem for key in ids]
    if len(set(stems)) < len(stems):
        stems = [f"{number:06d}" for number in range(1, len(ids) + 1)]
    return dict(zip(ids, stems, strict=True))


def check_drawings(config: Segment | Detect, batches: Batches, *, suffixes: Sequence[str]) -> None:
    """Refuse to replace an image that is read, or one that the command did not write; see `check_outputs`."""
    records = batches.dataset.records
    stems = file_stems([str(record.id) for record in records]).values()
    paths = [config.out / f"{stem}{suffix}" for stem in stems for suffix in suffixes]
    existing = [config.target("--out", path) for path in paths if os.path.lexists(path)]
    images = [("IMAGES", record.path) for record in records] if existing else []
    check_outputs(config, existing or [config.target("--out", paths[0])], inputs=[*inputs_of(config), *images])


def keeping_files(out: Path) -> AbstractContextManager[None]:
    """The block that writes a file per image into the folder `out`, for who ends it early."""
    return keeping(lambda: f"the files already written to {out} are complete", verb="start again")


def write_record(
    config: Segment | Detect, info: dict[str, Any], content: dict[str, Any], batches: Batches, *, indent: int | None
) -> Path:
    """Write the JSON file of a command, print what was ignored and the unreadable images, and return the file's path.

    Args:
        config: the flags of the command.
        info: metadata; these lines, the unreadable images and the versions of the packages are added.
        content: the rest of the file.
        batches: after the last batch.
    """
    bad, lines = batches.bad_listed(), batches.dataset.ignored_lines()
    ignored = {"ignored": lines} if lines else {}
    record = {"info": {MARK: config.made_by, **info, "bad": bad, **ignored, "versions": versions()}, **content}
    write_whole(config.record, (json.dumps(record, indent=indent) + "\n").encode())
    for line in (*lines, *bad_lines(bad, listed=str(config.record))):
        print(line, file=sys.stderr)
    return config.record
