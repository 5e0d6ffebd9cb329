"""`foveate proposals`: train a small RPN on the boxes of base categories, and write the proposals that it makes.

DIR/proposals_SPLIT.json is what `foveate distill --boxes` takes: COCO's form, with one category "object", a score a
box, and in `info.provenance` what was learned from, by which `distill` refuses proposals that saw a novel class.
DIR/recall.json says how many base and novel objects of a held-out split they find; DIR/checkpoints/, DIR/metrics.jsonl
and DIR/config.json are those of any run: the same command continues a stopped one, and after a finished one it makes
the files again (with another --keep, say). Deliberately absent: several processes.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from foveate.cli.distill_tell import again
from foveate.cli.proposals_data import find_held_out, require_boxes, require_categories, split_or_all, tell
from foveate.engine.config import SMALL
from foveate.engine.folder import check_writable, claim_folder, hold_folder
from foveate.errors import InputError
from foveate.files import bad_lines, versions, write_whole

if TYPE_CHECKING:  # torch and open_clip cost seconds: --help must not pay them
    from foveate.data.records import Dataset
    from foveate.data.splits import BaseNovel
    from foveate.engine.distributed import Processes
    from foveate.engine.fit import Outcome
    from foveate.heads.proposals.rpn import Proposer
    from foveate.types import Sample

MAY_CHANGE = (
    *("out", "pictures", "keep", "min_score", "pre_nms", "nms", "validate_split", "workers", "save_every"),
    "propose_batch",
)
"""Fields that may change between the parts of one run: the network that is trained is the same."""
WARMUP, WEIGHT_DECAY = 20, 0.05


@dataclass(frozen=True)
class Proposals:
    """Make region proposals that have seen base categories only, for `foveate distill --boxes`."""

    data: Path
    """COCO, LVIS, VOC or Objects365 root with annotated boxes, or a world: what is learned from."""
    out: Path
    """Folder of this run; the same command continues a stopped run. The proposals are written to
    OUT/proposals_SPLIT.json."""
    model: str = SMALL
    """The CLIP whose frozen features are looked at: foveate-small, an open_clip architecture such as EVA02-B-16, or a
    saved model folder."""
    pretrained: str | None = None
    """Weights of an open_clip architecture: a file, or an open_clip tag such as laion2b_s34b_b88k."""
    backbone: Literal["tower", "conv"] = "tower"
    """What the features come from: the frozen tower, or a small convolutional network of its own, trained with the
    rest."""
    split: str = "train"
    """Which part of the root is learned from, and gets proposals."""
    annotations: Path | None = None
    """Annotation file to read in place of the one in the standard place: COCO, LVIS or Objects365 JSON."""
    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}; boxes of base categories alone are learned from. When not given:
    what annotations/splits.json of the root says, OV-COCO's for COCO, rare = novel for LVIS; else all categories are
    learned from."""
    pictures: Path | None = None
    """Pictures to make proposals for (a folder, or a root, of which SPLIT is taken), in place of those learned from."""
    validate_split: str | None = None
    """Held-out part of the root on which recall is measured; when not given, val, where it is there."""
    steps: int = 300
    """Optimizer steps; 300 find 96 % of the rendered world's base objects at IoU 0.5 among 100 boxes."""
    batch: int = 8
    """Pictures a step."""
    lr: float = 1e-3
    """Highest learning rate of AdamW: 20 steps of warm-up, a cosine to zero."""
    size: int | None = None
    """Longest side of the input [pixels], a multiple of two patches; when not given, 64 patches and at most 1024, and
    192 for foveate-small and for conv."""
    channels: int | None = None
    """Width of the pyramid and of the RPN; when not given, 128, and 64 for foveate-small and for conv."""
    scales: tuple[float, ...] = (8.0,)
    """Sides of the square anchors of each level, in its strides."""
    positive_iou: float = 0.7
    """Anchors that overlap an object by as much are positive, and each object's best."""
    negative_iou: float = 0.3
    """Anchors that overlap every object by less are background."""
    flip: bool = True
    """Mirror half of the pictures in training, at random."""
    keep: int = 100
    """At most so many proposals a picture."""
    min_score: float = 0.0
    """Leave out proposals of a lower score, in [0, 1]."""
    pre_nms: int = 2000
    """Best boxes of each level before suppression."""
    nms: float = 0.7
    """Of two boxes that overlap by more, the one with the lower score goes."""
    seed: int = 0
    """Draws the first weights, the data order, the anchors that are sampled and the mirrored pictures."""
    workers: int = 1
    """Processes that decode pictures; 0 decodes in the training process."""
    save_every: int = 200
    """Steps between checkpoints."""
    propose_batch: int = 8
    """Pictures a batch when proposals are made."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""


def run(config: Proposals) -> None:
    """Train, propose, measure.

    Raises:
        InputError: a flag, the data, the weights or the output folder is wrong.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C; the run was saved.
    """
    from foveate.engine.distributed import joined

    _check(config)
    with joined(config.device, timeout=120) as processes:
        if processes.size > 1:
            raise InputError("proposals: need one process; start it without torchrun.")
        try:
            outcome = _run(config, processes)
        except _StoppedError as stop:
            _leave(*stop.args)
    if outcome.stopped_by is not None:
        saved = "saved" if outcome.step else "nothing to save yet"
        _leave(f"after step {outcome.step} of {config.steps}; {saved}", outcome.stopped_by)


class _StoppedError(Exception):
    """A signal came while boxes were made: where, and its number."""


def _leave(where: str, number: int) -> NoReturn:
    """Say where the run was stopped and how to go on, and leave with the shell's status for the signal."""
    tell(f"Stopped {where}. {again()}")
    raise SystemExit(128 + number)


