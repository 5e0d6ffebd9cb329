"""`foveate distill`: CLIPSelf, or a baseline of it, from a folder of images to a model folder (Sec. 3.2).

OUT/model is the product (alpha-mixed, an open_clip model folder). With another number of processes, another --batch or
--accumulate CLIPSelf resumes from the same image, and reports what stays equal.
"""

import hashlib
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from foveate.clip.dense import last_block_use
from foveate.clip.io.describe import CONFIG_FILE
from foveate.clip.io.weights import WEIGHTS_FILE
from foveate.clip.load import load
from foveate.data.captions import only_captioned, with_captions
from foveate.data.loader import ImageSource
from foveate.data.provenance import check_provenance
from foveate.data.records import Dataset
from foveate.data.regions import with_boxes
from foveate.data.sources import open_data
from foveate.data.splits import split_of, split_of_root
from foveate.engine.checkpoint import digest_module
from foveate.engine.distributed import Processes
from foveate.engine.fit import Update
from foveate.engine.optim import build_optimizer, learning_rate
from foveate.engine.product import write_product
from foveate.engine.shard import shard_student
from foveate.errors import InputError
from foveate.objectives.clipself import ClipSelf, train_layers
from foveate.train import run as driver
from foveate.train.batches import held_out_batches, listings_of, training_batches
from foveate.train.checks import check_distill
from foveate.train.defaults import boxes_file, hyperparameters, learns_from_captions, regions_of
from foveate.train.flags import HELD_OUT, DistillConfig
from foveate.train.objective import build_objective, choose_count, choose_nouns, dense_head, trained_head
from foveate.train.recipe import batch_notes, check_recipe_data
from foveate.train.report import Report
from foveate.train.run import SHARED, Trainable


def run(config: DistillConfig) -> None:
    """Distil, or resume, and write the CLIP; see `foveate.train.run.run`."""
    check_distill(config)
    driver.run(config, prepare)


def prepare(config: DistillConfig, processes: Processes, report: Report) -> Trainable:
    """Images, towers and objective, as `foveate.train.run.Prepare`; the teacher is the student before training."""
    source = open_images(config, progress=processes.is_first)
    held_out = _open_held_out(config)
    nouns, count = choose_nouns(config, source.dataset), choose_count(config)
    # the student, and a copy of it: no text was used, so no tokenizer exists yet
    student = load(config.model, pretrained=config.pretrained, device=str(processes.device), seed=config.seed)
    digest = digest_module(student) if processes.is_first else ""
    baseline = deepcopy(student)
    settings = hyperparameters(config, patch_size=student.patch_size)
    partly = train_layers(student, config.layers, head=trained_head(config), gates=config.head == "gated")
    objective = build_objective(config, student, baseline, student_size=settings.size, nouns=nouns)
    if config.fsdp and isinstance(objective, ClipSelf):
        shard_student(objective, processes=processes, bfloat16=config.precision == "bfloat16")
        # sharding replaced the parameters
        _, partly = last_block_use(student.visual, head=dense_head(config))
    if config.precision == "bfloat16":
        baseline = baseline.cpu()
    folder = config.out / "model"

    def save(tensors: dict[str, Tensor]) -> str:
        baseline.windows, baseline.pad = student.windows, student.pad
        write_product(baseline, tensors, folder, alpha=config.alpha)
        return f"foveate evaluate regions --model {folder} --data ..."

    def begin() -> None:
        if nouns is not None and processes.is_first:
            nouns.write(config.out)

    images_per_step = config.batch * config.accumulate * processes.size
    state = baseline.model.state_dict().values()
    return Trainable(
        name=student.name,
        objective=objective,
        optimizer=build_optimizer(
            objective, weight_decay=settings.weight_decay, betas=config.betas, eps=config.eps, partly=partly
        ),
        update=Update(
            partial(learning_rate, peak=settings.lr, warmup=settings.warmup, steps=config.steps),
            accumulate=config.accumulate,
            weight_decay=settings.weight_decay,
            partly=partly,
        ),
        count=count,
        images=len(source),
        listings=listings_of(source, held_out),
        batches=training_batches(config, source, processes),
        held_out=held_out_batches(config, held_out, processes),
        held_out_source=held_out,
        save=save,
        product=folder,
        files=(folder / WEIGHTS_FILE, folder / CONFIG_FILE),
        product_bytes=sum(tensor.numel() * tensor.element_size() for tensor in state),
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        metadata={
            **asdict(settings),
            **contents_of(config),
            "weights": digest,
            **({} if nouns is None else nouns.metadata()),
        },
        dataset=source.dataset,
        notes=[*batch_notes(config.recipe, images_per_step), *([] if nouns is None else [nouns.line()])],
        sharded=config.fsdp,
        may_change=may_change(config),
        begin=begin,
    )


