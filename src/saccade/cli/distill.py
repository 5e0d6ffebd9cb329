"""`saccade distill`: CLIPSelf from a folder of pictures to a model folder (Sec. 3.2).

OUT/model/ is the product (alpha-mixed, an open_clip model folder), OUT/checkpoints/ is for continuing,
OUT/metrics.jsonl has the losses, OUT/config.json says what was run. The same command continues a stopped run and
changes nothing in a finished one, but for a product that is missing; with another number of processes, another --batch
or --accumulate it goes on from the same picture, and says what stays equal.
Several processes: `torchrun --nproc-per-node 8 -m saccade.cli.main distill ...`.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from saccade.engine.config import (
    MAY_CHANGE,
    DistillConfig,
    Sharing,
    check_config,
    check_writable,
    claim_folder,
    numbers_of,
    run_record,
    told_sharing,
)
from saccade.errors import InputError

if TYPE_CHECKING:  # torch and open_clip cost seconds: --help must not pay them
    from torch.optim import Optimizer

    from saccade.data.loader import BatchLoader, PictureSource
    from saccade.engine.distributed import Processes
    from saccade.engine.fit import Outcome
    from saccade.objectives.clipself import ClipSelf
    from saccade.types import Batch


def run(config: DistillConfig) -> None:
    """Distil, and leave with the shell's status for a signal when one stopped the run.

    Raises:
        InputError: a flag, the data, the weights or the output folder is wrong.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C; the run was saved. 1 where another process was lost.
    """
    from saccade.engine.distributed import LostProcessError, joined

    check_config(config)
    try:
        with joined(config.device, timeout=config.timeout) as processes:
            outcome = distill(config, processes)
    except LostProcessError as error:
        _leave_the_lost(config, error)
    if outcome.stopped_by is None:
        return
    if processes.is_first:
        saved = "saved" if outcome.step else "nothing to save yet"
        print(f"Stopped after step {outcome.step} of {config.steps}; {saved}. {_again()}", file=sys.stderr)
    raise SystemExit(128 + outcome.stopped_by)


def distill(config: DistillConfig, processes: "Processes") -> "Outcome":
    """One run in this process: towers, data, objective, loop, product.

    Args:
        config: checked by `check_config`.
        processes: this process among those of the run.

    Returns:
        The steps done and the signal that stopped them, if one did.

    Raises:
        InputError: a flag, the data, the weights or the output folder is wrong, or no picture could be used.
    """
    from copy import deepcopy

    from saccade.clip.dense import default_windows
    from saccade.clip.load import CONFIG_FILE, WEIGHTS_FILE, load
    from saccade.engine.checkpoint import (
        clean_checkpoints,
        digest_module,
        load_latest,
        require_space,
        restore,
        versions,
    )
    from saccade.engine.fit import Outcome, fit
    from saccade.engine.guard import Guard
    from saccade.engine.log import Log
    from saccade.engine.optim import build_optimizer, learning_rate
    from saccade.engine.validate import held_out_loss
    from saccade.objectives.clipself import ClipSelf, count_regions, train_layers

    # --- pictures and towers, before anything is written; the teacher is the student before its first step
    with processes.together():
        source, held_out = _open_pictures(config), _open_held_out(config, processes)
        student = load(config.model, pretrained=config.pretrained, device=str(processes.device), seed=config.seed)
        teacher = deepcopy(student)  # no text is used, so no tokenizer has been made yet
        if config.window is not None:
            student.windows = default_windows(student.visual, size=config.window)
        numbers = numbers_of(config, patch_size=student.patch_size)
        partly = train_layers(student, config.layers, head=config.head)
        objective = ClipSelf(
            student,
            teacher,
            student_size=numbers.student_size,
            pad=config.pad,
            head=config.head,
            enlarge=1.5 if config.regions == "boxes" else 1.0,
            tokens=config.tokens,
            bfloat16=config.precision == "bfloat16" and not config.fsdp,
            compiled=config.compile,
            checkpointing=config.checkpointing,
        )
    optimizer = build_optimizer(
        objective, weight_decay=numbers.weight_decay, betas=config.betas, eps=config.eps, partly=partly
    )

    # --- output folder: this run's own; where an earlier start of this command came to
    tell, checkpoints, model = _tell(processes), config.out / "checkpoints", config.out / "model"
    record: dict[str, Any] = {}
    with processes.together():
        if processes.is_first:
            facts = {**asdict(numbers), "weights": digest_module(teacher), "processes": processes.size}
            record = run_record(config, facts)
            claim_folder(config.out, record, may_change=MAY_CHANGE)
    with processes.together():
        saved = load_latest(checkpoints, tell=tell)
    outcome = Outcome(step=0)
    if saved is not None:
        outcome = Outcome.resumed(saved)
        if saved.step == config.steps and (model / WEIGHTS_FILE).exists() and (model / CONFIG_FILE).exists():
            tell(f"finished already, after step {saved.step} of {config.steps}; nothing was changed: {model}")
            return outcome
        restore(objective, optimizer, saved.tensors)
        _tell_sharing(config, processes, saved.facts["config"], steps=config.steps - saved.step, tell=tell)
    with processes.together():
        if processes.is_first:
            check_writable(config.out)
            clean_checkpoints(checkpoints)
            copies = config.keep_checkpoints + 1 + (held_out is not None)  # one more while it is written; the best
            require_space(config.out, module=objective, copies=copies, product=student.model)

    # --- the loop
    verb = "going on from step" if outcome.step else "starting at step"
    tell(
        f"{_summary(objective)}; {len(source)} pictures; {verb} {outcome.step} of {config.steps}; "
        f"writing to {config.out}"
    )
    path, every, bfloat16 = config.out / "metrics.jsonl", config.log_every, config.precision == "bfloat16"
    with Log(path, steps=config.steps, start_step=outcome.step, every=every, speak=processes.is_first) as log:
        outcome = fit(
            objective,
            _batches(config, source, processes, start=outcome.position, steps=config.steps - outcome.step),
            optimizer,
            count=count_regions,
            learning_rate=partial(learning_rate, peak=numbers.lr, warmup=numbers.warmup, steps=config.steps),
            steps=config.steps,
            begin=outcome,
            accumulate=config.accumulate,
            weight_decay=numbers.weight_decay,
            partly=partly,
            bfloat16=bfloat16,
            seed=config.seed,
            processes=processes,
            log=log,
            guard=Guard(
                log,
                processes,
                nonfinite=config.nonfinite,
                limit=config.nonfinite_limit,
                record=config.out / "nonfinite.jsonl",
            ),
            checkpoints=checkpoints,
            save_every=config.save_every,
            keep=config.keep_checkpoints,
            validate=None
            if held_out is None
            else partial(
                held_out_loss, objective, held_out, count=count_regions, bfloat16=bfloat16, processes=processes
            ),
            facts={"config": record, "versions": versions()},
        )

        # --- what was left out, and the product
        dropped = {reason: one.count for reason, one in source.dataset.dropped.items()}
        left_out = {"bad_pictures": outcome.bad, "dropped_annotations": dropped, "skipped_steps": outcome.skipped}
        log.event("stop" if outcome.stopped_by else "end", {"step": outcome.step, **left_out})
    for line in [_bad_pictures(outcome.bad), *source.dataset.dropped_lines()]:
        tell(line)
    if outcome.stopped_by is None:
        _require_good_pictures(outcome, config.out)
        with processes.together():
            if processes.is_first:
                if config.product == "best":
                    tell(f"the product is the student of step {_restore_best(objective, optimizer, checkpoints)}")
                write_product(objective, model, alpha=config.alpha)
        tell(f"done: {model}")
    return outcome


def write_product(objective: "ClipSelf", folder: Path, *, alpha: float) -> None:
    """Mix the student with its teacher over the whole state and save it as a model folder (Sec. 4.1).

    Args:
        objective: after training; its student becomes the mixed one.
        folder: OUT/model.
        alpha: share of the student; 1 saves it as it is.
    """
    from saccade.clip.states import mix_states
    from saccade.clip.weights import save_clip

    student, teacher = objective.student.model, objective.teacher.model
    if alpha != 1:
        student.load_state_dict(mix_states(student.state_dict(), teacher.state_dict(), alpha=alpha))
    save_clip(objective.student, folder)


def _open_pictures(config: DistillConfig) -> "PictureSource":
    """The data set of the run and the regions to draw in it."""
    from saccade.data.loader import PictureSource, open_data

    return PictureSource(
        open_data(config.data, split=config.split, annotations="instances" if config.regions == "boxes" else "none"),
        regions=config.regions,
        limit=config.grid,
        rule=config.grid_rule,
        keep=config.keep,
        seed=config.seed,
    )


def _open_held_out(config: DistillConfig, processes: "Processes") -> "BatchLoader | None":
    """This process's share of the held-out pictures: the same ones, with the same regions, in every run."""
    from saccade.data.loader import PictureSource, epoch_order, make_loader, open_data

    if config.validate is None:
        return None
    annotations = "instances" if config.regions == "boxes" else "none"
    source = PictureSource(
        open_data(config.validate, split=config.validate_split, annotations=annotations),
        regions=config.regions,
        limit=config.grid,
        rule=config.grid_rule,
        keep=config.keep,
    )
    chosen = epoch_order(len(source), seed=0, epoch=0)[: config.validate_pictures]
    mine = [(0, index) for index in chosen[processes.rank :: processes.size]]
    batches = [mine[first : first + config.batch] for first in range(0, len(mine), config.batch)]
    return make_loader(source, batches, workers=config.workers)


