"""What a distillation run is told: the flags of `foveate distill`, and what of them makes it another run.

Learning rate, decay, warm-up and input size default to the paper's (Sec. 4.1), or to the small CLIP's for the small
CLIP. The object stops at the door: everything below the command line takes plain arguments. Nothing here imports
torch, so that `--help` is instant. Deliberately absent: configuration files, inheritance, nested groups; and
the claim on the output folder (`folder.py`).
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from foveate.clip.names import Head, Pad
from foveate.errors import InputError
from foveate.io.store import HARMLESS

SMALL = "foveate-small"  # the shipped small CLIP
LARGEST_KEEP = 10  # a weight; --keep was once the number of patches, 20
SHARED = ("batch", "accumulate", "processes")
"""Fields that say how the pictures of a step are shared."""


@dataclass(frozen=True)
class DistillConfig:
    """Distil a CLIP into itself, so that its dense features match its image crops (CLIPSelf)."""

    data: str
    """Training pictures (no annotations needed): any folder of them; a COCO, LVIS, VOC or Objects365 root; tar shards
    as a folder, as "shards-{00000..00331}.tar", or as a URL of that form."""
    out: Path
    """Folder of this run; the same command continues a stopped run. The product is written to OUT/model."""
    model: str = SMALL
    """The CLIP to distil: foveate-small, an open_clip architecture such as EVA02-B-16, or a saved model folder."""
    pretrained: str | None = None
    """Weights of an open_clip architecture: a file, or an open_clip tag such as laion2b_s34b_b88k."""
    split: str = "train"
    """Which part of an annotated root: train, val or test, and for VOC also trainval."""
    annotations: Path | None = None
    """Annotation file to read in place of the one in the standard place: COCO, LVIS or Objects365 JSON."""
    shard_cache: Path | None = None
    """Where shards fetched by URL are kept; when not given, $FOVEATE_CACHE/shards or ~/.cache/foveate/shards."""
    steps: int = 1000
    """Optimizer steps. The paper: 6 epochs of COCO."""
    batch: int = 4
    """Pictures a process and step (and pass, with --accumulate). The paper: 2 on each of 8 GPUs."""
    accumulate: int = 1
    """Batches a process and step: their gradients are added up, so that batch 4 is batch 2 accumulated twice."""
    lr: float | None = None
    """Highest learning rate; when not given, the paper's 1e-5, and 1e-3 for foveate-small."""
    weight_decay: float | None = None
    """AdamW's decay of the matrices (norms, biases and other vectors are never decayed); when not given, the paper's
    0.1, and 0.05 for foveate-small."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas. The paper for OpenAI weights: 0.9 0.98."""
    eps: float = 1e-8
    """AdamW's epsilon. The paper for OpenAI weights: 1e-6."""
    warmup: int | None = None
    """Steps of linear warm-up before the cosine to zero; when not given, a tenth of the steps but at most the paper's
    1000, and 20 for foveate-small."""
    layers: int | None = None
    """Train only the last so many transformer blocks; all of them when not given."""
    objective: Literal["clipself", "region-text", "image-text"] = "clipself"
    """What is learned: clipself, the teacher's embeddings of crops. Or a baseline that learns from text: region-text,
    the noun that the teacher finds in each crop (A.4); image-text, each picture's caption (Tab. 1, row 5)."""
    captions: Path | None = None
    """Captions for the two baselines: JSON in COCO's form or {"file name": ["caption", ...]}. When not given, those
    of the data: annotations/captions_SPLIT2017.json of a COCO root, KEY.txt beside KEY.jpg in tar shards."""
    nouns: Path | None = None
    """Nouns for region-text, in place of those of the captions: .txt, one a line, or a JSON list."""
    min_count: int = 5
    """Nouns that occur less often in the captions are left out. Those kept are in OUT/nouns.json, with their counts."""
    regions: Literal["grid", "boxes"] | None = None
    """What is distilled: random grid patches, or the boxes of the annotations or of --boxes (region proposals). When
    not given: boxes with --boxes, else grid."""
    boxes: Path | None = None
    """JSON file of boxes to distil: proposals in COCO's form or as a list of results, or {"file name": [[x1, y1, x2,
    y2], ...]}, in pixels."""
    allow_novel: bool = False
    """Take --boxes that were trained on novel categories of the data (see `foveate proposals`), with a warning."""
    grid: int = 6
    """Largest number of rows or columns of a patch grid (the paper's M)."""
    grid_rule: Literal["published", "all"] = "published"
    """Grids drawn: the published code's 24 pairs (for M = 6), or all 36 of the paper's text."""
    max_regions: int = 20
    """At most so many patches a picture and step."""
    student_size: int | None = None
    """Longest side of the student's input [pixels]; when not given, the paper's 64 patches and at most 1024 (1024 for
    B/16, 896 for L/14), and 192 for foveate-small."""
    pad: Pad = "black"
    """Padding of the student's input: black before colour normalisation (published code) or zeros after it (the paper's
    text). The model remembers it, and evaluation pads the same way."""
    head: Head = "value"
    """The last block of the dense forward; value is the paper's."""
    gates: bool = False
    """Learn a number for each head of the last three blocks, which its values are multiplied by (with --head values3);
    saved with the model."""
    window: int | None = None
    """Side of the student's attention windows [patches], in all blocks but the last of each quarter. The paper: 16
    (Sec. 4.4). The whole picture when not given."""
    keep: float = 0.0
    """Weight of a term that keeps the student's own embedding of a crop the teacher's, so that the image embedding is
    not forgotten; 0 leaves it out."""
    keep_crops: int = 4
    """At most so many crops of a picture in that term, of those that the teacher embeds anyway."""
    correlation: float = 0.0
    """Weight of a term that keeps which places of a picture are alike for the teacher's dense map; 0 leaves it out."""
    correlation_head: Head = "naclip"
    """The last block of the teacher's dense map in that term."""
    correlation_temperature: float = 0.1
    """Of the similarities between places in that term."""
    alpha: float = 1.0
    """The product is alpha * student + (1 - alpha) * teacher. The paper: 0.7 for B/16, 0.95 for L/14; 1 = off."""
    seed: int = 0
    """Draws the data order and the patch grids (and the weights of a model that starts at random)."""
    workers: int = 1
    """Processes that decode pictures; 0 decodes in the training process."""
    save_every: int = 200
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    validate: str | None = None
    """Pictures held out, as --data takes them: at every checkpoint the loss over some of them is measured, and the
    checkpoint where it is lowest is kept beside the newest. Where boxes are distilled, these are its annotations'."""
    validate_split: str = "val"
    """Which part of a COCO root is held out."""
    validate_pictures: int = 64
    """How many of the held-out pictures are measured; always the same ones, with the same patches."""
    product: Literal["last", "best"] = "last"
    """Which student becomes the product: the last, or the one with the lowest held-out loss."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradient is not finite never moves anything; stop there, or leave it out and go on. The
    pictures of such steps are in OUT/nonfinite.jsonl."""
    nonfinite_limit: int = 20
    """Steps left out in a row after which the run stops all the same."""
    log_every: int = 10
    """Steps between lines of OUT/metrics.jsonl."""
    tensorboard: bool = True
    """Write the same numbers for TensorBoard, to OUT/tensorboard."""
    track: Literal["none", "wandb", "trackio"] = "none"
    """Send the same numbers, and what is in OUT/config.json, to W&B or trackio, to a run named like the folder of OUT;
    their packages are installed by hand, and set up by their own environment variables."""
    strict: bool = False
    """Stop at the first picture that cannot be used, instead of counting it."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the towers; bfloat16 is several times faster on a recent GPU and slower on most CPUs. The weights
    that are trained stay float32."""
    tokens: Literal["all", "valid"] = "all"
    """Which tokens of its padded square the student computes: all (paper), or only those that hold some of the picture,
    which is faster but not quite the paper's method: padding is then seen by no token."""
    compile: bool = False
    """Run the towers' blocks through torch.compile: faster on a GPU, after a minute of compiling."""
    checkpointing: bool = False
    """Keep only what enters each of the student's blocks and run it again in the backward pass: far less memory, about
    a third more time."""
    fsdp: bool = False
    """Spread the student's weights over the processes (FSDP2): for towers as large as ViT-H/14."""
    dry_run: bool = False
    """Say what the run would do, take and write, measured on one batch, and stop there."""
    timeout: int = 120
    """Seconds without an answer from another process after which the whole job ends."""
    recipe: str | None = None
    """Start from the flags that `foveate recipes` lists under this name; any flag given overrides its own."""


