"""Rows -> commands: what has to be run for a table, in which order, and when a command is done.

    assets (world, proposals, CNN) -> trainings, one a run and seed -> measurements, one a row and seed

A job is one command of `foveate`, as a user types it, and the file that says that it is done. Jobs that several rows
share are run once. Deliberately absent: running them (`foveate.cli.reproduce`), and reading what they wrote
(`results.py`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from foveate.ledger.rows import HEADED, Row, Run, runs_of
from foveate.ledger.scale import Scale
from foveate.recipes import words_of

UNTOUCHED = "untouched"  # where the measurements of the CLIP as it comes lie
DRAWN = (2_000_001, 2_000_051, 2_000_101, 2_000_151)  # pictures that detections are drawn on
DRAWN_SCORE = 0.5
WHERE = ("--workers", "--device")  # flags that change where and how fast a command runs
SAME = "="  # no path
TRAINERS = {
    "fvit": ("train-fvit", "detector.safetensors"),
    "catseg": ("train-catseg", "catseg.safetensors"),
    "panoptic": ("train-panoptic", "generator.safetensors"),
}  # kind of head -> the verb that trains it, and the file that says that it is done
SWEPT = ("clipself", "keep")  # runs whose weights are mixed with the teacher's


@dataclass(frozen=True)
class Job:
    """One command and what must be done before it."""

    name: str
    words: tuple[str, ...]  # of `foveate`
    makes: Path  # there once it is done
    needs: tuple[str, ...] = ()  # names of jobs
    cost: float = 1.0  # about how long it takes, in trainings; for the time left

    def was_run_as(self, words: Sequence[str], *, out: Path) -> bool:
        """Whether a command that was run is this one, but for where it ran.

        Neither the processes that decode pictures, nor the device, nor the place of OUT changes what is made: a folder
        that was moved, or is called by another path, is still done.

        Args:
            words: of the command that was run.
            out: OUT of this job.
        """
        mine, theirs = _without_flags(self.words), _without_flags(words)
        if len(mine) != len(theirs):
            return False
        places = {_place_in(one, other, str(out)) for one, other in zip(mine, theirs, strict=True)} - {SAME}
        return None not in places and len(places) <= 1


def _without_flags(words: Sequence[str]) -> list[str]:
    """The words without the flags that say where a command runs, and their values."""
    kept = [place for place in range(len(words)) if not {*words[max(place - 1, 0) : place + 1]} & {*WHERE}]
    return [words[place] for place in kept]


def _place_in(mine: str, theirs: str, out: str) -> str | None:
    """The OUT of the other command, by a word that names something in OUT (PATH or NAME=PATH); of other words SAME
    where they are equal, else None."""
    start = "" if mine.startswith(out) else "".join(mine.partition("=")[:2])
    path = mine.removeprefix(start)
    if path == out or path.startswith(f"{out}/"):
        end = path.removeprefix(out)
        place = theirs.removeprefix(start).removesuffix(end)
        return place if theirs == f"{start}{place}{end}" else None
    return SAME if mine == theirs else None


@dataclass(frozen=True)
class Stage:
    """What the rows are run on."""

    on: str  # "world", or the path of a COCO root
    out: Path
    figures: Path  # folder of the page's pictures
    scale: Scale
    model: str
    pretrained: str | None
    seeds: tuple[int, ...]
    cnn: str | None = None  # a residual CLIP; made on the world where None
    limit: int | None = None  # pictures measured
    device: str = "auto"
    workers: int = 0
    cnn_pretrained: str | None = None  # its weights

    @property
    def is_world(self) -> bool:
        """Whether the data is rendered by a job of its own."""
        return self.on == "world"

    @property
    def data(self) -> Path:
        """Root of the pictures."""
        return self.out / "data" if self.is_world else Path(self.on)

    @property
    def names(self) -> Path:
        """File of the names of the data's categories, one a line, for a run that is told them."""
        return self.out / "names.txt"

    @property
    def split(self) -> str:
        """Where numbers are reported: never trained or tuned on."""
        return "test" if self.is_world else "val"


