"""`foveate world`: render the synthetic world as a COCO-format data set."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class World:
    """Render the world, a synthetic data set in COCO's format: scenes of textured things over stuff.

    The folder can be passed to --data like a COCO root. The same flags give the same bytes; a complete folder is left
    unchanged.
    """

    folder: Positional[Path]
    """Folder to write; new, empty, or containing the same world."""
    train: int = 1000
    """Number of training scenes (train2017/)."""
    val: int = 300
    """Number of validation scenes (val2017/)."""
    test: int = 300
    """Number of test scenes (test2017/), from a separate random stream."""
    pairs: int = 0
    """Number of 64 px images with captions for pretraining (pairs/*.tar); the shipped small CLIP used 60000."""
    seed: int = 0
    """Seed; together with the counts above it determines every byte."""
    workers: int = 2
    """Processes that render; the output does not depend on it."""


def run(config: World) -> None:
    """Write the world, with a progress bar.

    Raises:
        InputError: a negative number, or the folder is a file or holds something else.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from foveate.data.world.write import WorldSize, write_world
    from foveate.errors import InputError

    size = WorldSize(train=config.train, val=config.val, test=config.test, pairs=config.pairs, seed=config.seed)
    if min(config.train, config.val, config.test, config.pairs, config.seed) < 0 or config.workers < 1:
        raise InputError(f"world: need counts and a seed of 0 or above, and at least one worker; got {config}.")
    _check_folder(config.folder)
    with Progress("drawing", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True) as bar:
        task = bar.add_task("", total=config.train + config.val + config.test + config.pairs)
        write_world(
            config.folder, size, processes=config.workers, progress=lambda done, _: bar.update(task, completed=done)
        )
    print(
        f"{config.folder}: {config.train} train, {config.val} val and {config.test} test scenes, {config.pairs} pairs"
    )


def _check_folder(folder: Path) -> None:
    """Refuse a file in the folder's place, and a folder whose note of what it holds is damaged."""
    import json

    from foveate.errors import InputError

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: need a folder for the world; this is a file. Choose another folder.")
    for note in (folder / "world.json", folder / "world.partial"):
        try:
            parameters = json.loads(note.read_bytes()) if note.exists() else {}
        except ValueError:
            parameters = None
        if not isinstance(parameters, dict):
            raise InputError(f"{note}: need the parameters of a world in JSON; the file is damaged. Delete {folder}.")
