"""The wiring of the commands that train."""

from typing import Any

import torch
from recording import Stand, reached
from wiring import CPU, LABEL_MAPS, NOTHING, THROUGH, UNSEEN, Case, To, give, rows_of, tiny_clip

from foveate.clip.io.describe import read_config
from foveate.clip.model import Clip
from foveate.data.label_maps import open_semantic
from foveate.engine.fit import Outcome
from foveate.heads.catseg.model import CatSeg
from foveate.heads.catseg.product import build_catseg
from foveate.heads.panoptic.product import build_parts
from foveate.train.flags import SMALL_CONFIG
from foveate.types import Batch, Sample


def build_small_catseg(arguments: dict[str, Any]) -> CatSeg:
    """A CAT-Seg, but for those that a large network guides."""
    return reached(arguments) if arguments["network"].backbone else build_catseg(**arguments)


def build_small_parts(arguments: dict[str, Any]) -> Any:
    """Encoder and decoder of a mask generator, but for an encoder that lies in a folder."""
    return reached(arguments) if arguments["network"].encoder else build_parts(**arguments)


def one_batch(arguments: dict[str, Any]) -> list[Batch]:
    """The first image of a data set, black."""
    record = arguments["source"].dataset.records[0]
    boxes = torch.zeros(len(record.boxes), 4)
    return [Batch([Sample(str(record.id), torch.zeros(3, 8, 8, dtype=torch.uint8), boxes)], [])]


def small_clip(arguments: dict[str, Any]) -> Clip:
    """A tiny CLIP that is described as the shipped one."""
    clip = tiny_clip(arguments)
    clip.config = read_config(SMALL_CONFIG)
    return clip


def pairs(arguments: dict[str, Any]) -> tuple[torch.Tensor, list[str], list[str]]:
    """Five black images, their captions and names of the folder that they are of."""
    captions = [f"{arguments['folder'].name} {number}" for number in range(5)]
    return torch.zeros(5, 3, 8, 8, dtype=torch.uint8), captions, captions


def tokens_of(arguments: dict[str, Any]) -> torch.Tensor:
    """The tokens of as many texts, all different."""
    return torch.arange(len(arguments["texts"]))[:, None].expand(-1, 32)


def through_all(arguments: dict[str, Any]) -> Outcome:
    """A run that reads all its batches."""
    for _ in arguments["loader"]:
        pass
    return Outcome(arguments["steps"], good=1)


TRAINING = {
    "clip.load:load": Stand(tiny_clip),
    "choose_device": CPU,
    "joined": THROUGH,
    "open_data": THROUGH,
    "make_loader": Stand(give([])),
    "held_out_batches": THROUGH,
    "BatchSampler": THROUGH,
    "digest_module": UNSEEN,
    "import_tracker": NOTHING,
    "choose_sinks": Stand(give([]), without=("config",)),
    "Guard": Stand(without=("log",)),
    "accept_images": Stand(give([]), without=("config", "listings")),
    "measure_pass": Stand(give(None), recorded=False),
    "collect": Stand(give({}), recorded=False),
    "best_tensors": Stand(give({})),
    "engine.checkpoint:restore": Stand(give(None), recorded=False),
    "compile_tower": Stand(give(None), without=("clip",)),
    "embed_vocabulary": Stand(rows_of),
    # facts are the run's identity, in which every flag is; of the log and the guard their own calls are compared
    "fit": Stand(lambda given: Outcome(given["steps"], good=1), without=("facts", "log", "guard")),
    "Log": Stand(without=("sinks",)),
}

RUN_FIELDS = {
    "data": To("--data {other}", reaches="make_loader"),
    "out": To("--out {out}/another", reaches="fit"),
    "steps": To("--steps 4", reaches="fit BatchSampler Log"),
    "batch": To("--batch 3", given="--validate {world}", reaches="BatchSampler make_loader*"),
    "lr": To("--lr 0.1", reaches="fit"),
    "seed": To("--seed 1", reaches="load BatchSampler fit"),
    "log_every": To("--log-every 3", reaches="Log"),
    "save_every": To("--save-every 2", reaches="fit"),
    "validate": To("--validate {other}", reaches="held_out_batches make_loader fit"),
    "product": To("--product best", given="--validate {world}", reaches="best_tensors"),
    "skip_nonfinite": To("--skip-nonfinite 3", reaches="Guard"),
    "track": To("--track wandb", reaches="import_tracker choose_sinks"),
    "device": To("--device cuda", reaches="choose_device"),
    "compile": To("--compile", reaches="compile_tower"),
    "dry_run": To("--dry-run", reaches="fit"),
    "allow_changed_data": To("--allow-changed-data", reaches="accept_images"),
}
"""The flags of every run that trains."""
ACCEPTED = {"accept_annotations": To("--accept-annotations", given="--validate {world}", reaches="open_data*")}
"""The flag of every run that reads annotated boxes."""
READER_FIELDS = {
    "model": To("--model another", reaches="load"),
    "pretrained": To("--pretrained weights.pt", reaches="load"),
    "workers": To("--workers 1", given="--validate {world}", reaches="make_loader*"),
    "strict": To("--strict", reaches="make_loader"),
}
"""The flags of every run that trains on images of a data set and starts from a CLIP."""