def _run(config: Proposals, processes: "Processes") -> "Outcome":
    """Pictures, network, training, and the files."""
    from foveate.data.proposals import write_proposals
    from foveate.data.sources import open_data
    from foveate.data.splits import as_objects, only_with_objects, split_of
    from foveate.engine.checkpoint import digest_module
    from foveate.engine.stop import signals_caught

    # --- pictures and network, before anything is written
    dataset = open_data(config.data, split=config.split, annotation_file=config.annotations)
    require_categories(dataset, config)
    known = split_of(dataset, config.data, file=config.novel)
    split = split_or_all(dataset, known, told=str(config.data))
    others = None if config.pictures is None else open_data(config.pictures, split=config.split, annotations="none")
    objects = as_objects(dataset, split.base)
    require_boxes(objects, config)
    objects = objects if known is None else only_with_objects(objects)
    held_out = find_held_out(config, dataset)
    objective = _network(config, device=str(processes.device))
    names = {"training_categories": list(split.base), "novel_categories": list(split.novel), "rule": split.rule}
    record = {**asdict(config), "pad": "black", "weights": digest_module(objective), **names}

    # --- the loop, in this run's own folder
    claim_folder(config.out, json.loads(json.dumps(record, default=str)), may_change=MAY_CHANGE)
    with hold_folder(config.out):
        tell(f"learning from the boxes of {len(split.base)} categories ({split.rule}); writing to {config.out}")
        outcome = _train(config, objective, objects, processes)
        if outcome.stopped_by is not None:
            return outcome

        # --- the files
        facts = {**names, "annotations": dataset.name, "model": _model_name(config), "steps": config.steps}
        facts |= {"seed": config.seed, "version": versions()["foveate"]}
        path = config.out / f"proposals_{config.split}.json"
        with signals_caught() as caught:
            found = _propose(config, objective, others or dataset, caught=caught)
            write_proposals(path, found, _root(config), facts=facts)
            if held_out is not None:
                _measure(config, objective, held_out, split, facts=facts, caught=caught)
        tell(f"done: {path}\n  foveate distill --data {config.pictures or config.data} --boxes {path} --out ...")
        return outcome


