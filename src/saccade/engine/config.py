"""What a distillation run is told (the flags of `saccade distill`), and the claim a run makes on its output folder.

Learning rate, decay, warm-up and input size default to the paper's (Sec. 4.1), or to the small CLIP's for the small
CLIP. The object stops at the door: everything below the command line takes plain arguments. Nothing here imports
torch, so that `--help` is instant. Deliberately absent: configuration files, inheritance, nested groups.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from saccade.clip.names import Head
from saccade.errors import InputError

SMALL = "saccade-small"  # the shipped small CLIP
HARMLESS = ("out", "workers", "log_every", "save_every", "keep_checkpoints", "strict", "timeout")
"""Fields that may change between the parts of one run: the weights come out the same."""


@dataclass(frozen=True)
class DistillConfig:
    """Distil a CLIP into itself, so that its dense features match its image crops (CLIPSelf)."""

    data: Path
    """Folder of training pictures: a COCO root, or any folder of pictures (no annotations needed)."""
    out: Path
    """Folder of this run; the same command continues a stopped run. The product is written to OUT/model."""
    model: str = SMALL
    """The CLIP to distil: saccade-small, an open_clip architecture such as EVA02-B-16, or a saved model folder."""
    pretrained: str | None = None
    """Weights of an open_clip architecture: a file, or an open_clip tag such as laion2b_s34b_b88k."""
    split: str = "train"
    """Which part of a COCO root."""
    steps: int = 1000
    """Optimizer steps. The paper: 6 epochs of COCO."""
    batch: int = 4
    """Pictures a process and step. The paper: 2 on each of 8 GPUs."""
    lr: float | None = None
    """Highest learning rate; when not given, the paper's 1e-5, and 1e-3 for saccade-small."""
    weight_decay: float | None = None
    """AdamW's decay of the matrices (norms, biases and other vectors are never decayed); when not given, the paper's
    0.1, and 0.05 for saccade-small."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas. The paper for OpenAI weights: 0.9 0.98."""
    eps: float = 1e-8
    """AdamW's epsilon. The paper for OpenAI weights: 1e-6."""
    warmup: int | None = None
    """Steps of linear warm-up before the cosine to zero; when not given, a tenth of the steps but at most the paper's
    1000, and 20 for saccade-small."""
    layers: int | None = None
    """Train only the last so many transformer blocks; all of them when not given."""
    regions: Literal["grid", "boxes"] = "grid"
    """What is distilled: random grid patches, or the boxes of the annotations (region proposals)."""
    grid: int = 6
    """Largest number of rows or columns of a patch grid (the paper's M)."""
    grid_rule: Literal["published", "all"] = "published"
    """Grids drawn: the published code's 24 pairs (for M = 6), or all 36 of the paper's text."""
    keep: int = 20
    """At most so many patches a picture and step."""
    student_size: int | None = None
    """Longest side of the student's input [pixels]; when not given, the paper's 64 patches and at most 1024 (1024 for
    B/16, 896 for L/14), and 192 for saccade-small."""
    pad: Literal["zero", "black"] = "zero"
    """Padding of the student's input: zeros after colour normalisation (paper) or black before it (published code)."""
    head: Head = "value"
    """The last block of the dense forward; value is the paper's."""
    window: int | None = None
    """Side of the student's attention windows [patches], in all blocks but the last of each quarter. The paper: 16
    (Sec. 4.4). The whole picture when not given."""
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
    log_every: int = 10
    """Steps between lines of OUT/metrics.jsonl."""
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
    timeout: int = 120
    """Seconds without an answer from another process after which the whole job ends."""


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


def check_config(config: DistillConfig) -> None:
    """Refuse numbers that cannot train anything, before anything is loaded.

    Raises:
        InputError: names the flag, what it must be and what it is.
    """
    rules = (
        ("steps", config.steps >= 1, "at least 1"),
        ("batch", config.batch >= 1, "at least 1"),
        ("lr", config.lr is None or 0 < config.lr < float("inf"), "above 0"),
        ("weight-decay", config.weight_decay is None or 0 <= config.weight_decay < float("inf"), "0 or above"),
        ("betas", all(0 <= beta < 1 for beta in config.betas), "two numbers in [0, 1)"),
        ("eps", config.eps > 0, "above 0"),
        ("warmup", config.warmup is None or config.warmup >= 0, "0 or above"),
        ("layers", config.layers is None or config.layers >= 1, "at least 1, or left out to train all blocks"),
        ("grid", config.grid >= 1, "at least 1"),
        ("keep", config.keep >= 1, "at least 1"),
        ("student-size", config.student_size is None or config.student_size >= 1, "at least one patch"),
        ("window", config.window is None or config.window >= 1, "at least 1 patch"),
        ("alpha", 0 < config.alpha <= 1, "above 0 and at most 1 (1 = no mixing)"),
        ("seed", 0 <= config.seed < 2**63, "0 to 2**63 - 1"),
        ("workers", config.workers >= 0, "0 or above"),
        ("save-every", config.save_every >= 1, "at least 1"),
        ("keep-checkpoints", config.keep_checkpoints >= 1, "at least 1"),
        ("log-every", config.log_every >= 1, "at least 1"),
        ("timeout", config.timeout >= 1, "at least 1 second"),
    )
    for flag, holds, need in rules:
        if not holds:
            value = getattr(config, flag.replace("-", "_"))
            raise InputError(f"--{flag}: must be {need}; got {value}.")


def run_record(config: DistillConfig, facts: dict[str, str | int | float]) -> dict[str, Any]:
    """The run's identity as JSON: its flags and the facts that no flag holds (digest of the weights, processes)."""
    return json.loads(json.dumps({**asdict(config), **facts}, default=str))


def claim_folder(out: Path, record: dict[str, Any]) -> bool:
    """Take the output folder for this run, or recognise it as this run's own.

    Args:
        out: the run's folder; made if it does not exist.
        record: from `run_record`.

    Returns:
        Whether the folder already held this run (there may be something to resume); then nothing was written.

    Raises:
        InputError: the folder cannot be written, or holds another run (the differing fields are listed).
    """
    path = out / "config.json"
    if path.is_file():
        _same_run(path, record)
        return True
    check_writable(out)
    taken = [name for name in ("model", "checkpoints", "metrics.jsonl") if (out / name).exists()]
    if taken:
        raise InputError(
            f"--out {out}: must be new or this run's own; it holds {', '.join(taken)} but no config.json. "
            "Choose another folder."
        )
    partial = path.with_name("config.json.partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(path)
    return False


def check_writable(out: Path) -> None:
    """Make a folder if it does not exist, and put a file into it for a moment.

    Raises:
        InputError: one of them cannot be done.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".write_probe_{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise InputError(f"--out {out}: must be a folder that can be written; {error}. Choose another.") from error


def _same_run(path: Path, record: dict[str, Any]) -> None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: must be the JSON record of a run; it cannot be read ({error}). Choose another --out."
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: must be the JSON record of a run; got {found!r:.60}. Choose another --out.")
    missing = "(absent)"
    fields = sorted({*found, *record} - set(HARMLESS))
    differing = [name for name in fields if found.get(name, missing) != record.get(name, missing)]
    if differing:
        lines = [f"  {name}: there {found.get(name, missing)}, here {record.get(name, missing)}" for name in differing]
        raise InputError(
            f"--out {path.parent}: holds another run; to continue it, give the same command. Differing:\n"
            + "\n".join(lines)
            + "\nChoose another --out, or remove that folder."
        )
