"""`foveate reproduce`: run the commands of the paper's tables and figures, and write the page of results.

Each row trains (once per seed) and measures by the commands a user types, each in its own process with a log. Finished
commands are not repeated: the same command resumes a stopped run, and rows share trainings. A stamp in OUT/done records
with which arguments a command succeeded, and after which requirements.
"""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from foveate.engine.stop import keeping
from foveate.errors import InputError
from foveate.io.files import versions, write_whole
from foveate.io.store import hold_folder
from foveate.reproduce.commands import Job, Stage, figures_for, jobs_for, skip_reason
from foveate.reproduce.flags import Reproduce
from foveate.reproduce.page import RULES, check_page, check_results, settings_of, write_page, write_results
from foveate.reproduce.rows import APPLICATIONS, TABLES, Row, rows_of, scale_of
from foveate.train.flags import SMALL_CLIP

KEPT = "finished commands are not repeated, and those that were running saved their state"
CHILD = """
import os, runpy, signal, threading
def end_with_the_parent():  # its end of the pipe closes even after kill -9
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end_with_the_parent, daemon=True).start()
runpy.run_module("foveate.cli.main", run_name="__main__", alter_sys=True)
"""


def run(config: Reproduce) -> None:
    """Run what is not done yet, write results and page.

    Raises:
        SystemExit: 1 if a command failed (its log is named, the others were run), 130 and 143 after a signal.
    """
    results, page = _targets(config)
    stage = _stage(config, figures=page.with_suffix(""))
    rows = _rows(config, stage)
    for row in rows:
        if (reason := skip_reason(stage, row)) is not None:
            print(f"{row.name} is skipped: {reason}", file=sys.stderr)
    jobs = {**jobs_for(stage, rows), **figures_for(stage, rows)}
    todo = _undone(stage, jobs)
    if config.dry_run:
        for job in [*todo.values(), *(job for name, job in jobs.items() if name not in todo)]:
            print(f"{'' if job.name in todo else '# done: '}foveate {shlex.join(job.words)}")
        return
    # refuse what cannot be written before hours are spent on it
    check_page(page)
    check_results(results, rows)
    stage = replace(stage, redraws=page.exists())
    config.out.mkdir(parents=True, exist_ok=True)
    with hold_folder(config.out):  # another command that writes there is refused
        _write_names(stage)
        print(f"{len(rows)} rows: {len(jobs) - len(todo)} of {len(jobs)} commands are done already", file=sys.stderr)
        failed = _run_all(stage, todo, at_once=config.jobs)
        # rows and page are written from what is done, even if some commands failed
        remaining = _undone(stage, jobs)
        done = {name: job for name, job in jobs.items() if name not in remaining}
        stamps = {name: stamp for name in done if (stamp := _read_stamp(stage, name)) is not None}
        written = write_results(stage, rows, done, results, stamps=stamps)
        write_page(page, results, scale=stage.scale, settings=settings_of(stage))
    print(f"{len(written)} of {len(rows)} rows are in {results}; see {page}")
    if failed:
        lines = [f"  {name}: {reason}; see {_log(stage, name)}" for name, reason in failed.items()]
        print("\n".join([f"{len(failed)} commands failed:", *lines]), file=sys.stderr)
        raise SystemExit(1)


# ------------------------------------------------------------------------------------------------------ from the flags


def _targets(config: Reproduce) -> tuple[Path, Path]:
    """Folder of the rows' files, and the page: in the project for the defaults, else beside the runs."""
    if config.page is not None:
        return config.page.parent / "results", config.page
    defaults = Reproduce(config.tables)
    names = ("data", "model", "pretrained", "cnn", "seed", "steps", "limit")
    if any(getattr(config, name) != getattr(defaults, name) for name in names):
        return config.out / "results", config.out / "results.md"
    return Path("results"), Path("docs/results.md")


