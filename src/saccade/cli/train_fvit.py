"""`saccade train-fvit`: train an open-vocabulary detector on the base categories of a data set.

OUT/model is what `saccade detect` and `saccade evaluate detection` take; OUT/checkpoints, OUT/metrics.jsonl and
OUT/config.json are those of any run: the same command continues a stopped one. Torch is imported only when something is
trained.
"""

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saccade.clip.names import TemplateName
from saccade.engine.config import SMALL
from saccade.engine.folder import check_writable, claim_folder, hold_folder
from saccade.errors import InputError
from saccade.files import bad_lines, default_cache
from saccade.heads.fvit.names import Kind

if TYPE_CHECKING:  # torch and open_clip cost seconds: --help must not pay them
    from saccade.clip.model import Clip
    from saccade.data.records import Dataset
    from saccade.data.splits import BaseNovel
    from saccade.engine.distributed import Processes
    from saccade.engine.fit import Outcome
    from saccade.engine.log import Log
    from saccade.heads.fvit.detector import FViT
    from saccade.heads.fvit.product import Network
    from saccade.types import Batch

MAY_CHANGE = ("out", "recipe", "workers", "log_every", "save_every", "benchmark", "timeout")
"""Fields that may change between the parts of one run: what is trained is the same."""
SMALL_SIDE = 64  # a CLIP of pictures no larger than this gets a detector in proportion [pixels]


@dataclass(frozen=True)
class TrainFViT:
    """Train F-ViT, a detector of any vocabulary on a frozen CLIP ViT (Sec. 3.3), on base categories only."""

    data: Path
    """COCO, LVIS, VOC or Objects365 root with annotated boxes, or a world."""
    out: Path
    """Folder of this run; the same command continues a stopped run. The detector is written to OUT/model."""
    model: str = SMALL
    """The CLIP it stands on: saccade-small, OUT/model of a distillation, or an open_clip architecture."""
    pretrained: str | None = None
    """Weights of an open_clip architecture: a file, or an open_clip tag."""
    split: str = "train"
    """Which part of the root is learned from."""
    annotations: Path | None = None
    """Annotation file to read in place of the one in the standard place: COCO, LVIS or Objects365 JSON."""
    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}. When not given: what annotations/splits.json of the root says,
    OV-COCO's for COCO, rare = novel for LVIS; else all categories are base."""
    recipe: str | None = None
    """Start from a row of `saccade recipes fvit`; other flags given here win over it."""
    steps: int = 600
    """Optimizer steps. The paper: 3 epochs of OV-COCO, 48 of OV-LVIS, 64 pictures a step."""
    batch: int = 8
    """Pictures a process and pass."""
    accumulate: int = 1
    """Passes a step, whose gradients are added up; BatchNorm sees one of them at a time."""
    lr: float = 1e-4
    """Learning rate of AdamW after the warm-up."""
    weight_decay: float = 0.1
    """AdamW's decay of matrices."""
    clip_gradient: float = 1.0
    """Longest gradient, in its norm."""
    warmup: int = 250
    """Steps of linear warm-up."""
    milestones: tuple[int, ...] = ()
    """Steps from which the rate is a tenth of what it was; none: constant, as on OV-COCO."""
    size: int | None = None
    """Side of the square input [pixels], a multiple of two patches; when not given, 640 for patches of 16, 896 for 14,
    192 for saccade-small."""
    jitter: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest factor of the large-scale jitter; 1 1: pictures as they are."""
    flip: bool = True
    """Mirror half of the pictures."""
    cache: bool = False
    """Keep the frozen tower's maps in OUT/maps, where neither --jitter nor --flip changes the pictures."""
    masks: bool = False
    """Learn masks too, from an annotation file with outlines (COCO, LVIS)."""
    background_weight: float | None = None
    """Of the background in the class loss; when not given, 0.9 for LVIS and 0.6 else."""
    pyramid: Kind = "taps"
    """Feature pyramid (Tab. A6): four taps of the tower (the paper's); simple: ViTDet's, from the last block; fpn: the
    last block with a top-down path."""
    taps: tuple[int, ...] = ()
    """Blocks that are tapped, from 0, before the last one; when not given, 3 5 7 of 12 and 6 10 14 of 24 blocks."""
    layers: int = 0
    """Train the last so many blocks of the tower too; the paper freezes all."""
    ladder: float = 0.7
    """With --layers: the learning rate of each block by that of the block behind it."""
    channels: int | None = None
    """Width of the pyramid and of the heads; when not given, 256, and 64 for saccade-small."""
    proposals: int = 1000
    """Boxes that go from the first stage to the second, a picture."""
    rois: int | None = None
    """Of these, so many are learned from, a quarter of them objects; when not given, 512, and 128 for saccade-small."""
    templates: TemplateName = "vild"
    """What class names are written into: ViLD's 63 templates, CLIP's 80 for ImageNet, or nothing."""
    benchmark: Literal["ov-coco", "ov-lvis-b", "ov-lvis-l"] | None = None
    """Whose score fusion the detector is asked with later; when not given, OV-LVIS's for LVIS and OV-COCO's else."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic; weights stay float32."""
    seed: int = 0
    """Draws the first weights, the data order, the jitter and the samples of both stages."""
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


