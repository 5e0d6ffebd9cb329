"""`foveate train-catseg`: train Cat-Seg, segmentation with any vocabulary, on the base classes of a data set.

OUT/model is what `foveate segment` and `foveate evaluate semantic` take. Torch is imported only when something is
trained.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from foveate.cli.label_maps import LabelMapFlags, classes_of, open_base_maps
from foveate.cli.training import SMALL_SIDE, Tell, Training, check_training, own_folder, run_training, train
from foveate.errors import InputError
from foveate.heads.catseg.names import PUBLISHED, Residual, Version

if TYPE_CHECKING:  # torch and open_clip cost seconds: --help must not pay them
    from torch import Tensor

    from foveate.clip.model import Clip
    from foveate.engine.distributed import Processes
    from foveate.engine.fit import Outcome
    from foveate.heads.catseg.product import Network

RATIO = 5 / 3  # side of the square at test : of a window, 640 : 384
LONGEST = 4  # most that the longest edge may be at test, of the shortest, 2560 : 640
STRIDE = 2 / 3  # from one window to the next, of a window


@dataclass(frozen=True, kw_only=True)
class TrainCatSeg(LabelMapFlags, Training):
    """Train Cat-Seg (Cho et al., CVPR 2024) on a CLIP: the cosines of its dense map are aggregated to classes of
    pixels. Classes of the data that a split calls novel are not learned from; any vocabulary may be asked for later."""

    recipe: str | None = None
    """Start from a row of `foveate recipes catseg`; other flags given here win over it."""
    steps: int = 600
    """Optimizer steps. Cat-Seg: 80,000 of 4 pictures."""
    batch: int = 4
    """Pictures a process and pass."""
    lr: float | None = None
    """Learning rate of AdamW, which falls to 0 in a cosine; when not given, 2e-4, and 1e-3 for foveate-small."""
    clip_rate: float = 0.01
    """Factor of the rate for the CLIP's attention, which learns too."""
    weight_decay: float = 1e-4
    """AdamW's decay of matrices."""
    clip_gradient: float = 0.01
    """Longest gradient, in its norm."""
    version: Version = "2024"
    """2024: one prompt a class, the CLIP guides; 2023 (the paper's): 80 prompts a class, an ImageNet network guides."""
    residual: Residual | None = None
    """What the values of the last block are added to: each token, as in CLIPSelf's dense map, or the class token; when
    not given, as in CAT-Seg's code of the version: cls in 2024, token in 2023."""
    backbone: str | None = None
    """With --version 2023: the timm network that guides; resnet101 with a ViT-B, swin_base_patch4_window12_384 with a
    ViT-L."""
    backbone_weights: str | None = None
    """Of the backbone: a file with timm's weights of it, or none: drawn ones, for trials; when not given, timm's own
    from its cache, or fetched."""
    size: int | None = None
    """Side of a training crop, and of a window at test [pixels]; when not given, 384, and 96 for foveate-small."""
    clip_size: int | None = None
    """Side that a crop is brought to for the CLIP [pixels]; when not given, 24 patches: 384 of 16 pixels, 336 of 14;
    of another --size in proportion."""
    test_size: int | None = None
    """At test an image's shortest edge is resized to it (the longest to at most 4 times as much), and the image is then
    squashed to a square of it [pixels]; when not given, 5/3 of --size: 640."""
    hidden: int | None = None
    """Channels a class; when not given, 128, and 32 for foveate-small."""
    layers: int = 2
    """How often space and classes are aggregated."""
    vary: bool = True
    """Crop, mirror and colour training pictures at random; else they are squashed whole."""


def run(config: TrainCatSeg) -> None:
    """Train, or go on, and write the Cat-Seg.

    Raises:
        InputError: a flag, the data, the weights or the output folder is wrong.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C; the run was saved.
    """
    check(config)
    run_training(config, partial(_run, config))