def _train(config: Proposals, objective: "Proposer", objects: "Dataset", processes: "Processes") -> "Outcome":
    """Train the network from where it came to, or find it trained."""
    from foveate.data.loader import BatchSampler, EvaluationSource, make_loader
    from foveate.engine.checkpoint import clean_checkpoints, load_latest, restore
    from foveate.engine.checkpoint import versions as made_by
    from foveate.engine.fit import Outcome, fit
    from foveate.engine.log import Log
    from foveate.engine.optim import build_optimizer, learning_rate
    from foveate.heads.proposals.rpn import count_pictures

    source = EvaluationSource(objects, masks=False)
    optimizer = build_optimizer(objective, weight_decay=WEIGHT_DECAY)
    checkpoints, outcome = config.out / "checkpoints", Outcome(step=0)
    saved = load_latest(checkpoints, tell=tell)
    if saved is not None:
        outcome = Outcome.resumed(saved)
        restore(objective, optimizer, saved.tensors)
    if outcome.step == config.steps:
        tell(f"trained already, {config.steps} steps")
        return outcome
    check_writable(config.out)
    clean_checkpoints(checkpoints)
    for line in objects.dropped_lines():
        tell(line)
    tell(f"starting at step {outcome.step} of {config.steps}")
    sampler = BatchSampler(
        len(source),
        batch=config.batch,
        seed=config.seed,
        start=outcome.position,
        batches=config.steps - outcome.step,
    )
    batches = [[index for _, index in pairs] for pairs in sampler]
    with Log(config.out / "metrics.jsonl", steps=config.steps, start_step=outcome.step) as log:
        outcome = fit(
            objective.train(),
            make_loader(source, batches, workers=config.workers, pin=processes.device.type == "cuda"),
            optimizer,
            count=count_pictures,
            learning_rate=partial(learning_rate, peak=config.lr, warmup=WARMUP, steps=config.steps),
            steps=config.steps,
            begin=outcome,
            weight_decay=WEIGHT_DECAY,
            seed=config.seed,
            processes=processes,
            log=log,
            checkpoints=checkpoints,
            save_every=config.save_every,
            facts={"versions": made_by()},
        )
        log.event("stop" if outcome.stopped_by else "end", {"step": outcome.step, "bad_pictures": outcome.bad})
    for line in bad_lines([{"id": key, "reason": why} for key, why in outcome.bad.items()], listed="metrics.jsonl"):
        tell(line)
    return outcome


def _network(config: Proposals, *, device: str) -> "Proposer":
    """The pyramid and its RPN, drawn from the seed, on the device."""
    import torch
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    from foveate.clip.load import load
    from foveate.heads.proposals.pyramid import ConvPyramid, TowerPyramid
    from foveate.heads.proposals.rpn import Proposer

    mean, std, size = OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, 192
    is_small = config.backbone == "conv" or config.model == SMALL
    channels = config.channels or (64 if is_small else 128)
    if config.backbone == "tower":
        clip = load(config.model, pretrained=config.pretrained, device=device, seed=config.seed)
        mean, std = clip.mean, clip.std
        size = size if is_small else min(64 * clip.patch_size, 1024)
        torch.manual_seed(config.seed)
        pyramid = TowerPyramid(clip, channels=channels)
    else:
        torch.manual_seed(config.seed)
        pyramid = ConvPyramid(channels=channels)
    return Proposer(
        pyramid,
        size=size if config.size is None else config.size,
        mean=mean,
        std=std,
        channels=channels,
        scales=config.scales,
        positive_iou=config.positive_iou,
        negative_iou=config.negative_iou,
        flip=config.flip,
    ).to(device)


# -------------------------------------------------------------------------------------------------------- what is found


def _propose(
    config: Proposals, objective: "Proposer", dataset: "Dataset", *, caught: Sequence[int]
) -> "Iterator[tuple[Any, Sample, list[list[float]], list[float]]]":
    """Each usable picture of a data set with its record, its boxes (xyxy) and their scores, best first.

    Raises:
        _StoppedError: a signal came.
    """
    from foveate.data.loader import EvaluationSource, OnceSampler, make_loader
    from foveate.progress import picture_bar

    records = {str(record.id): record for record in dataset.records}
    source = EvaluationSource(replace(dataset, records=tuple(dataset.records)), masks=False)
    loader = make_loader(source, OnceSampler(len(source), batch=config.propose_batch), workers=config.workers)
    numbers = {"keep": config.keep, "min_score": config.min_score, "pre_nms": config.pre_nms, "nms": config.nms}
    bad: list[dict[str, str]] = []
    with picture_bar(show=True) as bar:
        task = bar.add_task(f"proposals for {dataset.name}", total=len(source))
        for done, batch in enumerate(loader):
            if caught:
                at = f"after {done * config.propose_batch} of {len(source)} pictures of {dataset.name}"
                saved = "the trained network is saved, but the boxes of these pictures are made again"
                raise _StoppedError(f"{at}; {saved}", caught[0])
            bad += [{"id": one.id, "reason": one.reason} for one in batch.bad]
            found = objective.propose(batch.samples, **numbers) if batch.samples else []
            for sample, (boxes, scores) in zip(batch.samples, found, strict=True):
                yield records[sample.id], sample, boxes.tolist(), scores.tolist()
            bar.advance(task, len(batch.samples) + len(batch.bad))
    for line in bad_lines(bad, listed="the picture folder"):
        tell(line)


