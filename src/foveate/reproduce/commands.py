"""Rows -> commands: the commands that a table needs, their order, and the file that exists once a command is done.

    assets (world, proposals, CNN) -> trainings, one per run and seed -> measurements, one per row and seed

A job is one command of `foveate`: a template filled with the values of the stage, the row and the seed. Jobs that
several rows share are run once. `runner.py` runs them, `page.py` reads their output.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.recipes import words_of
from foveate.reproduce.rows import HEADED, Measure, Row, Run, Scale, runs_of

PRETRAINED_FOLDER = "untouched"  # of the measurements of the pretrained CLIP
EXAMPLE_IDS = (2_000_001, 2_000_051, 2_000_101, 2_000_151)  # images of the world in the figures of applications
MIXED_RUNS = ("clipself", "keep")  # runs whose weights are mixed with the teacher's
HEADS = {
    "detection": ("fvit", "train-fvit", "detector.safetensors"),
    "semantic": ("catseg", "train-catseg", "catseg.safetensors"),
    "panoptic": ("masks", "train-panoptic", "generator.safetensors"),
}  # measure of a head -> stem of its folders, the command that trains it, and its weights file

# ----------------------------------------------------------------------------------------------------------- templates
# A word "{name}" of several values becomes several words, or none.

# fmt: off
COMMON = "--data {data} --split {split} --workers {workers} --device {device} {limit} --out {out}"
MEASURES: dict[Measure, str] = {
    "regions":   "evaluate regions {model} {common} --size {size} {head}",
    "sweep":     "evaluate regions {model} {common} --size {sweep}",
    "masked":    "evaluate regions {model} {common} --size {size} --masked --no-crops",
    "retrieval": "evaluate retrieval {model} {reference} {common} --size {size} --seed 0",
    "global":    "evaluate global {model} {reference} {common}",
    "pareto":    "evaluate pareto --model {mixed} {reference} {common} --size {size} {plot}",
    "detection": "evaluate detection --model {trained} {common}",
    "cosines":   "evaluate semantic {model} {common} {label_maps} --size {size} {head}",
    "semantic":  "evaluate semantic --model {trained} {common} {label_maps}",
    "panoptic":  "evaluate panoptic --model {trained} {common} {classifier} --size {size} "
                 "--fusion generator clip odise-label",
}
COSTS: dict[Measure, float] = {"sweep": 2.0, "pareto": 5.0}  # of measurements; see `Job`
DISTILL = (
    "distill --data {source} --out {out} {pretrained} {settings} --seed {seed} {flags} --workers {workers} "
    "--device {device}"
)
TRAIN_HEAD = (
    "{command} --data {data} --out {out} {model} {settings} {flags} --seed {seed} --workers {workers} --device {device}"
)
WORLD = "world {data} --train 600 --val 100 --test 300 --pairs 4000 --seed 0 --workers 1"
PROPOSALS = (
    "proposals --data {data} --out {out} {pretrained} --steps {proposal_steps} --size {size} --seed 0 "
    "--workers {workers} --device {device}"
)
PAIRS = "world {out} --train 0 --val 0 --test 0 --pairs 30000 --workers 1"
CNN = (
    "pretrain --data {pairs} --out {out} --config residual --text-from {clip} --steps 400 --lr 6e-3 --seed 0 "
    "--device {device}"
)
FIGURES = {
    "sizes":  "show sizes {results} --out {out}",
    "kmeans": "show kmeans --data {data} --split {split} --model {student} {reference} --size {size} "
              "--limit 6 --device {device} --out {out}",
    "ovd":    "detect {images} --model {trained} --draw 0.5 --workers 0 --device {device} --out {folder}",
    "ovss":   "segment {images} --model {trained} --vocab {names} --workers 0 --device {device} --out {folder}",
    "ovps":   "segment {images} --model {generator} --panoptic --classifier {student} --size {size} --workers 0 "
              "--device {device} --out {folder}",
}
# fmt: on


def _fill(template: str, values: dict[str, Any]) -> tuple[str, ...]:
    words: list[str] = []
    for word in template.split():
        value = values.get(word[1:-1])
        words += map(str, value) if isinstance(value, tuple) else [word.format_map(values)]
    return tuple(words)


def _clip(flag: str, model: Path | str, weights: str | None) -> tuple[str, ...]:
    """The words that name a CLIP: --model M --pretrained W, or --reference M:W."""
    if weights is None:
        return flag, str(model)
    return (flag, str(model), "--pretrained", weights) if flag == "--model" else (flag, f"{model}:{weights}")


# ------------------------------------------------------------------------------------------------------ stage and jobs


@dataclass(frozen=True)
class Stage:
    """The data, models and seeds that rows are run with."""

    on: str  # "world", or the path of a COCO root
    out: Path
    figures: Path  # folder of the page's figures
    scale: Scale
    model: str
    pretrained: str | None
    seeds: tuple[int, ...]
    cnn: str | None = None  # a residual CLIP; None: trained on the world
    limit: int | None = None  # images measured
    device: str = "auto"
    workers: int = 0
    redraws: bool = False  # the page exists: its figures are replaced

    @property
    def is_world(self) -> bool:
        """Whether the data is rendered by a job."""
        return self.on == "world"

    @property
    def data(self) -> Path:
        """Root of the images."""
        return self.out / "data" if self.is_world else Path(self.on)

    @property
    def names(self) -> Path:
        """File of the class names of the data, one per line."""
        return self.out / "names.txt"

    @property
    def split(self) -> str:
        """The split of the reported results, never trained or tuned on."""
        return "test" if self.is_world else "val"

    @property
    def values(self) -> dict[str, Any]:
        """Values of all templates."""
        pretrained = _clip("--model", self.model, self.pretrained)
        return {
            "data": self.data,
            "split": self.split,
            "workers": self.workers,
            "device": self.device,
            "limit": () if self.limit is None else ("--limit", self.limit),
            "size": self.scale.size,
            "sweep": self.scale.sweep,
            "label_maps": self.scale.label_maps,
            "proposal_steps": self.scale.proposal_steps,
            "clip": self.model,
            "pretrained": pretrained,
            "reference": _clip("--reference", self.model, self.pretrained),
            "names": self.names,
            "proposals": self.out / "proposals" / "proposals_train.json",
        }


@dataclass(frozen=True)
class Job:
    """One command and its requirements."""

    name: str
    words: tuple[str, ...]  # of `foveate`
    output: Path  # exists once it is done
    needs: tuple[str, ...] = ()  # names of jobs
    cost: float = 1.0  # approximate duration in trainings, for the remaining time


def skip_reason(stage: Stage, row: Row) -> str | None:
    """Why a row cannot be run on this data, or None."""
    if stage.is_world or row.run is None:
        return None
    if row.run == "cnn":
        return None if stage.cnn is not None else "it needs a residual CLIP: name one with --cnn"
    needs = runs_of(stage.scale)[row.run].needs
    if "pairs" in needs:
        return "it needs images of another domain; use `foveate distill --data SHARDS` by hand"
    captions = stage.data / "annotations" / "captions_train2017.json"
    return f"it needs captions; {captions} was not found" if "captions" in needs and not captions.is_file() else None


def is_trained(row: Row) -> bool:
    """Whether a row's model, or the head on it, is trained, once per seed."""
    return row.run not in (None, "cnn") or row.measure in HEADED


