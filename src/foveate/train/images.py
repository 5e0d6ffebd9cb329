"""The images of a run: all its processes list the same ones, and it resumes over those that it began with.

The order of the images is drawn over their number, so one image more or less gives all others another place. Their
number and digest are in OUT/config.json, their names in OUT/data_images.txt.gz and OUT/validate_images.txt.gz.
"""

import json
from collections.abc import Mapping
from typing import Any

from foveate.engine.distributed import Processes
from foveate.errors import InputError
from foveate.io.files import write_whole
from foveate.io.listing import LISTED, Listing, changes_since, keep_listing
from foveate.io.store import read_run
from foveate.train.flags import RunFlags

FIELD = "listings"  # of the run's record
Identity = dict[str, Any]


def common_identity(listings: Mapping[str, Listing], processes: Processes) -> dict[str, Identity]:
    """The number and digest of the images, by the flag that names them.

    Raises:
        InputError: two processes list different images.
    """
    own = {flag: listing.identity for flag, listing in listings.items()}
    first, *others = processes.gather(own)
    for rank, other in enumerate(others, 1):
        for flag in own:
            if other[flag] != first[flag]:
                raise InputError(
                    f"--{flag}: must hold the same images for all processes; process 0 lists {first[flag]['count']:,} "
                    f"and process {rank} lists {other[flag]['count']:,}, and their names, order or annotations differ. "
                    "Make the copies of the data identical."
                )
    return first


def accept_images(
    config: RunFlags, listings: Mapping[str, Listing], *, step: int, allow_changed: bool = False
) -> list[str]:
    """Compare the images with those that a run began with, and keep their names in its folder.

    Args:
        config: flags; the folder is claimed.
        listings: of the images, by the flag that names them.
        step: how far the run came.
        allow_changed: resume over other images.

    Returns:
        Lines for the user, if anything changed.

    Raises:
        InputError: they changed and steps were done and are left; names those that are gone and those that are new.
    """
    path, now = config.out / "config.json", {flag: listing.identity for flag, listing in listings.items()}
    record, files = read_run(path), {flag: config.out / f"{flag}_{LISTED}" for flag in listings}
    stored: Mapping[str, Identity] = record.get(FIELD) or {}
    changes = {
        flag: f"--{flag} {getattr(config, flag)}: {changes_since(files[flag], listings[flag])}"
        for flag in listings
        if flag in stored and stored[flag] != now[flag]
    }
    lines = []
    if now and not stored:
        lines = [f"{config.out}: began before the images of a run were listed; whether they changed is not known"]
    elif changes and step == 0:
        lines = [f"{change} since the run was first started; no step was done yet" for change in changes.values()]
    elif changes and step >= config.steps:
        lines = [f"{change} since the run began; no step is left, so none is trained on" for change in changes.values()]
    elif changes and not allow_changed:
        counts = " and ".join(f"{stored[flag]['count']:,}, now {now[flag]['count']:,} in --{flag}" for flag in changes)
        raise InputError(
            f"--out {config.out}: must be resumed over the images that it began with ({counts}); got "
            f"{'; '.join(changes.values())}. Restore them, choose another --out, or give --allow-changed-data: the "
            "order of the steps that are left is then drawn over the new list, so that in the epoch under way some "
            "images may be seen twice and some not."
        )
    elif changes:
        lines = [f"resuming over other images (--allow-changed-data): {change}" for change in changes.values()]
        lines.append(
            "the order of the steps that are left is drawn over the new list: in the epoch under way some images may "
            "be seen twice and some not"
        )
    if changes and step >= config.steps:
        return lines  # the record stays that of the images that were trained on
    if stored != now:
        write_whole(path, (json.dumps({**record, FIELD: now}, indent=2) + "\n").encode())
    for flag, listing in listings.items():
        keep_listing(files[flag], listing)
    return lines
