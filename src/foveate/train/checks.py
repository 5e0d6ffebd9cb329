"""What must hold of the flags of a training run, checked before anything is read: (flag, whether it holds, the need).

Deliberately absent: what only the data or the weights can tell.
"""

from dataclasses import fields

from foveate.errors import InputError
from foveate.train.defaults import LARGE, resolve_defaults
from foveate.train.flags import (
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
        ("keep-checkpoints", config.keep_checkpoints >= 1, "at least 1"),
        ("validate-images", config.validate_images >= 1, "at least 1"),
        ("product", config.product == "last" or config.validate is not None, "last without --validate"),
        ("nonfinite-limit", config.nonfinite_limit >= 1, "at least 1"),
        ("timeout", config.timeout >= 1, "at least 1 second"),
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
    check(
        config,
        ("lr", _is_rate(config.lr), "above 0"),
        ("weight-decay", config.weight_decay is None or 0 <= config.weight_decay < float("inf"), "0 or above"),
        ("betas", all(0 <= beta < 1 for beta in config.betas), "two numbers in [0, 1)"),
        ("eps", config.eps > 0, "above 0"),
        ("warmup", config.warmup is None or config.warmup >= 0, "0 or above"),
        ("layers", config.layers is None or config.layers >= 1, "at least 1, or not given to train all blocks"),
        ("min-count", config.min_count >= 1, "at least 1"),
        ("grid", config.grid >= 1, "at least 1"),
        ("max-regions", config.max_regions >= 1, "at least 1"),
        ("student-size", config.student_size is None or config.student_size >= 1, "at least one patch"),
        ("window", config.window is None or config.window >= 1, "at least 1 patch"),
        ("keep", 0 <= config.keep <= MAX_KEEP, f"0 to {MAX_KEEP}, a weight (see --max-regions for a number)"),
        ("keep-crops", config.keep_crops >= 1, "at least 1"),
        ("correlation", 0 <= config.correlation < float("inf"), "0 or above"),
        ("correlation-temperature", 0 < config.correlation_temperature < float("inf"), "above 0"),
        ("alpha", 0 < config.alpha <= 1, "above 0 and at most 1 (1 = no mixing)"),
    )
    if config.gates and config.head != "values3":
        raise InputError(
            f"--gates: weigh the heads whose values --head values3 adds up; got --head {config.head}. "
            "Give --head values3 with it, or leave it out."
        )
    _check_terms(config)
    _check_objective(config)
    if config.boxes is not None and config.regions == "grid":
        raise InputError("--regions grid: draws no boxes, but --boxes names some. Leave one of them out.")


def _check_terms(config: DistillConfig) -> None:
    """Refuse settings of a term that has no weight."""
    defaults = {field.name: field.default for field in fields(DistillConfig)}
    terms = {"keep": ("keep_crops",), "correlation": ("correlation_head", "correlation_temperature")}
    for weight, names in terms.items():
        for name in names:
            value = getattr(config, name)
            if not getattr(config, weight) and value != defaults[name]:
                raise InputError(
                    f"--{name.replace('_', '-')} {value}: means nothing without --{weight}. Give --{weight} a weight, "
                    "or leave it out."
                )


def _check_objective(config: DistillConfig) -> None:
    """Refuse flags that an objective does not use, and a batch from which it cannot learn."""
    min_count = config.min_count if config.min_count != DistillConfig.min_count else None
    unused = {
        "clipself": {"captions": config.captions, "nouns": config.nouns, "min-count": min_count},
        "region-text": {},
        "image-text": {
            "nouns": config.nouns,
            "min-count": min_count,
            "boxes": config.boxes,
            "regions": config.regions,
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
            raise InputError(f"{shown}: means nothing to --objective {config.objective}. Leave one of them out.")
    if config.objective == "image-text" and config.batch < 2:
        raise InputError(
            f"--batch: must be at least 2 with --objective image-text, which tells a caption from the others of its "
            f"batch; got {config.batch}."
        )
    if config.captions is not None and config.nouns is not None:
        raise InputError("--captions, --nouns: region-text takes its nouns from one of them. Leave the other out.")
    if config.nouns is not None and min_count is not None:
        raise InputError(
            f"--min-count {min_count}: counts the nouns of captions; those of --nouns are all taken. Leave one of them "
            "out."
        )


# --------------------------------------------------------------------------------------------------------------- heads


def check_fvit(config: TrainFViT) -> None:
    """As `check_distill`, for F-ViT."""
    low, high = config.jitter
    augments = (low, high) != (1.0, 1.0) or config.flip
    check(
        config,
        ("milestones", all(step >= 1 for step in config.milestones), "steps of at least 1"),
        ("jitter", 0 < low <= high <= 10, "two factors, the smaller first, above 0 and at most 10"),
        ("cache", not (config.cache and (augments or config.layers)), "off with --jitter, --flip or --layers: cached "
         "are the maps of unchanged images in a frozen tower. Add --jitter 1 1 --no-flip"),
        ("layers", config.layers >= 0, "0 or above"),
        ("ladder", 0 < config.ladder <= 1, "above 0 and at most 1"),
        ("channels", config.channels is None or config.channels >= 8, "at least 8"),
        ("proposals", config.proposals >= 1, "at least 1"),
        ("rois", config.rois is None or config.rois >= 4, "at least 4"),
        ("background-weight", config.background_weight is None or 0 <= config.background_weight <= 10, "0 to 10"),
    )  # fmt: skip


def check_catseg(config: TrainCatSeg) -> None:
    """As `check_distill`, for CAT-Seg."""
    check(
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


def check_panoptic(config: TrainPanoptic) -> None:
    """As `check_distill`, for mask generators."""
    given, config = config, resolve_defaults(config, LARGE)
    of_library = ("queries", "width", "feedforward", "pixel_layers", "layers", "channels")
    is_library = config.encoder is not None and not (config.encoder / "model_index.json").is_file()
    unused = [name for name in of_library if is_library and getattr(given, name) is not None]
    is_missing = config.encoder is not None and not config.encoder.is_dir()
    low, high = config.jitter or (1.0, 1.0)
    least = {**dict.fromkeys((*of_library, "joint"), 1), "points": 4}
    small = [name for name in least if getattr(config, name) < least[name]]
    check(
        config,
        ("encoder", not is_missing, "a folder that exists"),
        ("taps", not config.taps or config.encoder is None, "left out with --encoder: the CLIP's tower is not tapped"),
        ("compile", not config.compile or config.encoder is None, "off with --encoder: it compiles the CLIP's tower, "
         "which is not the encoder then"),
        ("milestones", all(step >= 1 for step in config.milestones), "steps of at least 1"),
        ("jitter", 0 < low <= high <= 10, "two factors, the smaller first, above 0 and at most 10"),
        *((name.replace("_", "-"), False, f"at least {least[name]}") for name in small),
        *((name.replace("_", "-"), False, "left out with a Mask2Former's folder, whose own holds") for name in unused),
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------- proposals, pretraining


def check_proposals(config: Proposals) -> None:
    """As `check_distill`, for proposals."""
    check(
        config,
        ("lr", _is_rate(config.lr), "above 0"),
        ("channels", config.channels is None or (config.channels >= 8 and config.channels % 8 == 0), "a multiple of 8"),
        ("scales", bool(config.scales) and all(0 < scale < 1000 for scale in config.scales), "numbers above 0"),
        ("positive-iou", 0 < config.positive_iou <= 1, "above 0 and at most 1"),
        ("negative-iou", 0 <= config.negative_iou <= config.positive_iou, "0 to --positive-iou"),
        ("keep", config.keep >= 1, "at least 1"),
        ("min-score", 0 <= config.min_score <= 1, "0 to 1"),
        ("pre-nms", config.pre_nms >= 1, "at least 1"),
        ("nms", 0 < config.nms <= 1, "above 0 and at most 1"),
        ("propose-batch", config.propose_batch >= 1, "at least 1"),
        ("compile", not config.compile or config.backbone == "tower", "off with --backbone conv, which has no blocks"),
    )


def check_pretrain(config: Pretrain) -> None:
    """As `check_distill`, for pretraining."""
    check(
        config,
        ("batch", config.batch >= 2, "at least 2: a caption is told from the others of its batch"),
        ("lr", _is_rate(config.lr), "above 0"),
        ("lr-adam", _is_rate(config.lr_adam), "above 0"),
        ("warmup", config.warmup >= 0, "0 or above"),
        ("patch-dropout", 0 <= config.patch_dropout < 1, "0 or above and below 1"),
        ("whole-steps", config.whole_steps >= 0, "0 or above"),
    )
