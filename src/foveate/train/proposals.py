"""`foveate proposals`: train a small RPN on the boxes of base categories, and write its proposals.

OUT/proposals_SPLIT.json is what `foveate distill --regions` takes: COCO's form, with one category "object", a score per
box, and in `info.provenance` the training categories, by which `distill` refuses proposals trained on novel classes.
OUT/recall.json has the recall of base and novel objects of a held-out split. After a finished run the same command
writes the files again (with another --max-boxes, for example). Deliberately absent: several processes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor

from foveate.clip.load import load
from foveate.data.loader import EvaluationSource, OnceSampler, make_loader
from foveate.data.proposals import write_proposals
from foveate.data.records import Dataset, Record
from foveate.data.sources import open_data
from foveate.data.splits import BaseNovel, as_objects, only_with_objects, split_of
from foveate.engine.checkpoint import digest_module
from foveate.engine.distributed import Processes
from foveate.engine.fit import Update
from foveate.engine.optim import build_optimizer, learning_rate
from foveate.engine.stop import keeping
from foveate.errors import InputError
from foveate.evaluate.proposals import recall_of
from foveate.heads.proposals.pyramid import ConvPyramid, TowerPyramid
from foveate.heads.proposals.rpn import Proposer
from foveate.io.files import bad_lines, versions, write_whole
from foveate.objectives.student import compile_tower
from foveate.progress import image_bar
from foveate.train import run as driver
from foveate.train.batches import count_images, held_out_batches, listings_of, training_batches
from foveate.train.checks import check_proposals
from foveate.train.flags import CONV, HELD_OUT, SMALL_CLIP, Proposals
from foveate.train.heads import require_same_categories
from foveate.train.report import Report
from foveate.train.run import Trainable, require_one_process
from foveate.types import Sample

MAY_CHANGE = ("images", "max_boxes", "min_score", "nms")
"""Fields that may change between the parts of one run: they do not change the trained network."""
WARMUP, WEIGHT_DECAY = 20, 0.05


def run(config: Proposals) -> None:
    """Train, propose, measure recall; see `foveate.train.run.run`."""
    check_proposals(config)
    driver.run(config, prepare)


def prepare(config: Proposals, processes: Processes, report: Report) -> Trainable:
    """Images and network; see `foveate.train.run.Prepare`."""
    require_one_process(processes, "proposals")
    data = _open(config, report)
    proposer = _network(config, device=str(processes.device)).train()
    split, path = data.split, config.out / f"proposals_{config.split}.json"
    names = {"training_categories": list(split.base), "novel_categories": list(split.novel), "rule": split.rule}

    def save(tensors: dict[str, Tensor]) -> str:
        facts = {
            **names,
            "annotations": data.name,
            "model": _model_name(config),
            "steps": config.steps,
            "seed": config.seed,
            "version": versions()["foveate"],
        }
        root = config.images or config.data
        with keeping(lambda: "the trained network is saved, but the images are proposed for again"):
            boxes = _propose(config, proposer, data.proposed, report=report)
            write_proposals(path, boxes, [root / f"{config.split}2017", root], facts=facts)
            if data.measured is not None:
                boxes = _propose(config, proposer, data.measured, report=report)
                _measure(config, boxes, data.measured, split, facts=facts, report=report)
        return f"foveate distill --data {root} --regions {path} --out ..."

    source = EvaluationSource(data.objects, masks=False)
    return Trainable(
        name=_model_name(config),
        objective=proposer,
        optimizer=build_optimizer(proposer, weight_decay=WEIGHT_DECAY),
        update=Update(
            partial(learning_rate, peak=config.lr, warmup=WARMUP, steps=config.steps),
            accumulate=config.accumulate,
            weight_decay=WEIGHT_DECAY,
        ),
        count=count_images,
        images=len(source),
        listings=listings_of(source, data.held_out),
        batches=training_batches(config, source, processes),
        held_out=held_out_batches(config, data.held_out, processes),
        held_out_source=data.held_out,
        save=save,
        product=path,
        product_bytes=0,
        metadata={"pad": "black", "weights": digest_module(proposer), **names},
        dataset=data.objects,
        notes=[f"training on the boxes of {len(split.base)} categories ({split.rule})"],
        may_change=MAY_CHANGE,
    )


# ------------------------------------------------------------------------------------------------------------ the data


@dataclass(frozen=True)
class Data:
    """The data of a run."""

    objects: Dataset  # boxes of base categories, trained on
    proposed: Dataset  # images that get proposals
    measured: Dataset | None  # for recall
    held_out: EvaluationSource | None  # for the held-out loss
    split: BaseNovel
    name: str  # of the annotations


def _open(config: Proposals, report: Report) -> Data:
    """Open all data, before anything is written.

    Raises:
        InputError: no annotations, no boxes of base categories, or no held-out data as requested.
    """
    dataset = open_data(
        config.data, split=config.split, annotation_file=config.annotations, accept=config.accept_annotations
    )
    if not dataset.categories:
        raise InputError(
            f"--data {config.data}: need images with annotated boxes, which proposals are learned from; found none. "
            "Name a root of COCO, LVIS, Pascal VOC or Objects365, a world, or images with their COCO, LVIS or "
            "Objects365 JSON in --annotations. Images to make proposals for go into --images, and need no boxes."
        )
    # base categories only, where the data has a split
    split = split_of(dataset, config.data, file=config.novel)
    is_split = split is not None
    if split is None:
        report(f"{config.data}: has no split into base and novel categories; training on all. See --novel.")
        split = BaseNovel(tuple(category.name for category in dataset.categories), (), (), "all categories")
    images = None if config.images is None else open_data(config.images, split=config.split, annotations="none")
    objects = as_objects(dataset, split.base)
    if all(crowd for record in objects.records for crowd in record.crowd):
        raise InputError(
            f"--data {config.data}: need annotated boxes of base categories in split {config.split}; found none. "
            f"Is this the right root, split and --novel?{dataset.ignored_sentence()}"
        )
    return Data(
        objects=only_with_objects(objects) if is_split else objects,
        proposed=images or dataset,
        measured=_open_measured(config, dataset, report),
        held_out=_open_held_out(config, dataset, split),
        split=split,
        name=dataset.name,
    )


def _open_measured(config: Proposals, dataset: Dataset, report: Report) -> Dataset | None:
    """The annotated images on which recall is measured, if any exist."""
    if config.split == HELD_OUT:
        return None
    try:
        measured = open_data(config.data, split=HELD_OUT, accept=config.accept_annotations)
    except InputError as error:
        report(f"no recall is measured: {error}")
        return None
    if {category.name for category in measured.categories} != {category.name for category in dataset.categories}:
        report(f"no recall is measured: {measured.name} has other categories than {dataset.name}")
        return None
    return measured


def _open_held_out(config: Proposals, dataset: Dataset, split: BaseNovel) -> EvaluationSource | None:
    """The images on which the held-out loss is measured."""
    if config.validate is None:
        return None
    held_out = open_data(Path(config.validate), split=HELD_OUT, accept=config.accept_annotations)
    require_same_categories(held_out.categories, dataset.categories, root=config.validate)
    return EvaluationSource(only_with_objects(as_objects(held_out, split.base)), masks=False)


def _network(config: Proposals, *, device: str) -> Proposer:
    """The pyramid and its RPN, initialised from the seed, on the device."""
    # sizes and colour statistics follow the backbone
    mean, std, size = OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, 192
    is_small = config.model in (CONV, SMALL_CLIP)
    channels = config.channels or (64 if is_small else 128)
    if config.model != CONV:
        clip = load(config.model, pretrained=config.pretrained, device=device, seed=config.seed)
        if config.compile:
            compile_tower(clip)
        mean, std = clip.mean, clip.std
        size = size if is_small else min(64 * clip.patch_size, 1024)
        torch.manual_seed(config.seed)
        pyramid = TowerPyramid(clip, channels=channels)
    else:
        torch.manual_seed(config.seed)
        pyramid = ConvPyramid(channels=channels)
    return Proposer(
        pyramid,
        size=size if config.size is None else config.size,
        mean=mean,
        std=std,
        channels=channels,
        flip=config.augment,
    ).to(device)


# ----------------------------------------------------------------------------------------------------------- the files


def _propose(
    config: Proposals, proposer: Proposer, dataset: Dataset, *, report: Report
) -> Iterator[tuple[Record, Sample, list[list[float]], list[float]]]:
    """Each usable image of a data set with its record, its boxes (xyxy) and their scores, best first."""
    records = {str(record.id): record for record in dataset.records}
    source = EvaluationSource(dataset, masks=False)
    loader = make_loader(
        source, OnceSampler(len(source), batch=config.batch), workers=config.workers, strict=config.strict
    )
    propose = partial(proposer.propose, keep=config.max_boxes, min_score=config.min_score, nms=config.nms)
    bad: list[dict[str, str]] = []
    with image_bar(show=True) as bar:
        task = bar.add_task(f"proposals for {dataset.name}", total=len(source))
        for batch in loader:
            bad += [{"id": image.id, "reason": image.reason} for image in batch.bad]
            results = propose(batch.samples) if batch.samples else []
            for sample, (boxes, scores) in zip(batch.samples, results, strict=True):
                yield records[sample.id], sample, boxes.tolist(), scores.tolist()
            bar.advance(task, len(batch.samples) + len(batch.bad))
    for line in bad_lines(bad, listed="the image folder"):
        report(line)


def _measure(
    config: Proposals,
    boxes: Iterator[tuple[Record, Sample, list[list[float]], list[float]]],
    dataset: Dataset,
    split: BaseNovel,
    *,
    facts: dict[str, Any],
    report: Report,
) -> None:
    """Write and print the recall of held-out objects."""
    images = []
    for record, sample, proposed, _ in boxes:
        objects = [index for index, is_crowd in enumerate(record.crowd) if not is_crowd]
        labels = [dataset.categories[record.labels[index]].name for index in objects]
        images.append((sample.boxes[objects], labels, torch.tensor(proposed).reshape(-1, 4)))
    groups = {"base": split.base, "novel": split.novel}
    tops = sorted({min(10, config.max_boxes), config.max_boxes})
    result = {"split": dataset.name, "images": len(images), **recall_of(images, groups, tops=tops)}
    content = {**result, "provenance": facts, "versions": versions()}
    write_whole(config.out / "recall.json", (json.dumps(content, indent=2) + "\n").encode())
    for group in groups:
        numbers = ", ".join(f"{key} {value}" for key, value in result[group].items())
        report(f"{dataset.name}: {group}: {numbers}")


def _model_name(config: Proposals) -> str:
    """The model of the features; a folder by its last two names, without those of the machine."""
    path = Path(config.model)
    name = "/".join(path.parts[-2:]) if path.is_absolute() or path.is_dir() else config.model
    return name if config.pretrained is None else f"{name}, {Path(config.pretrained).name}"
