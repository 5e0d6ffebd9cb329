"""For each command the calls that do its work, and for each of its flags another value (`test_wiring.py` runs them)."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from recording import Stand, reached

from foveate.clip.describe import build, read_config
from foveate.clip.model import Clip
from foveate.clip.vocabulary import Vocabulary
from foveate.data.label_maps import open_semantic
from foveate.engine.fit import Outcome
from foveate.engine.plan import Memory
from foveate.train.flags import SMALL_CONFIG

WIDTH = 16  # of the CLIP's towers and of its embeddings


@dataclass(frozen=True)
class To:
    """Another value of a flag."""

    words: str
    given: str = ""  # flags that it needs, given before and after
    reaches: str = ""  # names of calls that must all change; any call where none is named
    base: str | None = None  # words of the unchanged command, where they are others
    instead: str | None = None  # words of the changed command, where these are not the unchanged ones and more


@dataclass(frozen=True)
class Case:
    """One command."""

    words: str
    """Of the unchanged command."""
    stands: Mapping[str, Stand]
    """The calls that are recorded, by the name of what is called."""
    fields: Mapping[str, str | To]
    """For each field of its flags, words that give it another value."""
    prints: bool = field(default=False, kw_only=True)
    """Whether what is printed counts as a call."""


# ------------------------------------------------------------------------------------------------ what is not computed


@cache
def _tiny_clip() -> Clip:
    described = read_config(SMALL_CONFIG)
    sizes = described["model_cfg"]
    sizes["embed_dim"] = WIDTH
    sizes["vision_cfg"] |= {"layers": 6, "width": WIDTH, "head_width": 8}
    sizes["text_cfg"] |= {"layers": 1, "width": WIDTH}
    return Clip(build(described, name="tiny", seed=0), name="tiny", config=described)


def tiny_clip(arguments: dict[str, Any]) -> Clip:
    """A CLIP made once, whatever is asked for."""
    return deepcopy(_tiny_clip())


def rows_of(arguments: dict[str, Any]) -> torch.Tensor:
    """Embeddings of a vocabulary, as many as it has classes."""
    vocabulary = arguments["vocabulary"]
    count = len(vocabulary.classes if isinstance(vocabulary, Vocabulary) else vocabulary)
    rows = torch.linspace(1, 2, (count + (arguments["background"] is not None)) * WIDTH).reshape(-1, WIDTH)
    return torch.nn.functional.normalize(rows, dim=1)


def give(result: Any) -> Callable[[dict[str, Any]], Any]:
    """The same result whatever the arguments."""
    return lambda arguments: result


CPU = Stand(give(torch.device("cpu")))
THROUGH, NOTHING, LAST = Stand(), Stand(give(None)), Stand(reached)
UNSEEN = Stand(give("0"), recorded=False)

TRAINING = {
    "clip.load:load": Stand(tiny_clip),
    "choose_device": CPU,
    "joined": THROUGH,
    "open_data": THROUGH,
    "make_loader": Stand(give([])),
    "BatchSampler": THROUGH,
    "digest_module": UNSEEN,
    "embed_vocabulary": Stand(rows_of),
    # facts are the run's identity, in which every flag is; of the log and the guard their own calls are compared
    "fit": Stand(lambda given: Outcome(given["steps"], good=1), without=("facts", "log", "guard")),
    "Log": Stand(without=("sinks",)),
}

# --------------------------------------------------------------------------------------------------------- the commands

DISTILL = Case(
    "--data {world} --out {out}/run --steps 3 --batch 2 --student-size 96 --workers 0 --device cpu",
    {
        **TRAINING,
        "PictureSource": THROUGH,
        "ClipSelf": Stand(without=("student", "teacher")),  # both are in what `fit` is given
        "ImageText": Stand(without=("student",)),
        "build_optimizer": Stand(without=("module", "partly")),
        "Guard": Stand(without=("log",)),
        "choose_sinks": Stand(give([]), without=("config",)),
        "import_tracker": NOTHING,
        "with_captions": THROUGH,
        "with_boxes": THROUGH,
        "check_provenance": THROUGH,
        "count_nouns": THROUGH,
        "shard_student": NOTHING,
        "estimate_memory": Stand(give(Memory(1, 1, 9)), recorded=False),
        "measure_pass": Stand(give(None), recorded=False),
        "collect": Stand(give({}), recorded=False),
        "best_tensors": Stand(give({})),
        "engine.product:write_product": NOTHING,
    },
    {
        "data": To("--data {other}", reaches="open_data"),
        "out": To("--out {out}/another", reaches="fit write_product"),
        "model": To("--model another", reaches="load"),
        "pretrained": To("--pretrained weights.pt", reaches="load"),
        "split": To("--split val", reaches="open_data"),
        "annotations": To("--annotations {instances}", reaches="open_data"),
        "shard_cache": To("--shard-cache {out}/cache", reaches="open_data"),
        "steps": To("--steps 4", reaches="fit BatchSampler Log"),
        "batch": To("--batch 3", reaches="BatchSampler"),
        "accumulate": To("--accumulate 2", reaches="fit BatchSampler"),
        "lr": To("--lr 0.1", reaches="fit"),
        "weight_decay": To("--weight-decay 0.3", reaches="build_optimizer fit"),
        "betas": To("--betas 0.9 0.98", reaches="fit"),
        "eps": To("--eps 1e-6", reaches="fit"),
        "warmup": To("--warmup 2", reaches="fit"),
        "layers": To("--layers 1", reaches="fit"),
        "objective": To("--objective image-text", reaches="ClipSelf ImageText PictureSource"),
        "captions": To("--captions {captions}", given="--objective image-text", reaches="with_captions"),
        "nouns": To(
            "--nouns {names}",
            base="--data {world} --out {out}/run --steps 3 --objective region-text --min-count 1",
            instead="--data {world} --out {out}/run --steps 3 --objective region-text --nouns {names}",
            reaches="embed_vocabulary",
        ),
        "min_count": To("--min-count 2", given="--objective region-text --min-count 1", reaches="count_nouns"),
        "regions": To("--regions boxes", reaches="open_data PictureSource ClipSelf"),
        "boxes": To("--boxes {boxes}", given="--regions boxes", reaches="with_boxes PictureSource"),
        "allow_novel": To("--allow-novel", given="--boxes {boxes}", reaches="check_provenance"),
        "grid": To("--grid 4", reaches="PictureSource"),
        "grid_rule": To("--grid-rule all", reaches="PictureSource"),
        "max_regions": To("--max-regions 7", reaches="PictureSource"),
        "student_size": To("--student-size 64", reaches="ClipSelf"),
        "pad": To("--pad zero", reaches="fit"),
        "head": To("--head values3", reaches="fit"),
        "gates": To("--gates", given="--head values3", reaches="fit"),
        "window": To("--window 2", reaches="fit"),
        "keep": To("--keep 0.5", reaches="ClipSelf"),
        "keep_crops": To("--keep-crops 2", given="--keep 0.5", reaches="ClipSelf"),
        "correlation": To("--correlation 0.5", reaches="ClipSelf"),
        "correlation_head": To("--correlation-head sclip", given="--correlation 1", reaches="ClipSelf"),
        "correlation_temperature": To("--correlation-temperature 0.2", given="--correlation 1", reaches="ClipSelf"),
        "alpha": To("--alpha 0.5", reaches="write_product"),
        "seed": To("--seed 1", reaches="load PictureSource BatchSampler fit"),
        "workers": To("--workers 1", reaches="make_loader"),
        "save_every": To("--save-every 2", reaches="fit"),
        "keep_checkpoints": To("--keep-checkpoints 3", reaches="fit"),
        "validate": To("--validate {other}", reaches="open_data make_loader fit"),
        "validate_split": To("--validate-split test", given="--validate {world}", reaches="open_data make_loader"),
        "validate_pictures": To("--validate-pictures 1", given="--validate {world}", reaches="make_loader"),
        "product": To("--product best", given="--validate {world}", reaches="best_tensors"),
        "nonfinite": To("--nonfinite skip", reaches="Guard"),
        "nonfinite_limit": To("--nonfinite-limit 3", reaches="Guard"),
        "log_every": To("--log-every 3", reaches="Log"),
        "tensorboard": To("--no-tensorboard", reaches="choose_sinks"),
        "track": To("--track wandb", reaches="import_tracker choose_sinks"),
        "strict": To("--strict", reaches="make_loader"),
        "device": To("--device cuda", reaches="choose_device"),
        "precision": To("--precision bfloat16", reaches="ClipSelf"),
        "tokens": To("--tokens valid", reaches="ClipSelf"),
        "compile": To("--compile", reaches="ClipSelf"),
        "checkpointing": To("--checkpointing", reaches="ClipSelf"),
        "fsdp": To("--fsdp", reaches="shard_student"),
        "dry_run": To("--dry-run", reaches="fit write_product"),
        "timeout": To("--timeout 7", reaches="joined"),
        "recipe": To("--recipe clipself-b16-values3-gates", reaches="ClipSelf fit write_product"),
    },
)

HEADS = {**TRAINING, "tower_digest": UNSEEN}
HEAD_FIELDS = {
    "data": To("--data {other}", reaches="make_loader"),
    "out": To("--out {out}/another", reaches="fit"),
    "model": To("--model another", reaches="load"),
    "pretrained": To("--pretrained weights.pt", reaches="load"),
    "split": To("--split val", reaches="make_loader"),
    "novel": To("--novel {novel}", reaches="fit"),
    "steps": To("--steps 4", reaches="fit BatchSampler Log"),
    "batch": To("--batch 3", reaches="BatchSampler"),
    "accumulate": To("--accumulate 2", reaches="fit BatchSampler"),
    "lr": To("--lr 0.1", reaches="fit"),
    "weight_decay": To("--weight-decay 0.3", reaches="fit"),
    "clip_gradient": To("--clip-gradient 0.3", reaches="fit"),
    "warmup": To("--warmup 2", reaches="fit"),
    "precision": To("--precision bfloat16", reaches="fit"),
    "seed": To("--seed 1", reaches="load BatchSampler fit"),
    "workers": To("--workers 1", reaches="make_loader"),
    "log_every": To("--log-every 3", reaches="Log"),
    "save_every": To("--save-every 2", reaches="fit"),
    "device": To("--device cuda", reaches="choose_device"),
    "timeout": To("--timeout 7", reaches="joined"),
}
RUN = "--data {world} --out {out}/run --steps 3 --batch 2 --workers 0 --device cpu"

TRAIN_FVIT = Case(
    f"{RUN} --size 64 --channels 8 --proposals 20 --rois 16 --warmup 1",
    {
        **HEADS,
        "FViT": Stand(without=("clip",)),
        "FeatureCache": Stand(without=("clip",)),
        "save_detector": Stand(give(None), without=("detector",)),
    },
    {
        **HEAD_FIELDS,
        "annotations": To("--annotations {instances}", reaches="open_data"),
        "recipe": To("--recipe world-fvit", reaches="FViT"),
        "milestones": To("--milestones 2", reaches="fit"),
        "size": To("--size 32", reaches="FViT save_detector"),
        "jitter": To("--jitter 0.5 1", reaches="FViT"),
        "flip": To("--no-flip", reaches="FViT"),
        "cache": To("--cache", given="--jitter 1 1 --no-flip", reaches="FeatureCache fit"),
        "masks": To("--masks", reaches="open_data make_loader FViT save_detector"),
        "norm": To("--norm", reaches="FViT save_detector"),
        "match_low_quality": To("--match-low-quality", reaches="FViT"),
        "relu_embedding": To("--no-relu-embedding", reaches="FViT save_detector"),
        "statistics": To("--statistics clip", reaches="FViT save_detector"),
        "resize": To("--resize bicubic", reaches="FViT save_detector"),
        "background_weight": To("--background-weight 0.3", reaches="FViT"),
        "pyramid": To("--pyramid fpn", reaches="FViT save_detector"),
        "taps": To("--taps 0 1 2", reaches="FViT save_detector"),
        "layers": To("--layers 1", reaches="FViT fit save_detector"),
        "ladder": To("--ladder 0.3", given="--layers 2", reaches="fit"),
        "channels": To("--channels 16", reaches="FViT save_detector"),
        "proposals": To("--proposals 10", reaches="FViT save_detector"),
        "rois": To("--rois 8", reaches="FViT"),
        "templates": To("--templates clip", reaches="embed_vocabulary save_detector"),
        "benchmark": To("--benchmark ov-lvis-b", reaches="save_detector"),
    },
)

LABEL_MAPS = {
    "kind": To("--kind panoptic", reaches="open_semantic"),
    "labels": To("--labels {labels}", reaches="open_semantic"),
    "maps": To("--maps {maps}", reaches="open_semantic"),
    "names": To("--names {ids}", reaches="open_semantic"),
}
TRAIN_CATSEG = Case(
    f"{RUN} --size 64 --hidden 8 --layers 1",
    {
        **HEADS,
        "open_semantic": Stand(lambda given: open_semantic(given["root"], split=given["split"])),
        "read_backbone": Stand(give({})),
        "build_catseg": Stand(without=("clip",)),
        "save_catseg": Stand(give(None), without=("catseg",)),
    },
    {
        **HEAD_FIELDS,
        **LABEL_MAPS,
        "recipe": To("--recipe world-catseg", reaches="build_catseg"),
        "clip_rate": To("--clip-rate 0.5", reaches="fit"),
        "version": To("--version 2023 --backbone resnet101", reaches="build_catseg save_catseg"),
        "residual": To("--residual token", reaches="build_catseg save_catseg"),
        "backbone": To("--backbone resnet50", given="--version 2023 --backbone resnet101", reaches="build_catseg"),
        "backbone_weights": To(
            "--backbone-weights none", given="--version 2023 --backbone resnet101", reaches="build_catseg"
        ),
        "size": To("--size 96", reaches="build_catseg save_catseg"),
        "clip_size": To("--clip-size 128", reaches="build_catseg save_catseg"),
        "test_size": To("--test-size 128", reaches="build_catseg save_catseg"),
        "hidden": To("--hidden 16", reaches="build_catseg save_catseg"),
        "layers": To("--layers 2", reaches="build_catseg save_catseg"),
        "vary": To("--no-vary", reaches="build_catseg"),
    },
)

TRAIN_PANOPTIC = Case(
    f"{RUN} --size 64 --layers 2 --queries 5 --channels 16 --width 32 --feedforward 32 --points 64",
    {
        **HEADS,
        "build_parts": Stand(without=("clip",)),
        "MaskGenerator": Stand(without=("encoder", "decoder")),
        "save_generator": Stand(give(None), without=("generator",)),
    },
    {
        **HEAD_FIELDS,
        "recipe": To("--recipe world-panoptic", reaches="MaskGenerator"),
        "words": To("--no-words", reaches="MaskGenerator save_generator"),
        "labels": To("--labels {labels}", reaches="embed_vocabulary save_generator"),
        "templates": To("--templates clip", reaches="embed_vocabulary save_generator"),
        "embeddings": To("--embeddings unit", reaches="embed_vocabulary MaskGenerator save_generator"),
        "encoder": To("--encoder {encoder}", reaches="build_parts save_generator"),
        "milestones": To("--milestones 2", reaches="fit"),
        "size": To("--size 32", reaches="build_parts MaskGenerator save_generator"),
        "jitter": To("--jitter 0.5 1", reaches="MaskGenerator"),
        "flip": To("--no-flip", reaches="MaskGenerator"),
        "pyramid": To("--pyramid fpn", reaches="build_parts save_generator"),
        "taps": To("--taps 0 1 2", reaches="build_parts save_generator"),
        "channels": To("--channels 32", reaches="build_parts save_generator"),
        "queries": To("--queries 6", reaches="build_parts save_generator"),
        "width": To("--width 64", reaches="build_parts save_generator"),
        "feedforward": To("--feedforward 16", reaches="build_parts save_generator"),
        "pixel_layers": To("--pixel-layers 2", reaches="build_parts save_generator"),
        "layers": To("--layers 1", reaches="build_parts save_generator"),
        "joint": To("--joint 32", reaches="MaskGenerator save_generator"),
        "points": To("--points 32", reaches="MaskGenerator"),
    },
)

CASES = {
    "distill": DISTILL,
    "train-fvit": TRAIN_FVIT,
    "train-catseg": TRAIN_CATSEG,
    "train-panoptic": TRAIN_PANOPTIC,
}
"""By the words of the command."""

UNRECORDED: dict[tuple[str, str], str] = {}
"""Fields whose value changes no recorded call, by command and name, with the reason."""
