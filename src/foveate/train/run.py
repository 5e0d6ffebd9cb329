"""The driver of every run that trains: from flags to a product, resumed by the same command.

    prepare: data, weights, objective -> claim OUT -> resume -> plan -> fit (validate, checkpoints) -> product

What is trained is a `Trainable`; each command's file has the function that prepares one. With --dry-run the plan is
all. Nothing is written before the folder is claimed: OUT/config.json says what runs there, OUT/checkpoints is what it
resumes from, OUT/metrics.jsonl and OUT/tensorboard have the losses. A signal ends the run after a whole step, saved;
where another process is lost, all end with the reason and the command that resumes them.
Several processes: `torchrun --nproc-per-node 8 -m foveate.cli.main distill ...`.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from foveate.data.records import Dataset
from foveate.engine.checkpoint import (
    clean_checkpoints,
    collect,
    list_complete,
    load_together,
    require_space,
    restore,
    versions,
)
from foveate.engine.distributed import LostProcessError, Processes, joined
from foveate.engine.fit import Outcome, fit
from foveate.engine.guard import Guard
from foveate.engine.log import Log
from foveate.engine.optim import PartlyTrained
from foveate.engine.plan import Plan, measure_pass, memory_of, trained_bytes
from foveate.engine.product import best_tensors
from foveate.engine.stop import StoppedError
from foveate.engine.trackers import choose_sinks, import_tracker
from foveate.engine.validate import held_out_loss
from foveate.errors import InputError
from foveate.io.files import check_writable
from foveate.io.store import HARMLESS, claim_folder, hold_folder
from foveate.train.flags import RunFlags
from foveate.train.report import (
    Report,
    Sharing,
    end_lines,
    exit_lost,
    reporter,
    require_usable_images,
    resume_command,
    sharing_lines,
)
from foveate.types import Batch

FEW_STEPS = 10  # a run of no more is as long as its measurement
KEPT_CHECKPOINTS = 2  # the newest
TIMEOUT = "FOVEATE_TIMEOUT"  # environment variable: seconds without an answer from another process; default: 120
MAY_CHANGE = (*HARMLESS, "compile", "skip_nonfinite")
"""Fields that may change between the parts of any run: the same is learned."""
SHARED = ("batch", "accumulate", "processes")
"""Fields that say how the images of a step are shared; some objectives let these change too."""


@dataclass(frozen=True)
class Trainable:
    """What a command trains: everything that a run needs beside its flags, with nothing written yet."""

    name: str  # of the model, for people
    objective: nn.Module  # a scalar loss of a batch
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]  # of a step, from 0
    count: Callable[[Batch], int]  # items that the loss of a batch is the mean over
    images: int  # of the training data
    batches: Callable[[int, int], Iterable[Batch]]  # images taken before, steps to come -> this process's batches
    save: Callable[[dict[str, Tensor]], str]  # writes the product of collected tensors; what to do with it, for people
    product: Path  # where that is
    metadata: dict[str, Any]  # what no flag holds that makes it another run: digests, class names
    held_out: Iterable[Batch] | None = None  # this process's held-out batches
    dataset: Dataset | None = None  # whose ignored annotations are reported
    notes: Sequence[str] = ()  # for the user, before the first step
    accumulate: int = 1
    weight_decay: float = 0.0  # of the rows of `partly`
    partly: Sequence[PartlyTrained] = ()  # matrices trained in some rows only
    clip: float | None = None  # maximum norm of the gradient
    autocast: bool = False  # compute in bfloat16 under torch.autocast
    sharded: bool = False  # the trained weights are spread over the processes
    parameters: int | None = None  # of the whole model; None: of the objective
    product_bytes: int | None = None  # of the product; None: as what is trained
    files: tuple[Path, ...] = ()  # where all exist after the last step there is nothing left to do
    may_change: tuple[str, ...] = ()  # fields that make no other run, beside MAY_CHANGE
    begin: Callable[[], None] | None = None  # what every process does once the folder is this run's
    parts: Callable[[], dict[str, Tensor]] | None = None  # the terms of the last loss by name, held out or not

    @property
    def lines(self) -> list[str]:
        """What the user must know of the data before the first step."""
        return [*self.notes, *([] if self.dataset is None else self.dataset.dropped_lines())]

    def arithmetic(self, device: torch.device) -> torch.autocast:
        """What forward passes run in."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.autocast, cache_enabled=False)


Prepare = Callable[[Any, Processes, Report], Trainable]
"""(flags, processes, report) -> what is trained; raises InputError where data, weights or flags are wrong."""


def run(config: RunFlags, prepare: Prepare) -> None:
    """Train, or resume, and write the product.

    Args:
        config: flags, checked.
        prepare: makes what is trained.

    Raises:
        InputError: a flag, the data, the weights or the output folder is wrong.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C; the run was saved. 1 where another process was lost.
    """
    try:
        with joined(config.device, timeout=answer_timeout()) as processes:
            outcome = train(config, prepare, processes)
    except LostProcessError as error:
        exit_lost(config.out / "checkpoints", error)
    except StoppedError as stop:
        _exit_stopped(stop.where, stop.number)
    if outcome.stopped_by is None:
        return
    if not processes.is_first:
        raise SystemExit(128 + outcome.stopped_by)
    saved = "saved" if outcome.step else "nothing to save yet"
    _exit_stopped(f"after step {outcome.step} of {config.steps}; {saved}", outcome.stopped_by)