def _measure(
    config: Proposals,
    objective: "Proposer",
    held_out: "Dataset",
    split: "BaseNovel",
    *,
    facts: dict[str, Any],
    caught: Sequence[int],
) -> None:
    """Write how many of the held-out objects are found, and say it."""
    import torch

    from foveate.evaluate.proposals import recall_of

    pictures = []
    for record, sample, boxes, _ in _propose(config, objective, held_out, caught=caught):
        mine = [place for place, crowd in enumerate(record.crowd) if not crowd]
        labels = [held_out.categories[record.labels[place]].name for place in mine]
        pictures.append((sample.boxes[mine], labels, torch.tensor(boxes).reshape(-1, 4)))
    groups = {"base": split.base, "novel": split.novel}
    tops = sorted({min(10, config.keep), config.keep})
    result = {"split": held_out.name, "pictures": len(pictures), **recall_of(pictures, groups, tops=tops)}
    content = {**result, "provenance": facts, "versions": versions()}
    write_whole(config.out / "recall.json", (json.dumps(content, indent=2) + "\n").encode())
    for group in groups:
        numbers = ", ".join(f"{key} {value}" for key, value in result[group].items())
        tell(f"{held_out.name}: {group}: {numbers}")


# ------------------------------------------------------------------------------------------------------------ the doors


def _root(config: Proposals) -> list[Path]:
    """What the names of the pictures are relative to: their split's folder, else the root."""
    root = config.pictures or config.data
    return [root / f"{config.split}2017", root]


def _model_name(config: Proposals) -> str:
    """What the features came from; a folder by its last two names, which say nothing of the machine."""
    if config.backbone == "conv":
        return "conv"
    path = Path(config.model)
    name = "/".join(path.parts[-2:]) if path.is_absolute() or path.is_dir() else config.model
    return name if config.pretrained is None else f"{name}, {Path(config.pretrained).name}"


def _check(config: Proposals) -> None:
    """Refuse numbers that cannot be, before anything is loaded.

    Raises:
        InputError: names the flag, what it must be and what it is.
    """
    rules = (
        ("steps", config.steps >= 1, "at least 1"),
        ("batch", config.batch >= 1, "at least 1"),
        ("lr", 0 < config.lr < float("inf"), "above 0"),
        ("channels", config.channels is None or (config.channels >= 8 and config.channels % 8 == 0), "a multiple of 8"),
        ("scales", bool(config.scales) and all(0 < scale < 1000 for scale in config.scales), "numbers above 0"),
        ("positive-iou", 0 < config.positive_iou <= 1, "above 0 and at most 1"),
        ("negative-iou", 0 <= config.negative_iou <= config.positive_iou, "0 to --positive-iou"),
        ("keep", config.keep >= 1, "at least 1"),
        ("min-score", 0 <= config.min_score <= 1, "0 to 1"),
        ("pre-nms", config.pre_nms >= 1, "at least 1"),
        ("nms", 0 < config.nms <= 1, "above 0 and at most 1"),
        ("seed", 0 <= config.seed < 2**63, "0 to 2**63 - 1"),
        ("workers", config.workers >= 0, "0 or above"),
        ("save-every", config.save_every >= 1, "at least 1"),
        ("propose-batch", config.propose_batch >= 1, "at least 1"),
    )
    for flag, holds, need in rules:
        if not holds:
            raise InputError(f"--{flag}: must be {need}; got {getattr(config, flag.replace('-', '_'))}.")