def run(config: TrainFViT) -> None:
    """Train, or go on, and write the detector.

    Raises:
        InputError: a flag, the data, the weights or the output folder is wrong.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C; the run was saved.
    """
    from saccade.engine.distributed import joined

    check(config)
    with joined(config.device, timeout=config.timeout) as processes:
        tell = _tell if processes.is_first else _silent
        outcome = _run(config, processes, tell)
    if outcome.stopped_by is not None:
        again = shlex.join(["saccade", *sys.argv[1:]])
        tell(f"Stopped after step {outcome.step} of {config.steps}; saved. To go on, run:\n  {again}")
        raise SystemExit(128 + outcome.stopped_by)


def _run(config: TrainFViT, processes: "Processes", tell: Any) -> "Outcome":
    from saccade.clip.load import load
    from saccade.engine.checkpoint import digest_module
    from saccade.heads.fvit.product import About, save_detector, tower_digest

    # --- pictures and network, before anything is written
    dataset, split = open_objects(config, tell)
    clip = load(config.model, pretrained=config.pretrained, device=processes.device, seed=config.seed)
    tower = tower_digest(clip)
    is_lvis = any(category.frequency is not None for category in dataset.categories)
    network = _network(config, clip)
    detector = _build(config, network, clip, dataset, split, is_lvis=is_lvis)
    names = {"base": list(split.base), "novel": list(split.novel), "rule": split.rule}
    record = {**asdict(config), "weights": digest_module(detector), "processes": processes.size, **names}

    # --- the loop, in this run's own folder
    with processes.together():
        if processes.is_first:
            claim_folder(config.out, json.loads(json.dumps(record, default=str)), may_change=MAY_CHANGE)
            check_writable(config.out)
    lock = hold_folder(config.out) if processes.is_first else None
    detector.cache = _cache(config, detector, clip)
    tell(f"learning from the boxes of {len(split.base)} categories ({split.rule}); writing to {config.out}")
    outcome = _train(config, detector, dataset, processes, tell)
    if outcome.stopped_by is not None:
        return outcome

    # --- the product
    _require_good_pictures(outcome, config.out)
    about = About(
        model=config.model,
        pretrained=config.pretrained,
        tower=tower,
        network=network,
        base=split.base,
        novel=split.novel,
        left_out=split.left_out,
        templates=config.templates,
        benchmark=config.benchmark or ("ov-lvis-b" if is_lvis else "ov-coco"),
        training={"data": dataset.name, "steps": config.steps, "batch": config.batch, "seed": config.seed},
    )
    with processes.together():
        if processes.is_first:
            save_detector(detector, config.out / "model", about)
    tell(f"done: {config.out / 'model'}\n  saccade detect PICTURES --model {config.out / 'model'} --out ...")
    if lock is not None:
        lock.close()
    return outcome


def open_objects(config: TrainFViT, tell: Any) -> "tuple[Dataset, BaseNovel]":
    """The pictures with the boxes of base categories, and what is base.

    Raises:
        InputError: no picture has a box of a base category.
    """
    from saccade.data.loader import open_data
    from saccade.data.splits import BaseNovel, as_classes, only_with_objects, split_of

    kind = "outlines" if config.masks else "instances"
    dataset = open_data(config.data, split=config.split, annotations=kind, annotation_file=config.annotations)
    if not dataset.categories:
        raise InputError(
            f"--data {config.data}: need annotated boxes with their categories; there is none. Give the root of COCO, "
            "LVIS, VOC or Objects365, or of a world, or name the file with --annotations."
        )
    names = [category.name for category in dataset.categories]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(
            f"--data {config.data}: need categories of different names; {twice!r} stands there twice, and no text can "
            "tell them apart. Correct the annotation file."
        )
    split = split_of(dataset, config.data, file=config.novel)
    if split is None:
        tell(f"{config.data}: has no base and novel categories of its own; all are base. See --novel.")
        split = BaseNovel(tuple(names), (), (), "all categories")
    crowd = len(dataset.categories)
    objects = only_with_objects(as_classes(dataset, split.base), crowd=crowd)
    if not objects.records:
        raise InputError(
            f"--data {config.data}: need annotated boxes of base categories in split {config.split}; there is none. "
            "Is this the right root, split and --novel?"
        )
    return objects, split