def _stage(config: Reproduce, *, figures: Path) -> Stage:
    """Check the flags, and collect what the rows are run with."""
    if config.data != "world" and not (Path(config.data) / "annotations").is_dir():
        raise InputError(
            f"--data: need world, or the folder of a COCO root, with annotations/ in it; got {config.data}."
        )
    if not config.seed or len(set(config.seed)) < len(config.seed) or min(config.seed) < 0:
        raise InputError(f"--seed: need different numbers of 0 or above; got {config.seed}.")
    for flag, minimum in (("jobs", 1), ("steps", 1), ("limit", 1), ("workers", 0)):
        value = getattr(config, flag)
        if value is not None and value < minimum:
            raise InputError(f"--{flag}: need at least {minimum}; got {value}.")
    _check_weights("--model", config.model, config.pretrained)
    _check_weights("--cnn", config.cnn, None)
    patch, native, is_eva = _tower(config.model)
    scale = scale_of(patch=patch, native=native, is_eva=is_eva)
    if config.steps is not None:
        scale = replace(scale, steps_given=config.steps, proposal_steps=min(config.steps, scale.proposal_steps))
    shared = ("out", "model", "pretrained", "cnn", "limit", "device", "workers")
    values = {name: getattr(config, name) for name in shared}
    return Stage(on=config.data, seeds=config.seed, figures=figures, scale=scale, **values)


def _check_weights(flag: str, model: str | None, weights: str | None) -> None:
    """Refuse the name of an architecture without weights."""
    if model in (None, SMALL_CLIP) or Path(model).exists() or ":" in model or weights is not None:
        return
    raise InputError(
        f"{flag} {model}: needs weights; got an architecture, whose weights are random. Give {model}:PRETRAINED with "
        "a file or a tag, or a model folder."
    )


def _tower(model: str) -> tuple[int, int, bool]:
    """A model's patch size and native size [pixels], and whether it is an EVA tower, by its description.

    Without a description it counts as the paper's EVA-02 B/16.
    """
    if model == SMALL_CLIP:  # needs no library
        return 8, 64, False
    from foveate.clip.io.describe import describe_architecture, read_config
    from foveate.clip.load import split_weights

    model = split_weights(model)[0]
    described = Path(model.removeprefix("local-dir:")) / "open_clip_config.json"
    config = read_config(described) if described.is_file() else describe_architecture(model)
    vision: dict[str, Any] = config["model_cfg"]["vision_cfg"] if config else {"timm_model_name": "eva"}
    timm_name = str(vision.get("timm_model_name", ""))
    named = re.search(r"patch(\d+)", timm_name)  # timm's towers have it only in their name
    patch = int(named[1]) if named else vision.get("patch_size", 16)
    return patch, vision.get("image_size", 224), timm_name.startswith("eva")


def _rows(config: Reproduce, stage: Stage) -> tuple[Row, ...]:
    tables = {*config.tables} | ({*TABLES} - {*APPLICATIONS} if "all" in config.tables else set())
    if not tables:
        raise InputError(f"reproduce: need tables, some of {', '.join(TABLES)}, or all.")
    return tuple(row for row in rows_of(stage.scale) if row.table in tables)


def _write_names(stage: Stage) -> None:
    """Write the class names of the data, for the run that needs them."""
    if stage.is_world:
        from foveate.data.world.scenes import KINDS

        names = [kind.name for kind in KINDS]
    else:
        from foveate.data.sources import open_data

        categories = open_data(stage.data, split=stage.split, annotations="panoptic", accept=True).categories
        names = [category.name for category in categories]
    content = "".join(f"{name}\n" for name in names).encode()
    # a folder of earlier commands has their stamps, unless they were stopped at once
    if stage.names.exists() and not (stage.out / "done").is_dir() and stage.names.read_bytes() != content:
        raise InputError(
            f"{stage.names}: need a new file or one of `foveate reproduce`; something else wrote it. Choose another "
            "--out."
        )
    write_whole(stage.names, content)


# -------------------------------------------------------------------------------------------------------------- stamps


def _undone(stage: Stage, jobs: dict[str, Job]) -> dict[str, Job]:
    """The commands that are not done, and those that need one of them."""
    undone: dict[str, Job] = {}
    for name, job in jobs.items():  # each after its requirements
        if not _is_done(stage, job) or any(need in undone for need in job.needs):
            undone[name] = job
    return undone


def _is_done(stage: Stage, job: Job) -> bool:
    """Whether this command succeeded after the current state of its requirements, and its output exists."""
    stamp = _read_stamp(stage, job.name)
    return (
        job.output.exists()
        and stamp is not None
        and stamp["rules"] == RULES
        and _is_same_command(job.words, stamp["words"], out=str(stage.out))
        and stamp["after"] == {need: _digest(stage, need) for need in job.needs}
    )


