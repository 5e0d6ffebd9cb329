"""The flags of `foveate demo`, `reproduce` and `recipes`; read without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from foveate.reproduce.rows import Table
from foveate.train.flags import SMALL_CLIP


@dataclass(frozen=True)
class Demo:
    """The whole path on the rendered world: distil the shipped small CLIP and show what it learned.

    Writes OUT/report.html (one page to look at) and OUT/result.json. Needs no network, about five minutes on two cores.
    """

    out: Path = Path("runs/demo")
    """Folder of the demo; the same command continues a stopped one."""
    train: int = 600
    """Scenes to distil on."""
    test: int = 300
    """Scenes to report on, never trained on."""
    steps: int = 260
    """Steps of CLIPSelf."""
    seed: int = 0
    """Draws the world, the order of the scenes and the patch grids."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto = cuda where there is one."""


@dataclass(frozen=True)
class Reproduce:
    """Run the rows of the paper's tables and write what came out beside the published numbers.

    On the world everything runs offline, about two hours on two cores for `all`. On a COCO root it trains and
    measures --model there. The same command resumes where it was stopped and skips what is done.
    """

    tables: Annotated[tuple[Literal[Table, "all"], ...], Positional]
    """Which: tab1 (ablations), tab2 (patches or proposals), tab8 (other training), tabA1 (retrieval), tabA3 (masked
    attention), figs (input sizes, K-means), global (what is kept of whole images), terms (later work), or
    all of these; and the applications: ovd (detection), ovss (classes of pixels), ovps (things and stuff)."""
    data: str = "world"
    """world: rendered here; or a COCO root with panoptic annotations."""
    out: Path = Path("runs/reproduce")
    """Where runs, measurements and logs go."""
    page: Path | None = None
    """The page; default: docs/results.md for the world (and results/), OUT/results.md for anything else (other data,
    another --model, --steps or --limit). Plots go into a folder of its name, a JSON file per row into results/ beside
    it."""
    model: str = SMALL_CLIP
    """The CLIP to distil; another than the small one is trained with the paper's hyperparameters (B/16's, or L/14's
    where its patches are of 14 pixels)."""
    pretrained: str | None = None
    """Weights of an open_clip architecture: a file, or a tag."""
    cnn: str | None = None
    """A residual CLIP for the figures, such as RN50:openai; default: the world's own, pretrained here; none on other
    data."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Every training is run once with each."""
    steps: int | None = None
    """Steps of every training, in place of the scale's own."""
    limit: int | None = None
    """Only the first so many images are measured."""
    jobs: int = 2
    """Commands run at once, each with its share of the cores."""
    workers: int = 0
    """Processes that decode images, for each command; 0 = none besides its own."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto = cuda where there is one."""
    dry_run: bool = False
    """List the commands, those to be run first, and stop there."""


@dataclass(frozen=True)
class Recipes:
    """List the named settings of distill, of what trains on it and of its measures, or show one with its words."""

    name: Annotated[str | None, Positional] = None
    """Which one to show; or how the names begin of those to list, such as fvit. Default: all are listed."""
    format: Literal["text", "json"] = "text"
    """json: for programs."""
