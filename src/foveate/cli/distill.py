"""`foveate distill`: CLIPSelf, or a baseline of it, from a folder of pictures to a model folder (Sec. 3.2).

OUT/model/ is the product (alpha-mixed, an open_clip model folder), OUT/checkpoints/ is for continuing,
OUT/metrics.jsonl and OUT/tensorboard have the losses, OUT/config.json says what was run. What the run will take is told
before its first step; with --dry-run that is all. The same command continues a stopped run and changes nothing in a
finished one, but for a product that is missing; with another number of processes, another --batch or --accumulate
CLIPSelf goes on from the same picture, and says what stays equal.
Several processes: `torchrun --nproc-per-node 8 -m foveate.cli.main distill ...`.
"""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.cli.distill_tell import (
    again,
    bad_pictures,
    leave_the_lost,
    skipped_steps,
    tell_other_batch,
    tell_sharing,
    teller,
)
from foveate.cli.objective import (
    build_objective,
    choose_count,
    choose_nouns,
    trained_head,
)
from foveate.cli.recipe_data import check_recipe_data
from foveate.engine.config import (
    DistillConfig,
    check_config,
    contents_of,
    learns_from_captions,
    may_change,
    numbers_of,
    regions_of,
    run_record,
)
from foveate.engine.folder import check_writable, claim_folder, hold_folder
from foveate.errors import InputError

if TYPE_CHECKING:  # torch and open_clip cost seconds: --help must not pay them
    from foveate.data.loader import BatchLoader, PictureSource
    from foveate.data.records import Dataset
    from foveate.engine.distributed import Processes
    from foveate.engine.fit import Outcome
    from foveate.objectives.clipself import ClipSelf
    from foveate.objectives.image_text import ImageText
    from foveate.types import Batch


FEW_STEPS = 10  # a run of no more is as long as its measurement


