"""`foveate train-fvit`: train an open-vocabulary detector on the base categories of a data set (Sec. 3.3).

OUT/model is what `foveate detect` and `foveate evaluate detection` take.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.clip.text import embed_vocabulary
from foveate.data.labels import refuse_repeated
from foveate.data.loader import EvaluationSource
from foveate.data.records import Dataset
from foveate.data.sources import open_data
from foveate.data.splits import BaseNovel, as_classes, only_with_objects, split_of
from foveate.engine.distributed import Processes
from foveate.engine.optim import stepped_rate
from foveate.errors import InputError
from foveate.heads.common.groups import synchronise
from foveate.heads.common.product import tower_digest
from foveate.heads.fvit.cache import FeatureCache
from foveate.heads.fvit.detector import FViT
from foveate.heads.fvit.product import About, Network, save_detector
from foveate.io.files import default_cache
from foveate.objectives.student import compile_tower
from foveate.train import run as driver
from foveate.train.checks import check_fvit
from foveate.train.defaults import SMALL_SIDE
from foveate.train.flags import HELD_OUT, TrainFViT
from foveate.train.heads import head_trainable, require_same_categories
from foveate.train.recipe import check_recipe_data
from foveate.train.report import Report
from foveate.train.run import Trainable

PROPOSALS, SMALL_PROPOSALS = 1000, 300  # boxes per image from the first stage to the second; of a small CLIP


def run(config: TrainFViT) -> None:
    """Train, or resume, and write the detector; see `foveate.train.run.run`."""
    check_fvit(config)
    driver.run(config, prepare)


def prepare(config: TrainFViT, processes: Processes, report: Report) -> Trainable:
    """Images, tower and detector; see `foveate.train.run.Prepare`."""
    # data, CLIP and detector
    dataset, split = open_objects(config, report)
    clip = load(config.model, pretrained=config.pretrained, device=processes.device, seed=config.seed)
    tower = tower_digest(clip)
    is_lvis = any(category.frequency is not None for category in dataset.categories)
    network = _network(config, clip)
    detector = _build(config, network, clip, dataset, split, is_lvis=is_lvis).train()
    if config.compile:
        compile_tower(clip)
    # what the product records of its training
    folder = config.out / "model"
    about = About(
        model=config.model,
        pretrained=config.pretrained,
        tower=tower,
        network=network,
        base=split.base,
        novel=split.novel,
        left_out=split.excluded,
        templates=config.templates,
        benchmark=config.benchmark or ("ov-lvis-b" if is_lvis else "ov-coco"),
        training={"data": dataset.name, "steps": config.steps, "batch": config.batch, "seed": config.seed},
    )

    def save(tensors: dict[str, Tensor]) -> str:
        save_detector(detector, folder, about)
        return f"foveate detect IMAGES --model {folder} --out ..."

    def begin() -> None:
        if config.cache:
            detector.cache = FeatureCache(
                config.out / "maps",
                clip,
                size=detector.size,
                layers=detector.tower.layers,
                statistics=config.statistics,
                resize=config.resize,
            )

    trainable = head_trainable(
        config,
        processes,
        detector,
        clip=clip,
        groups=detector.parameter_groups(weight_decay=config.weight_decay, ladder=config.layer_decay),
        learning_rate=partial(stepped_rate, peak=config.lr, warmup=config.warmup, milestones=config.milestones),
        partly=detector.tower.partly,
        dataset=dataset,
        sources=(EvaluationSource(dataset, masks=config.masks), _open_held_out(config, dataset, split)),
        note=f"training on the boxes of {len(split.base)} categories ({split.rule})",
        metadata={"base": list(split.base), "novel": list(split.novel), "rule": split.rule},
        save=save,
    )
    return replace(trainable, may_change=("benchmark",), begin=begin)


def open_objects(config: TrainFViT, report: Report) -> tuple[Dataset, BaseNovel]:
    """The images with boxes of base categories, and the split of categories.

    Raises:
        InputError: no image has a box of a base category.
    """
    dataset = open_data(
        config.data,
        split=config.split,
        annotations=_kind(config),
        annotation_file=config.annotations,
        accept=config.accept_annotations,
    )
    if not dataset.categories:
        raise InputError(
            f"--data {config.data}: need annotated boxes with their categories; found none. Give the root of COCO, "
            "LVIS, VOC or Objects365, or of a world, or name the file with --annotations."
        )
    check_recipe_data(config.recipe, dataset.categories, root=config.data)
    # the names are the text of the classes
    names = [category.name for category in dataset.categories]
    refuse_repeated(f"--data {config.data}", names)
    split = split_of(dataset, config.data, file=config.novel)
    if split is None:
        report(f"{config.data}: has no split into base and novel categories; all are base. See --novel.")
        split = BaseNovel(tuple(names), (), (), "all categories")
    objects = _with_objects(dataset, split)
    if not objects.records:
        raise InputError(
            f"--data {config.data}: need annotated boxes of base categories in split {config.split}; found none. "
            f"Is this the right root, split and --novel?{dataset.ignored_sentence()}"
        )
    return objects, split


def _open_held_out(config: TrainFViT, dataset: Dataset, split: BaseNovel) -> EvaluationSource | None:
    """The held-out images with boxes of base categories."""
    if config.validate is None:
        return None
    held_out = open_data(
        Path(config.validate), split=HELD_OUT, annotations=_kind(config), accept=config.accept_annotations
    )
    require_same_categories(held_out.categories, dataset.categories[:-1], root=config.validate)
    return EvaluationSource(_with_objects(held_out, split), masks=config.masks)


def _kind(config: TrainFViT) -> Literal["instances", "masks"]:
    return "masks" if config.masks else "instances"


def _with_objects(dataset: Dataset, split: BaseNovel) -> Dataset:
    """The images with boxes of base categories; crowds get the last label."""
    return only_with_objects(as_classes(dataset, split.base), crowd=len(dataset.categories))


def _network(config: TrainFViT, clip: Clip) -> Network:
    """The hyperparameters of the detector; by default the paper's, or the small CLIP's."""
    is_small = clip.native_size <= SMALL_SIDE
    channels = config.channels or (64 if is_small else 256)
    default_size = 192 if is_small else (640 if clip.patch_size == 16 else 64 * clip.patch_size)
    return Network(
        size=default_size if config.size is None else config.size,
        taps=config.taps or None,
        pyramid=config.pyramid,
        channels=channels,
        width=channels,
        masks=config.masks,
        proposals=SMALL_PROPOSALS if is_small else PROPOSALS,
        trained_layers=config.layers,
        norm=config.lvis_heads,
        relu_embedding=config.relu_embedding,
        statistics=config.statistics,
        resize=config.resize,
    )


def _build(
    config: TrainFViT, network: Network, clip: Clip, dataset: Dataset, split: BaseNovel, *, is_lvis: bool
) -> FViT:
    """The detector with the text embeddings of the data's classes, initialised from the seed."""
    names = [category.name for category in dataset.categories[:-1]]  # the last is "crowd"
    text = embed_vocabulary(clip, names, templates=config.templates, background="background", cache=default_cache())
    is_novel = torch.tensor([name not in split.base for name in names], device=text.device)
    background_weight = 0.9 if is_lvis else 0.6
    torch.manual_seed(config.seed)
    detector = FViT(
        clip,
        network,
        text=text,
        is_novel=is_novel,
        background_weight=background_weight if config.background_weight is None else config.background_weight,
        match_low_quality=config.lvis_heads,
        rois=64 if clip.native_size <= SMALL_SIDE else 512,
        jitter=config.jitter if config.augment and config.jitter != (1.0, 1.0) else None,
        flip=config.augment,
    )
    return synchronise(detector)
