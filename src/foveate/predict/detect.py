"""`foveate detect`: detections of a trained F-ViT for any vocabulary, drawn and in COCO's form."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.clip.io.digest import digest_state
from foveate.clip.names import TemplateName
from foveate.clip.text import embed_vocabulary
from foveate.clip.vocabulary import Vocabulary, read_vocabulary, share_words
from foveate.data.batches import Batches
from foveate.engine.distributed import choose_device
from foveate.errors import InputError
from foveate.heads.fvit.detector import FViT
from foveate.heads.fvit.fusion import PRESETS, Fusion, detect, detected_rows
from foveate.heads.fvit.names import Benchmark
from foveate.heads.fvit.product import About, load_detector
from foveate.io.files import default_cache, versions
from foveate.io.store import hold_folder
from foveate.predict.flags import Detect, Fusing
from foveate.predict.images import check_drawings, file_stems, keeping_files, open_images, write_record
from foveate.show.detections import draw_detections, write_image
from foveate.types import Detections, Sample


def run(config: Detect) -> Path:
    """Detect, draw, write detections.json, and return its path."""
    _check(config)
    requested = None if config.vocab is None else read_vocabulary(config.vocab)
    batches = open_images(config.images, batch=config.batch, workers=config.workers, strict=config.strict)
    check_drawings(config, batches, suffixes=(".jpg",))
    with hold_folder(config.out):
        return _detect(config, batches, requested)


def _detect(config: Detect, batches: Batches, requested: Vocabulary | None) -> Path:
    detector, about = open_detector(config.model, clip=config.clip, device=config.device)
    vocabulary = requested or Vocabulary(tuple((name,) for name in about.classes))
    is_base = trained_on(vocabulary, about)
    report_vocabulary(vocabulary.names, is_base, about)
    fusion = choose_fusions(config, about.benchmark, () if config.fusion is None else (config.fusion,))[0]
    text = embed_classes(detector, vocabulary, templates=config.templates or about.templates)

    # one drawing and one entry of COCO's form per image
    stems = file_stems([str(record.id) for record in batches.dataset.records])
    is_novel = [not base for base in is_base]
    images, annotations, drawn = [], [], 0
    with keeping_files(config.out):
        for sample, detections in find_objects(detector, batches, text=text, is_base=is_base, fusion=fusion):
            drawing = draw_detections(
                sample.image, detections, names=vocabulary.names, is_novel=is_novel, min_score=config.draw
            )
            write_image(drawing, config.out / f"{stems[sample.id]}.jpg", made_by=config.made_by)
            drawn += int((detections.scores >= config.draw).sum())
            number, (height, width) = len(images) + 1, sample.image.shape[1:]
            images.append({"id": number, "file_name": sample.id, "height": height, "width": width})
            annotations += coco_annotations(detections, image_id=number, first_id=len(annotations) + 1)
    categories = [{"id": number, "name": name} for number, name in enumerate(vocabulary.names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = write_record(config, {"model": str(config.model), "fusion": asdict(fusion)}, content, batches, indent=None)
    print(f"{len(images)} images, {len(annotations)} boxes, {drawn} drawn; see {config.out}")
    return path


def _check(config: Detect) -> None:
    """Refuse flags that cannot work before anything is loaded."""
    if config.out.exists() and not config.out.is_dir():
        raise InputError(f"--out {config.out}: need a folder; this is a file.")
    if not 0 <= config.draw <= 1:
        raise InputError(f"--draw: must be 0 to 1; got {config.draw}.")


def open_detector(folder: Path, *, clip: str | None, device: str) -> tuple[FViT, About]:
    """Load OUT/model of `foveate train-fvit`; `clip` is the path to its CLIP, by default as in training.

    Raises:
        InputError: no detector, or its CLIP is not found or is another.
    """
    return load_detector(folder, clip=clip, device=choose_device(device, local_rank=None))


def find_objects(
    detector: FViT, batches: Batches, *, text: Tensor, is_base: list[bool], fusion: Fusion
) -> Iterator[tuple[Sample, Detections]]:
    """Detect in every readable image; `text` (K + 1, D) embeds the classes and, last, background."""
    query = (text, torch.tensor(is_base), float(detector.scale.detach()), fusion)
    for samples in batches:
        per_image = detector.candidates(samples, masked=lambda candidates: detected_rows(candidates, *query))
        for sample, candidates in zip(samples, per_image, strict=True):
            yield sample, detect(candidates, *query)


def trained_on(vocabulary: Vocabulary, about: About) -> list[bool]:
    """Which classes of a vocabulary a detector was trained on: the base classes in the fusion of scores."""
    return share_words(vocabulary, Vocabulary(tuple((name,) for name in about.base)))


def report_vocabulary(names: tuple[str, ...], is_base: list[bool], about: About) -> None:
    """Print how many classes of a vocabulary the detector was trained on."""
    base = f"{sum(is_base)} of the {len(about.base)} base classes of the training"
    print(f"{len(names)} classes: {base}, and {len(names) - sum(is_base)} novel ones", file=sys.stderr)


def candidates_identity(detector: FViT, about: About) -> dict[str, str]:
    """What a detector's candidates depend on."""
    state = {key: value for key, value in detector.state_dict().items() if not key.startswith("tower.clip.model.text")}
    network = json.dumps(
        asdict(about.network), sort_keys=True
    )  # has settings that the weights do not, as the input size
    return {"detector": digest_state(state), "tower": about.tower, "network": network, **versions()}