def run(config: DistillConfig) -> None:
    """Distil, and leave with the shell's status for a signal when one stopped the run.

    Raises:
        InputError: a flag, the data, the weights or the output folder is wrong.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C; the run was saved. 1 where another process was lost.
    """
    from foveate.engine.distributed import LostProcessError, joined

    check_config(config)
    try:
        with joined(config.device, timeout=config.timeout) as processes:
            outcome = distill(config, processes)
    except LostProcessError as error:
        leave_the_lost(config, error)
    if outcome.stopped_by is None:
        return
    if processes.is_first:
        saved = "saved" if outcome.step else "nothing to save yet"
        print(f"Stopped after step {outcome.step} of {config.steps}; {saved}. {again()}", file=sys.stderr)
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

    from foveate.clip.dense import last_block_use
    from foveate.clip.load import CONFIG_FILE, WEIGHTS_FILE, load
    from foveate.engine.checkpoint import (
        clean_checkpoints,
        collect,
        digest_module,
        list_complete,
        load_together,
        require_space,
        restore,
        versions,
    )
    from foveate.engine.fit import Outcome, fit
    from foveate.engine.guard import Guard
    from foveate.engine.log import Log
    from foveate.engine.optim import build_optimizer, learning_rate
    from foveate.engine.product import best_tensors, write_product
    from foveate.engine.shard import shard_student
    from foveate.engine.trackers import choose_sinks, import_tracker
    from foveate.engine.validate import held_out_loss
    from foveate.objectives.clipself import ClipSelf, train_layers

    # --- pictures and towers, before anything is written; the teacher is the student before its first step
    low = config.precision == "bfloat16"
    with processes.together():
        if processes.is_first and config.track != "none":
            import_tracker(config.track)
        source = _open_pictures(config, progress=processes.is_first)
        held_out = _open_held_out(config, processes)
        nouns, count = choose_nouns(config, source.dataset), choose_count(config)
        student = load(config.model, pretrained=config.pretrained, device=str(processes.device), seed=config.seed)
        digest = digest_module(student) if processes.is_first else ""
        original = deepcopy(student)  # no text was used, so no tokenizer has been made yet
        numbers = numbers_of(config, patch_size=student.patch_size)
        partly = train_layers(student, config.layers, head=trained_head(config), gates=config.gates)
        objective = build_objective(config, student, original, student_size=numbers.student_size, nouns=nouns)
        if config.fsdp and isinstance(objective, ClipSelf):
            shard_student(objective, processes=processes, bfloat16=low)
            _, partly = last_block_use(student.visual, head=config.head)  # sharding put other parameters in their place
        if low:
            original = original.cpu()
    optimizer = build_optimizer(
        objective, weight_decay=numbers.weight_decay, betas=config.betas, eps=config.eps, partly=partly
    )
    tell, checkpoints, model = teller(processes), config.out / "checkpoints", config.out / "model"
    told = [*source.dataset.dropped_lines(), *([] if nouns is None else [nouns.line()])]
    if config.dry_run:
        for line in told:
            tell(line)
        batches = _batches(config, source, processes, start=0, steps=config.steps)
        _plan(config, objective, batches, processes, pictures=len(source), start_step=0, tell=tell)
        tell("--dry-run: nothing was trained and nothing was written")
        return Outcome(step=0)

    # --- output folder: this run's own; where an earlier start of this command came to
    record: dict[str, Any] = {}
    with processes.together():
        if processes.is_first:
            facts = {**asdict(numbers), **contents_of(config), "weights": digest, "processes": processes.size}
            record = run_record(config, facts if nouns is None else {**facts, **nouns.facts()})
            claim_folder(config.out, record, may_change=may_change(config))
            lock = hold_folder(config.out)  # noqa: F841  until this function is left
    saved = load_together(checkpoints, processes=processes, tell=tell)
    outcome = Outcome(step=0)
    if saved is not None:
        outcome = Outcome.resumed(saved)
        if saved.step == config.steps and (model / WEIGHTS_FILE).exists() and (model / CONFIG_FILE).exists():
            tell(f"finished already, after step {saved.step} of {config.steps}; nothing was changed: {model}")
            return outcome
        restore(objective, optimizer, saved.tensors)
        tell_sharing(config, processes, saved.facts["config"], steps=config.steps - saved.step, tell=tell)
    with processes.together():
        if processes.is_first:
            check_writable(config.out)
            if nouns is not None:
                nouns.write(config.out)
            clean_checkpoints(checkpoints)
            copies = config.keep_checkpoints + 1 + (held_out is not None)  # one more while it is written; the best
            there = len(list_complete(checkpoints))
            require_space(config.out, module=objective, copies=copies, there=there, product=original.model)

    # --- told first
    for line in told:
        tell(line)
    batches = _batches(config, source, processes, start=outcome.position, steps=config.steps - outcome.step)
    plan, batches = _plan(
        config, objective, batches, processes, pictures=len(source), start_step=outcome.step, tell=tell
    )
    verb = "going on from step" if outcome.step else "starting at step"
    tell(f"{verb} {outcome.step} of {config.steps}; writing to {config.out}")

    # --- the loop
    path, every = config.out / "metrics.jsonl", config.log_every
    measure = partial(held_out_loss, objective, count=count, processes=processes)
    sinks = choose_sinks(config.out, tensorboard=config.tensorboard, track=config.track, config=record)
    start, speak = outcome.step, processes.is_first
    with Log(path, steps=config.steps, start_step=start, every=every, speak=speak, sinks=sinks) as log:
        log.event("plan", plan)
        guard = Guard(
            log,
            processes,
            nonfinite=config.nonfinite,
            limit=config.nonfinite_limit,
            record=config.out / "nonfinite.jsonl",
        )
        outcome = fit(
            objective,
            batches,
            optimizer,
            count=count,
            learning_rate=partial(learning_rate, peak=numbers.lr, warmup=numbers.warmup, steps=config.steps),
            steps=config.steps,
            begin=outcome,
            accumulate=config.accumulate,
            weight_decay=numbers.weight_decay,
            partly=partly,
            seed=config.seed,
            processes=processes,
            log=log,
            guard=guard,
            checkpoints=checkpoints,
            save_every=config.save_every,
            keep=config.keep_checkpoints,
            validate=None if held_out is None else partial(measure, held_out),
            facts={"config": record, "versions": versions()},
        )

        # --- what was left out, and the product
        dropped = {reason: one.count for reason, one in source.dataset.dropped.items()}
        left_out = {"bad_pictures": outcome.bad, "dropped_annotations": dropped, "skipped_steps": outcome.skipped}
        log.event("stop" if outcome.stopped_by else "end", {"step": outcome.step, **left_out})
    skipped = skipped_steps(outcome, config.out)
    for line in [bad_pictures(outcome.bad), *source.dataset.dropped_lines(), *skipped]:
        tell(line)
    if outcome.stopped_by is None:
        _require_good_pictures(outcome, config.out)
        tensors = collect(objective, optimizer, hold=processes.is_first)
        with processes.together():
            if processes.is_first:
                if config.product == "best":
                    tensors = best_tensors(checkpoints, tell=tell)
                original.windows, original.pad = student.windows, student.pad
                write_product(original, tensors, model, alpha=config.alpha)
        tell(f"done: {model}")
    return outcome