def jobs_for(stage: Stage, rows: tuple[Row, ...]) -> dict[str, Job]:
    """Every job that the rows need, by name, each after what it needs.

    Args:
        stage: what they are run on.
        rows: of any tables.
    """
    jobs: dict[str, Job] = {}
    for row in rows:
        if is_left_out(stage, row) is None:
            for seed in seeds_of(stage, row):
                _measure(stage, row, seed, jobs)
    return jobs


def is_left_out(stage: Stage, row: Row) -> str | None:
    """Why a row cannot be run on this data, or None."""
    if row.run == "cnn" and stage.cnn is None and not stage.is_world:
        return "it needs a residual CLIP: name one with --cnn"
    run = None if row.run is None or row.run == "cnn" else runs_of(stage.scale)[row.run]
    if run is not None and "pairs" in run.needs and not stage.is_world:
        return "it needs pictures of another domain; use `foveate distill --data SHARDS` by hand"
    captions = stage.data / "annotations" / "captions_train2017.json"
    if run is not None and "captions" in run.needs and not stage.is_world and not captions.is_file():
        return f"it needs captions, and there is no {captions}"
    return None


def seeds_of(stage: Stage, row: Row) -> tuple[int, ...]:
    """The seeds a row is run with; a CLIP as it comes has none, and is measured once."""
    return stage.seeds if is_trained(row) else stage.seeds[:1]


def is_trained(row: Row) -> bool:
    """Whether a row's model, or the head on it, comes out of a training of the ledger, once a seed."""
    return row.run not in (None, "cnn") or row.measure in HEADED


def measured(stage: Stage, row: Row, seed: int) -> Path:
    """The JSON file that a row's measurement with a seed is written to."""
    if row.measure == "pareto":  # of several runs at once, so that the front is theirs
        return stage.out / f"pareto-{seed}" / "pareto.json"
    if row.measure in HEADED:
        return _head_folder(stage, row, seed) / f"{row.measure}.json"
    return _folder(stage, row.run, seed) / f"{row.measure}.json"


# ------------------------------------------------------------------------------------------------------------ commands


def _measure(stage: Stage, row: Row, seed: int, jobs: dict[str, Job]) -> None:
    """Add the measurement of a row with a seed, and before it all that it needs."""
    out, name = measured(stage, row, seed), job_name(stage, row, seed)
    if name in jobs:
        return
    needs, model = _model(stage, row, seed, jobs)
    common, reference = [*_common(stage), "--out", str(out)], _reference(stage)
    size, sweep = str(stage.scale.size), stage.scale.sweep
    match row.measure:
        case "regions":
            words = ["evaluate", "regions", *model, *common, "--sizes", size, *_head(stage, row)]
        case "sweep":
            words = ["evaluate", "regions", *model, *common, "--sizes", *map(str, sweep)]
        case "masked":
            words = ["evaluate", "regions", *model, *common, "--sizes", size, "--masked", "--no-crops"]
        case "retrieval":
            words = ["evaluate", "retrieval", *model, *reference, *common, "--size", size, "--seed", "0"]
        case "global":
            words = ["evaluate", "global", *model, *reference, *common]
        case "pareto":
            needs = tuple(_train(stage, runs_of(stage.scale)[run], seed, jobs, mixed=False) for run in SWEPT)
            named = [f"{run}={stage.out / need / 'model'}" for run, need in zip(SWEPT, needs, strict=True)]
            plot = ["--plot", str(stage.figures / "pareto.png")] if seed == stage.seeds[0] else []
            words = ["evaluate", "pareto", "--model", *named, *reference, *common, "--size", size, *plot]
        case "detection":
            needs = (_train_detector(stage, row, seed, model, needs, jobs),)
            words = ["evaluate", "detection", "--model", str(out.parent / "model"), *common]
        case "cosines":
            words = [
                "evaluate",
                "semantic",
                *model,
                *common,
                *stage.scale.label_maps,
                "--size",
                size,
                *_head(stage, row),
            ]
        case "semantic":
            needs = (_train_catseg(stage, row, seed, model, needs, jobs),)
            words = ["evaluate", "semantic", "--model", str(out.parent / "model"), *common, *stage.scale.label_maps]
            words += ["--at-once", "1"]
        case "panoptic":
            generator = _train_generator(stage, seed, jobs)
            needs = (*needs, generator)
            words = ["evaluate", "panoptic", "--model", str(stage.out / generator / "model"), *common]
            words += ["--clip-with", model[1], *(["--clip-with-pretrained", *model[3:]] if model[3:] else [])]
            words += ["--size", str(stage.scale.size)]
            words += ["--shares", "generator", "clip", "odise-label"]
    jobs[name] = Job(name, tuple(words), out, needs, cost={"sweep": 2.0, "pareto": 5.0}.get(row.measure, 0.7))