def _batches(
    config: DistillConfig, source: "PictureSource", processes: "Processes", *, start: int, steps: int
) -> Iterable["Batch"]:
    """The batches of this process for so many steps, from the picture of the stream on that the run has come to."""
    from saccade.data.loader import BatchSampler, make_loader

    sampler = BatchSampler(
        len(source),
        batch=config.batch,
        seed=config.seed,
        rank=processes.rank,
        world_size=processes.size,
        start=start,
        batches=steps * config.accumulate,
    )
    return make_loader(source, sampler, workers=config.workers, strict=config.strict)


def _require_good_pictures(outcome: "Outcome", out: Path) -> None:
    """Refuse to call an untouched teacher the product of a run.

    Raises:
        InputError: no picture of the whole run could be used.
    """
    if outcome.good == 0:
        name, reason = min(outcome.bad.items(), default=("", "there was none"))
        raise InputError(
            f"--data: needs pictures that can be used; none of the {len(outcome.bad)} of this run could be, so nothing "
            f"was learned and no model is written. The first: {name}: {reason}. Correct them and choose another --out, "
            f"or remove {out}."
        )


def _tell_sharing(
    config: DistillConfig,
    processes: "Processes",
    before: dict[str, Any],
    *,
    steps: int,
    tell: Callable[[str], object],
) -> None:
    """Say what stays equal where the saved part of the run had other processes or batches."""
    saved = Sharing(before["processes"], before["batch"], before["accumulate"])
    told = told_sharing(saved, Sharing(processes.size, config.batch, config.accumulate), steps=steps)
    if told is not None:
        tell(told)


