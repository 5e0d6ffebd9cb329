"""A folder of images -> records: CLIPSelf needs no annotations, so any folder is a data set (Sec. 3.2)."""

from pathlib import Path

from foveate.data.images import list_images
from foveate.data.records import Dataset, Record


def read_folder(folder: Path | str) -> Dataset:
    """List the images of a folder and of those below it, without annotations or categories.

    Returns:
        Records sorted by path; a record's id is its path within the folder.

    Raises:
        InputError: as `list_images`.
    """
    folder = Path(folder)
    records = tuple(Record(path.relative_to(folder).as_posix(), path) for path in list_images(folder))
    return Dataset(name=folder.resolve().name, categories=(), records=records, ignored={})