DISTILL = Case(
    "--data {world} --out {out}/run --steps 3 --batch 2 --size 96 --workers 0 --device cpu",
    {
        **TRAINING,
        "ImageSource": THROUGH,
        "ClipSelf": Stand(without=("student", "teacher")),  # both are in what `fit` is given
        "ImageText": Stand(without=("student",)),
        "build_optimizer": Stand(without=("module", "partly")),
        "with_captions": THROUGH,
        "with_boxes": THROUGH,
        "check_provenance": THROUGH,
        "count_nouns": Stand(give([("tree", 9), ("sky", 7)])),
        "shard_student": NOTHING,
        "engine.product:write_product": NOTHING,
    },
    {
        **RUN_FIELDS,
        **READER_FIELDS,
        "accept_annotations": (
            ACCEPTED["accept_annotations"],
            To("--accept-annotations", given="--regions {boxes}", reaches="with_boxes"),
        ),
        "data": To("--data {other}", reaches="open_data"),
        "out": To("--out {out}/another", reaches="fit write_product"),
        "split": To("--split val", reaches="open_data"),
        "annotations": To("--annotations {instances}", reaches="open_data"),
        "batch": To("--batch 1", given="--validate {world}", reaches="BatchSampler make_loader*"),
        "accumulate": To("--accumulate 2", reaches="fit BatchSampler"),
        "weight_decay": To("--weight-decay 0.3", reaches="build_optimizer fit"),
        "betas": To("--betas 0.9 0.98", reaches="fit"),
        "eps": To("--eps 1e-6", reaches="fit"),
        "warmup": To("--warmup 2", reaches="fit"),
        "layers": To("--layers 1", reaches="fit"),
        "objective": To("--objective image-text", reaches="ClipSelf ImageText ImageSource"),
        "captions": (
            To("--captions {captions}", given="--objective image-text", reaches="with_captions"),
            To("--captions {captions}", given="--objective region-text", reaches="with_captions"),
            To("--captions {names}", given="--objective region-text", reaches="count_nouns embed_vocabulary"),
        ),
        "regions": (
            To("--regions annotations", given="--validate {world}", reaches="open_data* ImageSource* ClipSelf"),
            To("--regions {boxes}", reaches="check_provenance with_boxes ImageSource ClipSelf"),
        ),
        "grid": To("--grid 4", given="--validate {world}", reaches="ImageSource*"),
        "grid_rule": To("--grid-rule all", given="--validate {world}", reaches="ImageSource*"),
        "max_regions": To("--max-regions 7", given="--validate {world}", reaches="ImageSource*"),
        "size": To("--size 64", reaches="ClipSelf"),
        "pad": To("--pad zero", reaches="fit"),
        "head": (
            To("--head values3", reaches="ClipSelf fit"),
            To("--head gated", given="--head values3", reaches="fit"),
        ),
        "window": To("--window 2", reaches="fit"),
        "keep": To("--keep 0.5", reaches="ClipSelf"),
        "correlation": To("--correlation 0.5", reaches="ClipSelf"),
        "alpha": To("--alpha 0.5", reaches="write_product"),
        "seed": To("--seed 1", reaches="load ImageSource BatchSampler fit"),
        "validate": To("--validate {other}", reaches="open_data make_loader fit"),
        "precision": To("--precision bfloat16", reaches="ClipSelf"),
        "tokens": To("--tokens valid", reaches="ClipSelf"),
        "compile": To("--compile", reaches="ClipSelf"),
        "checkpointing": To("--checkpointing", reaches="ClipSelf"),
        "fsdp": To("--fsdp", reaches="shard_student"),
        "dry_run": To("--dry-run", reaches="fit write_product"),
        "recipe": To("--recipe clipself-b16-values3-gates", reaches="ClipSelf fit write_product"),
    },
)
HEADS = {**TRAINING, "tower_digest": UNSEEN}
HEAD_FIELDS = {
    **RUN_FIELDS,
    **READER_FIELDS,
    "split": To("--split val", reaches="make_loader"),
    "novel": To("--novel {novel}", reaches="fit"),
    "accumulate": To("--accumulate 2", reaches="fit BatchSampler"),
    "weight_decay": To("--weight-decay 0.3", reaches="fit"),
    "clip_gradient": To("--clip-gradient 0.3", reaches="fit"),
    "warmup": To("--warmup 2", reaches="fit"),
    "precision": To("--precision bfloat16", reaches="fit"),
}
SHORT = "--data {world} --out {out}/run --model another --workers 0"
RUN = "--data {world} --out {out}/run --steps 3 --batch 2 --workers 0 --device cpu"