def _restore_best(objective: "ClipSelf", optimizer: "Optimizer", checkpoints: Path) -> int:
    """Go back to the checkpoint with the lowest held-out loss; its step.

    Raises:
        InputError: it is damaged, or no checkpoint has a finite held-out loss.
    """
    from saccade.engine.checkpoint import find_best, load_checkpoint, restore

    path = find_best(checkpoints)
    if path is None:
        raise InputError(f"--product best: no checkpoint in {checkpoints} has a finite held-out loss; use last.")
    best = load_checkpoint(path)
    restore(objective, optimizer, best.tensors)
    return best.step


def _leave_the_lost(config: DistillConfig, error: Exception) -> NoReturn:
    """Say that another process is gone and how to go on, and leave at once with status 1: what the GPUs of this process
    still wait for will never come."""
    from saccade.engine.checkpoint import list_complete

    saved = [int(path.name.removeprefix("step_")) for path in list_complete(config.out / "checkpoints")]
    last = f"the last checkpoint is of step {saved[-1]}" if saved else "there is no checkpoint yet"
    print(f"saccade: {error} This process ends too; {last}. {_again()}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def _again() -> str:
    """How to go on: the command line that started this run, as torchrun's variables tell it."""
    size, nodes = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    local = os.environ.get("LOCAL_WORLD_SIZE", str(size))
    many = ["--nnodes", str(nodes)] if nodes > 1 else []
    start = ["torchrun", *many, "--nproc-per-node", local, "-m", "saccade.cli.main"] if size > 1 else ["saccade"]
    where = f" on each of the {nodes} nodes (with the same --rdzv options as before)" if nodes > 1 else ""
    return f"To go on, run{where}:\n  {shlex.join([*start, *sys.argv[1:]])}"


def _summary(objective: "ClipSelf") -> str:
    total = sum(parameter.numel() for parameter in objective.student.parameters())
    trained = sum(parameter.numel() for parameter in objective.student.parameters() if parameter.requires_grad)
    return f"{objective.student.name}: training {trained / 1e6:.1f} of {total / 1e6:.1f} million parameters"


def _bad_pictures(bad: dict[str, str]) -> str:
    if not bad:
        return "every picture could be used"
    lines = [f"  {name}: {reason}" for name, reason in sorted(bad.items())[:10]]
    more = [f"  and {len(bad) - 10} more, all in metrics.jsonl"] if len(bad) > 10 else []
    return "\n".join([f"{len(bad)} pictures could not be used:", *lines, *more])


def _tell(processes: "Processes") -> Callable[[str], object]:
    """Say something on the error stream, in the first process only."""
    return partial(print, file=sys.stderr, flush=True) if processes.is_first else str
