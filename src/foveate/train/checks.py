"""What must hold of the flags of a training run, checked before anything is read: (flag, whether it holds, the need).

Deliberately absent: what only the data or the weights can tell.
"""

from foveate.errors import InputError
from foveate.ops.grid import MAX_GRID
from foveate.train.defaults import LARGE, boxes_file, nouns_file, resolve_defaults
from foveate.train.flags import (
    CONV,
    DistillConfig,
    HeadFlags,
    Pretrain,
    Proposals,
    ReaderFlags,
    RunFlags,
    TrainCatSeg,
    TrainFViT,
    TrainPanoptic,
)

MAX_KEEP = 10  # a weight; for the number of patches there is --max-regions
Rule = tuple[str, bool, str]  # flag, whether it holds, what it must be


def check(config: RunFlags, *rules: Rule) -> None:
    """Check the flags that all runs have, then those of one command.

    Args:
        config: flags.
        rules: of the command alone.

    Raises:
        InputError: names the flag, what it must be and what it is.
    """
    for flag, holds, need in (*_run_rules(config), *rules):
        if not holds:
            raise InputError(f"--{flag}: must be {need}; got {getattr(config, flag.replace('-', '_'))}.")


def _run_rules(config: RunFlags) -> list[Rule]:
    rules = [
        ("steps", config.steps >= 1, "at least 1"),
        ("batch", config.batch >= 1, "at least 1"),
        ("seed", 0 <= config.seed < 2**63, "0 to 2**63 - 1"),
        ("log-every", config.log_every >= 1, "at least 1"),
        ("save-every", config.save_every >= 1, "at least 1"),
        ("product", config.product == "last" or config.validate is not None, "last without --validate"),
        ("skip-nonfinite", config.skip_nonfinite >= 0, "0 or above"),
    ]
    if isinstance(config, ReaderFlags):
        rules += [
            ("accumulate", config.accumulate >= 1, "at least 1"),
            ("workers", config.workers >= 0, "0 or above"),
        ]
    if isinstance(config, HeadFlags):
        rules += [
            ("lr", _is_rate(config.lr), "above 0"),
            ("weight-decay", 0 <= config.weight_decay < float("inf"), "0 or above"),
            ("clip-gradient", _is_rate(config.clip_gradient), "above 0"),
            ("warmup", config.warmup >= 0, "0 or above"),
        ]
    return rules


def _is_rate(value: float | None) -> bool:
    return value is None or 0 < value < float("inf")


# ------------------------------------------------------------------------------------------------------------- distill


def check_distill(config: DistillConfig) -> None:
    """Refuse flags that cannot distil anything, before anything is loaded.

    Raises:
        InputError: names the flag, what it must be and what it is.
    """
    boxes = boxes_file(config)
    check(
        config,
        ("lr", _is_rate(config.lr), "above 0"),
        ("weight-decay", config.weight_decay is None or 0 <= config.weight_decay < float("inf"), "0 or above"),
        ("betas", all(0 <= beta < 1 for beta in config.betas), "two numbers in [0, 1)"),
        ("eps", config.eps > 0, "above 0"),
        ("warmup", config.warmup is None or config.warmup >= 0, "0 or above"),
        ("layers", config.layers is None or config.layers >= 1, "at least 1, or not given to train all blocks"),
        ("regions", boxes is None or boxes.is_file(), "grid, annotations, or a file of boxes that exists"),
        ("grid", 1 <= config.grid <= MAX_GRID, f"1 to {MAX_GRID}, the locations along a side of a dense feature map"),
        ("max-regions", config.max_regions >= 1, "at least 1"),
        ("size", config.size is None or config.size >= 1, "at least one patch"),
        ("window", config.window is None or config.window >= 1, "at least 1 patch"),
        ("keep", 0 <= config.keep <= MAX_KEEP, f"0 to {MAX_KEEP}, a weight (see --max-regions for a number)"),
        ("correlation", 0 <= config.correlation < float("inf"), "0 or above"),
        ("alpha", 0 < config.alpha <= 1, "above 0 and at most 1 (1 = no mixing)"),
    )
    _check_objective(config)


def _check_objective(config: DistillConfig) -> None:
    """Refuse flags that an objective does not use, and a batch from which it cannot learn."""
    unused = {
        "clipself": {"captions": config.captions},
        "region-text": {},
        "image-text": {
            "regions": config.regions if config.regions != "grid" else None,
            "window": config.window,
            "tokens": config.tokens if config.tokens != "all" else None,
            "head": config.head if config.head != "value" else None,
            "keep": config.keep or None,
            "correlation": config.correlation or None,
            "fsdp": True if config.fsdp else None,
        },
    }
    for flag, value in unused[config.objective].items():
        if value is not None:
            shown = f"--{flag}" if value is True else f"--{flag} {value}"
            raise InputError(f"{shown}: has no effect with --objective {config.objective}. Remove one of them.")
    if config.objective == "image-text" and config.batch < 2:
        raise InputError(
            f"--batch: must be at least 2 with --objective image-text, which contrasts the captions of a "
            f"batch; got {config.batch}."
        )
    if config.objective == "image-text" and nouns_file(config) is not None:
        raise InputError(
            f"--captions {config.captions}: must hold captions with --objective image-text; got a list of nouns, which "
            "is for region-text."
        )


