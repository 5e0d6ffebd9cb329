"""The images of a command: listed by name, read in batches; the names of what is written of them, and its record."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.data.batches import Batches, Loading
from foveate.data.datasets.folder import read_folder
from foveate.data.records import Dataset, Record
from foveate.errors import InputError
from foveate.io.files import bad_lines, versions, write_whole


def list_images(paths: Sequence[Path]) -> Dataset:
    """List the images of files and folders, each with a name of its own.

    Args:
        paths: image files, and folders that are searched with all below them.

    Returns:
        Records in the order given; an id is the path within the folder, or the name of the file.

    Raises:
        InputError: no path, a file or folder that does not exist, two images with one id, or one that is no Unicode.
    """
    if not paths:
        raise InputError("IMAGES: need at least one image or folder; got none.")
    records: dict[str, Record] = {}
    for path in paths:
        if (path / "annotations").is_dir():
            raise InputError(f"{path}: is a COCO root; name a folder of images in it, such as {path / 'val2017'}.")
        if not path.exists():
            raise InputError(f"{path}: need an image or a folder of images; there is no such file. Check the path.")
        for record in read_folder(path).records if path.is_dir() else (Record(path.name, path),):
            name = str(record.id)
            if name in records:
                raise InputError(
                    f"IMAGES: need a name of its own for each; {records[name].path} and {record.path} are both "
                    f"{name!r}. Name the folder above them."
                )
            if not is_unicode(name):
                raise InputError(f"{path}: need file names in UTF-8; got {name!r}. Rename the file.")
            records[name] = record
    return Dataset("images", (), tuple(records.values()), {})


def is_unicode(name: str) -> bool:
    """Whether a file name can be written into JSON; a name from the disk may hold bytes that are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def open_images(paths: Sequence[Path], *, batch: int, workers: int, strict: bool) -> Batches:
    """Read the images of files and folders in batches, with a progress bar.

    Raises:
        InputError: as `list_images`, or a batch below 1.
    """
    return Batches(list_images(paths), Loading(batch=batch, workers=workers, strict=strict, progress=True))


def file_stems(ids: Sequence[str]) -> dict[str, str]:
    """The name, without ending, of what is written of each image: the image's own where those differ, else a number."""
    stems = [Path(key).stem for key in ids]
    if len(set(stems)) < len(stems):
        stems = [f"{number:06d}" for number in range(1, len(ids) + 1)]
    return dict(zip(ids, stems, strict=True))


def write_record(
    path: Path, info: dict[str, Any], content: dict[str, Any], feed: Batches, *, indent: int | None
) -> None:
    """Write the JSON file of a command with the images that could not be read, and print those.

    Args:
        info: what made it; the bad images and the versions of the packages are added.
        content: the rest of the file.
        feed: after the last batch.
    """
    bad = feed.bad_listed()
    record = {"info": {**info, "bad": bad, "versions": versions()}, **content}
    write_whole(path, (json.dumps(record, indent=indent) + "\n").encode())
    for line in bad_lines(bad, listed=str(path)):
        print(line, file=sys.stderr)