def _plan(
    config: DistillConfig,
    objective: "ClipSelf | ImageText",
    batches: "Iterable[Batch]",
    processes: "Processes",
    *,
    pictures: int,
    start_step: int,
    tell: Callable[[str], object],
) -> "tuple[dict[str, Any], Iterable[Batch]]":
    """Say what the run will do and take; the plan as JSON, and the batches, none of them lost to the measurement."""
    from foveate.engine.plan import Plan, check_memory, estimate_memory, measure_pass, tell_plan, written

    memory = estimate_memory(
        objective,
        batch=config.batch,
        regions=config.max_regions,
        processes=processes.size,
        local=int(os.environ.get("LOCAL_WORLD_SIZE", str(processes.size))),
        sharded=config.fsdp,
        bfloat16=config.precision == "bfloat16",
    )
    stream, seconds = iter(batches), None
    if config.dry_run or config.steps - start_step > FEW_STEPS:
        with processes.together():
            check_memory(memory, batch=config.batch, device=processes.device)
            first = list(islice(stream, 1))
        stream = chain(first, stream)
        measured = [one for one in processes.gather(measure_pass(objective, first)) if one is not None]
        seconds = max(measured, default=None)
    plan = Plan(  # made by every process: none waits for another that counts
        model=objective.student.name,
        device=str(processes.device),
        trained=sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad),
        parameters=sum(parameter.numel() for parameter in objective.student.parameters()),
        pictures=pictures,
        steps=config.steps,
        start_step=start_step,
        batch=config.batch,
        accumulate=config.accumulate,
        processes=processes.size,
        memory=memory,
        seconds=seconds,
        writes=written(objective, config.out, copies=config.keep_checkpoints, tensorboard=config.tensorboard),
    )
    tell(tell_plan(plan))
    if config.recipe is not None:
        tell_other_batch(config.recipe, plan.pictures_a_step, tell=tell)
    return plan.record(), stream


def _open_pictures(config: DistillConfig, *, progress: bool) -> "PictureSource":
    """The data set of the run and the regions to draw in it."""
    from foveate.data.captions import only_captioned, with_captions
    from foveate.data.loader import PictureSource
    from foveate.data.regions import with_boxes
    from foveate.data.sources import open_data

    regions = regions_of(config)
    dataset = open_data(
        config.data,
        split=config.split,
        annotations="instances" if regions == "boxes" and config.boxes is None else "none",
        annotation_file=config.annotations,
        shard_cache=config.shard_cache,
        progress=progress,
    )
    check_recipe_data(config.recipe, dataset.categories, root=config.data)
    if learns_from_captions(config):  # before the boxes, whose records no longer know the texts of their shards
        dataset = with_captions(dataset, root=config.data, split=config.split, file=config.captions)
    if config.boxes is not None:
        note = _judge_boxes(config)
        dataset = with_boxes(dataset, config.boxes)
        dataset = dataset if note is None else replace(dataset, notes=(*dataset.notes, note))
    elif regions == "boxes":
        dataset = _note_novel(config, dataset)
    learns_pairs = config.objective == "image-text"
    if learns_pairs:
        dataset = only_captioned(dataset)
    return PictureSource(
        dataset,
        regions=regions,
        limit=config.grid,
        rule=config.grid_rule,
        keep=config.max_regions,
        seed=config.seed,
        captions=learns_pairs,
    )


