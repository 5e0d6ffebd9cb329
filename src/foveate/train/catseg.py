"""`foveate train-catseg`: train CAT-Seg, segmentation with any vocabulary, on the base classes of a data set.

OUT/model is what `foveate segment` and `foveate evaluate semantic` take.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.data.label_maps import classes_of, open_label_maps
from foveate.data.loader import SemanticSource
from foveate.data.semantic import SemanticData, only_classes
from foveate.data.splits import split_semantic
from foveate.engine.distributed import Processes
from foveate.engine.optim import learning_rate
from foveate.heads.catseg.guidance import STRIDE as BACKBONE_STRIDE
from foveate.heads.catseg.guidance import read_backbone
from foveate.heads.catseg.names import PUBLISHED
from foveate.heads.catseg.product import About, Network, build_catseg, save_catseg
from foveate.heads.common.product import tower_digest
from foveate.objectives.student import compile_tower
from foveate.train import run as driver
from foveate.train.checks import check_catseg
from foveate.train.defaults import SMALL_SIDE
from foveate.train.flags import HELD_OUT, TrainCatSeg
from foveate.train.heads import head_trainable, require_same_categories
from foveate.train.recipe import check_recipe_data
from foveate.train.report import Report
from foveate.train.run import Trainable

TEST_RATIO = 5 / 3  # side of the square at test : of a window, 640 : 384
MAX_ASPECT = 4  # longest : shortest edge at test, 2560 : 640
STRIDE_RATIO = 2 / 3  # from one window to the next : of a window


def run(config: TrainCatSeg) -> None:
    """Train, or resume, and write the CAT-Seg; see `foveate.train.run.run`."""
    check_catseg(config)
    driver.run(config, prepare)


def prepare(config: TrainCatSeg, processes: Processes, report: Report) -> Trainable:
    """Images, CLIP and network; see `foveate.train.run.Prepare`."""
    # data and CLIP
    data, novel, rule = open_base_maps(config, report)
    held_out = _open_held_out(config, data)
    clip = load(config.model, pretrained=config.pretrained, device=processes.device, seed=config.seed)
    tower, is_small = tower_digest(clip, whole=True), clip.native_size <= SMALL_SIDE
    network, pretrained = _network(config, clip), _backbone_weights(config)
    classes = classes_of(data)
    # the network, initialised from the seed
    torch.manual_seed(config.seed)
    catseg = build_catseg(clip, network, classes=classes, pretrained=pretrained, augment=config.augment).train()
    if config.compile:
        compile_tower(clip)
    # what the product records of its training
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

    # the small CLIP's rate, or CAT-Seg's
    default_lr = 1e-3 if is_small else 2e-4
    peak = default_lr if config.lr is None else config.lr
    return head_trainable(
        config,
        processes,
        catseg,
        clip=clip,
        groups=catseg.parameter_groups(weight_decay=config.weight_decay, clip_scale=config.clip_lr),
        learning_rate=partial(learning_rate, peak=peak, warmup=config.warmup, steps=config.steps),
        partly=catseg.partly,
        dataset=data.dataset,
        sources=(SemanticSource(data), held_out),
        note=f"training on {len(classes)} classes of pixels ({rule})",
        metadata={"classes": [list(names) for names in classes], "novel": list(novel)},
        save=save,
    )


def open_base_maps(config: TrainCatSeg, report: Report) -> tuple[SemanticData, tuple[str, ...], str]:
    """Open the training images with the base classes.

    Returns:
        The data, in which pixels of other classes have no label; the names of the novel classes; the rule, for people.

    Raises:
        InputError: as `open_label_maps`, no class is left, or the recipe is for other data.
    """
    data = open_label_maps(config, split=config.split)
    check_recipe_data(config.recipe, data.dataset.categories, root=config.data)
    parts = split_semantic(data.dataset, config.data, file=config.novel)
    if parts is None:
        report(f"{config.data}: has no split into base and novel classes; all are trained on. See --novel.")
        return data, (), "all classes"
    return only_classes(data, parts.base), parts.novel, parts.rule


def _open_held_out(config: TrainCatSeg, data: SemanticData) -> SemanticSource | None:
    """The held-out images with the trained classes."""
    if config.validate is None:
        return None
    held_out = open_label_maps(config, split=HELD_OUT, root=Path(config.validate))
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
    """The hyperparameters of the network; by default CAT-Seg's, or the small CLIP's."""
    is_small = clip.native_size <= SMALL_SIDE
    default_size, grid = (96, 12) if is_small else (384, 24)  # 24 locations per side, of 16 pixels or of 14
    size, hidden = config.size or default_size, config.channels or (32 if is_small else 128)
    # as many locations as the backbone's map has
    locations = size // BACKBONE_STRIDE if config.version == "2023" else size * grid / default_size
    test_size, clip_size = round(size * TEST_RATIO), round(locations * clip.patch_size)
    return Network(
        version=config.version,
        residual=config.residual or PUBLISHED[config.version],
        backbone=config.backbone,
        size=size,
        clip_size=clip_size,
        test_size=test_size,
        longest=MAX_ASPECT * test_size,
        stride=round(size * STRIDE_RATIO),
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
    """The largest window of at most 12 locations that divides the map's side."""
    return max(side for side in range(1, 13) if grid % side == 0)