def _network(config: TrainFViT, clip: "Clip") -> "Network":
    """The numbers of the detector; those not given are the paper's, or the small CLIP's."""
    from saccade.heads.fvit.product import Network

    is_small = clip.native_size <= SMALL_SIDE
    channels = config.channels or (64 if is_small else 256)
    usual = 192 if is_small else (640 if clip.patch_size == 16 else 64 * clip.patch_size)
    return Network(
        size=usual if config.size is None else config.size,
        taps=config.taps or None,
        pyramid=config.pyramid,
        channels=channels,
        width=channels,
        masks=config.masks,
        proposals=config.proposals,
        trained_layers=config.layers,
    )


def _build(
    config: TrainFViT, network: "Network", clip: "Clip", dataset: "Dataset", split: "BaseNovel", *, is_lvis: bool
) -> "FViT":
    """The network with the texts of the data's classes, its first weights drawn from the seed."""
    import torch

    from saccade.clip.text import embed_vocabulary
    from saccade.heads.fvit.detector import FViT, synchronise

    names = [category.name for category in dataset.categories[:-1]]  # the last is "crowd"
    text = embed_vocabulary(clip, names, templates=config.templates, background="background", cache=default_cache())
    is_novel = torch.tensor([name not in split.base for name in names], device=text.device)
    usual = 0.9 if is_lvis else 0.6
    torch.manual_seed(config.seed)
    detector = FViT(
        clip,
        text=text,
        is_novel=is_novel,
        background_weight=usual if config.background_weight is None else config.background_weight,
        rois=config.rois or (128 if clip.native_size <= SMALL_SIDE else 512),
        jitter=None if config.jitter == (1.0, 1.0) else config.jitter,
        flip=config.flip,
        **asdict(network),
    )
    return synchronise(detector)


def _cache(config: TrainFViT, detector: "FViT", clip: "Clip") -> Any:
    from saccade.heads.fvit.cache import FeatureCache

    if not config.cache:
        return None
    return FeatureCache(config.out / "maps", clip, size=detector.size, layers=detector.tower.layers)


def _train(config: TrainFViT, detector: "FViT", dataset: "Dataset", processes: "Processes", tell: Any) -> "Outcome":
    """Train the detector from where it came to, or find it trained."""
    import torch

    from saccade.data.loader import BatchSampler, EvaluationSource, make_loader
    from saccade.engine.checkpoint import clean_checkpoints, load_together, restore
    from saccade.engine.checkpoint import versions as made_by
    from saccade.engine.fit import Outcome, fit
    from saccade.engine.log import Log
    from saccade.engine.optim import stepped_rate
    from saccade.heads.fvit.detector import count_pictures

    source = EvaluationSource(dataset, masks=config.masks)
    groups = detector.parameter_groups(weight_decay=config.weight_decay, ladder=config.ladder)
    optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
    checkpoints, outcome = config.out / "checkpoints", Outcome(step=0)
    saved = load_together(checkpoints, processes=processes, tell=tell)
    if saved is not None:
        outcome = Outcome.resumed(saved)
        restore(detector, optimizer, saved.tensors)
    if outcome.step == config.steps:
        tell(f"trained already, {config.steps} steps")
        return outcome
    with processes.together():
        if processes.is_first:
            clean_checkpoints(checkpoints)
    for line in dataset.dropped_lines():
        tell(line)
    sampler = BatchSampler(
        len(source),
        batch=config.batch,
        seed=config.seed,
        rank=processes.rank,
        world_size=processes.size,
        start=outcome.position,
        batches=(config.steps - outcome.step) * config.accumulate,
    )
    order = [[index for _, index in pairs] for pairs in sampler]
    batches = make_loader(source, order, workers=config.workers, pin=processes.device.type == "cuda")
    stream = iter(batches)
    with Log(
        config.out / "metrics.jsonl",
        steps=config.steps,
        start_step=outcome.step,
        every=config.log_every,
        speak=processes.is_first,
    ) as log:
        objective = detector.train()
        with torch.autocast(
            processes.device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16", cache_enabled=False
        ):
            stream = _told(config, detector, stream, len(source), processes, tell)  # in the run's own arithmetic
            outcome = fit(
                objective,
                stream,
                optimizer,
                count=count_pictures,
                learning_rate=partial(stepped_rate, peak=config.lr, warmup=config.warmup, milestones=config.milestones),
                steps=config.steps,
                begin=outcome,
                accumulate=config.accumulate,
                clip=config.clip_gradient,
                weight_decay=config.weight_decay,
                partly=detector.tower.partly,
                seed=config.seed,
                processes=processes,
                log=log,
                checkpoints=checkpoints,
                save_every=config.save_every,
                facts={"versions": made_by()},
            )
        _say_end(log, detector, outcome)
    for line in bad_lines([{"id": key, "reason": why} for key, why in outcome.bad.items()], listed="metrics.jsonl"):
        tell(line)
    return outcome