def seeds_of(stage: Stage, row: Row) -> tuple[int, ...]:
    """The seeds of a row; a pretrained CLIP is measured once."""
    return stage.seeds if is_trained(row) else stage.seeds[:1]


def measured(stage: Stage, row: Row, seed: int) -> Path:
    """The JSON file of a row's measurement with a seed."""
    folder = _head_folder(stage, row, seed) if row.measure in HEADED else _folder(stage, row.run, seed)
    if row.measure == "pareto":  # of several runs at once, for a common front
        folder = stage.out / f"pareto-{seed}"
    return folder / f"{row.measure}.json"


def job_name(stage: Stage, row: Row, seed: int) -> str:
    """The name of the job that measures a row with a seed."""
    return f"{measured(stage, row, seed).parent.name}/{row.measure}"


def _folder(stage: Stage, run: str | None, seed: int) -> Path:
    """Folder of a run with a seed, or of the measurements of a pretrained CLIP."""
    return stage.out / {None: PRETRAINED_FOLDER, "cnn": "cnn-measured"}.get(run, f"{run}-{seed}")


def _head_folder(stage: Stage, row: Row, seed: int) -> Path:
    """Folder of the head on a row's model, or of the panoptic measurements with its model."""
    variant = f"-{row.name.removeprefix('ovd-')}" if row.flags else ""
    return stage.out / f"{HEADS[row.measure][0]}-{row.run or PRETRAINED_FOLDER}{variant}-{seed}"


