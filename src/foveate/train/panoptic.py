"""`foveate train-panoptic`: train a mask generator, things and stuff, on the base classes of a data set (Tab. 5).

OUT/model is what `foveate evaluate panoptic` takes.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.clip.vocabulary import Vocabulary
from foveate.data.annotations import RelabelledRecords, objects_of
from foveate.data.labels import class_names
from foveate.data.loader import EvaluationSource
from foveate.data.records import Dataset
from foveate.data.sources import open_data
from foveate.data.splits import BaseNovel, split_semantic
from foveate.engine.distributed import Processes
from foveate.engine.optim import stepped_rate
from foveate.errors import InputError
from foveate.heads.common.groups import synchronise
from foveate.heads.common.product import tower_digest
from foveate.heads.common.text import embed_classes
from foveate.heads.panoptic.criterion import LossWeights
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
from foveate.train.checks import check_panoptic
from foveate.train.defaults import LARGE, RESOLVED, SMALL, SMALL_SIDE, MaskGeneratorDefaults, resolve_defaults
from foveate.train.flags import HELD_OUT, TrainPanoptic
from foveate.train.heads import head_trainable, require_same_categories
from foveate.train.recipe import check_recipe_data
from foveate.train.report import Report
from foveate.train.run import Trainable
from foveate.types import Category


def run(config: TrainPanoptic) -> None:
    """Train, or resume, and write the mask generator; see `foveate.train.run.run`."""
    check_panoptic(config)
    driver.run(config, prepare)


def prepare(given: TrainPanoptic, processes: Processes, report: Report) -> Trainable:
    """Images, encoder and decoder; see `foveate.train.run.Prepare`."""
    # data, CLIP and mask generator, with the defaults for this CLIP
    dataset, split = open_segments(given, report)
    clip = load(given.model, pretrained=given.pretrained, device=processes.device, seed=given.seed)
    tower = tower_digest(clip, whole=given.class_names)
    defaults = SMALL if clip.native_size <= SMALL_SIDE else LARGE
    config = resolve_defaults(given, defaults)
    assert config.lr is not None, "resolved"
    classes = _classes(config, dataset, split, report)
    network = _network(config, defaults, clip)
    generator = _build(config, network, clip, classes, points=defaults.points).train()
    if config.compile:
        compile_tower(clip)
    # what the product records of its training
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

    things = sum(kind.is_thing for kind in classes if kind.part == "base")
    return head_trainable(
        config,
        processes,
        generator,
        clip=clip,
        groups=generator.parameter_groups(weight_decay=config.weight_decay),
        learning_rate=partial(stepped_rate, peak=config.lr, warmup=config.warmup, milestones=config.milestones),
        dataset=dataset,
        sources=(EvaluationSource(dataset), _open_held_out(config, dataset, split)),
        note=f"training on the segments of {things} base classes of things and {len(split.base) - things} of stuff "
        f"({split.rule})",
        metadata={
            **{name: getattr(config, name) for name in RESOLVED},
            "base": list(split.base),
            "novel": list(split.novel),
            "rule": split.rule,
        },
        save=save,
    )


def open_segments(config: TrainPanoptic, report: Report) -> tuple[Dataset, BaseNovel]:
    """The images with a segment of a base class, and the split of classes.

    Raises:
        InputError: no image has a segment of a base class.
    """
    dataset = open_data(config.data, split=config.split, annotations="panoptic", accept=config.accept_annotations)
    check_recipe_data(config.recipe, dataset.categories, root=config.data)
    split = split_semantic(dataset, config.data, file=config.novel)
    if split is None:
        report(f"{config.data}: has no split into base and novel classes; all are base. See --novel.")
        split = BaseNovel(tuple(category.name for category in dataset.categories), (), (), "all classes")
    segments = as_segments(dataset, split)
    if not segments.records:
        raise InputError(
            f"--data {config.data}: need segments of base classes in split {config.split}; found none. Is this the "
            f"right root, split and --novel?{dataset.ignored_sentence()}"
        )
    return segments, split


def _open_held_out(config: TrainPanoptic, dataset: Dataset, split: BaseNovel) -> EvaluationSource | None:
    """The held-out images with a segment of a base class."""
    if config.validate is None:
        return None
    held_out = open_data(
        Path(config.validate), split=HELD_OUT, annotations="panoptic", accept=config.accept_annotations
    )
    require_same_categories(held_out.categories, dataset.categories[:-1], root=config.validate)
    return EvaluationSource(as_segments(held_out, split))


def as_segments(dataset: Dataset, split: BaseNovel) -> Dataset:
    """Give crowds the last label, and remove images without a segment of a base class."""
    crowd, objects = len(dataset.categories), objects_of(dataset.records)
    labels = np.where(objects.crowd, crowd, objects.labels)
    is_base = np.array([*(category.name in split.base for category in dataset.categories), False])
    images = np.flatnonzero(objects.any_per_image(is_base[labels]))
    removed = len(dataset.records) - len(images)
    note = f"{removed} of {len(dataset.records)} images have no segment of a base class and are not trained on"
    crowd_id = max(category.id for category in dataset.categories) + 1
    return replace(
        dataset,
        categories=(*dataset.categories, Category(crowd_id, "crowd", True)),
        records=RelabelledRecords(dataset.records, labels, images=images),
        notes=(*dataset.notes, *([note] if removed else [])),
    )


def _classes(config: TrainPanoptic, dataset: Dataset, split: BaseNovel, report: Report) -> tuple[Class, ...]:
    """The classes as the product has them."""
    categories = dataset.categories[:-1]  # the last is "crowd"
    parts: dict[str, Part] = {**dict.fromkeys(split.base, "base"), **dict.fromkeys(split.novel, "novel")}
    names = class_names(categories, config.labels, name=dataset.name, report=report)
    pairs = zip(categories, names.classes, strict=True)
    return tuple(Class(names, category.is_thing, parts.get(category.name, "left out")) for category, names in pairs)


def _network(config: TrainPanoptic, defaults: MaskGeneratorDefaults, clip: Clip) -> Network:
    """The hyperparameters of the mask generator, from flags and defaults."""
    assert config.channels is not None and config.queries is not None and config.depth is not None, "resolved"
    step = 2 * clip.patch_size if config.encoder is None else 64  # of the size
    return Network(
        size=defaults.size // step * step if config.size is None else config.size,
        encoder=None if config.encoder is None else str(config.encoder),
        pyramid=config.pyramid,
        taps=config.taps or None,
        channels=config.channels,
        queries=config.queries,
        layers=config.depth,
        width=defaults.width,
        feedforward=defaults.feedforward,
        pixel_layers=defaults.pixel_layers,
        joint=defaults.joint,
    )


def _build(
    config: TrainPanoptic, network: Network, clip: Clip, classes: tuple[Class, ...], *, points: int
) -> MaskGenerator:
    """The network, its initial weights drawn from the seed."""
    embedded = no_object = None
    if config.class_names:
        vocabulary = Vocabulary(tuple(kind.words for kind in classes))
        embedded = embed_classes(
            clip, vocabulary, templates=chosen_templates(config.templates), length=config.embeddings
        )
        with torch.no_grad():
            no_object = clip.encode_text(clip.tokenize([""]), normalize=config.embeddings == "unit")[0]
    torch.manual_seed(config.seed)
    encoder, decoder = build_parts(network, clip)
    generator = MaskGenerator(
        encoder,
        decoder,
        is_novel=torch.tensor([kind.part != "base" for kind in classes]),
        size=network.size,
        classes=embedded,
        no_object=no_object,
        joint=network.joint,
        weights=LossWeights(points=points),
        jitter=config.jitter if config.augment and config.jitter != (1.0, 1.0) else None,
        flip=config.augment,
    )
    return synchronise(generator)