@dataclass(frozen=True)
class Numbers:
    """What a run trains with where a flag was left to the model."""

    lr: float
    weight_decay: float
    warmup: int
    student_size: int


def numbers_of(config: DistillConfig, *, patch_size: int) -> Numbers:
    """The flags' own numbers, and for those not given the paper's (Sec. 4.1), or the small CLIP's.

    Args:
        config: flags.
        patch_size: of the student [pixels].
    """
    paper = Numbers(1e-5, 0.1, warmup=min(1000, config.steps // 10), student_size=min(64 * patch_size, 1024))
    usual = Numbers(1e-3, 0.05, warmup=20, student_size=192) if config.model == SMALL else paper
    given = {name: getattr(config, name) for name in asdict(usual) if getattr(config, name) is not None}
    return replace(usual, **given)


def regions_of(config: DistillConfig) -> Literal["grid", "boxes"]:
    """What is distilled, where the flags say it together."""
    return config.regions or ("grid" if config.boxes is None else "boxes")


def check_config(config: DistillConfig) -> None:
    """Refuse numbers that cannot train anything, before anything is loaded.

    Raises:
        InputError: names the flag, what it must be and what it is.
    """
    rules = (
        ("steps", config.steps >= 1, "at least 1"),
        ("batch", config.batch >= 1, "at least 1"),
        ("accumulate", config.accumulate >= 1, "at least 1"),
        ("lr", config.lr is None or 0 < config.lr < float("inf"), "above 0"),
        ("weight-decay", config.weight_decay is None or 0 <= config.weight_decay < float("inf"), "0 or above"),
        ("betas", all(0 <= beta < 1 for beta in config.betas), "two numbers in [0, 1)"),
        ("eps", config.eps > 0, "above 0"),
        ("warmup", config.warmup is None or config.warmup >= 0, "0 or above"),
        ("layers", config.layers is None or config.layers >= 1, "at least 1, or left out to train all blocks"),
        ("min-count", config.min_count >= 1, "at least 1"),
        ("grid", config.grid >= 1, "at least 1"),
        ("max-regions", config.max_regions >= 1, "at least 1"),
        ("student-size", config.student_size is None or config.student_size >= 1, "at least one patch"),
        ("window", config.window is None or config.window >= 1, "at least 1 patch"),
        ("keep", 0 <= config.keep < float("inf"), "0 or above"),
        ("keep-crops", config.keep_crops >= 1, "at least 1"),
        ("correlation", 0 <= config.correlation < float("inf"), "0 or above"),
        ("correlation-temperature", 0 < config.correlation_temperature < float("inf"), "above 0"),
        ("alpha", 0 < config.alpha <= 1, "above 0 and at most 1 (1 = no mixing)"),
        ("seed", 0 <= config.seed < 2**63, "0 to 2**63 - 1"),
        ("workers", config.workers >= 0, "0 or above"),
        ("save-every", config.save_every >= 1, "at least 1"),
        ("keep-checkpoints", config.keep_checkpoints >= 1, "at least 1"),
        ("validate-pictures", config.validate_pictures >= 1, "at least 1"),
        (
            "product",
            config.product == "last" or config.validate is not None,
            "last where nothing is held out (see --validate)",
        ),
        ("nonfinite-limit", config.nonfinite_limit >= 1, "at least 1"),
        ("log-every", config.log_every >= 1, "at least 1"),
        ("timeout", config.timeout >= 1, "at least 1 second"),
    )
    for flag, holds, need in rules:
        if not holds:
            value = getattr(config, flag.replace("-", "_"))
            raise InputError(f"--{flag}: must be {need}; got {value}.")
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
    """Refuse numbers of a term without a weight, and a weight that was meant as a number of patches."""
    if config.keep > LARGEST_KEEP:
        raise InputError(
            f"--keep: must be at most {LARGEST_KEEP}, the weight of a term; got {config.keep}. For at most so many "
            "patches a picture, use --max-regions."
        )
    terms = {"keep": ("keep_crops",), "correlation": ("correlation_head", "correlation_temperature")}
    for weight, fields in terms.items():
        for field in fields:
            value = getattr(config, field)
            if not getattr(config, weight) and value != getattr(DistillConfig, field):
                raise InputError(
                    f"--{field.replace('_', '-')} {value}: means nothing without --{weight}. Give --{weight} a weight, "
                    "or leave it out."
                )


def _check_objective(config: DistillConfig) -> None:
    """Refuse flags that an objective does not look at, and a batch from which it cannot learn."""
    min_count = config.min_count if config.min_count != DistillConfig.min_count else None
    idle = {
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
    for flag, value in idle[config.objective].items():
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


def learns_from_captions(config: DistillConfig) -> bool:
    """Whether the captions of the training pictures are needed."""
    return config.objective == "image-text" or (config.objective == "region-text" and config.nouns is None)


def contents_of(config: DistillConfig) -> dict[str, str]:
    """What makes a run with other contents of --boxes or of its captions another run: the sha256 of each file.

    Captions are those of --captions, else those in the standard place of a COCO root where they are learned from.
    """
    usual = Path(config.data) / "annotations" / f"captions_{config.split}2017.json"
    captions = config.captions
    if captions is None and learns_from_captions(config) and usual.is_file():
        captions = usual
    found = {}
    for name, path in {"boxes": config.boxes, "captions": captions}.items():
        if path is not None:
            with path.open("rb") as file:
                found[f"{name}_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def may_change(config: DistillConfig) -> tuple[str, ...]:
    """The fields that may change between the parts of one distillation.

    Beside those that are harmless, these are how a step is computed and its pictures shared, which depends on the
    machines at hand (`told_sharing` says what stays equal), and the way out of steps that are not finite. The
    objectives that learn from text tell a caption, or a noun, from others drawn for its batch: with other batches they
    are others.
    """
    shared = SHARED if config.objective == "clipself" else ()
    return (*HARMLESS, *shared, "compile", "checkpointing", "fsdp", "nonfinite", "nonfinite_limit")


def run_record(config: DistillConfig, facts: dict[str, str | int | float]) -> dict[str, Any]:
    """The run's identity as JSON: its flags and the facts that no flag holds (digests, processes)."""
    named = {"data": config.data, "validate": config.validate}
    same = {name: str(Path(text)) for name, text in named.items() if text is not None and "://" not in str(text)}
    return json.loads(json.dumps({**asdict(config), **same, **facts}, default=str))  # DIR and DIR/ are one


@dataclass(frozen=True)
class Sharing:
    """How the pictures of a step are shared."""

    processes: int
    batch: int
    accumulate: int

    @property
    def pictures(self) -> int:
        """Pictures a step."""
        return self.processes * self.batch * self.accumulate

    def __str__(self) -> str:
        times = "" if self.accumulate == 1 else f" x {self.accumulate} batches"
        return f"{self.processes} process{'es' * (self.processes > 1)} x {self.batch} pictures{times}"


def told_sharing(before: Sharing, now: Sharing, *, steps: int) -> str | None:
    """What stays equal where a run goes on with other processes or batches; nothing where these are the same.

    Args:
        before: how the part of the run that was saved shared its steps.
        now: how this one does.
        steps: left.
    """
    if before == now:
        return None
    change = f"going on with {now} a step, where it was {before}"
    if before.pictures == now.pictures:
        return (
            f"{change}: the same {now.pictures} pictures in every step, their sums in another order. "
            "Results are equal to rounding, not to the bit."
        )
    each = before.pictures // now.processes
    keeps = f"--batch {now.batch} --accumulate {each // now.batch}" if each % now.batch == 0 else f"--batch {each}"
    advice = f"To keep {before.pictures}, use {keeps} with {now.processes} process{'es' * (now.processes > 1)}"
    if before.pictures % now.processes:
        advice = f"{before.pictures} cannot be kept with {now.processes} processes: it is not a multiple of that"
    return (
        f"{change}: from here on {now.pictures} pictures a step instead of {before.pictures}, so other gradients, and "
        f"{steps * now.pictures:,} more pictures instead of {steps * before.pictures:,}. Every epoch still shows every "
        f"picture exactly once. {advice}."
    )
