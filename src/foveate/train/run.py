"""The driver of all training commands: from flags to a product, resumed by the same command.

    prepare: data, weights, objective -> claim OUT -> resume -> plan -> fit (validate, checkpoints) -> product

What is trained is a `Trainable`; each command's file has the function that prepares one. --dry-run ends after the plan.
Nothing is written before the folder is claimed: OUT/config.json has the flags, OUT/checkpoints is what the run resumes
from, OUT/metrics.jsonl and OUT/tensorboard have the losses. A signal ends the run after the current step, saved; where
another process is lost, all end with the reason and the command that resumes them.
Several processes: `torchrun --nproc-per-node 8 -m foveate.cli.main distill ...`.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.data.records import Dataset, remark_lines
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
from foveate.engine.fit import Outcome, Saving, Update, fit
from foveate.engine.guard import Guard
from foveate.engine.log import Log
from foveate.engine.measure import PATIENCE, Cost, measure_pass
from foveate.engine.plan import Plan, memory_of, require_batch, require_fixed, trained_bytes
from foveate.engine.product import best_tensors
from foveate.engine.stop import keeping, resume_command
from foveate.engine.trackers import choose_sinks, import_tracker
from foveate.engine.validate import held_out_loss
from foveate.errors import InputError
from foveate.io.files import check_writable
from foveate.io.listing import Listing
from foveate.io.store import claim_folder, hold_folder
from foveate.progress import heartbeat
from foveate.train.batches import Source, held_out_lines
from foveate.train.flags import RunFlags
from foveate.train.images import FIELD, accept_images, common_identity
from foveate.train.report import (
    Report,
    Sharing,
    end_lines,
    exit_lost,
    kept_line,
    reporter,
    require_usable_images,
    sharing_lines,
)
from foveate.types import Batch

MIN_PLANNED_STEPS = 11  # a shorter run takes no longer than its measurement
KEPT_CHECKPOINTS = 2  # the newest
TIMEOUT = "FOVEATE_TIMEOUT"  # environment variable: seconds without an answer from another process; default: 120
MAY_CHANGE = (
    *("out", "recipe", "workers", "log_every", "save_every"),
    *("strict", "track", "dry_run", "compile", "skip_nonfinite"),
    *("accept_annotations", "allow_changed_data", FIELD),
)
"""Fields that may change between the parts of any run: what is learned is the same. The images have their own check."""
SHARED = ("batch", "accumulate", "processes")
"""Fields that set how the images of a step are shared; some objectives let these change too."""


@dataclass(frozen=True)
class Trainable:
    """What a command trains: all that a run needs beside its flags; nothing is written yet."""

    name: str  # of the model, for people
    objective: nn.Module  # a scalar loss of a batch
    optimizer: torch.optim.Optimizer
    update: Update  # the driver sets its seed
    count: Callable[[Batch], int]  # items that the loss of a batch is the mean over
    images: int  # of the training data
    listings: Mapping[str, Listing]  # of the images, by the flag that names them: the run resumes over these alone
    batches: Callable[[int, int], Iterable[Batch]]  # images taken before, steps to come -> this process's batches
    save: Callable[[dict[str, Tensor]], str]  # writes the product of collected tensors; returns the command to use it
    product: Path
    metadata: dict[str, Any]  # identifies the run beside its flags: digests, class names
    held_out: Iterable[Batch] | None = None  # this process's held-out batches
    held_out_source: Source | None = None  # that they are read from
    dataset: Dataset | None = None  # whose ignored annotations are reported
    notes: Sequence[str] = ()  # printed before the first step
    autocast: bool = False  # compute in bfloat16 under torch.autocast
    sharded: bool = False  # the trained weights are sharded over the processes
    parameters: int | None = None  # of the whole model; None: of the objective
    product_bytes: int | None = None  # None: as what is trained
    files: tuple[Path, ...] = ()  # if all exist after the last step, the run is finished
    may_change: tuple[str, ...] = ()  # fields that may change between parts of the run, beside MAY_CHANGE
    begin: Callable[[], None] | None = None  # called in every process once the folder is claimed
    parts: Callable[[], dict[str, Tensor]] | None = None  # the terms of the last loss by name, held out or not

    def lines(self) -> list[str]:
        """What is printed of the data before the first step."""
        if self.dataset is None:
            return [*self.notes]
        return [*self.notes, *self.dataset.ignored_lines(), *held_out_lines(self.dataset, self.held_out_source)]

    @property
    def bytes(self) -> int:
        """Of the product."""
        return trained_bytes(self.objective) if self.product_bytes is None else self.product_bytes

    def arithmetic(self, device: torch.device) -> torch.autocast:
        """The context of forward passes."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.autocast, cache_enabled=False)


