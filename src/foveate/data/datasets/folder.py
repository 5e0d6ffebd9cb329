"""A folder of images -> records: CLIPSelf needs no annotations, so any folder is a data set (Sec. 3.2)."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from foveate.data.images import list_images
from foveate.data.records import Dataset, IgnoredEntries, Record

SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")


def read_folder(folder: Path | str) -> Dataset:
    """List the images of a folder and of those below it, without annotations or categories.

    Returns:
        Records sorted by path; a record's id is its path within the folder.

    Raises:
        InputError: as `list_images`.
    """
    folder = Path(folder)
    listing = list_images(folder)
    records = tuple(Record(path.relative_to(folder).as_posix(), path) for path in listing.images)
    ignored = {reason: IgnoredEntries(*entries) for reason, entries in listing.ignored.items()}
    notes = split_notes(folder, (str(record.id) for record in records))
    return Dataset(folder.resolve().name, (), records, ignored, notes)


def split_notes(folder: Path, names: Iterable[str]) -> tuple[str, ...]:
    """A note where images of several splits are used together, by the folders that they are in.

    Args:
        folder: that was opened.
        names: of the images, relative to it.
    """
    splits: dict[PurePosixPath, set[str]] = {}  # folder -> folders in it that are called as splits are
    for parent in {name.rpartition("/")[0] for name in names}:
        path = PurePosixPath(parent)
        for above in (path, *path.parents):
            if above.name.lower() in SPLIT_NAMES:
                splits.setdefault(above.parent, set()).add(above.name)
    return tuple(
        f"{folder / above}: holds {', '.join(f'{name}/' for name in sorted(found))}: all are used. "
        "To use one split alone, give its folder."
        for above, found in sorted(splits.items())
        if len(found) > 1
    )