def answer_timeout() -> int:
    """Seconds without an answer from another process after which the whole job ends."""
    text = os.environ.get(TIMEOUT) or "120"
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"${TIMEOUT}: must be a whole number of seconds, at least 1; got {text!r}. Unset it for 120.")
    return int(text)


def _exit_stopped(where: str, number: int) -> NoReturn:
    """Say where the run was stopped and how to resume, and exit with the shell's status for the signal."""
    print(f"Stopped {where}. {resume_command()}", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


def train(config: RunFlags, prepare: Prepare, processes: Processes) -> Outcome:
    """One run in this process.

    Args:
        config: flags, checked.
        prepare: makes what is trained.
        processes: this process among those of the run.

    Returns:
        The steps done and the signal that stopped them, if one did.

    Raises:
        InputError: a flag, the data, the weights or the output folder is wrong, or no image could be used.
    """
    report = reporter(processes)
    # data and weights before anything is written: what one process refuses all refuse
    with processes.together():
        if processes.is_first and config.track in ("wandb", "trackio"):
            import_tracker(config.track)
        trainable = prepare(config, processes, report)
    if config.dry_run:
        _report_all(trainable.lines, report)
        _plan(config, trainable, trainable.batches(0, config.steps), processes, start_step=0, report=report)
        report("--dry-run: nothing was trained and nothing was written")
        return Outcome(step=0)
    record = run_record(config, {**trainable.metadata, "processes": processes.size})
    with ExitStack() as stack:
        # the folder is this run's own, and no other process writes there until the run ends
        with processes.together():
            if processes.is_first:
                claim_folder(config.out, record, may_change=(*MAY_CHANGE, *trainable.may_change))
                stack.enter_context(hold_folder(config.out))
        outcome = _resume(config, trainable, processes, report)
        if outcome.step == config.steps and trainable.files and all(path.exists() for path in trainable.files):
            report(f"finished already, after step {outcome.step}; nothing was changed: {trainable.product}")
            return outcome
        with processes.together():
            if processes.is_first:
                _require_room(config, trainable)
            if trainable.begin is not None:
                trainable.begin()
        _report_all(trainable.lines, report)
        outcome = _fit(config, trainable, processes, outcome, record=record, report=report)
        _report_all(end_lines(outcome, config.out), report)
        if outcome.stopped_by is None:
            require_usable_images(outcome, config.out)
            _write_product(config, trainable, processes, report)
    return outcome


def run_record(config: RunFlags, metadata: dict[str, Any]) -> dict[str, Any]:
    """The run's identity as JSON: its flags and what no flag holds (digests, processes). DIR and DIR/ are one."""
    flags = asdict(config)
    for name in ("data", "validate"):
        if flags.get(name) is not None and "://" not in str(flags[name]):
            flags[name] = str(Path(flags[name]))
    return json.loads(json.dumps({**flags, **metadata}, default=str))


def _resume(config: RunFlags, trainable: Trainable, processes: Processes, report: Report) -> Outcome:
    """How far the run came, whose weights and optimizer state are then put back."""
    saved = load_together(config.out / "checkpoints", processes=processes, tell=report)
    if saved is None:
        return Outcome(step=0)
    restore(trainable.objective, trainable.optimizer, saved.tensors)
    if "batch" in trainable.may_change:
        before = Sharing(*(saved.facts["config"][name] for name in ("processes", "batch", "accumulate")))
        now = Sharing(processes.size, config.batch, trainable.accumulate)
        _report_all(sharing_lines(before, now, steps=config.steps - saved.step), report)
    return Outcome.resumed(saved)


def _require_room(config: RunFlags, trainable: Trainable) -> None:
    """Make sure that all of the run can be written, once what a killed save left behind is gone."""
    check_writable(config.out)
    checkpoints = config.out / "checkpoints"
    clean_checkpoints(checkpoints)
    copies = KEPT_CHECKPOINTS + 1 + (trainable.held_out is not None)  # one more while it is written; the best
    require_space(
        config.out,
        module=trainable.objective,
        copies=copies,
        existing=len(list_complete(checkpoints)),
        product=_product_bytes(trainable),
    )


def _fit(
    config: RunFlags,
    trainable: Trainable,
    processes: Processes,
    outcome: Outcome,
    *,
    record: dict[str, Any],
    report: Report,
) -> Outcome:
    """Plan and train from where the run came to, with its log and its guard."""
    objective, steps, start = trainable.objective, config.steps, outcome.step
    batches, events = trainable.batches(outcome.position, steps - start), []
    if start < steps:
        plan, batches = _plan(config, trainable, batches, processes, start_step=start, report=report)
        events = [("plan", plan.record())]
        verb = f"resuming from step {start} of" if start else "starting"
        report(f"{verb} {steps} steps; writing to {config.out}")
    validate = None
    if trainable.held_out is not None:
        validate = partial(held_out_loss, objective, trainable.held_out, count=trainable.count, processes=processes)
    log = Log(
        config.out / "metrics.jsonl",
        steps=steps,
        start_step=start,
        every=config.log_every,
        speak=processes.is_first,
        sinks=choose_sinks(config.out, track=config.track, config=record),
    )
    with log, trainable.arithmetic(processes.device):
        for event in events:
            log.event(*event)
        outcome = fit(
            objective,
            batches,
            trainable.optimizer,
            count=trainable.count,
            learning_rate=trainable.learning_rate,
            steps=steps,
            begin=outcome,
            accumulate=trainable.accumulate,
            weight_decay=trainable.weight_decay,
            clip=trainable.clip,
            partly=trainable.partly,
            seed=config.seed,
            processes=processes,
            log=log,
            guard=Guard(log, processes, skip=config.skip_nonfinite, record=config.out / "nonfinite.jsonl"),
            checkpoints=config.out / "checkpoints",
            save_every=config.save_every,
            keep=KEPT_CHECKPOINTS,
            validate=validate,
            facts={"config": record, "versions": versions()},
        )
        log.event("stop" if outcome.stopped_by else "end", _end_record(trainable, outcome))
    return outcome


def _end_record(trainable: Trainable, outcome: Outcome) -> dict[str, Any]:
    """The last line of the log: what was done and what was ignored."""
    dropped = {} if trainable.dataset is None else trainable.dataset.dropped
    end = {
        "step": outcome.step,
        "bad_images": outcome.bad,
        "dropped_annotations": {reason: entry.count for reason, entry in dropped.items()},
        "skipped_steps": outcome.skipped,
    }
    if trainable.parts is not None:
        end["parts"] = {name: round(float(part), 5) for name, part in trainable.parts().items()}
    return end


def _plan(
    config: RunFlags,
    trainable: Trainable,
    batches: Iterable[Batch],
    processes: Processes,
    *,
    start_step: int,
    report: Report,
) -> tuple[Plan, Iterable[Batch]]:
    """Print what the run will do and need; the plan, and the batches, none of them lost to the measurement."""
    objective, measured, stream = trainable.objective, [], iter(batches)
    if config.dry_run or config.steps - start_step > FEW_STEPS:
        with processes.together(), trainable.arithmetic(processes.device):
            first = list(islice(stream, 1))
            stream = chain(first, stream)
            repeat = processes.device.type == "cuda" or config.compile
            passes = [measure_pass(objective, batch, count=trainable.count, repeat=repeat) for batch in first]
        measured = [cost for costs in processes.gather(passes) for cost in costs if cost is not None]
    per_image, seconds = (max(numbers) for numbers in zip(*measured, strict=True)) if measured else (0, None)
    trained = trained_bytes(objective)
    plan = Plan(
        model=trainable.name,
        device=str(processes.device),
        trained=sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad),
        parameters=trainable.parameters or sum(parameter.numel() for parameter in objective.parameters()),
        images=trainable.images,
        steps=config.steps,
        start_step=start_step,
        batch=config.batch,
        accumulate=trainable.accumulate,
        processes=processes.size,
        memory=memory_of(objective, per_image, processes=processes, sharded=trainable.sharded) if measured else None,
        seconds=seconds,
        writes={
            str(trainable.product): _product_bytes(trainable),
            str(config.out / "checkpoints"): 3 * KEPT_CHECKPOINTS * trained,
            str(config.out / "metrics.jsonl"): 0,
            **({str(config.out / "tensorboard"): 0} if config.track == "tensorboard" else {}),
        },
    )
    _report_all(plan.lines(), report)
    return plan, stream


def _write_product(config: RunFlags, trainable: Trainable, processes: Processes, report: Report) -> None:
    """Write what was trained, as it was at the last step or at the best one."""
    if config.product == "best":
        with processes.together():
            best = best_tensors(config.out / "checkpoints", tell=report)
        restore(trainable.objective, trainable.optimizer, best)
    tensors = collect(trainable.objective, trainable.optimizer, hold=processes.is_first)
    with processes.together():
        if processes.is_first:
            hint = trainable.save(tensors)
            report(f"done: {trainable.product}\n  {hint}")


def _product_bytes(trainable: Trainable) -> int:
    return trained_bytes(trainable.objective) if trainable.product_bytes is None else trainable.product_bytes


def _report_all(lines: Iterable[str], report: Report) -> None:
    for line in lines:
        report(line)


def require_one_process(processes: Processes, command: str) -> None:
    """Refuse several processes.

    Raises:
        InputError: there are some.
    """
    if processes.size > 1:
        raise InputError(f"{command}: need one process; got {processes.size}. Start it without torchrun.")