def _run(config: TrainCatSeg, processes: "Processes", tell: Tell) -> "Outcome":
    import torch

    from foveate.clip.load import load
    from foveate.data.loader import SemanticSource
    from foveate.engine.checkpoint import digest_module
    from foveate.engine.optim import learning_rate
    from foveate.heads.catseg.product import About, build_catseg, save_catseg
    from foveate.heads.common.product import tower_digest

    # --- pictures and network, before anything is written
    data, novel, rule = open_base_maps(config, split=config.split, tell=tell, recipe=config.recipe)
    clip = load(config.model, pretrained=config.pretrained, device=processes.device, seed=config.seed)
    tower, is_small = tower_digest(clip, whole=True), clip.native_size <= SMALL_SIDE
    network = _network(config, clip)
    known = _backbone_weights(config)
    classes = classes_of(data)
    torch.manual_seed(config.seed)
    catseg = build_catseg(clip, network, classes=classes, pretrained=known, is_varied=config.vary)
    made_of = {"weights": digest_module(catseg), "classes": [list(words) for words in classes], "novel": list(novel)}

    # --- the loop, in this run's own folder
    with own_folder(config, processes, made_of=made_of):
        tell(f"learning from {len(classes)} classes of pixels ({rule}); writing to {config.out}")
        usual = 1e-3 if is_small else 2e-4
        peak = usual if config.lr is None else config.lr
        outcome = train(
            config,
            catseg,
            SemanticSource(data),
            data.dataset,
            groups=catseg.parameter_groups(weight_decay=config.weight_decay, clip_scale=config.clip_rate),
            partly=catseg.partly,
            rate=partial(learning_rate, peak=peak, warmup=config.warmup, steps=config.steps),
            processes=processes,
            tell=tell,
        )
        if outcome.stopped_by is not None:
            return outcome

        # --- the product
        about = About(
            model=config.model,
            pretrained=config.pretrained,
            tower=tower,
            network=network,
            classes=classes,
            novel=novel,
            training={"data": data.dataset.name, "steps": config.steps, "batch": config.batch, "seed": config.seed},
        )
        with processes.together():
            if processes.is_first:
                save_catseg(catseg, config.out / "model", about)
        tell(f"done: {config.out / 'model'}\n  foveate segment PICTURES --model {config.out / 'model'} --out ...")
    return outcome


def _backbone_weights(config: TrainCatSeg) -> "bool | dict[str, Tensor]":
    """What the backbone is to know, as `build_catseg` takes it."""
    from foveate.heads.catseg.guidance import read_backbone

    if config.backbone is None or config.backbone_weights is None:
        return True
    drawn = config.backbone_weights == "none"
    return False if drawn else read_backbone(config.backbone_weights, config.backbone)


def _network(config: TrainCatSeg, clip: "Clip") -> "Network":
    """The numbers of the network; those not given are Cat-Seg's, or the small CLIP's."""
    from foveate.heads.catseg.guidance import STRIDE as PLACE
    from foveate.heads.catseg.product import Network

    is_small = clip.native_size <= SMALL_SIDE
    usual, grid = (96, 12) if is_small else (384, 24)  # 24 places a side, of 16 pixels or of 14
    size, hidden = config.size or usual, config.hidden or (32 if is_small else 128)
    places = size // PLACE if config.version == "2023" else size * grid / usual  # as many as the backbone's map has
    test_size = config.test_size or round(size * RATIO)
    clip_size = config.clip_size or round(places * clip.patch_size)
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
        layers=config.layers,
        most=256,
    )


def _window(grid: int) -> int:
    """The largest window of at most 12 places that divides the map's side."""
    return max(side for side in range(1, 13) if grid % side == 0)


def check(config: TrainCatSeg) -> None:
    """Refuse numbers that cannot be, before anything is loaded.

    Raises:
        InputError: names the flag, what it must be and what it is.
    """
    check_training(
        config,
        ("clip-rate", 0 <= config.clip_rate <= 1, "0 to 1"),
        ("size", config.size is None or config.size >= 32, "at least 32"),
        ("hidden", config.hidden is None or (config.hidden >= 8 and config.hidden % 8 == 0), "a multiple of 8"),
        ("layers", config.layers >= 1, "at least 1"),
    )
    if (config.backbone is not None) != (config.version == "2023"):
        raise InputError(
            f"--backbone: goes with --version 2023, which needs one (resnet101 with a ViT-B); got "
            f"{config.backbone or 'none'} with --version {config.version}."
        )
    if config.backbone_weights is not None and config.backbone is None:
        raise InputError(f"--backbone-weights: goes with --backbone; got {config.backbone_weights} without one.")
