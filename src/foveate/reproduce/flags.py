"""The flags of `foveate demo`, `reproduce` and `recipes`; read without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from foveate.reproduce.rows import Table
from foveate.train.flags import SMALL_CLIP


@dataclass(frozen=True)
class Demo:
    """Distil the shipped small CLIP on rendered scenes, evaluate it, and write a report.

    Writes OUT/report.html and OUT/result.json. Runs offline, in about five minutes on two cores.
    """

    out: Path = Path("runs/demo")
    """Folder of the demo; the same command resumes a stopped one."""
    train: int = 600
    """Number of training scenes."""
    test: int = 300
    """Number of held-out scenes to evaluate on."""
    steps: int = 260
    """Distillation steps."""
    seed: int = 0
    """Seed of the scenes, their order and the patch grids."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto uses CUDA if available."""


@dataclass(frozen=True)
class Reproduce:
    """Run the rows of the paper's tables and write a page of the results with the published numbers.

    On the world (the rendered data set) everything runs offline; `all` takes about two hours on two cores. On a COCO
    root it trains and evaluates --model. The same command resumes a stopped one and skips finished rows.
    """

    tables: Annotated[tuple[Literal[Table, "all"], ...], Positional]
    """Tables to run: tab1 (ablations), tab2 (patches or proposals), tab8 (other supervision), tabA1 (retrieval), tabA3
    (masked attention), figs (input sizes, K-means), global (accuracy on whole images), terms (additional options of
    the objective), or all of these. The applications are not part of all: ovd (detection), ovss (semantic
    segmentation), ovps (panoptic segmentation)."""
    data: str = "world"
    """world: rendered here; or a COCO root with panoptic annotations."""
    out: Path = Path("runs/reproduce")
    """Folder for runs, results and logs."""
    page: Path | None = None
    """Results page to write; default: docs/results.md for the world, OUT/results.md otherwise (other data, --model,
    --steps or --limit). Plots are written to a folder of the same name, and one JSON file per row to results/ beside
    it."""
    model: str = SMALL_CLIP
    """The CLIP to distil. Others than the small one are trained with the paper's hyperparameters (L/14's for patch size
    14, B/16's otherwise)."""
    pretrained: str | None = None
    """Weights of an open_clip architecture: a file, or a tag."""
    cnn: str | None = None
    """A CLIP with a CNN image tower for the figures, such as RN50:openai; default: on the world, a small one that is
    pretrained first; none on other data."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds; every training is run once with each."""
    steps: int | None = None
    """Steps of every training, instead of the defaults for the world or of the paper."""
    limit: int | None = None
    """Evaluate only on the first N images."""
    jobs: int = 2
    """Number of commands run in parallel, each with its share of the cores."""
    workers: int = 0
    """Processes that decode images, per command; 0 decodes in the command's process."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto uses CUDA if available."""
    dry_run: bool = False
    """List the commands, pending ones first, and stop."""


@dataclass(frozen=True)
class Recipes:
    """List the named settings of training and evaluation, or show one with its full command."""

    name: Annotated[str | None, Positional] = None
    """Recipe to show, or a prefix of the recipes to list, such as fvit; default: list all."""
    format: Literal["text", "json"] = "text"
    """Output format; json for use in scripts."""