TRAIN_FVIT = Case(
    f"{RUN} --size 64 --channels 8 --warmup 1",
    {
        **HEADS,
        "FViT": Stand(without=("clip",)),
        "FeatureCache": Stand(without=("clip",)),
        "save_detector": Stand(give(None), without=("detector",)),
    },
    {
        **HEAD_FIELDS,
        **ACCEPTED,
        "annotations": To("--annotations {instances}", reaches="open_data"),
        "recipe": To("--recipe world-fvit", base=SHORT, reaches="fit"),
        "milestones": To("--milestones 2", reaches="fit"),
        "size": To("--size 32", reaches="FViT save_detector"),
        "jitter": To("--jitter 0.5 1", reaches="FViT"),
        "augment": To("--no-augment", reaches="FViT"),
        "cache": To("--cache", given="--no-augment", reaches="FeatureCache fit"),
        "masks": To("--masks", reaches="open_data make_loader FViT save_detector"),
        "lvis_heads": To("--lvis-heads", reaches="FViT save_detector"),
        "relu_embedding": To("--no-relu-embedding", reaches="FViT save_detector"),
        "statistics": To("--statistics clip", reaches="FViT save_detector"),
        "resize": To("--resize bicubic", reaches="FViT save_detector"),
        "background_weight": To("--background-weight 0.3", reaches="FViT"),
        "pyramid": To("--pyramid fpn", reaches="FViT save_detector"),
        "taps": To("--taps 0 1 2", reaches="FViT save_detector"),
        "layers": To("--layers 1", reaches="FViT fit save_detector"),
        "layer_decay": To("--layer-decay 0.3", given="--layers 2", reaches="fit"),
        "channels": To("--channels 16", reaches="FViT save_detector"),
        "templates": To("--templates clip", reaches="embed_vocabulary save_detector"),
        "benchmark": To("--benchmark ov-lvis-b", reaches="save_detector"),
    },
)

TRAIN_CATSEG = Case(
    f"{RUN} --size 64 --channels 8 --depth 1",
    {
        **HEADS,
        "open_semantic": Stand(lambda given: open_semantic(given["root"], split=given["split"])),
        "read_backbone": Stand(give({})),
        "Clip.tokenize": Stand(tokens_of),
        "build_catseg": Stand(build_small_catseg, without=("clip",)),
        "save_catseg": Stand(give(None), without=("catseg",)),
    },
    {
        **HEAD_FIELDS,
        **LABEL_MAPS,
        "recipe": To("--recipe world-catseg", base=SHORT, reaches="fit"),
        "clip_lr": To("--clip-lr 0.5", reaches="fit"),
        "version": To("--version 2023 --backbone resnet101", reaches="build_catseg save_catseg"),
        "residual": To("--residual token", reaches="build_catseg save_catseg"),
        "backbone": To("--backbone resnet50", given="--version 2023 --backbone resnet101", reaches="build_catseg"),
        "backbone_weights": To(
            "--backbone-weights none", given="--version 2023 --backbone resnet101", reaches="build_catseg"
        ),
        "size": To("--size 96", reaches="build_catseg save_catseg"),
        "channels": To("--channels 16", reaches="build_catseg save_catseg"),
        "depth": To("--depth 2", reaches="build_catseg save_catseg"),
        "augment": To("--no-augment", reaches="build_catseg"),
    },
)