# ------------------------------------------------------------------------------------------------------------ planning


def jobs_for(stage: Stage, rows: Iterable[Row]) -> dict[str, Job]:
    """Every job that the rows need, by name, each after its requirements."""
    plan = _Plan(stage)
    for row in rows:
        if skip_reason(stage, row) is None:
            for seed in seeds_of(stage, row):
                plan.measure(row, seed)
    return plan.jobs


@dataclass(frozen=True)
class _Plan:
    """The jobs so far. Each method adds a job after its requirements, and returns its name."""

    stage: Stage
    jobs: dict[str, Job] = field(default_factory=dict)

    def add(
        self,
        name: str,
        template: str,
        output: Path,
        needs: tuple[str, ...] = (),
        *,
        cost: float,
        values: dict[str, Any],
    ) -> str:
        words = _fill(template, {**self.stage.values, **values})
        self.jobs.setdefault(name, Job(name, words, output, needs, cost))
        return name

    def measure(self, row: Row, seed: int) -> str:
        stage, out = self.stage, measured(self.stage, row, seed)
        name = job_name(stage, row, seed)
        needs, model, weights = self.model(row, seed)
        flags = runs_of(stage.scale)[row.run].flags.split() if row.run not in (None, "cnn") else []
        values = {
            "common": _fill(COMMON, {**stage.values, "out": out}),
            "model": _clip("--model", model, weights),
            "head": ("--head", "values3") if "--head" in flags else (),  # as it was trained, with gates or without
        }
        if row.measure == "pareto":
            needs = tuple(self.distill(runs_of(stage.scale)[run], seed, mixed=False) for run in MIXED_RUNS)
            values["mixed"] = tuple(
                f"{run}={stage.out / need / 'model'}" for run, need in zip(MIXED_RUNS, needs, strict=True)
            )
            values["plot"] = ("--plot", stage.figures / "pareto.png") if seed == stage.seeds[0] else ()
        elif row.measure in HEADED:
            head = self.head(row, seed, needs, values["model"])
            needs = (*needs, head) if row.measure == "panoptic" else (head,)
            values |= {"trained": stage.out / head / "model", "classifier": _clip("--classifier", model, weights)}
        return self.add(name, MEASURES[row.measure], out, needs, cost=COSTS.get(row.measure, 0.7), values=values)

    def model(self, row: Row, seed: int) -> tuple[tuple[str, ...], Path | str, str | None]:
        """The jobs that make a row's model, its folder or name, and the weights of a name."""
        stage, data = self.stage, self.data()
        if row.run is None:
            return data, stage.model, stage.pretrained
        if row.run == "cnn":
            return (*data, *self.cnn()), stage.cnn or stage.out / "cnn", None
        return (self.distill(runs_of(stage.scale)[row.run], seed),), _folder(stage, row.run, seed) / "model", None

    def distill(self, run: Run, seed: int, *, mixed: bool = True) -> str:
        """A training; unmixed, it saves the student alone, to be mixed later."""
        stage = self.stage
        unmixed = not mixed and stage.scale.alpha != 1
        folder = _folder(stage, f"{run.name}-unmixed" if unmixed else run.name, seed)
        needs = self.data() + (self.proposals() if "proposals" in run.needs else ())
        flags = _fill(run.flags, stage.values)
        varied = {flag.removeprefix("--").replace("-", "_") for flag in flags} | ({"alpha"} if unmixed else set())
        values = {
            "source": run.data.format_map(stage.values),
            "out": folder,
            "settings": self.settings(stage.scale.distill, without=varied),
            "flags": flags,
            "seed": seed,
        }
        output = folder / "model" / "open_clip_model.safetensors"
        return self.add(folder.name, DISTILL, output, needs, cost=2.0, values=values)

    def head(self, row: Row, seed: int, needs: tuple[str, ...], model: tuple[str, ...]) -> str:
        """The training of a row's head; the mask generator, on the pretrained CLIP, is shared by all rows."""
        stage, scale = self.stage, self.stage.scale
        folder, flags = _head_folder(stage, row, seed), tuple(row.flags.split())
        if row.measure == "detection":
            settings = self.settings(scale.detector)
        elif row.measure == "semantic":
            settings = self.settings(scale.catseg) + scale.label_maps
        else:
            folder, needs, model = stage.out / f"generator-{seed}", self.data(), stage.values["pretrained"]
            settings = self.settings(scale.generator)
        _, command, weights = HEADS[row.measure]
        values = {"command": command, "out": folder, "model": model, "settings": settings, "flags": flags, "seed": seed}
        return self.add(folder.name, TRAIN_HEAD, folder / "model" / weights, needs, cost=4.0, values=values)

    def settings(self, recipe: str, *, without: Iterable[str] = ()) -> tuple[str, ...]:
        """A recipe's settings as flags."""
        fields = self.stage.scale.fields(recipe)
        return tuple(words_of({name: value for name, value in fields.items() if name not in {*without}}))

    def data(self) -> tuple[str, ...]:
        if not self.stage.is_world:
            return ()
        return (self.add("world", WORLD, self.stage.data / "world.json", cost=1.0, values={}),)

    def proposals(self) -> tuple[str, ...]:
        output: Path = self.stage.values["proposals"]
        values = {"out": output.parent}
        return (self.add("proposals", PROPOSALS, output, self.data(), cost=3.0, values=values),)

    def cnn(self) -> tuple[str, ...]:
        if self.stage.cnn is not None:
            return ()
        out, pairs = self.stage.out / "cnn", self.stage.out / "pairs"
        self.add("pairs", PAIRS, pairs / "world.json", cost=3.0, values={"out": pairs})
        values = {"pairs": pairs / "pairs", "out": out}
        return (self.add("cnn", CNN, out / "open_clip_model.safetensors", ("pairs",), cost=6.0, values=values),)