def _train_detector(
    stage: Stage, row: Row, seed: int, model: list[str], needs: tuple[str, ...], jobs: dict[str, Job]
) -> str:
    """Add the training of the detector on a row's model; its name."""
    flags = (*_settings(stage, stage.scale.detector), *row.flags)
    return _train_head(stage, "fvit", _head_folder(stage, row, seed), seed, [*model, *flags], needs, jobs)


def _train_catseg(
    stage: Stage, row: Row, seed: int, model: list[str], needs: tuple[str, ...], jobs: dict[str, Job]
) -> str:
    """Add the training of Cat-Seg on a row's model; its name."""
    flags = (*_settings(stage, stage.scale.catseg), *stage.scale.label_maps, *row.flags)
    return _train_head(stage, "catseg", _head_folder(stage, row, seed), seed, [*model, *flags], needs, jobs)


def _train_generator(stage: Stage, seed: int, jobs: dict[str, Job]) -> str:
    """Add the training of a generator of masks on the CLIP as it comes, which all rows share; its name."""
    words = ["--model", stage.model, *_pretrained(stage), *_settings(stage, stage.scale.generator)]
    return _train_head(stage, "panoptic", stage.out / f"generator-{seed}", seed, words, _data(stage, jobs), jobs)


def _train_head(
    stage: Stage, kind: str, folder: Path, seed: int, flags: list[str], needs: tuple[str, ...], jobs: dict[str, Job]
) -> str:
    """Add the training of a head; its name."""
    verb, weights = TRAINERS[kind]
    words = [verb, "--data", str(stage.data), "--out", str(folder), *flags, "--seed", str(seed)]
    words += ["--workers", str(stage.workers), "--device", stage.device]
    jobs[folder.name] = Job(folder.name, tuple(words), folder / "model" / weights, needs, cost=4.0)
    return folder.name


def _head_folder(stage: Stage, row: Row, seed: int) -> Path:
    """Where the head on a row's model lies, or what was measured of masks that its model named."""
    variant = f"-{row.name.removeprefix('ovd-')}" if row.flags else ""
    kind = {"detection": "fvit", "semantic": "catseg", "panoptic": "masks"}[row.measure]
    return stage.out / f"{kind}-{row.run or UNTOUCHED}{variant}-{seed}"


def _model(stage: Stage, row: Row, seed: int, jobs: dict[str, Job]) -> tuple[tuple[str, ...], list[str]]:
    """What has to be done before a row's model is there, and the words that name it."""
    data = _data(stage, jobs)
    if row.run is None:
        return data, ["--model", stage.model, *_pretrained(stage)]
    if row.run == "cnn":
        weights = [] if stage.cnn_pretrained is None else ["--pretrained", stage.cnn_pretrained]
        return (*data, *_cnn(stage, jobs)), ["--model", str(stage.cnn or stage.out / "cnn"), *weights]
    training = _train(stage, runs_of(stage.scale)[row.run], seed, jobs)
    return (training,), ["--model", str(_folder(stage, row.run, seed) / "model")]


