"""`foveate train-catseg`: train CAT-Seg, segmentation with any vocabulary, on the base classes of a data set.

OUT/model is what `foveate segment` and `foveate evaluate semantic` take.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.data.label_maps import classes_of, open_truth_maps
from foveate.data.loader import SemanticSource
from foveate.data.semantic import SemanticData, only_classes
from foveate.data.splits import split_semantic
from foveate.engine.checkpoint import digest_module
from foveate.engine.distributed import Processes
from foveate.engine.optim import learning_rate
from foveate.heads.catseg.guidance import STRIDE as PLACE
from foveate.heads.catseg.guidance import read_backbone
from foveate.heads.catseg.names import PUBLISHED
from foveate.heads.catseg.product import About, Network, build_catseg, save_catseg
from foveate.heads.common.product import tower_digest
from foveate.objectives.student import compile_tower
from foveate.train import run as driver
from foveate.train.batches import count_images, held_out_batches, training_batches
from foveate.train.checks import check_catseg
from foveate.train.defaults import SMALL_SIDE
from foveate.train.flags import HELD_OUT, TrainCatSeg
from foveate.train.heads import adamw, require_same_categories
from foveate.train.recipe import check_recipe_data
from foveate.train.report import Report
from foveate.train.run import Trainable

RATIO = 5 / 3  # side of the square at test : of a window, 640 : 384
LONGEST = 4  # most that the longest edge may be at test, of the shortest, 2560 : 640
STRIDE = 2 / 3  # from one window to the next, of a window


def run(config: TrainCatSeg) -> None:
    """Train, or resume, and write the CAT-Seg.

    Raises:
        InputError: a flag, the data, the weights or the output folder is wrong.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C; the run was saved. 1 where another process was lost.
    """
    check_catseg(config)
    driver.run(config, prepare)


def prepare(config: TrainCatSeg, processes: Processes, report: Report) -> Trainable:
    """Images, CLIP and network.

    Args:
        config: checked flags.
        processes: of the run.
        report: prints where the data has no split of its own.

    Raises:
        InputError: the data or the weights are wrong, or do not go together.
    """
    data, novel, rule = open_base_maps(config, report)
    held_out = _open_held_out(config, data)
    clip = load(config.model, pretrained=config.pretrained, device=processes.device, seed=config.seed)
    tower, is_small = tower_digest(clip, whole=True), clip.native_size <= SMALL_SIDE
    network, pretrained = _network(config, clip), _backbone_weights(config)
    classes = classes_of(data)
    torch.manual_seed(config.seed)
    catseg = build_catseg(clip, network, classes=classes, pretrained=pretrained, is_varied=config.augment).train()
    if config.compile:
        compile_tower(clip)
    folder = config.out / "model"
    about = About(
        model=config.model,
        pretrained=config.pretrained,
        tower=tower,
        network=network,
        classes=classes,
        novel=novel,
        training={"data": data.dataset.name, "steps": config.steps, "batch": config.batch, "seed": config.seed},
    )

    def save(tensors: dict[str, Tensor]) -> str:
        save_catseg(catseg, folder, about)
        return f"foveate segment IMAGES --model {folder} --out ..."

    source, usual = SemanticSource(data), 1e-3 if is_small else 2e-4
    peak = usual if config.lr is None else config.lr
    return Trainable(
        name=clip.name,
        objective=catseg,
        optimizer=adamw(catseg.parameter_groups(weight_decay=config.weight_decay, clip_scale=config.clip_lr)),
        learning_rate=partial(learning_rate, peak=peak, warmup=config.warmup, steps=config.steps),
        count=count_images,
        images=len(source),
        batches=training_batches(config, source, processes),
        held_out=held_out_batches(config, held_out, processes),
        save=save,
        product=folder,
        metadata={
            "weights": digest_module(catseg),
            "classes": [list(names) for names in classes],
            "novel": list(novel),
        },
        dataset=data.dataset,
        notes=[f"training on {len(classes)} classes of pixels ({rule})"],
        accumulate=config.accumulate,
        weight_decay=config.weight_decay,
        partly=catseg.partly,
        clip=config.clip_gradient,
        autocast=config.precision == "bfloat16",
        parts=lambda: catseg.parts,
    )


def open_base_maps(config: TrainCatSeg, report: Report) -> tuple[SemanticData, tuple[str, ...], str]:
    """Open the training images with the classes that may be trained on.

    Returns:
        The data, in which pixels of other classes have none; the names of the novel classes; the rule, for people.

    Raises:
        InputError: as `open_truth_maps`, no class is left, or the recipe's numbers are for other data.
    """
    data = open_truth_maps(config, split=config.split)
    check_recipe_data(config.recipe, data.dataset.categories, root=config.data)
    parts = split_semantic(data.dataset, config.data, file=config.novel)
    if parts is None:
        report(f"{config.data}: has no base and novel classes of its own; all are trained on. See --novel.")
        return data, (), "all classes"
    return only_classes(data, parts.base), parts.novel, parts.rule


def _open_held_out(config: TrainCatSeg, data: SemanticData) -> SemanticSource | None:
    """The held-out images with the classes that are trained on."""
    if config.validate is None:
        return None
    held_out = open_truth_maps(config, split=HELD_OUT, root=Path(config.validate))
    held_out = only_classes(held_out, [category.name for category in data.dataset.categories])
    require_same_categories(held_out.dataset.categories, data.dataset.categories, root=config.validate)
    return SemanticSource(held_out)


def _backbone_weights(config: TrainCatSeg) -> bool | dict[str, Tensor]:
    """The pretrained weights of the backbone, as `build_catseg` takes them."""
    if config.backbone is None or config.backbone_weights is None:
        return True
    is_random = config.backbone_weights == "none"
    return False if is_random else read_backbone(config.backbone_weights, config.backbone)


def _network(config: TrainCatSeg, clip: Clip) -> Network:
    """The hyperparameters of the network; those not given are CAT-Seg's, or the small CLIP's."""
    is_small = clip.native_size <= SMALL_SIDE
    usual, grid = (96, 12) if is_small else (384, 24)  # 24 places a side, of 16 pixels or of 14
    size, hidden = config.size or usual, config.channels or (32 if is_small else 128)
    places = size // PLACE if config.version == "2023" else size * grid / usual  # as many as the backbone's map has
    test_size, clip_size = round(size * RATIO), round(places * clip.patch_size)
    return Network(
        version=config.version,
        residual=config.residual or PUBLISHED[config.version],
        backbone=config.backbone,
        size=size,
        clip_size=clip_size,
        test_size=test_size,
        longest=LONGEST * test_size,
        stride=round(size * STRIDE),
        window=_window(clip_size // clip.patch_size),
        hidden=hidden,
        guidance=hidden,
        decoder=(hidden // 2, hidden // 4),
        decoder_guidance=(hidden // 4, hidden // 8),
        tower_guidance=(2 * hidden, hidden),
        heads=4,
        layers=config.depth,
        most=256,
    )


def _window(grid: int) -> int:
    """The largest window of at most 12 places that divides the map's side."""
    return max(side for side in range(1, 13) if grid % side == 0)