def may_change(config: DistillConfig) -> tuple[str, ...]:
    """The fields that may change between the parts of one distillation, beside those of any run.

    How a step is computed and its images are shared depends on the machines at hand (`sharing_lines` reports what stays
    equal). The objectives that learn from text compare within a batch: with other batches they are different.
    """
    return (*(SHARED if config.objective == "clipself" else ()), "checkpointing", "fsdp")


def contents_of(config: DistillConfig) -> dict[str, str]:
    """The sha256 of the file of boxes and of the captions, whose contents identify the run.

    Captions are those of --captions, else those of a COCO root, if the objective learns from them.
    """
    standard = Path(config.data) / "annotations" / f"captions_{config.split}2017.json"
    captions = config.captions
    if captions is None and learns_from_captions(config) and standard.is_file():
        captions = standard
    digests = {}
    for name, path in {"boxes": boxes_file(config), "captions": captions}.items():
        if path is not None:
            with path.open("rb") as file:
                digests[f"{name}_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


# ---------------------------------------------------------------------------------------------------------- the images


def open_images(config: DistillConfig, *, progress: bool) -> ImageSource:
    """The data set of the run, with its regions."""
    boxes = boxes_file(config)
    dataset = open_data(
        config.data,
        split=config.split,
        annotations="instances" if config.regions == "annotations" else "none",
        annotation_file=config.annotations,
        accept=config.accept_annotations,
        progress=progress,
    )
    check_recipe_data(config.recipe, dataset.categories, root=config.data)
    if learns_from_captions(config):  # before the boxes, whose records have no texts of shards
        dataset = with_captions(dataset, root=config.data, split=config.split, file=config.captions)
    if boxes is not None:
        note = _check_boxes(config, boxes)
        dataset = with_boxes(dataset, boxes, accept=config.accept_annotations)
        dataset = dataset if note is None else replace(dataset, notes=(*dataset.notes, note))
    elif config.regions == "annotations":
        dataset = _note_novel(config, dataset)
    if config.objective == "image-text":
        dataset = only_captioned(dataset)
    return _source(config, dataset, seed=config.seed)


def _open_held_out(config: DistillConfig) -> ImageSource | None:
    """The held-out images, with the regions that are distilled."""
    if config.validate is None:
        return None
    annotations = "instances" if regions_of(config) == "boxes" else "none"
    dataset = open_data(config.validate, split=HELD_OUT, annotations=annotations, accept=config.accept_annotations)
    if config.objective == "image-text":
        dataset = only_captioned(with_captions(dataset, root=config.validate, split=HELD_OUT))
    if annotations == "instances" and not any(record.boxes for record in dataset.records):
        raise InputError(f"--validate {config.validate}: needs annotated boxes where boxes are distilled; got none."
                         f"{dataset.ignored_sentence()}")  # fmt: skip
    return _source(config, dataset, seed=0)


def _source(config: DistillConfig, dataset: Dataset, *, seed: int) -> ImageSource:
    return ImageSource(
        dataset,
        regions=regions_of(config),
        limit=config.grid,
        rule=config.grid_rule,
        keep=config.max_regions,
        seed=seed,
        captions=config.objective == "image-text",
    )


def _check_boxes(config: DistillConfig, boxes: Path) -> str | None:
    """Refuse boxes that were trained on novel categories; a note on their provenance."""
    split = split_of_root(config.data, split=config.split, annotations=config.annotations)
    if split is None:
        return check_provenance(boxes, None)
    categories = (*split.base, *split.novel, *split.excluded)
    return check_provenance(boxes, split.novel, known=categories)


def _note_novel(config: DistillConfig, dataset: Dataset) -> Dataset:
    """Note that annotated boxes include those of novel categories."""
    split = split_of(dataset, config.data)
    if split is None or not split.novel:
        return dataset
    note = (
        f"WARNING   --regions annotations: distils the annotated boxes of all categories, {len(split.novel)} novel "
        f"ones too ({split.rule}). For those of base categories alone give --regions FILE (see `foveate proposals`)."
    )
    return replace(dataset, notes=(*dataset.notes, note))