def _train(stage: Stage, run: Run, seed: int, jobs: dict[str, Job], *, mixed: bool = True) -> str:
    """Add a training; its name. One that is not mixed leaves the student as it is, to be mixed afterwards."""
    unmixed = "" if mixed or stage.scale.alpha == 1 else "-unmixed"
    folder = _folder(stage, run.name + unmixed, seed)
    name = folder.name
    if name in jobs:
        return name
    places = {
        "{data}": str(stage.data),
        "{pairs}": str(stage.data / "pairs"),
        "{proposals}": str(stage.out / "proposals" / "proposals_train.json"),
        "{names}": str(stage.names),
    }
    words = ["distill", "--data", places[run.data], "--out", str(folder), "--model", stage.model, *_pretrained(stage)]
    own = {flag.removeprefix("--").replace("-", "_") for flag in run.flags if flag.startswith("--")}
    own |= {"alpha"} if unmixed else set()
    words += [*_settings(stage, stage.scale.distill, without=own), "--seed", str(seed)]
    words += [places.get(word, word) for word in run.flags]
    words += ["--workers", str(stage.workers), "--device", stage.device, "--keep-checkpoints", "1"]
    needs = [*_data(stage, jobs)]
    if "proposals" in run.needs:
        needs += _proposals(stage, jobs)
    makes = folder / "model" / "open_clip_model.safetensors"
    jobs[name] = Job(name, tuple(words), makes, tuple(needs), cost=2.0)
    return name


def _settings(stage: Stage, recipe: str, *, without: Collection[str] = ()) -> list[str]:
    """A recipe's settings, spelled out; what it leaves out has the command's default."""
    return words_of({name: value for name, value in stage.scale.fields(recipe).items() if name not in without})


def _data(stage: Stage, jobs: dict[str, Job]) -> tuple[str, ...]:
    if not stage.is_world:
        return ()
    numbers = ["--train", "600", "--val", "100", "--test", "300", "--pairs", "4000"]
    words = ("world", str(stage.data), *numbers, "--seed", "0", "--processes", "1")
    jobs.setdefault("world", Job("world", words, stage.data / "world.json"))
    return ("world",)


def _proposals(stage: Stage, jobs: dict[str, Job]) -> tuple[str, ...]:
    folder = stage.out / "proposals"
    words = ["proposals", "--data", str(stage.data), "--out", str(folder), "--model", stage.model, *_pretrained(stage)]
    words += ["--steps", str(stage.scale.proposal_steps), "--size", str(stage.scale.size), "--seed", "0"]
    words += ["--workers", str(stage.workers), "--device", stage.device]
    job = Job("proposals", tuple(words), folder / "proposals_train.json", _data(stage, jobs), cost=3.0)
    jobs.setdefault("proposals", job)
    return ("proposals",)


def _cnn(stage: Stage, jobs: dict[str, Job]) -> tuple[str, ...]:
    if stage.cnn is not None:
        return ()
    pairs = stage.out / "pairs"
    words = ("world", str(pairs), "--train", "0", "--val", "0", "--test", "0", "--pairs", "30000", "--processes", "1")
    jobs.setdefault("pairs", Job("pairs", words, pairs / "world.json", cost=3.0))
    words = ("pretrain", "--pairs", str(pairs / "pairs"), "--out", str(stage.out / "cnn"), "--config", "residual")
    words += (
        "--text-from",
        stage.model,
        "--steps",
        "400",
        "--lr-adam",
        "3e-3",
        "--seed",
        "0",
        "--device",
        stage.device,
    )
    made = stage.out / "cnn" / "open_clip_model.safetensors"
    jobs.setdefault("cnn", Job("cnn", words, made, ("pairs",), cost=6.0))
    return ("cnn",)


def job_name(stage: Stage, row: Row, seed: int) -> str:
    """What the job is called that measures a row with a seed."""
    return f"{measured(stage, row, seed).parent.name}/{row.measure}"


def _common(stage: Stage) -> list[str]:
    """The words of every measurement."""
    words = ["--data", str(stage.data), "--split", stage.split, "--workers", str(stage.workers)]
    words += ["--device", stage.device]
    return words if stage.limit is None else [*words, "--limit", str(stage.limit)]


