"""`foveate reproduce`: the tables and figures of the paper as commands that run, and the page that tells what came out.

Each row trains (once a seed) and measures by the verbs a user types; every command has its log. What is done is not
done again: the same command goes on where an earlier one stopped, and rows that share a training share it. Each command
runs in a process of its own, forked from one that has imported the libraries already.
"""

import hashlib
import json
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from foveate.engine.config import SMALL
from foveate.engine.folder import hold_folder
from foveate.errors import InputError
from foveate.files import versions, write_whole
from foveate.ledger.jobs import Job, Stage, figures_for, is_left_out, jobs_for
from foveate.ledger.page import RULES, check_page, settings_of, write_page, write_results
from foveate.ledger.rows import APPLICATIONS, TABLES, Row, rows_of
from foveate.ledger.scale import scale_of

Table = Literal["tab1", "tab2", "tab8", "tabA1", "tabA3", "figs", "global", "terms", "ovd", "ovss", "ovps", "all"]
PRELOADED = ["foveate.cli.distill", "foveate.objectives.clipself", "foveate.evaluate.regions", "foveate.engine.fit"]


@dataclass(frozen=True)
class Reproduce:
    """Run the rows of the paper's tables and write what came out beside the published numbers.

    On the world everything runs offline, about two hours on two cores for `all`. On a COCO root it trains and
    measures --model there. The same command goes on where it was stopped and skips what is done.
    """

    tables: Annotated[tuple[Table, ...], Positional]
    """Which: tab1 (ablations), tab2 (patches or proposals), tab8 (other training), tabA1 (retrieval), tabA3 (masked
    attention), figs (input sizes, K-means), global (what is kept of whole pictures), terms (later work), or
    all of these; and the applications: ovd (detection), ovss (classes of pixels), ovps (things and stuff)."""
    on: str = "world"
    """world: rendered here; or a COCO root with panoptic annotations."""
    out: Path = Path("runs/reproduce")
    """Where runs, measurements and logs go."""
    results: Path | None = None
    """Folder of one JSON file a row; default: results for the world, OUT/results for anything else (other data, another
    --model, --steps or --limit)."""
    page: Path | None = None
    """The page; default: docs/results.md for the world, OUT/results.md for anything else. Plots go into a folder of
    its name."""
    model: str = SMALL
    """The CLIP to distil; another than the small one is trained with the paper's numbers (B/16's, or L/14's where its
    name says so)."""
    pretrained: str | None = None
    """Weights of an open_clip architecture: a file, or a tag."""
    cnn: str | None = None
    """A residual CLIP for the figures; default: the world's own, pretrained here; none on other data."""
    cnn_pretrained: str | None = None
    """Its weights, where it is the name of an architecture."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every training is run once with each."""
    steps: int | None = None
    """Steps of every training, in place of the scale's own."""
    limit: int | None = None
    """Only the first so many pictures are measured."""
    jobs: int = 2
    """Commands run at once, each with its share of the cores."""
    workers: int = 0
    """Processes that decode pictures, for each command; 0 = none besides its own."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto = cuda where there is one."""
    dry_run: bool = False
    """List the commands, those to be run first, and stop there."""


def run(config: Reproduce) -> None:
    """Run what is not done yet, write results and page.

    Raises:
        InputError: a flag is wrong, or another command writes to the same folder.
        SystemExit: 1 where a command failed (its log is named, the others were run), 130 and 143 after a signal.
    """
    results, page = _targets(config)
    stage = _stage(config, figures=page.with_suffix(""))
    rows = _rows(config, stage)
    for row in rows:
        if (reason := is_left_out(stage, row)) is not None:
            print(f"{row.name} is left out: {reason}", file=sys.stderr)
    jobs = {**jobs_for(stage, rows), **figures_for(stage, rows)}
    todo = _undone(stage, jobs)
    if config.dry_run:
        for job in [*todo.values(), *(job for name, job in jobs.items() if name not in todo)]:
            print(f"{'' if job.name in todo else '# done: '}foveate {shlex.join(job.words)}")
        return
    check_page(page)
    if results.exists() and not results.is_dir():
        raise InputError(f"--results {results}: need a folder; this is a file.")
    config.out.mkdir(parents=True, exist_ok=True)
    lock = hold_folder(config.out)  # noqa: F841  until this function is left
    _write_names(stage)
    print(f"{len(rows)} rows: {len(jobs) - len(todo)} of {len(jobs)} commands are done already", file=sys.stderr)
    failed = _run_all(stage, jobs, todo, at_once=config.jobs)
    left = _undone(stage, jobs)
    done = {name: job for name, job in jobs.items() if name not in left}
    stamps = {name: stamp for name in done if (stamp := _read_stamp(stage, name)) is not None}
    written = write_results(stage, rows, done, results, stamps=stamps)
    write_page(page, results, scale=stage.scale, settings=settings_of(stage))
    print(f"{len(written)} of {len(rows)} rows are in {results}; look at {page}")
    if failed:
        lines = [f"  {name}: {reason}; see {_log(stage, name)}" for name, reason in failed.items()]
        print("\n".join([f"{len(failed)} commands did not end well:", *lines]), file=sys.stderr)
        raise SystemExit(1)


