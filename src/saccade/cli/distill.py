"""`saccade distill`: CLIPSelf from a folder of pictures to a model folder (Sec. 3.2).

OUT/model/ is the product (alpha-mixed, an open_clip model folder), OUT/checkpoints/ is for continuing,
OUT/metrics.jsonl has the losses, OUT/config.json says what was run. The same command continues a stopped run and does
nothing to a finished one. Several processes: `torchrun --nproc-per-node 8 -m saccade.cli.main distill ...`.
"""

import shlex
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from saccade.engine.config import DistillConfig, check_config, claim_folder, run_record

if TYPE_CHECKING:  # torch and open_clip cost seconds: --help must not pay them
    from saccade.engine.distributed import World
    from saccade.engine.fit import Outcome
    from saccade.objectives.clipself import ClipSelf
    from saccade.types import Batch


def run(config: DistillConfig) -> None:
    """Distil, and leave with the shell's status for a signal when one stopped the run.

    Raises:
        InputError: a flag, the data, the weights or the output folder is wrong.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C; the run was saved.
    """
    from saccade.engine.distributed import joined

    check_config(config)
    with joined(config.device, timeout=config.timeout) as world:
        outcome = distill(config, world)
    if outcome.stopped_by is None:
        return
    if world.is_first:
        again = shlex.join(["saccade", *sys.argv[1:]])
        print(f"Stopped after step {outcome.step} of {config.steps}; saved. To go on, run:\n  {again}", file=sys.stderr)
    raise SystemExit(128 + outcome.stopped_by)


def distill(config: DistillConfig, world: "World") -> "Outcome":
    """One run in this process: towers, data, objective, loop, product.

    Args:
        config: checked by `check_config`.
        world: this process among those of the run.

    Returns:
        The steps done and the signal that stopped them, if one did.
    """
    from copy import deepcopy

    from saccade.clip.model import load
    from saccade.engine.checkpoint import clean_checkpoints, digest_module, load_latest, require_space, restore
    from saccade.engine.fit import fit
    from saccade.engine.log import Log
    from saccade.engine.optim import build_optimizer, learning_rate
    from saccade.objectives.clipself import ClipSelf, count_regions, train_layers

    # --- towers: the teacher is the student before its first step
    student = load(config.model, pretrained=config.pretrained, device=str(world.device), seed=config.seed)
    teacher = deepcopy(student, {id(student.tokenizer): student.tokenizer})  # a copy of the weights, not of the words
    partly = train_layers(student, config.layers, head=config.head)
    objective = ClipSelf(
        student,
        teacher,
        student_size=config.student_size,
        pad=config.pad,
        head=config.head,
        enlarge=1.5 if config.regions == "boxes" else 1.0,
    )
    optimizer = build_optimizer(
        objective, weight_decay=config.weight_decay, betas=config.betas, eps=config.eps, partly=partly
    )

    # --- output folder: this run's own, with room for its checkpoints
    checkpoints = config.out / "checkpoints"
    if world.is_first:
        claim_folder(config.out, run_record(config, {"weights": digest_module(teacher), "processes": world.size}))
        clean_checkpoints(checkpoints)
        require_space(config.out, module=objective, copies=config.keep_checkpoints + 1)
    world.wait()

    # --- where an earlier start of this command came to
    saved = load_latest(checkpoints, tell=_tell(world))
    start, bad = 0, {}
    if saved is not None:
        restore(objective, optimizer, saved.tensors)
        start, bad = saved.step, saved.facts["bad"]

    # --- pictures, from the step that comes next
    loader, pictures = _open_pictures(config, world, start_step=start)
    verb = "going on from step" if start else "starting at step"
    _tell(world)(
        f"{_summary(objective)}; {pictures} pictures; {verb} {start} of {config.steps}; writing to {config.out}"
    )

    # --- the loop
    path = config.out / "metrics.jsonl"
    with Log(path, steps=config.steps, start_step=start, every=config.log_every, speak=world.is_first) as log:
        outcome = fit(
            objective,
            loader,
            optimizer,
            count=count_regions,
            learning_rate=partial(learning_rate, peak=config.lr, warmup=config.warmup, steps=config.steps),
            steps=config.steps,
            start_step=start,
            weight_decay=config.weight_decay,
            partly=partly,
            bfloat16=config.precision == "bfloat16",
            seed=config.seed,
            world=world,
            log=log,
            checkpoints=checkpoints,
            save_every=config.save_every,
            keep=config.keep_checkpoints,
            bad=bad,
        )
        log.event("end", {"step": outcome.step, "bad_pictures": outcome.bad})

    # --- the product, and what was left out of it
    if outcome.stopped_by is None and world.is_first:
        write_product(objective, config.out / "model", alpha=config.alpha)
        _tell(world)(f"done: {config.out / 'model'}")
    _tell(world)(_bad_pictures(outcome.bad))
    world.wait()
    return outcome


def write_product(objective: "ClipSelf", folder: Path, *, alpha: float) -> None:
    """Mix the student with its teacher over the whole state and save it as a model folder (Sec. 4.1).

    Args:
        objective: after training; its student becomes the mixed one.
        folder: OUT/model.
        alpha: share of the student; 1 saves it as it is.
    """
    from saccade.clip.weights import mix_states, save_clip

    student, teacher = objective.student.model, objective.teacher.model
    if alpha != 1:
        student.load_state_dict(mix_states(student.state_dict(), teacher.state_dict(), alpha=alpha))
    save_clip(objective.student, folder)


def _open_pictures(config: DistillConfig, world: "World", *, start_step: int) -> tuple[Iterable["Batch"], int]:
    """The loader of this process, its first batch that of `start_step`; and how many pictures there are."""
    from saccade.data.loader import BatchSampler, PictureSource, make_loader, open_data

    dataset = open_data(config.data, split=config.split)
    count = len(dataset.records)
    source = PictureSource(
        dataset,
        regions=config.regions,
        limit=config.grid,
        rule=config.grid_rule,
        keep=config.keep,
        seed=config.seed,
    )
    sampler = BatchSampler(
        count,
        batch=config.batch,
        seed=config.seed,
        rank=world.rank,
        world_size=world.size,
        start_step=start_step,
        total_steps=config.steps,
    )
    return make_loader(source, sampler, workers=config.workers, strict=config.strict), count


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


def _tell(world: "World") -> Callable[[str], object]:
    """Say something on the error stream, in the first process only."""
    return partial(print, file=sys.stderr, flush=True) if world.is_first else str