def _is_same_command(words: Sequence[str], before: Sequence[str], *, out: str) -> bool:
    """Whether two commands differ at most in device, workers and the path of OUT."""
    new, old = _without_machine(words), _without_machine(before)
    if len(new) != len(old):
        return False
    # the other command's OUT, from the first word that is a path in OUT
    pairs = ((path, old_path) for path, old_path in zip(new, old, strict=True) if path.startswith(f"{out}/"))
    path, old_path = next(pairs, (out, out))
    old_out = old_path.removesuffix(path.removeprefix(out))
    return [_relative(word, out) for word in new] == [_relative(word, old_out) for word in old]


def _without_machine(words: Sequence[str]) -> list[str]:
    machine = {"--workers", "--device"}
    return [word for before, word in zip(["", *words], words, strict=False) if not {before, word} & machine]


def _relative(word: str, out: str) -> str:
    """A word with OUT for the path of OUT, in PATH and in NAME=PATH."""
    return re.sub(rf"^([^=]*=)?{re.escape(out)}(?=/|$)", r"\1OUT", word)


def _read_stamp(stage: Stage, name: str) -> dict[str, Any] | None:
    """The stamp of a command that succeeded; None if it did not, or the stamp is damaged."""
    try:
        stamp = json.loads(_stamp(stage, name).read_bytes())
        return {key: stamp[key] for key in ("name", "rules", "words", "after", "seconds", "versions")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(stage: Stage, name: str) -> str | None:
    """Identifies one run of a command: it changes if the command, or a requirement, is run again."""
    path = _stamp(stage, name)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _write_stamp(stage: Stage, job: Job, seconds: float) -> None:
    """Record that a command succeeded; the duration of a training that was interrupted is unknown."""
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


# ------------------------------------------------------------------------------------------------------------- running


def _run_all(stage: Stage, todo: dict[str, Job], *, at_once: int) -> dict[str, str]:
    """Run the commands, several at once, each after its requirements; return those that failed, with the reason."""
    threads = max(1, (os.cpu_count() or 1) // at_once)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    waiting, running, failed = dict(todo), dict[str, tuple[subprocess.Popen, float]](), dict[str, str]()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with keeping(lambda: KEPT), Progress(*columns, console=Console(stderr=True), speed_estimate_period=3600) as bar:
        task = bar.add_task("commands", total=sum(job.cost for job in todo.values()))
        try:
            while waiting or running:
                # start the commands whose requirements are done
                for name, job in list(waiting.items()):
                    failed_need = next((need for need in job.needs if need in failed), None)
                    if failed_need is not None:
                        failed[name] = f"{failed_need} failed before"
                        del waiting[name]
                    elif len(running) < at_once and not any(need in waiting or need in running for need in job.needs):
                        running[name] = (_start(stage, waiting.pop(name), environment), time.perf_counter())
                bar.update(
                    task, description=f"{len(todo) - len(waiting) - len(running)}/{len(todo)} {' '.join(running)}"
                )
                time.sleep(0.1)
                # stamp the commands that have ended
                for name, (process, started) in list(running.items()):
                    status = process.poll()
                    if status is None:
                        continue
                    del running[name]
                    process.communicate()  # closes the pipe
                    bar.advance(task, todo[name].cost)
                    if status == 0 and todo[name].output.exists():
                        _write_stamp(stage, todo[name], time.perf_counter() - started)
                    else:
                        failed[name] = f"status {status}"
        except KeyboardInterrupt:
            for process, _ in running.values():
                process.terminate()
            for process, _ in running.values():
                process.wait()
                process.communicate()  # closes the pipe; before its end this would stop it a second time
            raise
    return failed


def _start(stage: Stage, job: Job, environment: dict[str, str]) -> subprocess.Popen:
    """Start one command with its output in its log; its stamp is removed until it succeeds again."""
    _stamp(stage, job.name).unlink(missing_ok=True)
    log = _log(stage, job.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(f"\n$ foveate {shlex.join(job.words)}\n")
        file.flush()
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, *_typed(stage, job)],
            env=environment,
            stdin=subprocess.PIPE,  # closes with this process
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C reaches only this process, which stops the command
        )


def _typed(stage: Stage, job: Job) -> tuple[str, ...]:
    """The words of a command, which may replace the figures of a page that exists."""
    draws = any(Path(word).is_relative_to(stage.figures) for word in job.words)
    return (*job.words, "--overwrite") if draws and stage.redraws else job.words