def _targets(config: Reproduce) -> tuple[Path, Path]:
    """Where the rows' files and the page go: in the project for the world as it is meant, else beside the runs."""
    usual = Reproduce(config.tables)
    deciding = ("on", "model", "pretrained", "cnn", "cnn_pretrained", "seeds", "steps", "limit")
    is_usual = all(getattr(config, name) == getattr(usual, name) for name in deciding)
    results, page = ("results", "docs/results.md") if is_usual else (config.out / "results", config.out / "results.md")
    return config.results or Path(results), config.page or Path(page)


def _stage(config: Reproduce, *, figures: Path) -> Stage:
    """Check the flags and put together what the rows are run on."""
    if config.on != "world" and not (Path(config.on) / "annotations").is_dir():
        raise InputError(f"--on: need world, or the folder of a COCO root, with annotations/ in it; got {config.on}.")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        raise InputError(f"--seeds: need different numbers of 0 or above; got {config.seeds}.")
    numbers = {"jobs": config.jobs, "steps": config.steps, "limit": config.limit, "workers": config.workers}
    for flag, value in numbers.items():
        least = 0 if flag == "workers" else 1
        if value is not None and value < least:
            raise InputError(f"--{flag}: need at least {least}; got {value}.")
    for flag, name, weights in (
        ("model", config.model, config.pretrained),
        ("cnn", config.cnn, config.cnn_pretrained),
    ):
        is_named = name in (None, SMALL) or Path(str(name)).exists() or ":" in str(name)
        if not is_named and weights is None:
            told = "--pretrained" if flag == "model" else "--cnn-pretrained"
            raise InputError(
                f"--{flag} {name}: needs weights, else its rows would be of random ones. Name a file or tag with "
                f"{told}, or a model folder."
            )
    patch, native, is_eva = _tower(config.model)
    scale = scale_of(patch=patch, native=native, is_eva=is_eva)
    if config.steps is not None:
        scale = replace(scale, steps_given=config.steps, proposal_steps=min(config.steps, scale.proposal_steps))
    return Stage(
        on=config.on,
        out=config.out,
        figures=figures,
        scale=scale,
        model=config.model,
        pretrained=config.pretrained,
        seeds=config.seeds,
        cnn=config.cnn,
        cnn_pretrained=config.cnn_pretrained,
        limit=config.limit,
        device=config.device,
        workers=config.workers,
    )


def _tower(model: str) -> tuple[int, int, bool]:
    """A model's patch size and native size [pixels], and whether it is an EVA tower, by its description.

    A model without one counts as an EVA-02 B/16, the paper's.
    """
    if model == SMALL:  # needs no library
        return 8, 64, False
    from foveate.clip.describe import describe_architecture, read_config

    described = Path(model.removeprefix("local-dir:")) / "open_clip_config.json"
    config = read_config(described) if described.is_file() else describe_architecture(model)
    vision: dict[str, Any] = config["model_cfg"]["vision_cfg"] if config else {"timm_model_name": "eva"}
    timm_name = str(vision.get("timm_model_name", ""))
    named = re.search(r"patch(\d+)", timm_name)  # timm's towers have it in their name alone
    patch = int(named[1]) if named else vision.get("patch_size", 16)
    return patch, vision.get("image_size", 224), timm_name.startswith("eva")


def _write_names(stage: Stage) -> None:
    """Write the names of the data's categories, for the run that is told them."""
    if stage.is_world:
        from foveate.data.world.scenes import KINDS

        names = [kind.name for kind in KINDS]
    else:
        from foveate.data.sources import open_data

        categories = open_data(stage.data, split=stage.split, annotations="panoptic").categories
        names = [category.name for category in categories]
    write_whole(stage.names, "".join(f"{name}\n" for name in names).encode())


def _rows(config: Reproduce, stage: Stage) -> tuple[Row, ...]:
    wanted = {*config.tables} | ({*TABLES} - {*APPLICATIONS} if "all" in config.tables else set())
    if not wanted:
        raise InputError(f"reproduce: need tables, some of {', '.join(TABLES)}, or all.")
    return tuple(row for row in rows_of(stage.scale) if row.table in wanted)


# ---------------------------------------------------------------------------------------------------------------- jobs


def _undone(stage: Stage, jobs: dict[str, Job]) -> dict[str, Job]:
    """What has to be run: commands that are not done, and those that need one of them."""
    undone: dict[str, Job] = {}
    for name, job in jobs.items():  # each after what it needs
        if not _is_done(stage, job) or any(need in undone for need in job.needs):
            undone[name] = job
    return undone


