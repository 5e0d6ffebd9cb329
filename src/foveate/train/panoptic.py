"""`foveate train-panoptic`: train a mask generator, things and stuff, on the base classes of a data set (Tab. 5).

OUT/model is what `foveate evaluate panoptic` takes.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.clip.vocabulary import Vocabulary
from foveate.data.labels import class_names
from foveate.data.loader import EvaluationSource
from foveate.data.records import Dataset
from foveate.data.sources import open_data
from foveate.data.splits import BaseNovel, split_semantic
from foveate.engine.checkpoint import digest_module
from foveate.engine.distributed import Processes
from foveate.engine.optim import stepped_rate
from foveate.errors import InputError
from foveate.heads.common.groups import synchronise
from foveate.heads.common.product import tower_digest
from foveate.heads.common.text import embed_words
from foveate.heads.panoptic.criterion import Weights
from foveate.heads.panoptic.mask2former import MaskGenerator
from foveate.heads.panoptic.product import (
    About,
    Class,
    Network,
    Part,
    build_parts,
    chosen_templates,
    frozen_digest,
    save_generator,
)
from foveate.objectives.student import compile_tower
from foveate.train import run as driver
from foveate.train.batches import count_images, held_out_batches, training_batches
from foveate.train.checks import check_panoptic
from foveate.train.defaults import LARGE, RESOLVED, SMALL, SMALL_SIDE, MaskGeneratorDefaults, resolve_defaults
from foveate.train.flags import HELD_OUT, TrainPanoptic
from foveate.train.heads import adamw, require_same_categories
from foveate.train.recipe import check_recipe_data
from foveate.train.report import Report
from foveate.train.run import Trainable
from foveate.types import Category


def run(config: TrainPanoptic) -> None:
    """Train, or resume, and write the generator.

    Raises:
        InputError: a flag, the data, the weights or the output folder is wrong.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C; the run was saved. 1 where another process was lost.
    """
    check_panoptic(config)
    driver.run(config, prepare)


def prepare(given: TrainPanoptic, processes: Processes, report: Report) -> Trainable:
    """Images, encoder and decoder.

    Args:
        given: checked flags.
        processes: of the run.
        report: prints where the data has no split of its own.

    Raises:
        InputError: the data or the weights are wrong, or do not go together.
    """
    dataset, split = open_segments(given, report)
    clip = load(given.model, pretrained=given.pretrained, device=processes.device, seed=given.seed)
    tower = tower_digest(clip, whole=given.class_names)
    usual = SMALL if clip.native_size <= SMALL_SIDE else LARGE
    config = resolve_defaults(given, usual)
    assert config.lr is not None, "resolved"
    classes = _classes(config, dataset, split, report)
    network = _network(config, usual, clip)
    generator = _build(config, network, clip, classes, points=usual.points).train()
    if config.compile:
        compile_tower(clip)
    folder = config.out / "model"
    about = About(
        model=config.model,
        pretrained=config.pretrained,
        tower=tower,
        frozen=frozen_digest(generator.encoder),
        network=network,
        classes=classes,
        knows_words=config.class_names,
        templates=config.templates,
        words=config.embeddings,
        training={"data": dataset.name, "steps": config.steps, "batch": config.batch, "seed": config.seed},
    )

    def save(tensors: dict[str, Tensor]) -> str:
        save_generator(generator, folder, about)
        return f"foveate evaluate panoptic --data ... --model {folder}"

    source, held_out = EvaluationSource(dataset), _open_held_out(config, dataset, split)
    things = sum(kind.is_thing for kind in classes if kind.part == "base")
    return Trainable(
        name=clip.name,
        objective=generator,
        optimizer=adamw(generator.parameter_groups(weight_decay=config.weight_decay)),
        learning_rate=partial(stepped_rate, peak=config.lr, warmup=config.warmup, milestones=config.milestones),
        count=count_images,
        images=len(source),
        batches=training_batches(config, source, processes),
        held_out=held_out_batches(config, held_out, processes),
        save=save,
        product=folder,
        metadata={
            **_resolved(config),
            "weights": digest_module(generator),
            "base": list(split.base),
            "novel": list(split.novel),
            "rule": split.rule,
        },
        dataset=dataset,
        notes=[
            f"training on the segments of {things} base classes of things and {len(split.base) - things} of stuff "
            f"({split.rule})"
        ],
        accumulate=config.accumulate,
        weight_decay=config.weight_decay,
        clip=config.clip_gradient,
        autocast=config.precision == "bfloat16",
        parts=lambda: generator.parts,
    )


def _resolved(config: TrainPanoptic) -> dict[str, Any]:
    """The flags that may be left to the CLIP, as they are, for the record of the run."""
    return {name: getattr(config, name) for name in RESOLVED}


def open_segments(config: TrainPanoptic, report: Report) -> tuple[Dataset, BaseNovel]:
    """The images with a segment of a base class, whose crowds have a label of their own, and what is base.

    Raises:
        InputError: no image has a segment of a base class.
    """
    dataset = open_data(config.data, split=config.split, annotations="panoptic")
    check_recipe_data(config.recipe, dataset.categories, root=config.data)
    split = split_semantic(dataset, config.data, file=config.novel)
    if split is None:
        report(f"{config.data}: has no base and novel classes of its own; all are base. See --novel.")
        split = BaseNovel(tuple(category.name for category in dataset.categories), (), (), "all classes")
    segments = as_segments(dataset, split)
    if not segments.records:
        raise InputError(
            f"--data {config.data}: need segments of base classes in split {config.split}; found none. Is this the "
            "right root, split and --novel?"
        )
    return segments, split


def _open_held_out(config: TrainPanoptic, dataset: Dataset, split: BaseNovel) -> EvaluationSource | None:
    """The held-out images with a segment of a base class."""
    if config.validate is None:
        return None
    held_out = open_data(Path(config.validate), split=HELD_OUT, annotations="panoptic")
    require_same_categories(held_out.categories, dataset.categories[:-1], root=config.validate)
    return EvaluationSource(as_segments(held_out, split))


def as_segments(dataset: Dataset, split: BaseNovel) -> Dataset:
    """Give crowds a label of their own, the last, and leave out images with nothing to learn from."""
    crowd = len(dataset.categories)
    is_base = [category.name in split.base for category in dataset.categories] + [False]
    records = []
    for record in dataset.records:
        pairs = zip(record.labels, record.crowd, strict=True)
        labels = tuple(crowd if is_crowd else label for label, is_crowd in pairs)
        if any(is_base[label] for label in labels):
            records.append(replace(record, labels=labels))
    without = len(dataset.records) - len(records)
    note = f"{without} of {len(dataset.records)} images have no segment of a base class and are not trained on"
    last = max(category.id for category in dataset.categories) + 1
    return replace(
        dataset,
        categories=(*dataset.categories, Category(last, "crowd", True)),
        records=tuple(records),
        notes=(*dataset.notes, *([note] if without else [])),
    )


def _classes(config: TrainPanoptic, dataset: Dataset, split: BaseNovel, report: Report) -> tuple[Class, ...]:
    """What the product says of the classes."""
    categories = dataset.categories[:-1]  # the last is "crowd"
    parts: dict[str, Part] = {**dict.fromkeys(split.base, "base"), **dict.fromkeys(split.novel, "novel")}
    names = class_names(categories, config.labels, name=dataset.name, report=report)
    pairs = zip(categories, names.classes, strict=True)
    return tuple(Class(names, category.is_thing, parts.get(category.name, "left out")) for category, names in pairs)


def _network(config: TrainPanoptic, usual: MaskGeneratorDefaults, clip: Clip) -> Network:
    """The hyperparameters of the generator: of the flags, and those without a flag."""
    assert config.channels is not None and config.queries is not None and config.depth is not None, "resolved"
    step = 2 * clip.patch_size if config.encoder is None else 64
    return Network(
        size=usual.size // step * step if config.size is None else config.size,
        encoder=None if config.encoder is None else str(config.encoder),
        pyramid=config.pyramid,
        taps=config.taps or None,
        channels=config.channels,
        queries=config.queries,
        layers=config.depth,
        width=usual.width,
        feedforward=usual.feedforward,
        pixel_layers=usual.pixel_layers,
        joint=usual.joint,
    )


def _build(
    config: TrainPanoptic, network: Network, clip: Clip, classes: tuple[Class, ...], *, points: int
) -> MaskGenerator:
    """The network, its initial weights drawn from the seed."""
    words = nothing = None
    if config.class_names:
        vocabulary = Vocabulary(tuple(kind.words for kind in classes))
        words = embed_words(clip, vocabulary, templates=chosen_templates(config.templates), length=config.embeddings)
        with torch.no_grad():
            nothing = clip.encode_text(clip.tokenize([""]), normalize=config.embeddings == "unit")[0]
    torch.manual_seed(config.seed)
    encoder, decoder = build_parts(network, clip)
    generator = MaskGenerator(
        encoder,
        decoder,
        is_novel=torch.tensor([kind.part != "base" for kind in classes]),
        size=network.size,
        words=words,
        nothing=nothing,
        joint=network.joint,
        weights=Weights(points=points),
        jitter=config.jitter if config.augment and config.jitter != (1.0, 1.0) else None,
        flip=config.augment,
    )
    return synchronise(generator)