def _judge_boxes(config: DistillConfig) -> str | None:
    """Refuse --boxes that were trained on novel categories; what the user must be told of where they come from."""
    from foveate.data.provenance import check_provenance
    from foveate.data.splits import split_of_root

    assert config.boxes is not None
    split = split_of_root(config.data, split=config.split, annotations=config.annotations)
    if split is None:
        return check_provenance(config.boxes, None, allow=config.allow_novel)
    known = (*split.base, *split.novel, *split.left_out)
    return check_provenance(config.boxes, split.novel, known=known, allow=config.allow_novel)


def _note_novel(config: DistillConfig, dataset: "Dataset") -> "Dataset":
    """Note that the boxes of the annotations are also those of categories that are to be novel."""
    from foveate.data.splits import split_of

    split = split_of(dataset, config.data)
    if split is None or not split.novel:
        return dataset
    note = (
        f"WARNING   --regions boxes: distils the annotated boxes of all categories, {len(split.novel)} novel ones too "
        f"({split.rule}). For those of base categories alone name proposals with --boxes (see `foveate proposals`)."
    )
    return replace(dataset, notes=(*dataset.notes, note))


def _open_held_out(config: DistillConfig, processes: "Processes") -> "BatchLoader | None":
    """This process's share of the held-out pictures: the same ones, with the same regions, in every run."""
    from foveate.data.captions import only_captioned, with_captions
    from foveate.data.loader import PictureSource, epoch_order, make_loader
    from foveate.data.sources import open_data

    if config.validate is None:
        return None
    regions = regions_of(config)
    annotations = "instances" if regions == "boxes" else "none"
    dataset = open_data(
        config.validate, split=config.validate_split, annotations=annotations, shard_cache=config.shard_cache
    )
    learns_pairs = config.objective == "image-text"
    if learns_pairs:
        dataset = only_captioned(with_captions(dataset, root=config.validate, split=config.validate_split))
    source = PictureSource(
        dataset,
        regions=regions,
        limit=config.grid,
        rule=config.grid_rule,
        keep=config.max_regions,
        captions=learns_pairs,
    )
    if regions == "boxes" and not any(record.boxes for record in source.dataset.records):
        raise InputError(
            f"--validate {config.validate}: where boxes are distilled it needs annotated boxes; none here."
        )
    chosen = epoch_order(len(source), seed=0, epoch=0)[: config.validate_pictures]
    mine = [(0, index) for index in chosen[processes.rank :: processes.size]]
    most = -(-len(chosen) // processes.size)  # every process gets as many batches, the last ones perhaps empty
    batches = [mine[first : first + config.batch] for first in range(0, most, config.batch)]
    return make_loader(source, batches, workers=config.workers)


def _batches(
    config: DistillConfig, source: "PictureSource", processes: "Processes", *, start: int, steps: int
) -> Iterable["Batch"]:
    """The batches of this process for so many steps, from the picture of the stream on that the run has come to."""
    from foveate.data.loader import BatchSampler, make_loader

    sampler = BatchSampler(
        len(source),
        batch=config.batch,
        seed=config.seed,
        rank=processes.rank,
        world_size=processes.size,
        start=start,
        batches=steps * config.accumulate,
    )
    pin = processes.device.type == "cuda"
    return make_loader(source, sampler, workers=config.workers, strict=config.strict, pin=pin)


def _require_good_pictures(outcome: "Outcome", out: Path) -> None:
    """Refuse to call an untouched teacher the product of a run.

    Raises:
        InputError: no picture of the whole run could be used, or no step was finite.
    """
    if outcome.good == 0 and outcome.skipped:
        raise InputError(
            f"--nonfinite skip: needs steps that are finite; none of the {outcome.skipped} that were left out was, so "
            "nothing was learned and no model is written. Look at the pictures in nonfinite.jsonl and choose another "
            f"--out, or remove {out}."
        )
    if outcome.good == 0:
        name, reason = min(outcome.bad.items(), default=("", "there was none"))
        raise InputError(
            f"--data: needs pictures that can be used; none of the {len(outcome.bad)} of this run could be, so nothing "
            f"was learned and no model is written. The first: {name}: {reason}. Correct them and choose another --out, "
            f"or remove {out}."
        )
