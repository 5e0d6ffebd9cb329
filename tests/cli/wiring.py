"""For each command the calls that do its work, and for each of its flags another value (`test_wiring.py` runs them)."""

from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from recording import Stand, reached
from torch import nn

from foveate.cli.pretrain import SMALL
from foveate.clip.describe import build, read_config
from foveate.clip.model import Clip
from foveate.clip.vocabulary import Vocabulary
from foveate.data.label_maps import open_semantic
from foveate.data.records import Dataset
from foveate.engine.fit import Outcome
from foveate.engine.plan import Memory
from foveate.heads.catseg.model import CatSeg
from foveate.heads.catseg.product import build_catseg
from foveate.heads.fvit.detector import FViT
from foveate.heads.fvit.product import Network as FViTNetwork
from foveate.heads.panoptic.mask2former import MaskGenerator
from foveate.heads.panoptic.product import build_parts
from foveate.types import Batch, Detections, LabelMap, Sample

WIDTH = 16  # of the CLIP's towers and of its embeddings


@dataclass(frozen=True)
class To:
    """Another value of a flag."""

    words: str
    given: str = ""  # flags that it needs, given before and after
    reaches: str = ""  # names of calls that must change, with a * each of several; any call where none is named
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
    described = read_config(SMALL)
    sizes = described["model_cfg"]
    sizes["embed_dim"] = WIDTH
    sizes["vision_cfg"] |= {"layers": 6, "width": WIDTH, "head_width": 8}
    sizes["text_cfg"] |= {"layers": 1, "width": WIDTH}
    return Clip(build(described, name="tiny", seed=0), name="tiny", config=described).eval()


def tiny_clip(arguments: dict[str, Any]) -> Clip:
    """A CLIP made once, whatever is asked for."""
    return deepcopy(_tiny_clip())


def shared_clip(arguments: dict[str, Any]) -> Clip:
    """The same for what changes no weights: its settings are its own."""
    return copy(_tiny_clip())


def rows_of(arguments: dict[str, Any]) -> torch.Tensor:
    """Embeddings of a vocabulary, as many as it has classes."""
    vocabulary = arguments["vocabulary"]
    count = len(vocabulary.classes if isinstance(vocabulary, Vocabulary) else vocabulary)
    rows = torch.linspace(1, 2, (count + (arguments["background"] is not None)) * WIDTH).reshape(-1, WIDTH)
    return torch.nn.functional.normalize(rows, dim=1)


def build_small_catseg(arguments: dict[str, Any]) -> CatSeg:
    """A Cat-Seg, but for those that a large network guides."""
    return reached(arguments) if arguments["network"].backbone else build_catseg(**arguments)


def build_small_parts(arguments: dict[str, Any]) -> Any:
    """Encoder and decoder of a mask generator, but for an encoder that lies in a folder."""
    return reached(arguments) if arguments["network"].encoder else build_parts(**arguments)


def one_batch(arguments: dict[str, Any]) -> list[Batch]:
    """The first image of a data set, black."""
    record = arguments["source"].dataset.records[0]
    boxes = torch.zeros(len(record.boxes), 4)
    return [Batch([Sample(str(record.id), torch.zeros(3, 8, 8, dtype=torch.uint8), boxes)], [])]


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
        "batch": To("--batch 1", given="--validate {world}", reaches="BatchSampler make_loader*"),
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
        "regions": To("--regions boxes", given="--validate {world}", reaches="open_data* PictureSource* ClipSelf"),
        "boxes": To("--boxes {boxes}", given="--regions boxes", reaches="with_boxes PictureSource"),
        "allow_novel": To("--allow-novel", given="--boxes {boxes}", reaches="check_provenance"),
        "grid": To("--grid 4", given="--validate {world}", reaches="PictureSource*"),
        "grid_rule": To("--grid-rule all", given="--validate {world}", reaches="PictureSource*"),
        "max_regions": To("--max-regions 7", given="--validate {world}", reaches="PictureSource*"),
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
        "workers": To("--workers 1", given="--validate {world}", reaches="make_loader*"),
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
SHORT = "--data {world} --out {out}/run --model another --workers 0"
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
        "recipe": To("--recipe world-fvit", base=SHORT, reaches="fit"),
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
        "build_catseg": Stand(build_small_catseg, without=("clip",)),
        "save_catseg": Stand(give(None), without=("catseg",)),
    },
    {
        **HEAD_FIELDS,
        **LABEL_MAPS,
        "recipe": To("--recipe world-catseg", base=SHORT, reaches="fit"),
        "clip_rate": To("--clip-rate 0.5", reaches="fit"),
        "version": To("--version 2023 --backbone resnet101", reaches="build_catseg save_catseg"),
        "residual": To("--residual token", reaches="build_catseg save_catseg"),
        "backbone": To("--backbone resnet50", given="--version 2023 --backbone resnet101", reaches="build_catseg"),
        "backbone_weights": To(
            "--backbone-weights none", given="--version 2023 --backbone resnet101", reaches="build_catseg"
        ),
        "size": To("--size 96", reaches="build_catseg save_catseg"),
        "clip_size": To("--clip-size 128", reaches="build_catseg save_catseg"),
        "test_size": To("--test-size 150", reaches="build_catseg save_catseg"),
        "hidden": To("--hidden 16", reaches="build_catseg save_catseg"),
        "layers": To("--layers 2", reaches="build_catseg save_catseg"),
        "vary": To("--no-vary", reaches="build_catseg"),
    },
)