Prepare = Callable[[Any, Processes, Report], Trainable]
"""(checked flags, processes, report) -> what is trained.

Raises:
    InputError: the data or the weights are wrong, or do not match.
"""


def run(config: RunFlags, prepare: Prepare) -> None:
    """Train, or resume, and write the product.

    Raises:
        InputError: a flag, the data, the weights or the output folder is wrong.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C; the run was saved. 1 where another process was lost.
        StoppedError, ExhaustedError, MemoryError: see `engine.stop.ended_in_order`; the steps done were saved.
    """
    checkpoints = config.out / "checkpoints"
    try:
        with keeping(lambda: kept_line(checkpoints)), joined(config.device, timeout=answer_timeout()) as processes:
            outcome = train(config, prepare, processes)
    except LostProcessError as error:
        exit_lost(checkpoints, error)
    if outcome.stopped_by is None:
        return
    if not processes.is_first:
        raise SystemExit(128 + outcome.stopped_by)
    saved = "saved" if outcome.step else "nothing to save yet"
    where = f"after step {outcome.step} of {config.steps}; {saved}"
    print(f"Stopped {where}. {resume_command()}", file=sys.stderr, flush=True)
    raise SystemExit(128 + outcome.stopped_by)


def answer_timeout() -> int:
    """Seconds without an answer from another process after which the whole job ends."""
    text = os.environ.get(TIMEOUT) or "120"
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"${TIMEOUT}: must be a whole number of seconds, at least 1; got {text!r}. Unset it for 120.")
    return int(text)


def train(config: RunFlags, prepare: Prepare, processes: Processes) -> Outcome:
    """One run in this process: the steps done, and the signal that stopped them if one did.

    Raises:
        InputError: a flag, the data, the weights or the output folder is wrong, or no image could be used.
    """
    report = reporter(processes)
    if config.dry_run:
        report("--dry-run: opening data and weights")
    # data and weights, before anything is written; an error of one process is raised in all
    with processes.together():
        if processes.is_first and config.track in ("wandb", "trackio"):
            import_tracker(config.track)
        with heartbeat(report, "opening data and weights"):
            trainable = prepare(config, processes, report)
    work = _Run(config, trainable, processes, report)
    if config.dry_run:
        work.print(trainable.lines() if processes.is_first else ())
        work.plan(trainable.batches(0, config.steps), start_step=0)
        report("--dry-run: nothing was trained and nothing was written")
        return Outcome(step=0)
    images = common_identity(trainable.listings, processes)
    record = run_record(config, {**trainable.metadata, "processes": processes.size, FIELD: images})
    may_change = (*MAY_CHANGE, *trainable.may_change)
    with ExitStack() as stack:
        stack.enter_context(
            keeping(lambda: kept_line(config.out / "checkpoints", may_change={*may_change} & vars(config).keys()))
        )
        # claim and lock the folder until the run ends
        with processes.together():
            if processes.is_first:
                files = [path for path in (trainable.product, *trainable.files) if path != config.out]
                names = [path.relative_to(config.out).parts[0] for path in files]
                claim_folder(config.out, record, may_change=may_change, writes=names)
                stack.enter_context(hold_folder(config.out))
        outcome = work.resume()
        with processes.together():
            if processes.is_first:
                allow = config.allow_changed_data
                work.print(accept_images(config, trainable.listings, step=outcome.step, allow_changed=allow))
        if outcome.step == config.steps and trainable.files and all(path.exists() for path in trainable.files):
            report(f"already finished, after step {outcome.step}; nothing was changed: {trainable.product}")
            return outcome
        with processes.together():
            if processes.is_first:
                work.require_room()
            if trainable.begin is not None:
                trainable.begin()
        work.print(trainable.lines() if processes.is_first else ())
        outcome = work.fit(outcome, record=record)
        remarks = {} if trainable.dataset is None else trainable.dataset.remarks
        work.print([*remark_lines(remarks), *end_lines(outcome, config.out)])
        if outcome.stopped_by is None:
            require_usable_images(outcome, config.out)
            work.write_product()
    return outcome


