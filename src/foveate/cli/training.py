"""What the `foveate train-...` verbs have in common: flags of a run, its folder, its loop, and what is told first.

OUT/model is the product of each; OUT/checkpoints, OUT/metrics.jsonl and OUT/config.json are those of any run: the same
command continues a stopped one. Torch is imported only when something is trained. Deliberately absent: what is learned,
and from what; each verb's own file says so.
"""

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foveate.engine.config import SMALL
from foveate.errors import InputError
from foveate.io.files import bad_lines
from foveate.io.store import check_writable, claim_folder, hold_folder

if TYPE_CHECKING:  # torch and open_clip cost seconds: --help must not pay them
    from torch import Tensor, nn

    from foveate.data.loader import EvaluationSource, SemanticSource
    from foveate.data.records import Dataset
    from foveate.engine.distributed import Processes
    from foveate.engine.fit import Outcome
    from foveate.engine.log import Log
    from foveate.engine.optim import PartlyTrained
    from foveate.types import Batch

MAY_CHANGE = ("out", "recipe", "workers", "log_every", "save_every", "benchmark", "timeout")
"""Fields that may change between the parts of one run: what is trained is the same."""
SMALL_SIDE = 64  # a CLIP of pictures no larger than this gets a head in proportion [pixels]
Rule = tuple[str, bool, str]  # flag, whether it holds, what it must be
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Flags of every such run."""

    out: Path
    """Folder of this run; the same command continues a stopped run. What was trained is written to OUT/model."""
    model: str = SMALL
    """The CLIP it stands on: foveate-small, OUT/model of a distillation, or an open_clip architecture."""
    pretrained: str | None = None
    """Weights of an open_clip architecture: a file, or an open_clip tag."""
    split: str = "train"
    """Which part of the root is learned from."""
    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}. When not given: what annotations/splits.json of the root says,
    OV-COCO's for COCO, rare = novel for LVIS; else all categories are base."""
    steps: int = 600
    """Optimizer steps."""
    batch: int = 8
    """Pictures a process and pass."""
    accumulate: int = 1
    """Passes a step, whose gradients are added up; BatchNorm sees one of them at a time."""
    lr: float | None = None
    """Highest learning rate of AdamW."""
    weight_decay: float = 0.1
    """AdamW's decay of matrices."""
    clip_gradient: float | None = 1.0
    """Longest gradient, in its norm."""
    warmup: int = 0
    """Steps of linear warm-up."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic; weights stay float32."""
    seed: int = 0
    """Draws the first weights, the data order and all else that is drawn."""
    workers: int = 2
    """Processes that decode pictures; 0 decodes in the training process."""
    log_every: int = 10
    """Steps between lines of OUT/metrics.jsonl."""
    save_every: int = 500
    """Steps between checkpoints."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""
    timeout: int = 120
    """Seconds after which a process that says nothing counts as lost, under torchrun."""


def run_training(config: Training, work: "Callable[[Processes, Tell], Outcome]") -> None:
    """Join the processes of a run, do its work, and say how to go on where it was stopped.

    Raises:
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C; the run was saved.
    """
    from foveate.engine.distributed import joined

    with joined(config.device, timeout=config.timeout) as processes:
        tell = _tell if processes.is_first else _silent
        outcome = work(processes, tell)
    if outcome.stopped_by is not None:
        again = shlex.join(["foveate", *sys.argv[1:]])
        tell(f"Stopped after step {outcome.step} of {config.steps}; saved. To go on, run:\n  {again}")
        raise SystemExit(128 + outcome.stopped_by)


@contextmanager
def own_folder(config: Training, processes: "Processes", *, made_of: dict[str, Any]) -> "Iterator[None]":
    """Hold the folder of a run, which is new or was begun by the same command.

    Args:
        config: of the run.
        processes: of the run.
        made_of: what else makes it this run and no other, beside the flags.

    Raises:
        InputError: the folder is of another run, held by another process, or cannot be written.
    """
    record = {**asdict(config), "processes": processes.size, **made_of}
    with processes.together():
        if processes.is_first:
            claim_folder(config.out, json.loads(json.dumps(record, default=str)), may_change=MAY_CHANGE)
            check_writable(config.out)
    lock = hold_folder(config.out) if processes.is_first else None
    yield
    if lock is not None:
        lock.close()


def train(
    config: Training,
    objective: "nn.Module",
    source: "EvaluationSource | SemanticSource",
    dataset: "Dataset",
    *,
    groups: "list[dict[str, Any]]",
    partly: "Sequence[PartlyTrained]",
    rate: "Callable[[int], float]",
    processes: "Processes",
    tell: Tell,
) -> "Outcome":
    """Train from where the run came to, or find it trained.

    Args:
        config: of the run, whose folder is held.
        objective: a loss of a batch; its `parts`, tensors by name, are logged at the end.
        source: place of a picture -> the picture.
        dataset: of the source.
        groups: what is trained, for AdamW.
        partly: see `foveate.engine.optim.take_step`.
        rate: learning rate of a step.
        processes: of the run.
        tell: speaks to the user.

    Raises:
        InputError: no picture could be used; or as `foveate.engine.fit.fit`.
    """
    import torch

    from foveate.data.loader import BatchSampler, make_loader
    from foveate.engine.checkpoint import clean_checkpoints, load_together, restore
    from foveate.engine.checkpoint import versions as made_by
    from foveate.engine.fit import Outcome, fit

    optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
    checkpoints, outcome = config.out / "checkpoints", Outcome(step=0)
    saved = load_together(checkpoints, processes=processes, tell=tell)
    if saved is not None:
        outcome = Outcome.resumed(saved)
        restore(objective, optimizer, saved.tensors)
    if outcome.step == config.steps:
        tell(f"trained already, {config.steps} steps")
        _require_good_pictures(outcome, config.out)
        return outcome
    with processes.together():
        if processes.is_first:
            clean_checkpoints(checkpoints)
    for line in dataset.dropped_lines():
        tell(line)
    pictures = len(dataset.records)
    sampler = BatchSampler(
        pictures,
        batch=config.batch,
        seed=config.seed,
        rank=processes.rank,
        world_size=processes.size,
        start=outcome.position,
        batches=(config.steps - outcome.step) * config.accumulate,
    )
    order = [[index for _, index in pairs] for pairs in sampler]
    stream = iter(make_loader(source, order, workers=config.workers, pin=processes.device.type == "cuda"))
    objective.train()
    with _log(config, processes, outcome) as log:
        with torch.autocast(
            processes.device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16", cache_enabled=False
        ):
            stream = _told(config, objective, stream, pictures, processes, tell)  # in the run's own arithmetic
            outcome = fit(
                objective,
                stream,
                optimizer,
                count=_count_pictures,
                learning_rate=rate,
                steps=config.steps,
                begin=outcome,
                accumulate=config.accumulate,
                clip=config.clip_gradient,
                weight_decay=config.weight_decay,
                partly=partly,
                seed=config.seed,
                processes=processes,
                log=log,
                checkpoints=checkpoints,
                save_every=config.save_every,
                facts={"versions": made_by()},
            )
        parts: dict[str, Tensor] = objective.parts  # pyright: ignore[reportAssignmentType]
        rounded = {name: round(float(part), 5) for name, part in parts.items()}
        end = {"step": outcome.step, "parts": rounded, "bad_pictures": outcome.bad}
        log.event("stop" if outcome.stopped_by else "end", end)
    for line in bad_lines([{"id": key, "reason": why} for key, why in outcome.bad.items()], listed="metrics.jsonl"):
        tell(line)
    if outcome.stopped_by is None:
        _require_good_pictures(outcome, config.out)
    return outcome


def _log(config: Training, processes: "Processes", outcome: "Outcome") -> "Log":
    from foveate.engine.log import Log

    return Log(
        config.out / "metrics.jsonl",
        steps=config.steps,
        start_step=outcome.step,
        every=config.log_every,
        speak=processes.is_first,
    )


def _require_good_pictures(outcome: "Outcome", out: Path) -> None:
    """Refuse to call first weights the product of a run."""
    if outcome.good == 0:
        name, reason = min(outcome.bad.items(), default=("", "there was none"))
        raise InputError(
            f"--data: needs pictures that can be used; none of the {len(outcome.bad)} of this run could be, so nothing "
            f"was learned and nothing is written to OUT/model. The first: {name}: {reason} Correct them and choose "
            f"another --out, or remove {out}."
        )


def _told(
    config: Training,
    objective: "nn.Module",
    batches: "Iterator[Batch]",
    pictures: int,
    processes: "Processes",
    tell: Tell,
) -> "Iterator[Batch]":
    """Say what the run takes, from the first batch, which is then trained on like any other."""
    from foveate.engine.plan import measure_kept

    first = [*islice(batches, 1)]
    kept, seconds = measure_kept(objective, first[0]) if first else (0, 0.0)
    trained = sum(one.numel() for one in objective.parameters() if one.requires_grad)
    whole = sum(one.numel() for one in objective.parameters())
    each = config.batch * config.accumulate * processes.size
    fixed = 4 * (whole + 3 * trained)  # weights, and of what is trained a gradient and two moments, float32
    tell(
        f"training {trained / 1e6:.1f} of {whole / 1e6:.1f} million parameters on {pictures:,} pictures, {each} a "
        f"step: {config.steps:,} steps are {config.steps * each / pictures:.2f} epochs\n"
        f"memory about {(fixed + kept) / 1e9:.2g} GB a process, {fixed / 1e9:.2g} of them whatever the batch; a pass "
        f"of {len(first[0].samples) if first else 0} pictures takes {seconds:.2g} s, so about "
        f"{seconds * config.accumulate * config.steps / 60:.0f} minutes in all"
    )
    return chain(first, batches)


def check_training(config: Training, *rules: Rule) -> None:
    """Refuse numbers that cannot be, before anything is loaded.

    Args:
        config: of the run.
        rules: of the verb alone, after those of every run.

    Raises:
        InputError: names the flag, what it must be and what it is.
    """
    common = (
        ("steps", config.steps >= 1, "at least 1"),
        ("batch", config.batch >= 1, "at least 1"),
        ("accumulate", config.accumulate >= 1, "at least 1"),
        ("lr", config.lr is None or 0 < config.lr < float("inf"), "above 0"),
        ("weight-decay", 0 <= config.weight_decay < float("inf"), "0 or above"),
        ("clip-gradient", config.clip_gradient is None or 0 < config.clip_gradient < float("inf"), "above 0"),
        ("warmup", config.warmup >= 0, "0 or above"),
        ("seed", 0 <= config.seed < 2**63, "0 to 2**63 - 1"),
        ("workers", config.workers >= 0, "0 or above"),
        ("log-every", config.log_every >= 1, "at least 1"),
        ("save-every", config.save_every >= 1, "at least 1"),
        ("timeout", config.timeout >= 1, "at least 1"),
    )
    for flag, holds, need in (*common, *rules):
        if not holds:
            raise InputError(f"--{flag}: must be {need}; got {getattr(config, flag.replace('-', '_'))}.")


def _count_pictures(batch: "Batch") -> int:
    """How many pictures the loss of a batch is the mean over."""
    return len(batch.samples)


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _silent(message: str) -> None:
    pass