TRAIN_PANOPTIC = Case(
    f"{RUN} --size 64 --depth 2 --queries 5 --channels 16",
    {
        **HEADS,
        "build_parts": Stand(build_small_parts, without=("clip",)),
        "MaskGenerator": Stand(without=("encoder", "decoder")),
        "Clip.tokenize": Stand(tokens_of),
        "save_generator": Stand(give(None), without=("generator",)),
    },
    {
        **HEAD_FIELDS,
        **ACCEPTED,
        "recipe": To("--recipe world-panoptic", base=SHORT, reaches="fit"),
        "class_names": To("--no-class-names", reaches="MaskGenerator save_generator"),
        "labels": To("--labels {labels}", reaches="embed_vocabulary save_generator"),
        "templates": To("--templates clip", reaches="embed_vocabulary save_generator"),
        "embeddings": To("--embeddings unit", reaches="embed_vocabulary MaskGenerator save_generator"),
        "encoder": To("--encoder {encoder}", base=RUN, reaches="build_parts"),
        "milestones": To("--milestones 2", reaches="fit"),
        "size": To("--size 32", reaches="build_parts MaskGenerator save_generator"),
        "jitter": To("--jitter 0.5 1", reaches="MaskGenerator"),
        "augment": (
            To("--no-augment", reaches="MaskGenerator"),
            To("--no-augment", given="--jitter 0.5 1", reaches="MaskGenerator"),
        ),
        "pyramid": To("--pyramid fpn", reaches="build_parts save_generator"),
        "taps": To("--taps 0 1 2", reaches="build_parts save_generator"),
        "channels": To("--channels 32", reaches="build_parts save_generator"),
        "queries": To("--queries 6", reaches="build_parts save_generator"),
        "depth": To("--depth 1", reaches="build_parts save_generator"),
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
        "recall_of": Stand(give({"base": {}, "novel": {}}), without=("images",)),
    },
    {
        **RUN_FIELDS,
        **READER_FIELDS,
        **ACCEPTED,
        "split": HEAD_FIELDS["split"],
        "accumulate": HEAD_FIELDS["accumulate"],
        "out": To("--out {out}/another", reaches="fit write_proposals"),
        "novel": To("--novel {novel}", reaches="make_loader write_proposals recall_of"),
        "batch": To("--batch 3", given="--validate {world}", reaches="BatchSampler make_loader*"),
        "model": (To("--model another", reaches="load"), To("--model conv", reaches="load fit")),
        "annotations": To("--annotations {instances}", reaches="open_data"),
        "images": To("--images {world}/val2017", reaches="open_data make_loader write_proposals"),
        "size": To("--size 32", reaches="Proposer"),
        "channels": To("--channels 16", reaches="Proposer fit"),
        "augment": To("--no-augment", reaches="Proposer"),
        "max_boxes": To("--max-boxes 7", reaches="Proposer.propose recall_of"),
        "min_score": To("--min-score 0.1", reaches="Proposer.propose"),
        "nms": To("--nms 0.5", reaches="Proposer.propose"),
    },
)

PRETRAIN = Case(
    "--data {world} --out {out}/run --steps 3 --batch 2 --warmup 1 --whole-steps 1 --device cpu",
    {
        **{name: stand for name, stand in TRAINING.items() if name not in ("compile_tower", "open_data")},
        "clip.load:load": Stand(small_clip),
        "clip.io.describe:build": Stand(lambda given: tiny_clip(given).model),
        "Clip.tokenize": Stand(tokens_of),
        "read_pairs": Stand(pairs),
        "_pair": Stand(without=("images", "captions")),
        "Contrastive": Stand(without=("clip",)),  # it is in what `fit` is given
        "MuonAndAdamW": Stand(without=("model",)),
        "train.pretrain:_compile": Stand(give(None), without=("clip",)),
        "fit": Stand(through_all, without=("facts", "log", "guard")),
        "clip.io.weights:save_clip": Stand(give(None), without=("clip",)),
    },
    {
        **RUN_FIELDS,
        "data": To("--data {other}", reaches="read_pairs"),
        "out": To("--out {out}/another", reaches="fit save_clip"),
        "config": To("--config residual", reaches="build"),
        "text_from": To("--text-from another", reaches="load fit"),
        "steps": To("--steps 4", reaches="fit Log Contrastive _pair"),
        "batch": To("--batch 3", reaches="_pair"),
        "lr": To("--lr 0.1", reaches="fit MuonAndAdamW"),
        "warmup": To("--warmup 2", reaches="fit"),
        "patch_dropout": To("--patch-dropout 0.3", reaches="Contrastive fit"),
        "whole_steps": To("--whole-steps 2", reaches="Contrastive fit"),
        "seed": To("--seed 1", reaches="build Contrastive _pair fit"),
        "validate": To("--validate {other}", reaches="read_pairs Contrastive fit"),
        "compile": To("--compile", reaches="_compile"),
    },
)

CASES = {
    "distill": DISTILL,
    "train-fvit": TRAIN_FVIT,
    "train-catseg": TRAIN_CATSEG,
    "train-panoptic": TRAIN_PANOPTIC,
    "proposals": PROPOSALS,
    "pretrain": PRETRAIN,
}
"""By the words of the command."""