def _is_done(stage: Stage, job: Job) -> bool:
    """Whether this command ended well, after what it needs did as that stands now, and what it made is there."""
    stamp = _read_stamp(stage, job.name)
    return (
        job.makes.exists()
        and stamp is not None
        and stamp["rules"] == RULES
        and job.was_run_as(stamp["words"], out=stage.out)
        and stamp["after"] == {need: _digest(stage, need) for need in job.needs}
    )


def _read_stamp(stage: Stage, name: str) -> dict[str, Any] | None:
    """What was noted when a command ended well; None where it did not, or the note is damaged."""
    try:
        stamp = json.loads(_stamp(stage, name).read_bytes())
        return {key: stamp[key] for key in ("name", "rules", "words", "after", "seconds", "versions")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(stage: Stage, name: str) -> str | None:
    """Stands for one run of a command: another run of it, or of what it needs, has another."""
    path = _stamp(stage, name)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _note_done(stage: Stage, job: Job, seconds: float) -> None:
    """Write a command's stamp. A training that was stopped in between has no time: only its last part is known."""
    log = _log(stage, job.name)
    starts = log.read_text(errors="replace").count("$ foveate ") if log.exists() else 1
    is_whole = job.words[0] == "evaluate" or starts == 1
    content = {
        "name": job.name,
        "rules": RULES,
        "words": list(job.words),
        "after": {need: _digest(stage, need) for need in job.needs},
        "ended": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        "seconds": round(seconds, 1) if is_whole else None,
        "versions": versions(),
    }
    write_whole(_stamp(stage, job.name), (json.dumps(content, indent=2) + "\n").encode())


def _stamp(stage: Stage, name: str) -> Path:
    return stage.out / "done" / f"{name.replace('/', '-')}.json"


def _log(stage: Stage, name: str) -> Path:
    return stage.out / "logs" / f"{name.replace('/', '-')}.log"


def _run_all(stage: Stage, jobs: dict[str, Job], todo: dict[str, Job], *, at_once: int) -> dict[str, str]:
    """Run the commands, several at once, each after what it needs.

    Returns:
        Those that did not end well, by name, with the reason.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    threads = max(1, (os.cpu_count() or 1) // at_once)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of the processes to come
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    waiting, running, failed = dict(todo), dict[str, tuple[BaseProcess, float]](), dict[str, str]()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with (
        _terminated_as_interrupted(),
        Progress(*columns, console=Console(stderr=True), speed_estimate_period=3600) as bar,
    ):
        task = bar.add_task("commands", total=sum(job.cost for job in todo.values()))
        try:
            while waiting or running:
                for name, job in list(waiting.items()):
                    lost = next((need for need in job.needs if need in failed), None)
                    if lost is not None:
                        failed[name] = f"{lost} failed before"
                        del waiting[name]
                    elif len(running) < at_once and not any(need in waiting or need in running for need in job.needs):
                        _stamp(stage, name).unlink(missing_ok=True)  # until it ends well again
                        process = context.Process(target=_work, args=(job.words, str(_log(stage, name))))
                        process.start()
                        running[name] = (process, time.perf_counter())
                        del waiting[name]
                done = len(todo) - len(waiting) - len(running)
                bar.update(task, description=f"{done}/{len(todo)} {' '.join(running)}")
                connection.wait([process.sentinel for process, _ in running.values()], timeout=1)
                for name, (process, started) in list(running.items()):
                    if process.exitcode is None:
                        continue
                    del running[name]
                    bar.advance(task, jobs[name].cost)
                    if process.exitcode == 0 and jobs[name].makes.exists():
                        _note_done(stage, jobs[name], time.perf_counter() - started)
                    else:
                        failed[name] = f"status {process.exitcode}"
        except KeyboardInterrupt as stop:
            for process, _ in running.values():
                if process.pid is not None and process.is_alive():
                    os.kill(process.pid, signal.SIGTERM)
            for process, _ in running.values():
                process.join()
            print("foveate: stopped; what ran was saved. The same command goes on.", file=sys.stderr)
            raise SystemExit(stop.args[0] if stop.args else 130) from None
    return failed


def _work(words: tuple[str, ...], log: str) -> None:
    """Run one command in this process, all it says going to its log."""
    from foveate.cli.main import main

    Path(log).parent.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first process, which tells this one
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["foveate", *words]
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    print(f"\n$ foveate {shlex.join(words)}", flush=True)
    main(list(words))


def _end_with_the_first() -> None:
    """Stop, as on SIGTERM, when the process that wanted this command is gone (kill -9)."""
    first = parent_process()
    assert first is not None
    connection.wait([first.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, but for the status."""

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