def _require_good_pictures(outcome: "Outcome", out: Path) -> None:
    """Refuse to call first weights the product of a run."""
    if outcome.good == 0:
        name, reason = min(outcome.bad.items(), default=("", "there was none"))
        raise InputError(
            f"--data: needs pictures that can be used; none of the {len(outcome.bad)} of this run could be, so nothing "
            f"was learned and no detector is written. The first: {name}: {reason} Correct them and choose another "
            f"--out, or remove {out}."
        )


def _say_end(log: "Log", detector: "FViT", outcome: "Outcome") -> None:
    """The last line of the log, with the parts of the last loss."""
    parts = {name: round(float(part), 5) for name, part in detector.parts.items()}
    log.event(
        "stop" if outcome.stopped_by else "end", {"step": outcome.step, "parts": parts, "bad_pictures": outcome.bad}
    )


def _told(
    config: TrainFViT,
    detector: "FViT",
    batches: "Iterator[Batch]",
    pictures: int,
    processes: "Processes",
    tell: Any,
) -> "Iterator[Batch]":
    """Say what the run takes, from the first batch, which is then trained on like any other."""
    from saccade.engine.plan import measure_kept

    first = [*islice(batches, 1)]
    kept, seconds = measure_kept(detector.train(), first[0]) if first else (0, 0.0)
    trained = sum(one.numel() for one in detector.parameters() if one.requires_grad)
    whole = sum(one.numel() for one in detector.parameters())
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


def check(config: TrainFViT) -> None:
    """Refuse numbers that cannot be, before anything is loaded.

    Raises:
        InputError: names the flag, what it must be and what it is.
    """
    low, high = config.jitter
    augments = (low, high) != (1.0, 1.0) or config.flip
    rules = (
        ("steps", config.steps >= 1, "at least 1"),
        ("batch", config.batch >= 1, "at least 1"),
        ("accumulate", config.accumulate >= 1, "at least 1"),
        ("lr", 0 < config.lr < float("inf"), "above 0"),
        ("weight-decay", 0 <= config.weight_decay < float("inf"), "0 or above"),
        ("clip-gradient", 0 < config.clip_gradient < float("inf"), "above 0"),
        ("warmup", config.warmup >= 0, "0 or above"),
        ("milestones", all(one >= 1 for one in config.milestones), "steps of at least 1"),
        ("jitter", 0 < low <= high <= 10, "two factors, the smaller first, above 0 and at most 10"),
        ("cache", not (config.cache and (augments or config.layers)), "off with --jitter, --flip or --layers: the maps "
         "are those of pictures as they are in a frozen tower. Add --jitter 1 1 --no-flip"),
        ("layers", config.layers >= 0, "0 or above"),
        ("ladder", 0 < config.ladder <= 1, "above 0 and at most 1"),
        ("channels", config.channels is None or config.channels >= 8, "at least 8"),
        ("proposals", config.proposals >= 1, "at least 1"),
        ("rois", config.rois is None or config.rois >= 4, "at least 4"),
        ("background-weight", config.background_weight is None or 0 <= config.background_weight <= 10, "0 to 10"),
        ("seed", 0 <= config.seed < 2**63, "0 to 2**63 - 1"),
        ("workers", config.workers >= 0, "0 or above"),
        ("log-every", config.log_every >= 1, "at least 1"),
        ("save-every", config.save_every >= 1, "at least 1"),
        ("timeout", config.timeout >= 1, "at least 1"),
    )  # fmt: skip
    for flag, holds, need in rules:
        if not holds:
            raise InputError(f"--{flag}: must be {need}; got {getattr(config, flag.replace('-', '_'))}.")


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _silent(message: str) -> None:
    pass