def embed_classes(detector: FViT, vocabulary: Vocabulary, *, templates: TemplateName | str) -> Tensor:
    """The embeddings of K classes and, last, of background, by the detector's CLIP: (K + 1, D)."""
    name: Any = templates
    clip = detector.tower.clip
    return embed_vocabulary(clip, vocabulary, templates=name, background="background", cache=default_cache())


def choose_fusions(config: Fusing, benchmark: Benchmark | str, weights: tuple[str, ...]) -> list[Fusion]:
    """The fusion of a benchmark, changed by the flags, for each pair of weights of the tower's score.

    Args:
        benchmark: that the detector was trained for.
        weights: pairs "base,novel", of base and of novel classes; empty: the benchmark's.

    Raises:
        InputError: a pair is not two numbers in [0, 1].
    """
    name: Any = config.benchmark or benchmark
    changes: dict[str, Any] = {"temperature": config.temperature, "detector_temperature": config.detector_temperature}
    changes |= {"min_score": config.min_score, "nms": config.nms, "keep": config.max_boxes}
    preset = replace(PRESETS[name], **{field: value for field, value in changes.items() if value is not None})
    pairs = [_weight_pair(text) for text in weights] or [(preset.base, preset.novel)]
    return [replace(preset, base=base_weight, novel=novel_weight) for base_weight, novel_weight in pairs]


def _weight_pair(text: str) -> tuple[float, float]:
    """Two numbers in [0, 1] separated by a comma."""
    try:
        base, novel = (float(part) for part in text.split(","))
    except ValueError:
        base = novel = -1.0
    if not (0 <= base <= 1 and 0 <= novel <= 1):
        raise InputError(
            f"--fusion: must be two numbers in [0, 1] such as 0.1,0.8 (of base and of novel classes); got {text}."
        )
    return base, novel


def coco_annotations(detections: Detections, *, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """The detections of an image in COCO's form, with scores; categories are numbered from 1."""
    rows = zip(
        detections.boxes.tolist(),
        detections.scores.tolist(),
        detections.labels.tolist(),
        detections.masks or [None] * len(detections.boxes),
        strict=True,
    )
    annotations = []
    for number, (box, score, label, mask) in enumerate(rows, start=first_id):
        sides = [round(side, 2) for side in (box[0], box[1], box[2] - box[0], box[3] - box[1])]
        entry = {"id": number, "image_id": image_id, "category_id": label + 1, "bbox": sides}
        entry |= {"score": round(score, 5), "area": round(sides[2] * sides[3], 2), "iscrowd": 0}
        annotations.append(entry if mask is None else {**entry, "segmentation": mask})
    return annotations