def _reference(stage: Stage) -> list[str]:
    """The words that name the CLIP as it comes, where it is what a model is compared with."""
    words = ["--reference", stage.model]
    return words if stage.pretrained is None else [*words, "--reference-pretrained", stage.pretrained]


def _pretrained(stage: Stage) -> list[str]:
    return [] if stage.pretrained is None else ["--pretrained", stage.pretrained]


def _head(stage: Stage, row: Row) -> list[str]:
    """The head that a run trained is the one that is measured."""
    flags = () if row.run in (None, "cnn") else runs_of(stage.scale)[row.run].flags
    return ["--head", flags[flags.index("--head") + 1]] if "--head" in flags else []


def _folder(stage: Stage, run: str | None, seed: int) -> Path:
    """Where a run with a seed lies, or the measurements of a CLIP as it comes."""
    if run is None:
        return stage.out / UNTOUCHED
    return stage.out / ("cnn-measured" if run == "cnn" else f"{run}-{seed}")


# ------------------------------------------------------------------------------------------------------------- figures


def figures_for(stage: Stage, rows: tuple[Row, ...]) -> dict[str, Job]:
    """The pictures of the figures, where they are asked for: input sizes (Fig. 2, 3, A1) and K-means (Fig. 4).

    Args:
        stage: what the rows are run on.
        rows: of the tables asked for.
    """
    found: dict[str, Job] = {}
    seed, folder = stage.seeds[0], stage.figures
    sweeps = [row for row in rows if row.measure == "sweep" and is_left_out(stage, row) is None]
    if sweeps:
        named = [f"{row.title}={measured(stage, row, seed)}" for row in sweeps]
        needs = tuple(job_name(stage, row, seed) for row in sweeps)
        words = ("show", "sizes", "--results", *named, "--out", str(folder / "sizes.png"))
        found["figure-sizes"] = Job("figure-sizes", words, folder / "sizes.png", needs, cost=0.1)
        model = _folder(stage, "clipself", seed)
        words = ("show", "kmeans", "--data", str(stage.data), "--split", stage.split, "--model", str(model / "model"))
        words += ("--before", stage.model, *_pretrained(stage), "--size", str(stage.scale.size), "--count", "6")
        words += ("--device", stage.device, "--out", str(folder / "kmeans.png"))
        found["figure-kmeans"] = Job("figure-kmeans", words, folder / "kmeans.png", (model.name,), cost=0.2)
    if not stage.is_world:  # whose pictures have these names
        return found
    pictures = [str(stage.data / "test2017" / f"{number:012d}.jpg") for number in DRAWN]
    common = ("--workers", "0", "--device", stage.device, "--out")
    for row in rows:
        if row.measure == "detection" and row.run == "clipself" and not row.flags:
            model = _head_folder(stage, row, seed)
            words = ("detect", *pictures, "--model", str(model / "model"), "--draw", str(DRAWN_SCORE), *common)
            made = folder / "ovd" / "detections.json"
            found["figure-ovd"] = Job("figure-ovd", (*words, str(made.parent)), made, (model.name,), cost=0.1)
        if row.measure == "semantic" and row.run in (None, "clipself"):
            model, name = _head_folder(stage, row, seed), f"figure-{row.name}"
            made = folder / row.name / "segments.json"
            words = ("segment", *pictures, "--model", str(model / "model"), "--vocab", str(stage.names), *common)
            found[name] = Job(name, (*words, str(made.parent)), made, (model.name,), cost=0.1)
        if row.measure == "panoptic" and row.run == "clipself" and row.shares == "odise-label":
            generator, student = stage.out / f"generator-{seed}", _folder(stage, row.run, seed)
            made = folder / "ovps" / "panoptic.json"
            words = ("segment", *pictures, "--model", str(generator / "model"), "--panoptic", "--clip-with")
            words += (str(student / "model"), "--size", str(stage.scale.size))
            words += (*common, str(made.parent))
            found["figure-ovps"] = Job("figure-ovps", words, made, (generator.name, student.name), cost=0.1)
    return found