# --------------------------------------------------------------------------------------------------------------- heads


def check_fvit(config: TrainFViT) -> None:
    """As `check_distill`, for F-ViT."""
    low, high = config.jitter
    check(
        config,
        ("milestones", all(step >= 1 for step in config.milestones), "steps of at least 1"),
        ("jitter", 0 < low <= high <= 10, "two factors, the smaller first, above 0 and at most 10"),
        ("cache", not (config.cache and (config.augment or config.layers)), "off with --augment or --layers: cached "
         "are the maps of unchanged images in a frozen tower. Add --no-augment"),
        ("layers", config.layers >= 0, "0 or above"),
        ("layer-decay", 0 < config.layer_decay <= 1, "above 0 and at most 1"),
        ("channels", config.channels is None or config.channels >= 8, "at least 8"),
        ("background-weight", config.background_weight is None or 0 <= config.background_weight <= 10, "0 to 10"),
    )  # fmt: skip


def check_catseg(config: TrainCatSeg) -> None:
    """As `check_distill`, for CAT-Seg."""
    check(
        config,
        ("clip-lr", 0 <= config.clip_lr <= 1, "0 to 1, a fraction of --lr"),
        ("size", config.size is None or config.size >= 32, "at least 32"),
        ("channels", config.channels is None or (config.channels >= 8 and config.channels % 8 == 0), "a multiple of 8"),
        ("depth", config.depth >= 1, "at least 1"),
    )
    if (config.backbone is not None) != (config.version == "2023"):
        raise InputError(
            f"--backbone: is for --version 2023, which needs one (resnet101 with a ViT-B); got "
            f"{config.backbone or 'none'} with --version {config.version}."
        )
    if config.backbone_weights is not None and config.backbone is None:
        raise InputError(f"--backbone-weights: needs --backbone; got {config.backbone_weights} without one.")


def check_panoptic(config: TrainPanoptic) -> None:
    """As `check_distill`, for mask generators."""
    given, config = config, resolve_defaults(config, LARGE)
    of_library = ("queries", "depth", "channels")
    is_library = config.encoder is not None and not (config.encoder / "model_index.json").is_file()
    unused = [name for name in of_library if is_library and getattr(given, name) is not None]
    is_missing = config.encoder is not None and not config.encoder.is_dir()
    low, high = config.jitter or (1.0, 1.0)
    small = [name for name in of_library if getattr(config, name) < 1]
    check(
        config,
        ("encoder", not is_missing, "a folder that exists"),
        ("taps", not config.taps or config.encoder is None, "left out with --encoder: the CLIP's tower is not tapped"),
        ("compile", not config.compile or config.encoder is None, "off with --encoder: it compiles the CLIP's tower, "
         "which is not the encoder then"),
        ("milestones", all(step >= 1 for step in config.milestones), "steps of at least 1"),
        ("jitter", 0 < low <= high <= 10, "two factors, the smaller first, above 0 and at most 10"),
        *((name, False, "at least 1") for name in small),
        *((name, False, "left out with a Mask2Former's folder, whose own holds") for name in unused),
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------- proposals, pretraining


def check_proposals(config: Proposals) -> None:
    """As `check_distill`, for proposals."""
    check(
        config,
        ("lr", _is_rate(config.lr), "above 0"),
        ("channels", config.channels is None or (config.channels >= 8 and config.channels % 8 == 0), "a multiple of 8"),
        ("max-boxes", config.max_boxes >= 1, "at least 1"),
        ("min-score", 0 <= config.min_score <= 1, "0 to 1"),
        ("nms", 0 < config.nms <= 1, "above 0 and at most 1"),
        ("compile", not config.compile or config.model != CONV, "off with --model conv, which has no blocks"),
    )


def check_pretrain(config: Pretrain) -> None:
    """As `check_distill`, for pretraining."""
    check(
        config,
        ("batch", config.batch >= 2, "at least 2: captions are contrasted within a batch"),
        ("lr", _is_rate(config.lr), "above 0"),
        ("warmup", config.warmup >= 0, "0 or above"),
        ("patch-dropout", 0 <= config.patch_dropout < 1, "0 or above and below 1"),
        ("whole-steps", config.whole_steps >= 0, "0 or above"),
    )