def run_record(config: RunFlags, metadata: dict[str, Any]) -> dict[str, Any]:
    """The run's identity as JSON: its flags and its metadata (digests, processes). DIR and DIR/ are equal."""
    flags = asdict(config)
    for name in ("data", "validate"):
        if flags.get(name) is not None and "://" not in str(flags[name]):
            flags[name] = str(Path(flags[name]))
    return json.loads(json.dumps({**flags, **metadata}, default=str))


@dataclass(frozen=True)
class _Run:
    """The parts of a run, in one process."""

    config: RunFlags
    trainable: Trainable
    processes: Processes
    report: Report

    def print(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.report(line)

    @property
    def checkpoints(self) -> Path:
        return self.config.out / "checkpoints"

    def resume(self) -> Outcome:
        """How far the run came; its weights and optimizer state are restored."""
        config, trainable, processes = self.config, self.trainable, self.processes
        saved = load_together(self.checkpoints, processes=processes, report=self.report)
        if saved is None:
            return Outcome(step=0)
        restore(trainable.objective, trainable.optimizer, saved.tensors)
        if "batch" in trainable.may_change:
            before = Sharing(*(saved.facts["config"][name] for name in ("processes", "batch", "accumulate")))
            now = Sharing(processes.size, config.batch, trainable.update.accumulate)
            self.print(sharing_lines(before, now, steps=config.steps - saved.step))
        return Outcome.resumed(saved)

    def require_room(self) -> None:
        """Refuse a disk that cannot hold the run, once what a killed save left behind is removed."""
        check_writable(self.config.out)
        clean_checkpoints(self.checkpoints)
        require_space(
            self.config.out,
            module=self.trainable.objective,
            # one more while it is written, and the best one
            copies=KEPT_CHECKPOINTS + 1 + (self.trainable.held_out is not None),
            existing=len(list_complete(self.checkpoints)),
            product=self.trainable.bytes,
        )

    def plan(self, batches: Iterable[Batch], *, start_step: int) -> tuple[Plan, Iterable[Batch]]:
        """Print what the run does and needs; the plan, and the batches, including those that were measured."""
        config, trainable, processes, objective = self.config, self.trainable, self.processes, self.trainable.objective
        # what is known without computing
        fixed = memory_of(objective, 0, processes=processes, sharded=trainable.sharded)
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
            accumulate=trainable.update.accumulate,
            processes=processes.size,
            memory=None,
            seconds=None,
            writes={
                str(trainable.product): trainable.bytes,
                str(self.checkpoints): 3 * KEPT_CHECKPOINTS * trained,
                str(config.out / "metrics.jsonl"): 0,
                **({str(config.out / "tensorboard"): 0} if config.track == "tensorboard" else {}),
            },
        )
        self.print(plan.known_lines(fixed))
        with processes.together():
            require_fixed(fixed, model=trainable.name, device=processes.device)
        # memory and time of the first batch of each process; the largest count
        stream = iter(batches)
        if config.dry_run or config.steps - start_step >= MIN_PLANNED_STEPS:
            with processes.together():
                first = [*islice(stream, 1)]
                costs = [self.measure(batch, room=fixed.available - fixed.fixed) for batch in first]
            stream = chain(first, stream)
            measured = [cost for costs in processes.gather(costs) for cost in costs if cost is not None]
            if measured:
                slowest = max(measured, key=lambda cost: cost.seconds)
                memory = replace(fixed, per_image=max(cost.per_image for cost in measured))
                _, seconds, shortcut, is_least = slowest
                plan = replace(plan, memory=memory, seconds=seconds, shortcut=shortcut, is_least=is_least)
        self.print(plan.measured_lines())
        with processes.together():
            require_batch(plan)
        return plan, stream

    def measure(self, batch: Batch, *, room: int) -> Cost | None:
        """Memory and time of a pass of a batch, with a line every few seconds; what is too much for a CPU is left."""
        trainable, compiled, device = self.trainable, self.config.compile, self.processes.device
        is_cuda = device.type == "cuda"
        # processes that share their weights must run alike, and the first pass of a compiled one takes its time
        bounds = {} if is_cuda or compiled or trainable.sharded else {"room": room, "patience": PATIENCE}
        what = f"measuring a pass of {len(batch.samples)} images on {device}"
        with heartbeat(self.report, what), trainable.arithmetic(device):
            return measure_pass(trainable.objective, batch, count=trainable.count, repeat=compiled or is_cuda, **bounds)

    @contextmanager
    def freed_if_refused(self, *, step: int) -> Iterator[None]:
        """Free the folder of a run that is refused before its first step, so that another --batch can use it."""
        try:
            yield
        except InputError:
            if self.processes.is_first and step == 0:
                (self.config.out / "config.json").unlink(missing_ok=True)
            raise

    def fit(self, outcome: Outcome, *, record: dict[str, Any]) -> Outcome:
        """Plan and train from where the run came to, with its log and its guard."""
        config, trainable, processes = self.config, self.trainable, self.processes
        # the plan, and the batches to come
        plan, batches = None, trainable.batches(outcome.position, config.steps - outcome.step)
        if outcome.step < config.steps:
            with self.freed_if_refused(step=outcome.step):
                plan, batches = self.plan(batches, start_step=outcome.step)
            verb = f"resuming from step {outcome.step} of" if outcome.step else "starting"
            self.report(f"{verb} {config.steps} steps; writing to {config.out}")
        # log, guard and held-out loss
        validate = None
        if trainable.held_out is not None:
            settings = {"count": trainable.count, "processes": processes}
            validate = partial(held_out_loss, trainable.objective, trainable.held_out, **settings)
        log = Log(
            config.out / "metrics.jsonl",
            steps=config.steps,
            start_step=outcome.step,
            every=config.log_every,
            verbose=processes.is_first,
            sinks=choose_sinks(config.out, track=config.track, config=record),
        )
        guard = Guard(log, processes, skip=config.skip_nonfinite, record=config.out / "nonfinite.jsonl")
        with log, trainable.arithmetic(processes.device):
            if plan is not None:
                log.event("plan", plan.record())
            outcome = fit(
                trainable.objective,
                batches,
                trainable.optimizer,
                count=trainable.count,
                update=replace(trainable.update, seed=config.seed),
                steps=config.steps,
                saving=Saving(self.checkpoints, config.save_every, KEPT_CHECKPOINTS, validate),
                processes=processes,
                log=log,
                begin=outcome,
                guard=guard,
                facts={"config": record, "versions": versions()},
            )
            # the last line of the log
            dropped = {} if trainable.dataset is None else trainable.dataset.ignored
            end = {
                "step": outcome.step,
                "bad_images": outcome.bad,
                "dropped_annotations": {reason: entry.count for reason, entry in dropped.items()},
                "skipped_steps": outcome.skipped,
            }
            if trainable.dataset is not None:
                for remarks in processes.gather(trainable.dataset.remarks):
                    trainable.dataset.remarks.update(remarks)
                if trainable.dataset.remarks:
                    end["remarks"] = trainable.dataset.remarks
            if trainable.parts is not None:
                end["parts"] = {name: round(float(part), 5) for name, part in trainable.parts().items()}
            log.event("stop" if outcome.stopped_by else "end", end)
        return outcome

    def write_product(self) -> None:
        """Write what was trained, of the last step or of the best checkpoint."""
        trainable, processes = self.trainable, self.processes
        if self.config.product == "best":
            with processes.together():
                best = best_tensors(self.checkpoints, report=self.report)
            restore(trainable.objective, trainable.optimizer, best)
        tensors = collect(trainable.objective, trainable.optimizer, hold=processes.is_first)
        with processes.together():
            if processes.is_first:
                hint = trainable.save(tensors)
                self.report(f"done: {trainable.product}\n  {hint}")


def require_one_process(processes: Processes, command: str) -> None:
    """Refuse several processes, with an InputError."""
    if processes.size > 1:
        raise InputError(f"{command}: need one process; got {processes.size}. Start it without torchrun.")