TRAIN_PANOPTIC = Case(
    f"{RUN} --size 64 --layers 2 --queries 5 --channels 16 --width 32 --feedforward 32 --points 64",
    {
        **HEADS,
        "build_parts": Stand(build_small_parts, without=("clip",)),
        "MaskGenerator": Stand(without=("encoder", "decoder")),
        "Clip.tokenize": Stand(lambda given: torch.ones(len(given["texts"]), 32, dtype=torch.int64)),
        "save_generator": Stand(give(None), without=("generator",)),
    },
    {
        **HEAD_FIELDS,
        "recipe": To("--recipe world-panoptic", base=SHORT, reaches="fit"),
        "words": To("--no-words", reaches="MaskGenerator save_generator"),
        "labels": To("--labels {labels}", reaches="embed_vocabulary save_generator"),
        "templates": To("--templates clip", reaches="embed_vocabulary save_generator"),
        "embeddings": To("--embeddings unit", reaches="embed_vocabulary MaskGenerator save_generator"),
        "encoder": To("--encoder {encoder}", base=f"{RUN} --points 64", reaches="build_parts"),
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

PROPOSALS = Case(
    f"{RUN} --size 64 --channels 8",
    {
        **TRAINING,
        "make_loader": Stand(one_batch),
        "Proposer": Stand(without=("pyramid",)),
        "Proposer.propose": Stand(give([(torch.zeros(0, 4), torch.zeros(0))]), without=("samples",)),
        "write_proposals": Stand(lambda given: [*given["found"]]),
        "recall_of": Stand(give({"base": {}, "novel": {}}), without=("pictures",)),
    },
    {
        **{
            name: HEAD_FIELDS[name] for name in ("data", "model", "pretrained", "split", "novel", "batch", "lr", "seed")
        },
        **{name: HEAD_FIELDS[name] for name in ("workers", "save_every", "device")},
        "out": To("--out {out}/another", reaches="fit write_proposals"),
        "novel": To("--novel {novel}", reaches="make_loader write_proposals recall_of"),
        "steps": To("--steps 4", reaches="fit BatchSampler Log"),
        "backbone": To("--backbone conv", reaches="fit"),
        "annotations": To("--annotations {instances}", reaches="open_data"),
        "pictures": To("--pictures {world}/val2017", reaches="open_data make_loader write_proposals"),
        "validate_split": To("--validate-split test", reaches="open_data make_loader"),
        "size": To("--size 32", reaches="Proposer"),
        "channels": To("--channels 16", reaches="Proposer fit"),
        "scales": To("--scales 4", reaches="Proposer"),
        "positive_iou": To("--positive-iou 0.6", reaches="Proposer"),
        "negative_iou": To("--negative-iou 0.2", reaches="Proposer"),
        "flip": To("--no-flip", reaches="Proposer"),
        "keep": To("--keep 7", reaches="Proposer.propose recall_of"),
        "min_score": To("--min-score 0.1", reaches="Proposer.propose"),
        "pre_nms": To("--pre-nms 30", reaches="Proposer.propose"),
        "nms": To("--nms 0.5", reaches="Proposer.propose"),
        "propose_batch": To("--propose-batch 1", reaches="make_loader"),
    },
)

PRETRAIN = Case(
    "--pairs {world} --out {out}/run",
    {"engine.pretrain:pretrain": LAST, "choose_device": CPU},
    {
        "pairs": "--pairs {other}",
        "out": "--out {out}/another",
        "config": "--config residual",
        "text_from": "--text-from foveate-small",
        "steps": "--steps 4",
        "batch": "--batch 3",
        "lr": "--lr 0.1",
        "lr_adam": "--lr-adam 0.1",
        "warmup": "--warmup 2",
        "patch_dropout": "--patch-dropout 0.3",
        "whole_steps": "--whole-steps 2",
        "seed": "--seed 1",
        "save_every": "--save-every 2",
        "device": To("--device cuda", reaches="choose_device"),
    },
)

# ------------------------------------------------------------------------------------------------------------ measuring

MEASURE = "--data {world} --model some --workers 0 --device cpu"
MEASURED = {
    "clip.load:load": Stand(shared_clip),
    "choose_device": CPU,
    "open_data": THROUGH,
    "embed_vocabulary": Stand(rows_of),
}
SHOWN = {"cli.evaluate:finish": Stand(give(None), recorded=False)}  # prints the table and writes --out


def reading(call: str, *, crops: bool = True) -> dict[str, To]:
    """The flags of every command that reads images and measures, and the call that gets them."""
    return {
        "data": To("--data {other}", reaches=call),
        "split": To("--split train", reaches=call),
        "limit": To("--limit 1", reaches=call),
        "batch": To("--batch 3", reaches=call),
        "workers": To("--workers 1", reaches=call),
        "strict": To("--strict", reaches=call),
        "device": To("--device cuda", reaches="choose_device"),
        **({"crop_batch": To("--crop-batch 7", reaches=call)} if crops else {}),
    }


def measuring(call: str) -> dict[str, To]:
    """Likewise of those that measure the dense map of a model."""
    return {
        **reading(call),
        "data": To("--data {other}", reaches="open_data"),
        "model": To("--model another", reaches="load"),
        "pretrained": To("--pretrained weights.pt", reaches="load"),
        "head": To("--head sclip", reaches=call),
        "pad": To("--pad zero", reaches=call),
    }


REFERENCE = {
    "reference": To("--reference another", reaches="load"),
    "reference_pretrained": To("--reference-pretrained weights.pt", given="--reference another", reaches="load"),
}
REGIONS = Case(
    MEASURE,
    {**MEASURED, "evaluate_regions": LAST},
    {
        **measuring("evaluate_regions"),
        "sizes": To("--sizes 64 96", reaches="evaluate_regions"),
        "crops": To("--no-crops", reaches="evaluate_regions"),
        "masked": To("--masked", reaches="evaluate_regions"),
        "crowd": To("--no-crowd", reaches="evaluate_regions"),
        "templates": To("--templates none", reaches="evaluate_regions"),
    },
)
AGREEMENT = Case(
    MEASURE,
    {**MEASURED, "evaluate_agreement": LAST},
    {
        **measuring("evaluate_agreement"),
        **REFERENCE,
        "size": To("--size 64", reaches="evaluate_agreement"),
        "grid": To("--grid 4", reaches="evaluate_agreement"),
        "keep": To("--keep 5", reaches="evaluate_agreement"),
        "gallery": To("--gallery 5", reaches="evaluate_agreement"),
        "seed": To("--seed 1", reaches="evaluate_agreement"),
    },
)
RETRIEVAL = Case(
    MEASURE,
    {**MEASURED, "evaluate_retrieval": LAST},
    {
        **measuring("evaluate_retrieval"),
        **REFERENCE,
        "size": To("--size 64", reaches="evaluate_retrieval"),
        "regions": To("--no-regions", reaches="open_data evaluate_retrieval"),
        "crowd": To("--no-crowd", reaches="evaluate_retrieval"),
        "gallery": To("--gallery 5", reaches="evaluate_retrieval"),
        "seed": To("--seed 1", reaches="evaluate_retrieval"),
    },
)
CLASSES = "--data {classes} --model some --workers 0 --device cpu"
GLOBAL = Case(
    MEASURE,
    {**MEASURED, "evaluate_global": LAST},
    {
        **reading("evaluate_global"),
        **REFERENCE,
        "model": To("--model another", reaches="load"),
        "pretrained": To("--pretrained weights.pt", reaches="load"),
        "names": To("--names {folder_names}", base=CLASSES, reaches="evaluate_global"),
        "view": To("--view whole", reaches="evaluate_global"),
        "templates": To("--templates none", reaches="evaluate_global"),
        "classify": To("--no-classify", reaches="evaluate_global"),
        "retrieve": To("--no-retrieve", reaches="evaluate_global"),
    },
)
PARETO = Case(
    f"{MEASURE} --reference teacher",
    {
        **MEASURED,
        **SHOWN,
        "check_unmixed": NOTHING,
        "evaluate_pareto": Stand(give({"points": [], "size": 1, "head": "value", "bad": []})),
        "pareto_chart": NOTHING,
    },
    {
        **{name: change for name, change in measuring("evaluate_pareto").items() if name != "pretrained"},
        **REFERENCE,
        "model": To("--model another", reaches="check_unmixed load evaluate_pareto"),
        "names": To("--names {folder_names}", given="--global-data {classes}", reaches="evaluate_pareto"),
        "alphas": To("--alphas 0 1", reaches="evaluate_pareto"),
        "size": To("--size 64", reaches="evaluate_pareto"),
        "global_data": To("--global-data {classes}", reaches="evaluate_pareto"),
        "plot": To("--plot {out}/front.png", reaches="pareto_chart"),
        "view": To("--view whole", reaches="evaluate_pareto"),
        "templates": To("--templates none", reaches="evaluate_pareto"),
    },
)

# -------------------------------------------------------------------------------------- detectors and what gives masks


def bare(kind: type[nn.Module], **attributes: Any) -> Any:
    """A module of a class without its parts, but for some attributes."""
    made = type(kind.__name__, (kind,), attributes)
    module = made.__new__(made)
    nn.Module.__init__(module)
    return module


def detector(arguments: dict[str, Any]) -> Any:
    """A detector that finds nothing, and what its folder says."""
    about = SimpleNamespace(
        base=("plaid cross",),
        classes=("plaid cross", "dotted ball"),
        templates="none",
        benchmark="ov-coco",
        network=SimpleNamespace(masks=True),
    )
    return bare(FViT, scale=torch.tensor(50.0), tower=SimpleNamespace(clip=shared_clip(arguments))), about


NO_BOXES = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
SWEPT = {"style": "coco", "masks": None, "boxes": {"groups": {}}, "fusion": {"base": 0.0, "novel": 0.0}}


def fusing(call: str) -> dict[str, To]:
    """The flags that say how the scores of a detector and its CLIP are fused, and the call that gets them."""
    return {
        "benchmark": To("--benchmark ov-lvis-b", reaches=call),
        "temperature": To("--temperature 7", reaches=call),
        "detector_temperature": To("--detector-temperature 7", reaches=call),
        "min_score": To("--min-score 0.3", reaches=call),
        "nms": To("--nms 0.3", reaches=call),
        "most": To("--most 7", reaches=call),
        "templates": To("--templates clip", reaches="embed_vocabulary"),
        "clip": To("--clip another", reaches="load_detector"),
    }


DETECTION = Case(
    MEASURE,
    {
        **MEASURED,
        **SHOWN,
        "load_detector": Stand(detector),
        "made_by": Stand(give({}), recorded=False),
        "open_truth": THROUGH,
        "find_candidates": Stand(give(SimpleNamespace(bad=[], ids=[]))),
        "evaluate.sweep:sweep": Stand(give([SWEPT])),
        "proposal_recall": Stand(give({})),
        "evaluate.results:write_results": NOTHING,
        "evaluate_detection": LAST,
    },
    {
        **reading("find_candidates", crops=False),
        **fusing("sweep"),
        "data": To("--data {other}", reaches="open_data"),
        "model": To("--model another", reaches="load_detector"),
        "from_results": To("", instead="--from-results {results} --data {world}", reaches="evaluate_detection"),
        "annotations": To("--annotations {instances}", given="--split train", reaches="open_data"),
        "novel": To("--novel {novel}", reaches="open_truth proposal_recall"),
        "vocab": To("--vocab 'plaid cross'", reaches="embed_vocabulary open_truth"),
        "style": To("--style voc12", reaches="open_truth sweep"),
        "masks": To("--masks", reaches="open_truth sweep"),
        "base_weights": To("--base-weights 0.1 0.2", reaches="sweep"),
        "novel_weights": To("--novel-weights 0.1 0.2", reaches="sweep"),
        "candidates": To("--candidates {out}/kept", reaches="find_candidates"),
        "results": To("--results {out}/results.json", reaches="write_results"),
    },
)
ASK = "--out {out}/asked --workers 0 --device cpu"
FED = {
    "batch": To("--batch 3", reaches="Feed"),
    "workers": To("--workers 1", reaches="Feed"),
    "strict": To("--strict", reaches="Feed"),
    "device": To("--device cuda", reaches="choose_device"),
}
WRITTEN = {"write_picture": NOTHING, "write_whole": Stand(give(None), without=("content",))}
DETECT = Case(
    f"{{images}} --model some {ASK}",
    {
        **MEASURED,
        **WRITTEN,
        "load_detector": Stand(detector),
        "Feed": THROUGH,
        "FViT.candidates": Stand(give([SimpleNamespace(height=2, width=2)])),
        "fvit.fusion:detect": Stand(give(NO_BOXES)),
        "draw_detections": NOTHING,
    },
    {
        **FED,
        **fusing("detect"),
        "pictures": To("", instead=f"{{more}} --model some {ASK}", reaches="Feed"),
        "model": To("--model another", reaches="load_detector"),
        "out": To("--out {out}/another", reaches="write_whole write_picture"),
        "vocab": To("--vocab 'plaid cross, tree, sky'", reaches="embed_vocabulary detect draw_detections"),
        "draw": To("--draw 0.5", reaches="draw_detections"),
        "weights": To("--weights 0.1 0.2", reaches="detect"),
    },
)

DOG = Vocabulary((("plaid cross",), ("dotted ball", "sphere")))


def generator(arguments: dict[str, Any]) -> Any:
    """What finds masks, its CLIP, and what its folder says."""
    return bare(MaskGenerator), shared_clip(arguments), about_generator(arguments)


def about_generator(arguments: dict[str, Any]) -> Any:
    """What the folder of a mask generator says."""
    classes = tuple(SimpleNamespace(words=words, is_thing=True) for words in DOG.classes)
    return SimpleNamespace(model="some", templates="photo", words="raw", base=DOG, knows_words=True, classes=classes)


MASKS = {
    **MEASURED,
    "load_generator": Stand(generator),
    "panoptic.product:read_about": Stand(about_generator),
    "check_shares": Stand(give(None), recorded=False),
    "open_published": LAST,
    "PanopticSegmenter": THROUGH,
}
GENERATED = "--data {world} --model {generator} --workers 0 --device cpu"
PANOPTIC = Case(
    GENERATED,
    {**MASKS, "sweep_shares": LAST, "read_panoptic_results": LAST},
    {
        **reading("sweep_shares", crops=False),
        "data": To("--data {other}", reaches="open_data"),
        "model": To("--model {generator}/../other_generator", reaches="load_generator"),
        "from_results": To("", instead="--data {world} --from-results {maps}", reaches="read_panoptic_results"),
        "clip": To("--clip another", reaches="load_generator"),
        "encoder": To("--encoder {encoder}", reaches="load_generator"),
        "clip_with": To("--clip-with another", reaches="load"),
        "clip_with_pretrained": To("--clip-with-pretrained w.pt", given="--clip-with another", reaches="load"),
        "shares": To("--shares 0.2,0.9", reaches="sweep_shares"),
        "region": To("--region masked", reaches="PanopticSegmenter"),
        "head": To("--head sclip", reaches="PanopticSegmenter"),
        "size": To("--size 128", reaches="PanopticSegmenter"),
        "squash": To("--no-squash", reaches="PanopticSegmenter"),
        "labels": To("--labels {labels}", reaches="embed_vocabulary"),
        "templates": To("--templates clip", reaches="embed_vocabulary"),
        "min_score": To("--min-score 0.3", reaches="PanopticSegmenter"),
        "overlap": To("--overlap 0.3", reaches="PanopticSegmenter"),
        "input": To("--input 32 64", base="--data {world} --model {published}", reaches="open_published"),
        "semantic": To("--semantic", reaches="sweep_shares"),
        "instances": To("--instances", reaches="sweep_shares"),
    },
)


def blank_maps(arguments: dict[str, Any]) -> list[LabelMap]:
    """For each image a map of its first class."""
    return [LabelMap(torch.zeros(one.image.shape[1:], dtype=torch.int64)) for one in arguments["samples"]]


PIXELS = {
    **MASKS,
    "Feed": THROUGH,
    "Cosines": THROUGH,
    "Cosines.label_maps": Stand(blank_maps, without=("self", "samples")),
    "load_catseg": Stand(lambda given: (bare(CatSeg), SimpleNamespace(classes=DOG.classes, novel=()))),
    "CatSeg.embed_classes": Stand(give(torch.zeros(2, 1, WIDTH))),
    "CatSeg.label_maps": Stand(reached),
    "MaskGenerator.propose": Stand(give([None]), without=("samples",)),
    "PanopticSegmenter.score_proposals": Stand(give(None), without=("sample",)),
    "PanopticSegmenter.semantic": LAST,
}


def segmenting(words: str) -> dict[str, To]:
    """The flags of every command that gives pixels classes, after words in which {model} stands for the model."""
    masks, cat = words.replace("{model}", "{generator}"), words.replace("{model}", "{catseg}")
    return {
        "model": To("--model another", reaches="load"),
        "pretrained": To("--pretrained weights.pt", reaches="load"),
        "clip": To("--clip another", base=cat, reaches="load_catseg"),
        "encoder": To("--encoder {encoder}", base=masks, reaches="load_generator"),
        "clip_with": To("--clip-with another", base=masks, reaches="load"),
        "clip_with_pretrained": To(
            "--clip-with-pretrained w.pt", base=masks, given="--clip-with another", reaches="load"
        ),
        "size": To("--size 64", reaches="Cosines"),
        "head": To("--head sclip", reaches="Cosines"),
        "templates": To("--templates none", reaches="embed_vocabulary"),
        "shares": To("--shares clip", base=masks, reaches="PanopticSegmenter"),
        "region": To("--region masked", base=masks, reaches="PanopticSegmenter"),
        "input": To("--input 32 64", base=words.replace("{model}", "{published}"), reaches="open_published"),
        "at_once": To("--at-once 2", base=cat, reaches="CatSeg.label_maps"),
    }


SEMANTIC = Case(
    MEASURE,
    {
        **PIXELS,
        "open_semantic": Stand(lambda given: open_semantic(given["root"], split=given["split"])),
        "evaluate_semantic": Stand(lambda given: reached(given) if next(iter(given["found"])) else None),
        "read_label_maps": LAST,
    },
    {
        **reading("Feed", crops=False),
        **LABEL_MAPS,
        **segmenting("--data {world} --model {model} --workers 0 --device cpu"),
        "novel": To("--novel {novel}", reaches="evaluate_semantic"),
        "from_results": To("", instead="--data {world} --from-results {maps}", reaches="read_label_maps"),
        "numbers": To("--numbers dataset", base="--data {world} --from-results {maps}", reaches="read_label_maps"),
        "every_word": To("--every-word", reaches="evaluate_semantic"),
    },
)
NAMES = "--vocab 'dog, cat, tree'"
MASKED = f"{{images}} --model {{generator}} --panoptic {NAMES} {ASK}"
SEGMENT = Case(
    f"{{images}} --model some {NAMES} {ASK}",
    {
        **PIXELS,
        **WRITTEN,
        "write_label_map": NOTHING,
        "draw_label_map": NOTHING,
        "PanopticSegmenter.panoptic": Stand(give(SimpleNamespace(ids=torch.zeros(2, 2)))),
        "draw_panoptic": NOTHING,
        "panoptic_png": NOTHING,
        "panoptic_record": NOTHING,
        "panoptic_categories": THROUGH,
    },
    {
        **FED,
        **segmenting(f"{{images}} --model {{model}} --vocab 'dog, cat' {ASK}"),
        "pictures": To("", instead=f"{{more}} --model some {NAMES} {ASK}", reaches="Feed write_label_map"),
        "out": To("--out {out}/another", reaches="write_whole write_picture write_label_map"),
        "vocab": To("--vocab 'dog, cat'", reaches="embed_vocabulary draw_label_map write_label_map"),
        "panoptic": To("--panoptic", base=MASKED.replace("--panoptic", ""), reaches="panoptic_png write_whole"),
        "stuff": To("--stuff tree", base=MASKED, reaches="PanopticSegmenter panoptic_categories"),
        "min_score": To("--min-score 0.3", base=MASKED, reaches="PanopticSegmenter"),
        "overlap": To("--overlap 0.3", base=MASKED, reaches="PanopticSegmenter"),
    },
)

# -------------------------------------------------------------------------------------- features, drawings, other files

FEATURES = "--out {out}/f.safetensors --model some --workers 0 --device cpu"
EMBED = Case(
    f"{{images}} {FEATURES}",
    {**MEASURED, "make_parts": LAST},
    {
        "pictures": To("", instead=f"{{more}} {FEATURES}", reaches="make_parts"),
        "out": To("--out {out}/g.safetensors", reaches="make_parts"),
        "what": To("--what dense", reaches="make_parts"),
        "boxes": To("--boxes {image_boxes}", reaches="make_parts"),
        "model": To("--model another", reaches="load"),
        "pretrained": To("--pretrained weights.pt", reaches="load"),
        "size": To("--size 64", given="--what dense", reaches="make_parts"),
        "head": To("--head sclip", given="--what dense", reaches="make_parts"),
        "batch": To("--batch 3", reaches="make_parts"),
        "workers": To("--workers 1", reaches="make_parts"),
        "device": To("--device cuda", reaches="choose_device"),
        "dtype": To("--dtype float16", reaches="make_parts"),
        "strict": To("--strict", reaches="make_parts"),
    },
)
DRAW = "--data {images} --model some --out {out}/drawn.png --device cpu"


def drawing(call: str) -> dict[str, To]:
    """The flags of every command that draws images, and the call that gets them."""
    return {
        "data": To("--data {more}", reaches=call),
        "model": To("--model another", reaches=f"load {call}"),
        "out": To("--out {out}/other.png", reaches=call),
        "before": To("--before another", reaches=f"load {call}"),
        "pretrained": To("--pretrained weights.pt", reaches="load"),
        "split": To("--split train", given="--data {world}", reaches=f"open_data {call}"),
        "count": To("--count 1", given="--data {world}", reaches=call),
        "size": To("--size 64", reaches=call),
        "head": To("--head sclip", reaches=call),
        "pad": To("--pad zero", reaches=call),
        "device": To("--device cuda", reaches="choose_device"),
    }


KMEANS = Case(
    DRAW,
    {**MEASURED, "kmeans_sheet": LAST},
    {
        **drawing("kmeans_sheet"),
        "clusters": To("--clusters 3", reaches="kmeans_sheet"),
        "seed": To("--seed 1", reaches="kmeans_sheet"),
    },
)
SIMILARITY = Case(
    f"{DRAW} --text dog",
    {**MEASURED, "similarity_sheet": LAST},
    {
        **drawing("similarity_sheet"),
        "text": To("--text cat tree", reaches="similarity_sheet"),
        "templates": To("--templates vild", reaches="similarity_sheet"),
    },
)
SIZES = Case(
    "--results one=one.json --out {out}/drawn.png",
    {"read_sweep": NOTHING, "sizes_chart": LAST},
    {
        "results": To("--results one=one.json two.json", reaches="read_sweep sizes_chart"),
        "out": To("--out {out}/other.png", reaches="sizes_chart"),
        "kind": To("--kind stuff", reaches="read_sweep sizes_chart"),
    },
)
EXPORT = Case(
    "--model some --out {out}",
    {"clip.load:load": Stand(shared_clip), "export_clip": LAST},
    {
        "model": To("--model another", reaches="load"),
        "out": To("--out {out}/other.onnx", reaches="export_clip"),
        "pretrained": To("--pretrained weights.pt", reaches="load"),
        "what": To("--what image", reaches="export_clip"),
        "format": To("--format torch", reaches="export_clip"),
        "head": To("--head sclip", reaches="export_clip"),
        "size": To("--size 64", reaches="export_clip"),
        "opset": To("--opset 18", reaches="export_clip"),
    },
)

HEAD_FILES = {"fvit.pth": ("F-ViT", {}), "catseg.pth": ("CAT-Seg", {}), "odise.pth": ("ODISE", {})}
OF_FVIT = "fvit.pth {out}/c --clip some --annotations {instances}"
OF_ODISE = "odise.pth {out}/c --clip some --annotations {panoptic} --encoder {diffusion}"
CONVERT = Case(
    "foveate-small {out}/c",
    {
        "clip.load:load": Stand(tiny_clip),
        "published_head": Stand(lambda given: HEAD_FILES.get(given["path"].name)),
        "folder_written_whole": THROUGH,
        "save_clip": Stand(reached, without=("clip", "folder")),  # a temporary folder, of a random name
        "save_huggingface": Stand(reached, without=("folder",)),
        "embed_vocabulary": Stand(rows_of),
        "tower_digest": UNSEEN,
        # F-ViT
        "take_apart": Stand(give(SimpleNamespace(classes=32, text=None, unused=[]))),
        "put_tower": NOTHING,
        "classes_of_annotations": THROUGH,
        "published_benchmark": Stand(give("ov-coco")),
        "published_network": Stand(lambda given: FViTNetwork(given["size"], None, "taps", 8, 8, *NETWORK)),
        "fvit.published:build_published": NOTHING,
        "save_detector": Stand(reached, without=("folder",)),
        # CAT-Seg
        "catseg.published:write_published": Stand(reached, without=("folder",)),
        # ODISE
        "odise_file:rename": Stand(give(SimpleNamespace(state={"head.text.weight": torch.zeros(1, WIDTH)}))),
        "odise_file:network_of": NOTHING,
        "build_odise": LAST,
    },
    {
        "source": To("", instead="another {out}/c", reaches="load"),
        "out": To("", instead="foveate-small {out}/d", reaches="folder_written_whole"),
        "to": To("--to hf", reaches="save_huggingface"),
        "model": To("--model ViT-B-32", reaches="load"),
        "text_from": To("--text-from another", reaches="load"),
        "dtype": To("--dtype float16", reaches="save_clip"),
        "clip": To("--clip another", base=OF_FVIT, reaches="load save_detector"),
        "pretrained": To("--pretrained weights.pt", base=OF_FVIT, reaches="load save_detector"),
        "annotations": To("--annotations {world}/annotations/instances_val2017.json", base=OF_FVIT,
                          reaches="classes_of_annotations"),
        "labels": To("--labels {labels}", base=OF_ODISE, reaches="build_odise"),
        "encoder": To("--encoder {other_diffusion}", base=OF_ODISE, reaches="network_of"),
        "novel": To("--novel {novel}", base=OF_FVIT, reaches="classes_of_annotations save_detector"),
        "benchmark": To("--benchmark ov-lvis-b", base=OF_FVIT, reaches="save_detector"),
        "size": To("--size 64", base=OF_FVIT, reaches="published_network save_detector"),
        "residual": To("--residual cls", base="catseg.pth {out}/c", reaches="write_published"),
        "classes": To("--classes 'dog, cat'", base="catseg.pth {out}/c", reaches="write_published"),
    },
)  # fmt: skip
NETWORK = (False, 10, 0, False, True, "imagenet", "bilinear")
ADE_FULL = Case(
    "{images} --out {out}/maps",
    {
        "list_ade_full": Stand(give(SimpleNamespace(ids=()))),
        "data.labels:read_labels": THROUGH,
        "convert_ade_full": Stand(give(0)),
    },
    {
        "root": To("", instead="{more} --out {out}/maps", reaches="list_ade_full convert_ade_full"),
        "out": To("--out {out}/other", reaches="convert_ade_full"),
        "split": To("--split train", reaches="convert_ade_full"),
        "labels": To("--labels {labels}", reaches="read_labels convert_ade_full"),
    },
)
CONTEXT = Case(
    "{images} --out {out}/maps --labels {labels}",
    {
        "read_context_labels": Stand(lambda given: SimpleNamespace(ids=(), path=given["path"])),
        "convert_context": Stand(give(0)),
    },
    {
        "mats": To("", instead="{more} --out {out}/maps --labels {labels}", reaches="convert_context"),
        "out": To("--out {out}/other", reaches="convert_context"),
        "labels": To("--labels {names}", reaches="convert_context"),
        "only": To("--only {names}", reaches="convert_context"),
    },
)
WORLD = Case(
    "{out}/w",
    {"write_world": Stand(give(None), without=("progress",))},
    {
        "folder": To("", instead="{out}/v"),
        "train": "--train 1",
        "val": "--val 1",
        "test": "--test 1",
        "pairs": "--pairs 1",
        "seed": "--seed 1",
        "processes": "--processes 1",
    },
)

# ------------------------------------------------------------------------------------------------ demo and reproduction

DEMO = Case(
    "--out {out}/demo --device cpu",
    {
        **MEASURED,
        "write_world": Stand(give(None), without=("progress",)),
        "open_data": Stand(give(Dataset("test", (), (), {}))),
        "evaluate_regions": Stand(give({})),
        "evaluate_agreement": Stand(give({})),
        "colour_bound": Stand(give({})),
        "distill:run": NOTHING,
        "kmeans_sheet": LAST,
    },
    {
        "out": To("--out {out}/other", reaches="write_world open_data run load kmeans_sheet"),
        "train": To("--train 7", reaches="write_world"),
        "test": To("--test 7", reaches="write_world"),
        "steps": To("--steps 7", reaches="run"),
        "agreement": To("--agreement 7", reaches="evaluate_agreement"),
        "seed": To("--seed 1", reaches="write_world run evaluate_agreement"),
        "device": To("--device cuda", reaches="choose_device run"),
    },
)
RECIPES = Case("", {}, {"name": To("", instead="world"), "json": "--json"}, prints=True)
TABLES = "--out {out}/r --dry-run --device cpu"
REPRODUCE = Case(
    f"tab1 {TABLES}",
    {
        "_run_all": Stand(give({})),
        "page:write_results": Stand(give([])),
        "write_page": NOTHING,
    },
    {
        "tables": To("", instead=f"tab2 {TABLES}"),
        "on": "--on {world}",
        "out": "--out {out}/s",
        "results": To("--results {out}/rows", base="tab1 --out {out}/r", reaches="write_results write_page"),
        "page": To("--page {out}/page.md", base="tab1 --out {out}/r", reaches="write_page"),
        "model": To("--model ViT-B-16 --pretrained w.pt"),
        "pretrained": To("--pretrained v.pt", given="--model ViT-B-16 --pretrained w.pt"),
        "cnn": To("--cnn RN50 --cnn-pretrained w.pt", base=f"figs {TABLES}"),
        "cnn_pretrained": To("--cnn-pretrained v.pt", base=f"figs {TABLES} --cnn RN50 --cnn-pretrained w.pt"),
        "seeds": "--seeds 5",
        "steps": "--steps 7",
        "limit": "--limit 7",
        "jobs": To("--jobs 1", base="tab1 --out {out}/r", reaches="_run_all"),
        "workers": "--workers 1",
        "device": "--device cuda",
        "dry_run": To("--dry-run", base="tab1 --out {out}/r", reaches="_run_all write_page"),
    },
    prints=True,
)

CASES = {
    "demo": DEMO,
    "segment": SEGMENT,
    "detect": DETECT,
    "distill": DISTILL,
    "evaluate regions": REGIONS,
    "show similarity": SIMILARITY,
    "train-fvit": TRAIN_FVIT,
    "train-catseg": TRAIN_CATSEG,
    "train-panoptic": TRAIN_PANOPTIC,
    "proposals": PROPOSALS,
    "pretrain": PRETRAIN,
    "evaluate agreement": AGREEMENT,
    "evaluate retrieval": RETRIEVAL,
    "evaluate global": GLOBAL,
    "evaluate pareto": PARETO,
    "evaluate detection": DETECTION,
    "evaluate semantic": SEMANTIC,
    "evaluate panoptic": PANOPTIC,
    "embed": EMBED,
    "show kmeans": KMEANS,
    "show sizes": SIZES,
    "convert": CONVERT,
    "export": EXPORT,
    "world": WORLD,
    "convert-maps ade-full": ADE_FULL,
    "convert-maps context": CONTEXT,
    "recipes": RECIPES,
    "reproduce": REPRODUCE,
}
"""By the words of the command."""

UNRECORDED = {
    (words, "out"): "the JSON file that the finished measurement is written to"
    for words in CASES
    if words.startswith("evaluate ")
}
"""Fields whose value changes no recorded call, by command and name, with the reason."""