# ------------------------------------------------------------------------------------------------------------- figures


def figures_for(stage: Stage, rows: Iterable[Row]) -> dict[str, Job]:
    """The figures of the rows' tables: input sizes (Fig. 2, 3, A1), K-means (Fig. 4), applications."""
    plan, seed, folder = _Plan(stage), stage.seeds[0], stage.figures
    student, generator = _folder(stage, "clipself", seed), stage.out / f"generator-{seed}"
    images = tuple(str(stage.data / "test2017" / f"{number:012d}.jpg") for number in EXAMPLE_IDS)
    values: dict[str, Any] = {"images": images, "student": student / "model", "generator": generator / "model"}

    def draw(name: str, figure: str, output: Path, needs: tuple[str, ...], *, cost: float = 0.1) -> None:
        outputs = {"out": output, "folder": output.parent}
        plan.add(f"figure-{name}", FIGURES[figure], output, needs, cost=cost, values={**values, **outputs})

    sweeps = [row for row in rows if row.measure == "sweep" and skip_reason(stage, row) is None]
    if sweeps:
        values["results"] = tuple(f"{row.title}={measured(stage, row, seed)}" for row in sweeps)
        draw("sizes", "sizes", folder / "sizes.png", tuple(job_name(stage, row, seed) for row in sweeps))
        draw("kmeans", "kmeans", folder / "kmeans.png", (student.name,), cost=0.2)
    for row in rows if stage.is_world else ():  # whose images have these names
        is_patches = row.run == "clipself" and not row.flags
        if row.measure in HEADED:
            head = _head_folder(stage, row, seed)
            values["trained"] = head / "model"
            if row.measure == "detection" and is_patches:
                draw("ovd", "ovd", folder / "ovd" / "detections.json", (head.name,))
            elif row.measure == "semantic" and (is_patches or row.run is None):
                draw(row.name, "ovss", folder / row.name / "segments.json", (head.name,))
            elif row.measure == "panoptic" and is_patches and row.shares == "odise-label":
                draw("ovps", "ovps", folder / "ovps" / "panoptic.json", (generator.name, student.name))
    return plan.jobs
