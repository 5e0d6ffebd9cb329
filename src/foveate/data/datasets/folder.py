"""Any folder of images -> records: CLIPSelf needs no annotation, so a folder is a data set (Sec. 3.2).

Deliberately absent: labels from folder names, captions, archives.
"""

from pathlib import Path

from foveate.data.images import list_images
from foveate.data.records import Dataset, Record


def read_folder(folder: Path | str) -> Dataset:
    """List a folder's images, also those in folders below it, as records without annotations.

    Args:
        folder: files are chosen by suffix (.jpg .jpeg .png .webp .bmp); hidden ones are passed over.

    Returns:
        Records in the order of their paths; a record's id is its path within the folder. No categories.

    Raises:
        InputError: no such folder, no image in it, or a link that leads out of it.
    """
    folder = Path(folder)
    records = tuple(Record(path.relative_to(folder).as_posix(), path) for path in list_images(folder))
    return Dataset(name=folder.resolve().name, categories=(), records=records, ignored={})
